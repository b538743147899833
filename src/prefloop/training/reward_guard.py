"""The alarm at work: a reading of every rollout, the best policy on disk, and what
``ppo.alarm.action`` asks for.

A rollout shows the policy from before it learns from it, so the best policy is kept ahead of the
update. Its file stays until a checkpoint that names a better one is whole: a run that is killed and
goes on finds the file that its checkpoint means.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefloop.base.console import say
from prefloop.config import KLConfig, PPOConfig
from prefloop.objectives.ppo import AdaptiveKL
from prefloop.runs.work import Work
from prefloop.training.alarm import Alarm, Reading, clustered, repetition
from prefloop.training.critic import Critic
from prefloop.training.loop import Loop
from prefloop.training.policy import save_policy
from prefloop.training.ppo import penalised_B
from prefloop.training.scored import Scored


def read(config: PPOConfig, scored: Scored, step: int, gold: Sequence[float] | None) -> Reading:
    """The figures of a rollout, whose responses stand prompt after prompt."""
    group = config.samples_per_prompt
    kl_B = scored.sequence_sum_B(scored.old_logp_R - scored.reference_logp_R)
    objective_B = penalised_B(config, scored) - config.kl.coef * kl_B
    return Reading(
        step=step,
        proxy=clustered(scored.reward_B.tolist(), group),
        objective=clustered(objective_B.tolist(), group),
        length=clustered(scored.length_B.tolist(), group),
        kl=clustered(kl_B.tolist(), group),
        repetition=clustered([repetition(r.token_ids) for r in scored.rollouts], group),
        spread=clustered(scored.spread_B.tolist(), group) if scored.spread_B.any() else None,
        gold=None if gold is None else clustered(gold, group),
    )


class Watch:
    """Feeds the alarm and does what it asks for."""

    def __init__(
        self, work: Work, config: PPOConfig, loop: Loop, state: dict[str, Any] | None
    ) -> None:
        self.work, self.loop, self.config = work, loop, config.alarm
        self.on = config.alarm.action != "none"
        self.folder = work.checkpoints / "best"
        state = state or {
            "alarm": None,
            "raised": [],
            "rollbacks": 0,
            "best_metrics": {},
            "result_step": None,
        }
        self.alarm = Alarm(self.config, state["alarm"])
        self.raised: list[dict[str, Any]] = state["raised"]
        self.rollbacks: int = state["rollbacks"]
        self.best_metrics: dict[str, Any] = state["best_metrics"]
        self.result_step: int | None = state["result_step"]
        """Step whose policy the parameters are, after going back to it; ``None`` when they have
        learnt since.
        """
        self.watched: list[str] = []
        self.step = 0
        self.reasons: list[str] = []

    @property
    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold for the same decisions after a kill."""
        names = ("raised", "rollbacks", "best_metrics", "result_step")
        return {"alarm": self.alarm.state, **{name: getattr(self, name) for name in names}}

    def announce(self, gold: bool, members: int) -> None:
        """Say once what cannot be watched."""
        config = self.config
        limits = {
            "gold": config.gold_drop if gold else None,
            "length": config.length_ratio,
            "KL": config.kl,
        }
        limits |= {
            "repetition": config.repetition,
            "spread": config.spread_ratio if members > 1 else None,
        }
        self.watched = [name for name, limit in limits.items() if limit is not None and self.on]
        if self.on and not gold and config.gold_drop is not None:
            say(
                f"  {self.work.stage}: no gold scorer (--gold file.py:function), so the alarm"
                " cannot see gold fall while the reward rises; it watches"
                f" {', '.join(self.watched) or 'nothing'}"
            )

    def look(self, reading: Reading) -> None:
        """Before the update: keep the policy if it is the best so far."""
        self.step, self.result_step = reading.step, None
        if self.on:
            self.reasons = self.alarm.observe(reading)
            if self.alarm.best_step == reading.step:
                self.loop.keep(self._file(reading.step))

    def act(self, kl: AdaptiveKL, metrics: dict[str, Any]) -> bool:
        """After the update: on an alarm speak, go back or end; true when training is over."""
        best = self.alarm.best_step
        if best == self.step:
            self.best_metrics = metrics
        if not self.reasons or best is None:
            return False
        action = self.config.action
        if action == "rollback" and self.rollbacks >= self.config.rollbacks:
            action = "stop"
        if action != "warn":
            self.loop.go_back(self._file(best))
            self.result_step = best
        if action == "rollback":
            self.rollbacks += 1
            self.alarm.rolled_back()
            kl.coef = 2 * kl.coef or KLConfig().coef
        found = {
            "step": self.step,
            "reasons": self.reasons,
            "action": action,
            "best_step": best,
            "kl_coef": kl.coef,
        }
        self.raised = [*self.raised, found]
        self.work.emit("alarm", **found)
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
        return action == "stop"

    def needed(self) -> list[Path]:
        """The files that a checkpoint of now goes on with."""
        return (
            [self._file(self.alarm.best_step)]
            if self.on and self.alarm.best_step is not None
            else []
        )

    def forget_older(self) -> None:
        """Drop kept policies that no checkpoint needs."""
        for path in set(self.folder.glob("*.safetensors")) - self.loop.needed():
            path.unlink()

    def finish(self, metrics: dict[str, Any], critic: Critic | None) -> dict[str, Any]:
        """The metrics of the result with the alarm's summary; after an alarm that let training go
        on, the best policy goes into ``best/``.
        """
        best, apart = self.alarm.best_step, self.work.folder / "best"
        shutil.rmtree(apart, ignore_errors=True)
        if not self.on or best is None:
            return metrics
        if self.raised and self.result_step is None:
            now = self.folder / "now.safetensors"
            self.loop.keep(now)
            self.loop.go_back(self._file(best))
            save_policy(self.work.runtime.backbone, apart)
            if critic is not None:
                critic.save(apart / "value")
            self.loop.go_back(now)
            now.unlink()
        summary = {
            "action": self.config.action,
            "watched": self.watched,
            "steps": self.alarm.count,
            "raised": self.raised,
            "best_step": best,
            "result_step": self.result_step,
        }
        return (self.best_metrics if self.result_step == best else metrics) | {"alarm": summary}

    def _file(self, step: int) -> Path:
        return self.folder / f"{step:06d}.safetensors"
