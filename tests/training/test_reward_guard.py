"""What the alarm keeps on disk, and what it does with it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from step_figures import figures
from test_alarm import rollout
from torch import nn

from prefloop.config import AlarmConfig, KLConfig, OptimConfig, PPOConfig
from prefloop.data.packing import Document, packs
from prefloop.objectives.ppo import KLPenalty
from prefloop.rollouts.engine import Rollout
from prefloop.runs.runtime import Runtime
from prefloop.runs.work import Work
from prefloop.training.loop import Loop
from prefloop.training.reward_guard import GuardState, RewardGuard, reading_of
from prefloop.training.scoring import Scored

STEPS, PEAK = 14, 9


def learn(loop: Loop, step: int) -> None:
    weight = loop.parameters["w"]
    loop.update(
        packs([Document([1], [[2]], [0])], 8),
        lambda pack: (weight * (step + 1.0)).sum() ** 2,
        items=1,
    )


class Training:
    """A run of one weight whose gold is best at ``PEAK``; it can be killed at any step and go
    on.
    """

    def __init__(self, folder: Path, action: Any = "rollback") -> None:
        self.work = Work("ppo", folder, Runtime(output=folder / "runs"))
        alarm = AlarmConfig(action=action, gold_drop=None, kl=10.0, window=1)
        config = PPOConfig(alarm=alarm)
        self.loop = Loop(
            {"w": nn.Parameter(torch.ones(2))},
            OptimConfig(warmup_steps=0),
            STEPS,
            self.work.checkpoints,
        )
        restored = self.loop.restore()
        saved: dict[str, Any] = restored[0] if restored else {"step": 0, "kl": 0.05, "guard": {}}
        self.first = saved["step"]
        state = TypeAdapter(GuardState).validate_python(saved["guard"])
        self.guard = RewardGuard(self.work, config, self.loop, state)
        self.kl = KLPenalty(saved["kl"], "reward", "k1")
        self.before: dict[int, torch.Tensor] = {}
        """Weight and optimizer moments at the start of each step."""

    def go(self, stop: int = STEPS, every: int = 4) -> Training:
        for step in range(self.first + 1, stop + 1):
            gold = 0.9 - 0.04 * abs(step - PEAK)
            kl = 40.0 if step in (5, 12) else 1.0
            weight = self.loop.parameters["w"]
            moments = (
                [self.loop.optimizer.state[weight][k] for k in ("exp_avg", "exp_avg_sq")]
                if step > 1
                else []
            )
            self.before[step] = torch.stack([weight.detach(), *moments]).clone()
            self.guard.observe(
                rollout(np.random.default_rng(step), step, prompts=64, gold=gold, kl=kl)
            )
            learn(self.loop, step)
            self.kl, ended = self.guard.act(self.kl, figures(reward_mean=float(step)))
            if step % every == 0 or ended:
                guard = json.loads(json.dumps(dataclasses.asdict(self.guard.state)))
                state = {"step": step, "kl": self.kl.coef, "guard": guard}
                self.loop.save(state, needed=self.guard.needed())
                self.guard.forget_older()
        return self

    @property
    def kept(self) -> list[str]:
        return sorted(path.name for path in self.guard.folder.iterdir())


def test_a_rollback_brings_parameters_and_optimizer_back_and_a_killed_run_ends_alike(
    tmp_path: Path,
) -> None:
    whole = Training(tmp_path / "whole").go()
    assert [(e.step, e.best_step, e.action) for e in whole.guard.state.raised] == [
        (5, 4, "rollback"), (12, PEAK, "rollback"),
    ]  # fmt: skip
    assert torch.equal(whole.before[6], whole.before[4]) and torch.equal(
        whole.before[13], whole.before[PEAK]
    )
    assert not torch.equal(whole.before[7], whole.before[5]), (
        "the same weights at another step learn otherwise"
    )
    assert whole.kl.coef == pytest.approx(0.2)
    for stop in range(1, STEPS):
        folder = tmp_path / str(stop)
        Training(folder).go(stop)
        again = Training(folder).go()
        assert torch.equal(again.loop.parameters["w"], whole.loop.parameters["w"]), stop
        assert again.guard.state == whole.guard.state and again.kl == whole.kl


def test_only_the_policies_that_a_checkpoint_may_need_stay_on_disk(tmp_path: Path) -> None:
    assert Training(tmp_path).go(4).kept == ["000004.safetensors"]
    assert Training(tmp_path).go(6).kept == ["000004.safetensors", "000006.safetensors"]
    assert Training(tmp_path).go().kept == ["000008.safetensors", "000009.safetensors"], (
        "two checkpoints are kept"
    )


def test_warn_and_none_leave_the_parameters_alone(tmp_path: Path) -> None:
    warned = Training(tmp_path / "warn", "warn").go()
    plain = Training(tmp_path / "none", "none").go()
    assert torch.equal(warned.loop.parameters["w"], plain.loop.parameters["w"])
    assert [event.step for event in warned.guard.state.raised] == [5], (
        "a rule that was heard is not said again"
    )
    assert not plain.guard.state.raised and not plain.guard.folder.exists()
    assert "alarm" not in plain.guard.finish(None, None)


def test_a_penalty_of_nought_becomes_the_default_at_a_rollback(tmp_path: Path) -> None:
    training = Training(tmp_path)
    training.kl = KLPenalty(0.0, "reward", "k1")
    assert training.go(5).kl.coef == KLConfig().coef


def test_a_reading_holds_the_figures_of_the_rollout() -> None:
    rollouts = [
        Rollout(i // 2, ids, [0.0] * len(ids), True)
        for i, ids in enumerate(([1] * 8, [1, 2], [3], [1, 2, 3]))
    ]
    length_B = torch.tensor([8, 2, 1, 3])
    old_R = torch.full((14,), -1.0)
    scored = Scored(
        rollouts,
        [],
        length_B,
        sampler_logp_R=old_R,
        old_logp_R=old_R,
        reference_logp_R=old_R - 0.5,
        value_R=old_R * 0,
        reward_B=torch.tensor([1.0, 3.0, 5.0, 7.0]),
        spread_B=torch.zeros(4),
    )
    config = PPOConfig(samples_per_prompt=2, kl=KLConfig(coef=0.1), length_penalty=0.0)
    found = reading_of(config, scored, 7, [0.0, 0.2, 0.4, 0.6])
    assert found.step == 7 and found.spread is None
    assert (found.proxy.value, found.proxy.se) == (4.0, 2.0)
    assert found.kl.value == pytest.approx(14 * 0.5 / 4) and found.length.value == 3.5
    assert found.objective.value == pytest.approx(3.5 - 0.1 * found.kl.value), (
        "the clipped reward less the penalty"
    )
    assert found.repetition.value == pytest.approx(0.8 / 4)
    assert found.gold is not None and found.gold.value == pytest.approx(0.3)
