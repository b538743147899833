"""Settings of PPO and its relatives, of their KL penalty, and of the alarm for reward hacking."""

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
    """Penalty for moving away from the reference."""

    coef: NotNegative = 0.05
    """Weight of the KL to the reference, in nats; 0 for no penalty."""
    placement: Literal["auto", "reward", "loss"] = "auto"
    """Where the penalty applies. reward: it is subtracted from the rewards token by token, so that
    the optimum is reference * exp(reward / coef). loss: it is a term of the loss, as in the GRPO
    paper, with the gradient of the forward KL. auto: loss for grpo, else reward.
    """
    estimator: Literal["auto", "k1", "k2", "k3"] = "auto"
    """Per-token estimator of KL(policy || reference), with r the probability ratio (Schulman 2020):
    -log r; (log r)^2 / 2; r - 1 - log r. auto: k1 in rewards, k3 in the loss.
    """
    adaptive: bool = False
    """Adapt coef so that the KL approaches target (Ziegler et al. 2019)."""
    target: Positive = 6.0
    """Sequence KL in nats that the adaptive controller aims for."""
    horizon: Count = 10_000
    """Responses over which the adaptive controller reacts."""
    stop: Positive | None = None
    """End training after a step whose rollout had a sequence KL above this many nats."""


@dataclass(config=STRICT)
class AlarmConfig:
    """When to suspect that the policy games its reward (reward hacking), and what to do then. Every
    limit must be exceeded by ``standard_errors`` standard errors, clustered by prompt, so that the
    noise of a small rollout raises no alarm. none switches a limit off.
    """

    action: Literal["warn", "stop", "rollback", "none"] = "warn"
    """warn: print a warning, train on, and keep the best policy next to the result. stop: end
    training; the result is the best policy. rollback: go back to the best policy and its optimizer,
    double the KL coefficient (0 becomes 0.05), and train on. none: do not watch. The default
    changes no result, because a limit may be exceeded for good reasons, such as answers that should
    be longer.
    """
    every: Count = 1
    """Steps between two checks."""
    window: Count = 3
    """Rollouts in one check. The last ones are compared with the first ones of the run, or with
    those of the best gold score.
    """
    standard_errors: Sigmas = 3.0
    """By how many standard errors a limit must be exceeded at the first check (0: by any amount).
    Later checks and few prompts require more.
    """
    gold_drop: NotNegative | None = 0.25
    """How far the gold score may fall below its best while the reward rises, in standard deviations
    between prompts. It matters where rollouts are so large that any fall is significant. 0 counts
    every fall.
    """
    length_ratio: Ratio | None = 2.0
    """Limit on the mean response length in tokens, as a multiple of the length at the start. A
    length below 1 / length_ratio of that exceeds it too.
    """
    kl: Weight | None = 30.0
    """Limit on the mean KL to the reference, in nats a response. In Gao et al. 2022 (arXiv
    2210.10760) gold peaks at some tens of nats, and sooner with smaller reward models. A limit
    below 0 is always exceeded, which shows what an action does; at 0 any rise exceeds it.
    """
    repetition: Share | None = 0.1
    """Limit on repetition: the mean share of a response's 4-grams that occurred in it before, less
    that share at the start. 0 counts every rise.
    """
    spread_ratio: Ratio | None = 2.0
    """Limit on the spread of a reward ensemble, as a multiple of the spread at the start
    (reward.members > 1).
    """
    rollbacks: Whole = 2
    """rollback: how many times to go back. The alarm after the last of them stops training; with 0
    the first alarm does.
    """


