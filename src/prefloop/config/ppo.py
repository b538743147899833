"""Settings of PPO and its relatives, of their KL penalty and of the watch over their reward."""

from __future__ import annotations

from dataclasses import field
from typing import Literal

from pydantic.dataclasses import dataclass

from prefloop.config.base import STRICT, aside
from prefloop.config.common import OptimConfig, optim
from prefloop.config.ranges import (
    Count,
    Few,
    NotNegative,
    Positive,
    Rate,
    Ratio,
    Share,
    Sigmas,
    Weight,
    Whole,
)


@dataclass(config=STRICT)
class KLConfig:
    """Penalty for leaving the reference."""

    coef: NotNegative = 0.05
    """Weight of the KL to the reference, in nats; 0 for no penalty."""
    placement: Literal["auto", "reward", "loss"] = "auto"
    """reward: subtracted from the rewards token by token, so that the optimum is reference *
    exp(reward / coef); loss: a term of the loss, as in GRPO's paper, whose gradient is that of the
    forward KL. auto: loss for grpo, else reward.
    """
    estimator: Literal["auto", "k1", "k2", "k3"] = "auto"
    """Per-token estimator of KL(policy || reference), Schulman 2020: -log r; (log r)^2 / 2; r - 1 -
    log r. auto: k1 in rewards, k3 in the loss.
    """
    adaptive: bool = False
    """Steer coef towards target (Ziegler et al. 2019)."""
    target: Positive = 6.0
    """Sequence KL in nats that the adaptive controller aims for."""
    horizon: Count = 10_000
    """Responses over which the adaptive controller reacts."""
    stop: Positive | None = None
    """End training after the step whose rollout had a sequence KL above this many nats."""


@dataclass(config=STRICT)
class AlarmConfig:
    """When to think that the policy games its reward, and what to do then. Every limit must be
    passed by ``standard_errors`` standard errors, clustered by prompt, so that the noise of a small
    rollout raises nothing; none switches a limit off.
    """

    action: Literal["warn", "stop", "rollback", "none"] = "warn"
    """warn: say so, train on, keep the best policy beside the result. stop: end training; the
    result is the best policy. rollback: go back to the best policy and its optimizer with the KL
    coefficient doubled (0 becomes 0.05), and train on. none: do not watch. The default changes no
    result: a limit may be passed for good reasons, such as answers that should be longer.
    """
    every: Count = 1
    """Steps between two looks."""
    window: Count = 3
    """Rollouts behind a look: the last ones are compared with the first ones of the run, or with
    the best by gold.
    """
    standard_errors: Sigmas = 3.0
    """By how many standard errors a limit must be passed at the first look (0: any noise passes
    it); later looks and few prompts ask for more.
    """
    gold_drop: NotNegative | None = 0.25
    """Gold below its best, in standard deviations between prompts, while the reward rises: what
    counts even where rollouts are so large that any fall is significant; 0 counts every fall.
    """
    length_ratio: Ratio | None = 2.0
    """Mean tokens of a response over those at the start; 1 over it counts too."""
    kl: Weight | None = 30.0
    """Mean KL to the reference in nats a response. Gold peaks at some tens of nats in Gao et al.
    2022 (arXiv 2210.10760), sooner with smaller reward models. Any policy passes a limit below 0,
    which shows what an action does, and at 0 any rise does.
    """
    repetition: Share | None = 0.1
    """Mean share of 4-grams that stood in the response before, above that at the start; 0 counts
    every rise.
    """
    spread_ratio: Ratio | None = 2.0
    """Spread of a reward ensemble over that at the start (reward.members > 1)."""
    rollbacks: Whole = 2
    """rollback: times to go back; the next alarm stops, with 0 the first."""


