"""Score, estimate and optimize on a tiny policy: nothing depends on packs or order, each option is
its formula, critics learn alone.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import add_random_role, load
from torch.testing import assert_close

from prefloop.config import OptimConfig, PPOConfig
from prefloop.data.packing import Document, pack
from prefloop.errors import AuditError, EngineError
from prefloop.models.forward import hidden_N_H, response_logps_R
from prefloop.models.heads import ScalarHead
from prefloop.models.reward_model import Reward, role_of
from prefloop.objectives import ppo as math_
from prefloop.objectives.ppo import KLPenalty
from prefloop.records import Message, Prompt
from prefloop.rollouts.engine import Rollout
from prefloop.training.audit import Audit
from prefloop.training.loop import Loop, NonFiniteLoss
from prefloop.training.policy import POLICY, REFERENCE, policy_parameters
from prefloop.training.ppo import PPOTrainer
from prefloop.training.rewards import Rewards
from prefloop.training.scoring import VALUE, Critic, SamplerAudit, Scorer, penalized_B
from prefloop.training.step_metrics import UpdateMetrics

PROMPTS = 4
SAMPLES = 3
KL = KLPenalty(0.1, "reward", "k1")


def world(
    folder: Path,
    pack_tokens: int = 512,
    critic: str | None = "shared",
    config: PPOConfig | None = None,
    **settings: Any,
) -> Any:
    """A policy, its reference, two reward members, a critic with values other than 0, and a
    rollout.
    """
    backbone = load(folder, pack_tokens=pack_tokens, **settings)
    for seed, role in enumerate((POLICY, REFERENCE, role_of(0), role_of(1))):
        add_random_role(backbone, role, seed=seed + 1)
    heads = [ScalarHead(backbone.hidden_size, "normal", seed=k) for k in range(2)]
    found = None
    if critic is not None:
        found = Critic(backbone, critic)
        torch.nn.init.normal_(
            found.head.linear.weight, std=0.1, generator=torch.Generator().manual_seed(7)
        )
        if found.own:
            add_random_role(backbone, VALUE, seed=9)
    draw = torch.Generator().manual_seed(0)

    def ids(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high, (1,), generator=draw))
        return torch.randint(10, 300, (length,), generator=draw).tolist()

    prompts_ids = {f"p{i}": ids(3, 12) for i in range(PROMPTS)}
    rollouts = []
    for k in range(PROMPTS * SAMPLES):
        tokens = ids(1, 9)
        rollouts.append(Rollout(k // SAMPLES, tokens, [-6.0] * len(tokens), k % 4 != 0))
    settings_ = config or PPOConfig(
        prompts_per_step=PROMPTS, samples_per_prompt=SAMPLES, minibatches=1, importance_cap=None
    )
    return SimpleNamespace(
        backbone=backbone,
        config=settings_,
        prompts_ids=prompts_ids,
        rollouts=rollouts,
        batch=[Prompt(i, [Message("user", "x")]) for i in prompts_ids],
        reward=Reward(backbone, heads),
        critic=found,
    )


def scorer(w: Any) -> Scorer:
    return Scorer(w.backbone, w.config, 0.7, w.reward, w.critic, Rewards({}))


def scored(w: Any) -> Any:
    return scorer(w).score(w.batch, [w.prompts_ids[p.id] for p in w.batch], w.rollouts)


def trainer(w: Any, loop: Loop | None = None, estimator: str = "gae") -> PPOTrainer:
    return PPOTrainer(scorer(w), estimator, loop, Audit("ppo"), seed=0)  # type: ignore[arg-type]


def trained(
    w: Any, tmp_path: Path, estimator: str = "gae", step: int = 1, steps: int = 1
) -> tuple[dict[str, torch.Tensor], UpdateMetrics]:
    parameters = policy_parameters(w.backbone) | (w.critic.parameters if w.critic else {})
    loop = Loop(
        parameters, OptimConfig(learning_rate=1e-3, warmup_steps=0), 10, tmp_path, {"value": 1e-2}
    )
    rollout = scored(w)
    learns = trainer(w, loop, estimator)
    advantages = learns.estimate(rollout, KL)
    for _ in range(steps):
        metrics = learns.update(rollout, advantages, KL, step)
    return {n: p.detach().clone() for n, p in parameters.items()}, metrics


@pytest.mark.parametrize("critic", ["shared", "adapter"])
def test_scores_and_updates_do_not_depend_on_packs(
    tiny_folder: Path, tmp_path: Path, critic: str
) -> None:
    wide, narrow = (world(tiny_folder, tokens, critic) for tokens in (512, 24))
    one, other = scored(wide), scored(narrow)
    for name in ("old_logp_R", "reference_logp_R", "value_R", "reward_B", "spread_B"):
        assert_close(getattr(one, name), getattr(other, name), atol=1e-5, rtol=1e-5)
        assert getattr(one, name).std() > 1e-3, name
    (a, left), (b, right) = trained(wide, tmp_path / "a"), trained(narrow, tmp_path / "b")
    for name, tensor in a.items():
        assert_close(tensor, b[name], atol=2e-5, rtol=1e-4)
    assert left.value_loss == pytest.approx(right.value_loss, rel=1e-4)


@pytest.mark.parametrize("estimator", ["gae", "grpo", "rloo", "reinforce"])
def test_the_estimate_follows_the_prompts_whatever_their_order(
    tiny_folder: Path, estimator: str
) -> None:
    w = world(tiny_folder)
    straight = scored(w)
    order = [2, 0, 3, 1]
    w.batch = [w.batch[i] for i in order]
    w.rollouts = [w.rollouts[i * SAMPLES + k] for i in order for k in range(SAMPLES)]
    turned = scored(w)
    a, b = (
        trainer(w, None, estimator).estimate(s, KL).advantage_R.split(s.length_B.tolist())
        for s in (straight, turned)
    )
    for place, i in enumerate(order):
        for k in range(SAMPLES):
            assert_close(b[place * SAMPLES + k], a[i * SAMPLES + k], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("critic", ["shared", "adapter"])
def test_the_first_update_sees_the_policy_that_was_scored(
    tiny_folder: Path, tmp_path: Path, critic: str
) -> None:
    w = world(tiny_folder, critic=critic)
    rollout = scored(w)
    found = trainer(w).estimate(rollout, KL)
    _, metrics = trained(w, tmp_path)
    assert metrics.ratio == pytest.approx(1, abs=1e-5) and metrics.clip_fraction == 0
    value_loss = math_.value_loss_R(
        rollout.value_R, rollout.value_R, found.return_R, w.config.value_clip_range
    ).mean()
    assert metrics.value_loss == pytest.approx(float(value_loss), rel=1e-4)
    assert metrics.policy_loss == pytest.approx(-float(found.advantage_R.mean()), abs=1e-5)


def test_the_shared_critic_does_not_bend_the_policy_and_an_adapter_learns_apart(
    tiny_folder: Path, tmp_path: Path
) -> None:
    """The policy's update with a critic of either kind is the update with the same advantages and
    no critic at all.
    """
    for critic in ("shared", "adapter"):
        w = world(tiny_folder, critic=critic)
        before = {
            n: p.detach().clone()
            for n, p in (policy_parameters(w.backbone) | w.critic.parameters).items()
        }
        after, _ = trained(w, tmp_path / critic)
        moved = {n for n, p in after.items() if not torch.equal(p, before[n])}
        assert moved == set(before), "something did not learn"
        alone = world(tiny_folder, critic=critic)
        rollout = scored(alone)
        found = trainer(alone).estimate(rollout, KL)
        alone.critic = None
        loop = Loop(
            policy_parameters(alone.backbone),
            OptimConfig(learning_rate=1e-3, warmup_steps=0),
            10,
            tmp_path / "x",
        )
        trainer(alone, loop).update(rollout, found, KL, 1)
        for name, parameter in policy_parameters(alone.backbone).items():
            assert_close(after[name], parameter.detach(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("critic", ["shared", "adapter"])
def test_critic_warm_up_leaves_the_policy_and_fits_the_returns(
    tiny_folder: Path, tmp_path: Path, critic: str
) -> None:
    config = PPOConfig(
        prompts_per_step=PROMPTS,
        samples_per_prompt=SAMPLES,
        minibatches=1,
        value_warmup=3,
        value_clip_range=None,
    )
    w = world(tiny_folder, critic=critic, config=config)
    before = [p.detach().clone() for p in policy_parameters(w.backbone).values()]
    _, first = trained(w, tmp_path / "a")
    _, last = trained(w, tmp_path / "b", steps=20)
    assert all(
        torch.equal(p, b)
        for p, b in zip(policy_parameters(w.backbone).values(), before, strict=True)
    )
    assert last.value_loss < 0.7 * first.value_loss


def test_every_penalty_is_its_formula(tiny_folder: Path) -> None:
    w = world(tiny_folder)
    s = scored(w)
    options = {"reward_clip": None, "missing_eos_penalty": 0.0}
    plain = penalized_B(PPOConfig(**options), s)
    assert torch.equal(plain, s.reward_B)
    cut = torch.tensor([not r.finished for r in s.rollouts])
    cases: list[tuple[dict[str, Any], torch.Tensor]] = [
        ({"missing_eos_penalty": 0.5}, plain - 0.5 * cut),
        ({"length_penalty": 0.01}, plain - 0.01 * s.length_B),
        ({"uncertainty_penalty": 2.0}, plain - 2 * s.spread_B),
        ({"reward_clip": 0.1}, plain.clamp(-0.1, 0.1)),
        (
            {"reward_clip": 0.1, "uncertainty_penalty": 2.0, "missing_eos_penalty": 1.0},
            (plain - 2 * s.spread_B).clamp(-0.1, 0.1) - 1.0 * cut,
        ),
    ]
    for setting, expected in cases:
        assert_close(penalized_B(PPOConfig(**{**options, **setting}), s), expected)


def test_ensemble_reward_is_the_mean_and_spread_of_normalized_members(tiny_folder: Path) -> None:
    w = world(tiny_folder)
    for head, (mean, std) in zip(w.reward.heads, ((0.5, 2.0), (-1.0, 0.25)), strict=True):
        head.mean.fill_(mean)
        head.std.fill_(std)
    w.config = PPOConfig(
        prompts_per_step=PROMPTS, samples_per_prompt=SAMPLES, reward_model_weight=-1.5
    )
    s = scored(w)
    found = w.reward.score(s.documents)
    members = torch.tensor([found[key] for key in sorted(found)]).T
    assert_close(s.reward_B, -1.5 * members.mean(0))
    assert_close(s.spread_B, 1.5 * members.std(0))


def test_importance_weights_scale_the_policy_loss(tiny_folder: Path, tmp_path: Path) -> None:
    config = PPOConfig(
        prompts_per_step=PROMPTS, samples_per_prompt=SAMPLES, minibatches=1, importance_cap=2.0
    )
    w = world(tiny_folder, config=config)
    s = scored(w)
    found = trainer(w).estimate(s, KL)
    weights = (s.old_logp_R - s.sampler_logp_R).exp().clamp(max=2.0)
    assert 0 < float((weights == 2).float().mean()) < 1
    _, metrics = trained(w, tmp_path)
    assert metrics.policy_loss == pytest.approx(
        -float((weights * found.advantage_R).mean()), abs=1e-5
    )


@pytest.mark.parametrize("critic", ["shared", "adapter"])
def test_critic_warm_up_is_inert_for_the_policy(
    tiny_folder: Path, tmp_path: Path, critic: str
) -> None:
    """No weight decay, and Adam starts as if there had been no warm-up."""
    config = PPOConfig(
        prompts_per_step=PROMPTS, samples_per_prompt=SAMPLES, minibatches=1, value_warmup=2
    )
    w = world(tiny_folder, critic=critic, config=config)
    policy = policy_parameters(w.backbone)
    loop = Loop(
        policy | w.critic.parameters,
        OptimConfig(learning_rate=1e-3, warmup_steps=0, weight_decay=0.5),
        10,
        tmp_path,
    )
    before = {n: p.detach().clone() for n, p in policy.items()}
    rollout, learns = scored(w), trainer(w, loop)
    found = learns.estimate(rollout, KL)
    for step in range(2):
        learns.update(rollout, found, KL, step)
    assert all(torch.equal(p, before[n]) for n, p in policy.items())
    assert not any(p in loop.optimizer.state for p in policy.values())
    learns.update(rollout, found, KL, 2)
    assert any("weights move" in line for line in learns.audit.lines), (
        "the policy's first update was not audited"
    )
    assert all(int(loop.optimizer.state[p]["step"]) == 1 for p in policy.values())


@pytest.mark.parametrize("minibatches", [1, 2])
def test_a_fresh_critic_apart_passes_the_audit_of_the_first_update(
    tiny_folder: Path, tmp_path: Path, minibatches: int
) -> None:
    """Its head starts at 0, so its adapter, which the reward model's fills, gets no gradient in the
    very first update.
    """
    config = PPOConfig(
        prompts_per_step=PROMPTS, samples_per_prompt=SAMPLES, minibatches=minibatches
    )
    w = world(tiny_folder, critic="adapter", config=config)
    torch.nn.init.zeros_(w.critic.head.linear.weight)
    before = [p.detach().clone() for p in w.backbone.parameters(VALUE)]
    trained(w, tmp_path, step=0)
    moved = [
        not torch.equal(p, b) for p, b in zip(w.backbone.parameters(VALUE), before, strict=True)
    ]
    assert all(moved) if minibatches == 2 else not any(moved)


@pytest.mark.parametrize("grouped", [False, True])
def test_a_group_baseline_may_leave_the_critics_bias_where_it_was(
    tiny_folder: Path, tmp_path: Path, grouped: bool
) -> None:
    """Two responses of one length to a prompt: what one is above the other, the other is below, and
    their sum is exactly 0.
    """
    config = PPOConfig(prompts_per_step=PROMPTS, samples_per_prompt=SAMPLES, minibatches=1)
    w = world(tiny_folder, config=config)
    torch.nn.init.zeros_(w.critic.head.linear.weight)
    rollout = scored(w)
    found = trainer(w).estimate(rollout, KL)
    sides_R = torch.ones(len(found.return_R))
    sides_R[1::2] = -1
    sides_R[len(sides_R) // 2 * 2 :] = 0
    loop = Loop(
        policy_parameters(w.backbone) | w.critic.parameters,
        OptimConfig(warmup_steps=0),
        10,
        tmp_path,
    )
    w.config = dataclasses.replace(config, group_baseline=grouped)
    learns, found = trainer(w, loop), dataclasses.replace(found, return_R=sides_R)
    if grouped:
        learns.update(rollout, found, KL, 0)
        assert any("weights move: 29 of 29" in line for line in learns.audit.lines)
    else:
        with pytest.raises(AuditError, match=r"value_head/linear\.bias"):
            learns.update(rollout, found, KL, 0)


@pytest.mark.parametrize("where", ["sampler", "reward"])
def test_what_is_not_finite_names_its_prompt_and_teaches_nothing(
    tiny_folder: Path, where: str
) -> None:
    w = world(tiny_folder)
    if where == "sampler":
        w.rollouts[4].logps[0] = float("nan")
    else:
        w.reward.heads[1].std.fill_(0)
        w.reward.heads[1].mean.fill_(float("inf"))
    with pytest.raises(
        NonFiniteLoss,
        match=r"not finite in \d+ responses, to prompts "
        + ("p1;" if where == "sampler" else "p0, "),
    ):
        scored(w)


def test_a_rollout_of_another_policy_is_not_learnt_from_and_only_the_first_ends_the_checkpoints(
    tiny_folder: Path,
) -> None:
    """An ``AuditError`` drops the checkpoints: right for a run that never worked, wrong for one
    that has.
    """
    w = world(tiny_folder)
    rollout = scored(w)

    def require(seen: Any, step: int, first: bool = False) -> float:
        check = SamplerAudit(scorer(w), "vllm", Audit("ppo"))
        check._first = first
        return check.require_policy(seen, step)

    with pytest.raises(AuditError, match="sampler against trainer"):
        require(rollout, 0)
    for sampler_R in (rollout.sampler_logp_R, rollout.sampler_logp_R * float("nan")):
        with pytest.raises(
            EngineError,
            match=r"step 4: mean \|log-prob gap\|.*Nothing was learnt.*same command goes on",
        ):
            require(dataclasses.replace(rollout, sampler_logp_R=sampler_R), 3)
    assert require(dataclasses.replace(rollout, sampler_logp_R=rollout.old_logp_R), 3) == 0
    # A sampler that runs the bare model, where the gap alone would be tolerated.
    w.config = dataclasses.replace(w.config, max_logprob_gap=100.0)
    prompts = list(w.prompts_ids.values())
    for r in w.rollouts:
        there = pack([Document(prompts[r.prompt], [r.token_ids], [0])])
        with w.backbone.role(None):
            r.logps[:] = response_logps_R(
                w.backbone, hidden_N_H(w.backbone, there), there, 0.7
            ).tolist()
    bare = scored(w)
    require(bare, 0)
    with pytest.raises(AuditError, match=r"it shows -?0 ± 0 % of what the policy changed"):
        require(bare, 0, first=True)