@dataclass(config=STRICT)
class PPOConfig:
    """Proximal policy optimization (Schulman et al. 2017; details: Huang et al. 2023, arXiv
    2403.17031) and its relatives without a critic: grpo, rloo and reinforce take the same settings,
    except those of the value head.
    """

    steps: Count = 6
    """Steps, each a rollout and its optimization."""
    prompts_per_step: Count = 16
    """Prompts in a rollout; all of them where there are fewer."""
    samples_per_prompt: Count = 4
    """Responses to each prompt."""
    minibatches: Count = 2
    """Optimizer steps on one rollout, each on its share of the prompts; at most one for each
    prompt.
    """
    epochs: Few = 1
    """Passes over one rollout."""
    gamma: Share = 1.0
    """Discount, from 0 (a token gets the credit of its own reward only) to 1."""
    gae_lambda: Share = 0.95
    """GAE's lambda (Schulman et al. 2016), from 0 (one step, least variance) to 1 (whole returns,
    no bias).
    """
    clip_range: Positive = 0.2
    """The policy ratio is clipped to 1 ± this."""
    critic: Literal["shared", "adapter"] = "shared"
    """shared: a linear head on the policy's hidden states, at no extra cost. adapter: an adapter of
    its own, initialized from the reward model, at the cost of one more pass in scoring and in
    training.
    """
    value_clip_range: Positive | None = 0.2
    """In the value loss, new values are clipped to within this of the old ones; none does not clip.
    """
    value_coef: Positive = 0.5
    """Weight of the value loss."""
    value_learning_rate: Rate = 3e-4
    """Learning rate of the critic."""
    value_warmup: Whole = 0
    """Rollouts that train only the critic before the policy moves, fewer than steps; 0 for none."""
    entropy_coef: NotNegative = 0.0
    """Weight of an entropy bonus; 0 for none."""
    whiten_rewards: bool = False
    """Divide rewards by their standard deviation (the mean stays)."""
    whiten_advantages: bool = True
    """Advantages of a rollout get mean 0 and standard deviation 1."""
    normalize_reward: bool = True
    """Shift and scale the reward model's score to mean 0 and standard deviation 1 on the SFT
    model's candidates.
    """
    reward_clip: Positive | None = 5.0
    """Clip the score to ± this; none does not clip."""
    group_std: bool = True
    """grpo: divide by the standard deviation of a prompt's scores. Without it easy and hard prompts
    weigh the same.
    """
    rewards: dict[str, Weight] = aside(
        default_factory=dict
    )  # PPO.parts has them: files count by their bytes
    """Further rewards and their weights, added to the reward model's score. A reward is
    path/to/file.py:function, called as (prompt, response) -> float, or http://host/path, called as
    docs/extending.md says. A weight of 0 only draws the curve, and a negative one makes a penalty
    of the reward.
    """
    reward_model_weight: Weight = 1.0
    """Factor on the reward model's score. 0 ignores the score; a negative factor teaches the policy
    to lower it.
    """
    uncertainty_penalty: NotNegative = 0.0
    """Subtract this times the standard deviation over the members of a reward ensemble
    (reward.members > 1); 0 subtracts nothing.
    """
    group_baseline: bool = False
    """gae: subtract from a response's score the mean score of the other responses to its prompt
    (leave-one-out, Kool et al. 2019). That removes the prompt's difficulty from the advantage
    before the critic has learnt it.
    """
    missing_eos_penalty: NotNegative = 1.0
    """Subtracted from the score of a response that did not end by itself; 0 for none."""
    length_penalty: NotNegative = 0.0
    """Subtracted from the score for each token of the response; 0 for none."""
    importance_cap: Positive | None = 2.0
    """Truncated importance sampling: cap on the ratio of a token's probability under the trainer to
    that under the sampler; none does not cap.
    """
    max_logprob_gap: Positive | None = None
    """Audit of every step: the largest mean |log-prob gap| between sampler and trainer that the run
    tolerates, in nats a token. Default: 0.005 where both compute in float32, else 0.1.
    """
    samples_every: Whole = aside(default=1)
    """Steps between the sample responses in the artifact's samples.jsonl; 0 writes none."""
    kl: KLConfig = field(default_factory=KLConfig)
    """Penalty for moving away from the reference."""
    alarm: AlarmConfig = field(default_factory=AlarmConfig)
    """Alarm for a policy that games its reward."""
    optim: OptimConfig = optim(
        learning_rate=3e-4, schedule="constant", warmup_steps=0, checkpoint_every=1
    )
    """Optimizer and schedule of the policy adapter."""

    def __post_init__(self) -> None:
        self.optim.require("ppo")