@dataclass(config=STRICT)
class PPOConfig:
    """Proximal policy optimisation (Schulman et al. 2017; details: Huang et al. 2023, arXiv
    2403.17031), and the algorithms that do without a critic: grpo, rloo, reinforce take the same
    settings but those of the value head.
    """

    steps: Count = 6
    """Rollout-and-optimise rounds."""
    prompts_per_step: Count = 16
    """Prompts a rollout; all that there are where there are fewer."""
    samples_per_prompt: Count = 4
    """Responses a prompt."""
    minibatches: Count = 2
    """Optimizer steps over one rollout, each on its share of the prompts; as many as there are
    prompts at most.
    """
    epochs: Few = 1
    """Passes over one rollout."""
    gamma: Share = 1.0
    """Discount, from 0 (a token answers for its own reward alone) to 1."""
    gae_lambda: Share = 0.95
    """GAE's lambda (Schulman et al. 2016), from 0 (one step, least variance) to 1 (whole returns,
    no bias).
    """
    clip_range: Positive = 0.2
    """Policy ratio is clipped to 1 ± this."""
    critic: Literal["shared", "adapter"] = "shared"
    """shared: a linear head on the policy's hidden states, at no cost; adapter: one of its own,
    started from the reward model, for one more pass in scoring and training.
    """
    value_clip_range: Positive | None = 0.2
    """New values stay within this of the old ones in the value loss; none switches it off."""
    value_coef: Positive = 0.5
    """Weight of the value loss."""
    value_learning_rate: Rate = 3e-4
    """Learning rate of the critic."""
    value_warmup: Whole = 0
    """Rollouts, fewer than steps, that train the critic alone before the policy moves; 0 for
    none.
    """
    entropy_coef: NotNegative = 0.0
    """Weight of an entropy bonus; 0 for none."""
    whiten_rewards: bool = False
    """Divide rewards by their standard deviation (the mean stays)."""
    whiten_advantages: bool = True
    """Advantages of a rollout get mean 0 and standard deviation 1."""
    normalize_reward: bool = True
    """Shift and scale the reward model's score to mean 0, std 1 on the SFT model's candidates."""
    reward_clip: Positive | None = 5.0
    """Clip the score to ± this; none switches it off."""
    group_std: bool = True
    """grpo: divide by the standard deviation of the scores of a prompt; without it easy and hard
    prompts weigh the same.
    """
    rewards: dict[str, Weight] = aside(
        default_factory=dict
    )  # PPO.parts has them: files count by their bytes
    """Further rewards and their weights, added to the reward model's: path/to/file.py:function,
    called as (prompt, response) -> float, or http://host/path, asked as docs/extending.md says. A
    weight of 0 only draws the curve, one below 0 makes a penalty of it.
    """
    reward_model_weight: Weight = 1.0
    """What the reward model's score is multiplied by; 0 leaves it out, below 0 the policy learns to
    displease it.
    """
    uncertainty_penalty: NotNegative = 0.0
    """Subtract this times the standard deviation over the members of a reward ensemble
    (reward.members > 1); 0 subtracts nothing.
    """
    group_baseline: bool = False
    """gae: subtract from a response's score the mean score of the other responses to its prompt
    (leave-one-out, Kool et al. 2019): takes the prompt's difficulty out of the advantage before the
    critic has learnt it.
    """
    missing_eos_penalty: NotNegative = 1.0
    """Subtracted from the score of a response that did not end by itself; 0 for none."""
    length_penalty: NotNegative = 0.0
    """Subtracted from the score for each token of the response; 0 for none."""
    importance_cap: Positive | None = 2.0
    """Truncated importance sampling: cap on trainer / sampler probability of a token; none switches
    it off.
    """
    max_logprob_gap: Positive | None = None
    """Audit of every step: mean |log-prob gap| between sampler and trainer, nats a token, that the
    run tolerates. Default: 0.005 where both compute in float32, else 0.1.
    """
    samples_every: Whole = aside(default=1)
    """Steps between the sample responses in the artifact's samples.jsonl; 0 writes none."""
    kl: KLConfig = field(default_factory=KLConfig)
    """Penalty for leaving the reference."""
    alarm: AlarmConfig = field(default_factory=AlarmConfig)
    """Watch for a policy that games its reward."""
    optim: OptimConfig = optim(
        learning_rate=3e-4, schedule="constant", warmup_steps=0, checkpoint_every=1
    )
    """Optimiser and schedule of the policy adapter."""

    def __post_init__(self) -> None:
        self.optim.require("ppo")
