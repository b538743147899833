"""Acts on the alarm: keeps the best policy on disk, and does what ``ppo.alarm.action`` asks for.

A rollout describes the policy from before it learns from the rollout, so the best policy is written
ahead of the update. Its file stays until a checkpoint that names a better one is complete: a run
that is killed and resumed finds the file that its checkpoint needs.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefloop.base.console import say
from prefloop.config import KLConfig, PPOConfig
from prefloop.objectives.ppo import KLPenalty
from prefloop.runs.work import Work
from prefloop.training.alarm import Alarm, AlarmState, Reading, clustered, repetition
from prefloop.training.loop import Loop
from prefloop.training.policy import save_policy
from prefloop.training.scoring import Critic, Scored, penalized_B
from prefloop.training.step_metrics import StepMetrics


def reading_of(
    config: PPOConfig, scored: Scored, step: int, gold: Sequence[float] | None
) -> Reading:
    """The figures of a rollout, whose responses are grouped by prompt; ``step`` counts from 1."""
    group = config.samples_per_prompt
    # The coefficient as configured: a controller's or a rollback's would change what is best.
    objective_B = penalized_B(config, scored) - config.kl.coef * scored.kl_B
    return Reading(
        step=step,
        proxy=clustered(scored.reward_B.tolist(), group),
        objective=clustered(objective_B.tolist(), group),
        length=clustered(scored.length_B.tolist(), group),
        kl=clustered(scored.kl_B.tolist(), group),
        repetition=clustered([repetition(r.token_ids) for r in scored.rollouts], group),
        spread=clustered(scored.spread_B.tolist(), group) if scored.spread_B.any() else None,
        gold=None if gold is None else clustered(gold, group),
    )


@dataclasses.dataclass(frozen=True)
class AlarmEvent:
    """An alarm and the action that followed it, as the log and the report show it."""

    step: int
    reasons: list[str]
    action: str
    best_step: int
    kl_coef: float
    """From the next step on."""


@dataclasses.dataclass(frozen=True)
class GuardState:
    """All that later decisions of a guard depend on."""

    alarm: AlarmState = dataclasses.field(default_factory=AlarmState)
    raised: tuple[AlarmEvent, ...] = ()
    rollbacks: int = 0
    best_metrics: StepMetrics | None = None
    result_step: int | None = None
    """The step whose policy the parameters hold after going back to it; ``None`` when they have
    learnt since.
    """


class RewardGuard:
    """Feeds the alarm with readings and acts on it."""

    def __init__(
        self,
        work: Work,
        config: PPOConfig,
        loop: Loop,
        state: GuardState | None = None,
        gold: bool = False,
        members: int = 1,
    ) -> None:
        """``gold``: whether rollouts are graded by a judge that training does not see. ``members``
        of the reward ensemble. Prints which rules cannot work without gold.
        """
        self.work, self.loop, self.config = work, loop, config.alarm
        self.on = config.alarm.action != "none"
        self.folder = work.checkpoints / "best"
        self._state = state or GuardState()
        self.alarm = Alarm(self.config, self._state.alarm)
        self.watched = self._watched(gold, members)
        self.step = 0
        self.reasons: list[str] = []

    @property
    def state(self) -> GuardState:
        """A guard made from it decides alike."""
        return dataclasses.replace(self._state, alarm=self.alarm.state)

    def _watched(self, gold: bool, members: int) -> list[str]:
        """The rules that are on and can work."""
        config = self.config
        limits = {
            "gold": config.gold_drop if gold else None,
            "length": config.length_ratio,
            "KL": config.kl,
            "repetition": config.repetition,
            "spread": config.spread_ratio if members > 1 else None,
        }
        watched = [name for name, limit in limits.items() if limit is not None and self.on]
        if self.on and not gold and config.gold_drop is not None:
            say(
                f"  {self.work.stage}: no gold scorer (--gold file.py:function), so the alarm"
                " cannot see gold fall while the reward rises; it watches"
                f" {', '.join(watched) or 'nothing'}"
            )
        return watched

    def observe(self, reading: Reading) -> None:
        """Before the update: take the rollout's reading, and keep the policy if it is the best so
        far.
        """
        self.step = reading.step
        self._state = dataclasses.replace(self._state, result_step=None)
        if self.on:
            self.reasons = self.alarm.observe(reading)
            if self.alarm.best_step == reading.step:
                self.loop.keep(self._file(reading.step))

    def act(self, kl: KLPenalty, metrics: StepMetrics) -> tuple[KLPenalty, bool]:
        """After the update: on an alarm warn, roll back or stop.

        Returns the KL penalty of the next step, and whether training is over.
        """
        best = self.alarm.best_step
        if best == self.step:
            self._state = dataclasses.replace(self._state, best_metrics=metrics)
        if not self.reasons or best is None:
            return kl, False
        action, rollbacks = self.config.action, self._state.rollbacks
        if action == "rollback" and rollbacks >= self.config.rollbacks:
            action = "stop"
        if action != "warn":
            self.loop.go_back(self._file(best))
        if action == "rollback":
            rollbacks += 1
            self.alarm.rolled_back()
            kl = dataclasses.replace(kl, coef=2 * kl.coef or KLConfig().coef)
        event = AlarmEvent(self.step, self.reasons, action, best, kl.coef)
        self._state = dataclasses.replace(
            self._state,
            raised=(*self._state.raised, event),
            rollbacks=rollbacks,
            result_step=None if action == "warn" else best,
        )
        self.work.emit("alarm", **dataclasses.asdict(event))
        consequence = {
            "warn": f"training goes on; the policy of step {best}, the best so far, is kept",
            "stop": f"stopping; the result is the policy of step {best}, the best so far",
            "rollback": (
                f"back to the policy of step {best}, the best so far, with the KL coefficient"
                f" doubled to {kl.coef:g}"
            ),
        }[action]
        say(
            f"  {self.work.stage}: reward hacking? step {self.step}: {'; '.join(self.reasons)}:"
            f" {consequence}",
            "yellow",
        )
        return kl, action == "stop"

    def needed(self) -> list[Path]:
        """The files that a checkpoint of this step depends on."""
        best = self.alarm.best_step
        return [self._file(best)] if self.on and best is not None else []

    def forget_older(self) -> None:
        """Delete kept policies that no checkpoint depends on."""
        for path in set(self.folder.glob("*.safetensors")) - self.loop.needed():
            path.unlink()

    def finish(self, metrics: StepMetrics | None, critic: Critic | None) -> dict[str, Any]:
        """The metrics of the result with the alarm's summary, as JSON.

        After an alarm that let training go on, the best policy is written into ``best/`` too.
        """
        state, best, folder = self._state, self.alarm.best_step, self.work.folder / "best"
        shutil.rmtree(folder, ignore_errors=True)
        if self.on and best is not None and state.result_step == best:
            metrics = state.best_metrics
        result = {} if metrics is None else metrics.to_dict()
        if not self.on or best is None:
            return result
        if state.raised and state.result_step is None:
            now = self.folder / "now.safetensors"
            self.loop.keep(now)
            self.loop.go_back(self._file(best))
            save_policy(self.work.runtime.backbone, folder)
            if critic is not None:
                critic.save(folder / "value")
            self.loop.go_back(now)
            now.unlink()
        result["alarm"] = {
            "action": self.config.action,
            "watched": self.watched,
            "steps": self.alarm.state.count,
            "raised": [dataclasses.asdict(event) for event in state.raised],
            "best_step": best,
            "result_step": state.result_step,
        }
        return result

    def _file(self, step: int) -> Path:
        return self.folder / f"{step:06d}.safetensors"
