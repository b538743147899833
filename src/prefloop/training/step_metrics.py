"""Figures of one step of PPO and its relatives, and the clock of its phases."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from prefloop.config import PPOConfig
from prefloop.objectives.estimators import Advantages
from prefloop.objectives.ppo import explained_variance
from prefloop.training.alarm import Reading
from prefloop.training.scoring import Scored, penalized_B


class PhaseClock:
    """Seconds of each phase of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, phase: str) -> None:
        """End a phase."""
        now = time.monotonic()
        self.seconds[phase] = round(now - self._last, 3)
        self._last = now


@dataclasses.dataclass(frozen=True)
class UpdateMetrics:
    """Figures of one update; the losses, the ratio and the clipped share are means over its tokens.

    The gradient norm and the learning rate are those of the last minibatch.
    """

    grad_norm: float
    lr: float
    policy_loss: float
    value_loss: float | None
    clip_fraction: float
    ratio: float


@dataclasses.dataclass(frozen=True)
class StepMetrics:
    """Figures of one step, for the log, the table and the artifact; means over the rollout."""

    reward_mean: float
    reward_std: float
    rewards: dict[str, float]
    """The mean of each source of the reward before its weight."""
    score_mean: float
    """The reward after clipping and penalties."""
    kl: float
    """Nats a response."""
    kl_coef: float
    length_mean: float
    finished_share: float
    repetition: float
    entropy: float
    logprob_gap: float
    """Mean |log-prob gap| between sampler and trainer, nats a token."""
    explained_variance: float | None
    """Of the returns by the critic."""
    reward_spread: float | None
    """Standard deviation over the members of a reward ensemble."""
    gold_mean: float | None
    update: UpdateMetrics
    seconds: dict[str, float]
    """Of each phase."""
    tokens_per_second: dict[str, float]

    @classmethod
    def of(
        cls,
        config: PPOConfig,
        scored: Scored,
        advantages: Advantages,
        kl_coef: float,
        logprob_gap: float,
        reading: Reading,
        update: UpdateMetrics,
        seconds: dict[str, float],
    ) -> StepMetrics:
        """The figures of a step that drew ``scored`` and learnt from it by ``update``."""
        tokens, responses = int(scored.length_B.sum()), len(scored.rollouts)
        value_R, return_R = scored.value_R, advantages.return_R
        return cls(
            reward_mean=float(scored.reward_B.mean()),
            reward_std=float(scored.reward_B.std()),
            rewards={name: float(score_B.mean()) for name, score_B in scored.source_B.items()},
            score_mean=float(penalized_B(config, scored).mean()),
            kl=float(scored.kl_B.mean()),
            kl_coef=kl_coef,
            length_mean=tokens / responses,
            finished_share=sum(r.finished for r in scored.rollouts) / responses,
            repetition=reading.repetition.value,
            entropy=-float(scored.old_logp_R.mean()),
            logprob_gap=logprob_gap,
            explained_variance=None if return_R is None else explained_variance(value_R, return_R),
            reward_spread=float(scored.spread_B.mean()) if scored.spread_B.any() else None,
            gold_mean=None if reading.gold is None else reading.gold.value,
            update=update,
            seconds=seconds,
            tokens_per_second={p: round(tokens / s, 1) for p, s in seconds.items() if s > 0.01},
        )

    def to_dict(self) -> dict[str, Any]:
        """The known figures as JSON, those of the update among them. The gold score stays out: it
        belongs to the log, not to the result.
        """
        figures = {**vars(self), **vars(self.update)}
        elsewhere = ("update", "gold_mean")
        return {k: v for k, v in figures.items() if v is not None and k not in elsewhere}
