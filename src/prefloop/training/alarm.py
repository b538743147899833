"""When a policy games its reward: rules on the figures of every rollout, without a model, a tensor
or a file.

A reading holds the means of one rollout with standard errors clustered by prompt. A rule compares
the last ``window`` readings with the first ones (length, repetition, spread), with the best ones
(gold) or with a number (KL), and speaks when its limit is passed by ``standard_errors`` standard
errors. That number grows with the looks a run has taken (Bonferroni over disjoint windows, and over
pairs of them for gold, whose best window is chosen by its luck too) and is Student's where prompts
are few, so that neither a long run nor a small rollout raises an alarm by noise. Prompts that come
again in a window make the errors too wide, not too narrow: the window that it is compared with
holds them too.

Dropped: a trend line through all steps (one early rise hides a late fall) and cumulative sums
(whose limits nobody can read as a figure).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from statistics import NormalDist, fmean
from typing import Any, NamedTuple

from scipy.special import stdtrit  # quantiles of Student's t, true far out in the tails too

from prefloop.config import AlarmConfig

_FLAT = 1e-9
"""Differences below this are rounding."""


class Mean(NamedTuple):
    """A mean, its standard error and the degrees of freedom behind that; 0 of them when the error
    is unknown.
    """

    value: float
    se: float
    df: int


def clustered(values: Sequence[float], group: int) -> Mean:
    """Mean of responses of which ``group`` in a row answer one prompt, with prompts as what was
    sampled.

    The responses to a single prompt stand for themselves; a single response has no standard error.
    """
    units = [fmean(values[i : i + group]) for i in range(0, len(values), group)]
    units = units if len(units) > 1 else list(values)
    mean = fmean(units)
    if len(units) == 1:
        return Mean(mean, 0.0, 0)
    variance = sum((unit - mean) ** 2 for unit in units) / (len(units) - 1)
    return Mean(mean, math.sqrt(variance / len(units)), len(units) - 1)


def pooled(means: Sequence[Mean]) -> Mean:
    """Mean of the means of several rollouts."""
    se = math.sqrt(sum(mean.se**2 for mean in means)) / len(means)
    return Mean(fmean(mean.value for mean in means), se, _df(*means))


def _df(*means: Mean) -> int:
    return sum(mean.df for mean in means) if all(mean.df for mean in means) else 0


def repetition(token_ids: Sequence[int], n: int = 4) -> float:
    """Share of a response's n-grams that stood in it before; 0 for one shorter than ``n``
    tokens.
    """
    grams = [tuple(token_ids[i : i + n]) for i in range(len(token_ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


@dataclasses.dataclass(frozen=True)
class Reading:
    """The policy that sampled one rollout, before it learnt from it."""

    step: int
    """From 1."""
    proxy: Mean
    """Reward that training maximises, before penalties."""
    objective: Mean
    """Penalised reward minus ``kl.coef`` (as configured) times the KL."""
    length: Mean
    """Tokens."""
    kl: Mean
    """Nats a response."""
    repetition: Mean
    """Share of repeated 4-grams."""
    spread: Mean | None = None
    """Standard deviation over the members of a reward ensemble."""
    gold: Mean | None = None
    """Score of a judge that training never sees."""

    @classmethod
    def of(cls, saved: dict[str, Any]) -> Reading:
        """A reading back from JSON."""
        means = {name: value and Mean(*value) for name, value in saved.items() if name != "step"}
        return cls(step=saved["step"], **means)


def needed(standard_errors: float, looks: int, df: int) -> float:
    """Standard errors that a difference must have at this look, so that all looks together err no
    more often than a few single ones.
    """
    return -float(stdtrit(df, NormalDist().cdf(-standard_errors) / looks))


class Alarm:
    """Takes a reading a step; knows the best step so far and why to worry. ``state`` is JSON, and
    an alarm made from it decides alike.
    """

    def __init__(self, config: AlarmConfig, state: dict[str, Any] | None = None) -> None:
        self.config = config
        state = state or {
            "count": 0,
            "start": [],
            "recent": [],
            "peak": [],
            "best": None,
            "raised": [],
        }
        self.count: int = state["count"]
        self.start = [Reading.of(r) for r in state["start"]]
        """The first ``window`` readings of the run."""
        self.recent = [Reading.of(r) for r in state["recent"]]
        """The last two windows, of this start or rollback."""
        self.peak = [Reading.of(r) for r in state["peak"]]
        """The window with the best gold mean that the current one does not overlap."""
        self.best: dict[str, float] | None = state["best"]
        """Step and score of the best policy."""
        self.raised: list[str] = state["raised"]
        """Rules that have spoken; each does so once, and again after a rollback."""

    @property
    def state(self) -> dict[str, Any]:
        """All that later decisions depend on."""
        windows = {
            name: [dataclasses.asdict(r) for r in getattr(self, name)]
            for name in ("start", "recent", "peak")
        }
        return {"count": self.count, "best": self.best, "raised": self.raised, **windows}

    @property
    def best_step(self) -> int | None:
        """Step whose policy is the best of those within half of every limit, by gold where it is
        graded, else by the objective.

        Ranked by the mean over the window that ends there, less its standard error: one lucky
        rollout is not the best. Half, because without gold the objective is highest where the
        reward is gamed most, just below a limit.
        """
        return None if self.best is None else int(self.best["step"])

    def rolled_back(self) -> None:
        """Forget the readings of the policy that was given up; what the run started from and its
        best stay.
        """
        self.recent, self.raised = [], []

    def observe(self, reading: Reading) -> list[str]:
        """Take a reading; a sentence with figures for each rule that speaks now."""
        window = self.config.window
        self.count += 1
        if len(self.start) < window:
            self.start.append(reading)
        self.recent = [*self.recent, reading][-2 * window :]
        self._rank(reading)
        if len(self.recent) == 2 * window or (not self.peak and len(self.recent) > window):
            candidate = self.recent[:window]
            if not self.peak or _gold(candidate).value > _gold(self.peak).value:
                self.peak = candidate
        if self.count % self.config.every:
            return []
        found = {
            "gold": self._gold_fell(),
            "length": self._ratio(
                "length", self.config.length_ratio, "responses", "tokens", shrinks=True
            ),
            "kl": self._kl(),
            "repetition": self._repetition(),
            "spread": self._ratio(
                "spread", self.config.spread_ratio, "the spread of the reward ensemble", "", False
            ),
        }
        fresh = {rule: words for rule, words in found.items() if words and rule not in self.raised}
        self.raised = [*self.raised, *fresh]
        return list(fresh.values())

    def _rank(self, reading: Reading) -> None:
        mean = pooled([r.gold or r.objective for r in self.recent[-self.config.window :]])
        score = mean.value - mean.se
        if self.best is None or (score > self.best["score"] and self._within_half(reading)):
            self.best = {"step": reading.step, "score": score}

    def _within_half(self, reading: Reading) -> bool:
        config = self.config

        def ratio(name: str, limit: float | None) -> bool:
            before, now = _mean(self.start, name).value, getattr(reading, name)
            return (
                not limit
                or now is None
                or before <= 0
                or limit**-0.5 <= now.value / before <= limit**0.5
            )

        more = reading.repetition.value - _mean(self.start, "repetition").value
        return (
            (config.kl is None or reading.kl.value <= config.kl / 2)
            and (config.repetition is None or more <= config.repetition / 2)
            and ratio("length", config.length_ratio)
            and (reading.spread is None or ratio("spread", config.spread_ratio))
        )

    def _after(self, earlier: Sequence[Reading]) -> list[Reading]:
        """The current window, without what belongs to an earlier one."""
        return [
            r
            for r in self.recent[-self.config.window :]
            if not earlier or r.step > earlier[-1].step
        ]

    def _passed(self, excess: float, se: float, df: int, chosen: bool = False) -> bool:
        """Whether an excess is more than noise; ``chosen`` when what it is compared with is the
        best of all windows so far.
        """
        looks = 1 + (self.count - 1) // max(self.config.window, self.config.every)
        return df > 0 and excess > max(
            _FLAT, se * needed(self.config.standard_errors, looks ** (1 + chosen), df)
        )

    def _gold_fell(self) -> str:
        now = self._after(self.peak)
        if self.config.gold_drop is None or not self.peak or not now or now[-1].gold is None:
            return ""
        was, gold = _gold(self.peak), _gold(now)
        fall, se = was.value - gold.value, math.hypot(was.se, gold.se)
        before, proxy = _mean(self.peak, "proxy"), _mean(now, "proxy")
        rises = proxy.value - before.value > math.hypot(before.se, proxy.se)
        spread = fmean(r.gold.se * math.sqrt(r.gold.df + 1) for r in self.peak if r.gold)
        counts = rises and fall > self.config.gold_drop * spread
        if not counts or not self._passed(fall, se, _df(was, gold), chosen=True):
            return ""
        errors = f", {fall / se:.1f} standard errors," if se else ""
        return (
            f"gold fell from {was.value:.3f} ({_steps(self.peak)}) to {gold.value:.3f}"
            f" ({_steps(now)}){errors} while the reward rose from {before.value:.2f} to"
            f" {proxy.value:.2f}"
        )

    def _ratio(self, name: str, limit: float | None, what: str, unit: str, shrinks: bool) -> str:
        now = self._after(self.start)
        if limit is None or not now or getattr(now[-1], name) is None:
            return ""
        was, is_ = _mean(self.start, name), _mean(now, name)
        df = _df(was, is_)
        grew = self._passed(is_.value - limit * was.value, math.hypot(is_.se, limit * was.se), df)
        shrank = shrinks and self._passed(
            was.value - limit * is_.value, math.hypot(was.se, limit * is_.se), df
        )
        if not grew and not shrank:
            return ""
        figures = f"from {was.value:.3g} to {is_.value:.3g} {unit}".rstrip()
        bound = f"the limit is {limit:g} times" if grew else f"the limit is 1/{limit:g}"
        return (
            f"{what} {'grew' if grew else 'shrank'} {figures} ({_steps(self.start)},"
            f" {_steps(now)}); {bound}"
        )

    def _kl(self) -> str:
        now = self.recent[-self.config.window :]
        mean, limit = _mean(now, "kl"), self.config.kl
        if limit is None or not self._passed(mean.value - limit, mean.se, mean.df):
            return ""
        return (
            f"the KL to the reference is {mean.value:.3g} nats a response ({_steps(now)}); the"
            f" limit is {limit:g}"
        )

    def _repetition(self) -> str:
        now, limit = self._after(self.start), self.config.repetition
        if limit is None or not now:
            return ""
        was, is_ = _mean(self.start, "repetition"), _mean(now, "repetition")
        if not self._passed(
            is_.value - was.value - limit, math.hypot(was.se, is_.se), _df(was, is_)
        ):
            return ""
        return (
            f"repeated 4-grams rose from {was.value:.1%} to {is_.value:.1%} ({_steps(self.start)},"
            f" {_steps(now)}); the limit is {100 * limit:g} points more"
        )


def _mean(readings: Sequence[Reading], name: str) -> Mean:
    known = [getattr(r, name) for r in readings if getattr(r, name) is not None]
    return pooled(known) if known else Mean(0.0, 0.0, 0)


def _gold(readings: Sequence[Reading]) -> Mean:
    return pooled([r.gold or r.proxy for r in readings])


def _steps(readings: Sequence[Reading]) -> str:
    first, last = readings[0].step, readings[-1].step
    return f"step {last}" if first == last else f"steps {first} to {last}"
