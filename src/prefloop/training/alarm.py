"""Rules that tell from the figures of every rollout when a policy games its reward; no model,
tensor or file is needed.

A reading holds the means of one rollout with standard errors clustered by prompt. A rule compares
the last ``window`` readings with the first ones (length, repetition, spread), with the best ones
(gold) or with a number (KL), and raises an alarm when its limit is passed by ``standard_errors``
standard errors. Neither a long run nor a small rollout raises an alarm by noise alone:

- The number of standard errors grows with the looks that a run has taken: Bonferroni over disjoint
  windows, and for gold over pairs of windows, because luck helps to choose the best one.
- It is a quantile of Student's t where prompts are few.
- Prompts that repeat within a window make the errors too wide, not too narrow: the window that it
  is compared with holds the same prompts.

Alternatives that were dropped: a trend line through all steps (an early rise hides a late fall) and
cumulative sums (nobody can read their limits as a figure).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from statistics import NormalDist, fmean
from typing import NamedTuple

from scipy.special import stdtrit  # quantiles of Student's t, exact far out in the tails

from prefloop.config import AlarmConfig

_FLAT = 1e-9
"""Differences below this are rounding."""


class Mean(NamedTuple):
    """A mean, its standard error and the error's degrees of freedom, 0 when the error is
    unknown.
    """

    value: float
    se: float
    df: int


def clustered(values: Sequence[float], group: int) -> Mean:
    """Mean over responses, ``group`` of which in a row answer one prompt; its standard error is
    that over prompts.

    With a single prompt the error is that over its responses, and a single response has none.
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
    """Share of a response's n-grams that repeat an earlier one; 0 for fewer than ``n`` tokens."""
    grams = [tuple(token_ids[i : i + n]) for i in range(len(token_ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


@dataclasses.dataclass(frozen=True)
class Reading:
    """Figures of one rollout: they describe the policy before it learns from the rollout."""

    step: int
    """From 1."""
    proxy: Mean
    """Reward that training maximizes, before penalties."""
    objective: Mean
    """Penalized reward minus ``kl.coef`` (as configured) times the KL."""
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


@dataclasses.dataclass(frozen=True)
class Best:
    """The best policy so far."""

    step: int
    score: float


@dataclasses.dataclass(frozen=True)
class AlarmState:
    """All that later decisions of an alarm depend on."""

    count: int = 0
    """Readings so far."""
    start: tuple[Reading, ...] = ()
    """The first ``window`` readings of the run."""
    recent: tuple[Reading, ...] = ()
    """The last two windows since the start of the run or the last rollback."""
    peak: tuple[Reading, ...] = ()
    """The window with the best gold mean that does not overlap the current one."""
    best: Best | None = None
    raised: tuple[str, ...] = ()
    """Rules that have raised an alarm. Each does so once, and again after a rollback."""


def needed(standard_errors: float, looks: int, df: int) -> float:
    """Standard errors that a difference must reach at this look, so that a false alarm in all looks
    together is no more likely than in a few single looks at ``standard_errors``.
    """
    return -float(stdtrit(df, NormalDist().cdf(-standard_errors) / looks))


class Alarm:
    """Takes a reading a step; knows the best step so far and every reason to worry.

    An alarm made from the ``state`` of another one decides alike.
    """

    def __init__(self, config: AlarmConfig, state: AlarmState | None = None) -> None:
        self.config = config
        self.state = state or AlarmState()

    @property
    def best_step(self) -> int | None:
        """The step of the best policy among those within half of every limit; ``None`` before the
        first reading.

        Policies are ranked by gold where it is graded, else by the objective: by the mean over the
        window that ends at a step, less its standard error, so that one lucky rollout is not the
        best. Half of a limit, because without gold the objective is highest where the reward is
        gamed most, just below a limit.
        """
        return None if self.state.best is None else self.state.best.step

    def rolled_back(self) -> None:
        """Forget the readings of the policy that was given up; the run's start and its best step
        stay.
        """
        self.state = dataclasses.replace(self.state, recent=(), raised=())

    def observe(self, reading: Reading) -> list[str]:
        """Take a reading; returns a sentence with figures for each rule that raises an alarm
        now.
        """
        window, state = self.config.window, self.state
        recent = (*state.recent, reading)[-2 * window :]
        peak = state.peak
        if len(recent) == 2 * window or (not peak and len(recent) > window):
            earlier = recent[:window]
            peak = earlier if not peak or _gold(earlier).value > _gold(peak).value else peak
        start = state.start if len(state.start) >= window else (*state.start, reading)
        self.state = dataclasses.replace(
            state, count=state.count + 1, start=start, recent=recent, peak=peak
        )
        self._rank(reading)
        if self.state.count % self.config.every:
            return []
        reasons = {
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
        fresh = {rule: why for rule, why in reasons.items() if why and rule not in state.raised}
        self.state = dataclasses.replace(self.state, raised=(*state.raised, *fresh))
        return list(fresh.values())

    def _rank(self, reading: Reading) -> None:
        """Make the policy of ``reading`` the best one if it is."""
        best = self.state.best
        mean = pooled([r.gold or r.objective for r in self.state.recent[-self.config.window :]])
        score = mean.value - mean.se
        if best is None or (score > best.score and self._within_half(reading)):
            self.state = dataclasses.replace(self.state, best=Best(reading.step, score))

    def _within_half(self, reading: Reading) -> bool:
        """Whether a reading is within half of every limit (on ratios: within the square root)."""
        config, start = self.config, self.state.start

        def ratio(name: str, limit: float | None) -> bool:
            before, now = _mean(start, name).value, getattr(reading, name)
            return (
                not limit
                or now is None
                or before <= 0
                or limit**-0.5 <= now.value / before <= limit**0.5
            )

        more = reading.repetition.value - _mean(start, "repetition").value
        return (
            (config.kl is None or reading.kl.value <= config.kl / 2)
            and (config.repetition is None or more <= config.repetition / 2)
            and ratio("length", config.length_ratio)
            and (reading.spread is None or ratio("spread", config.spread_ratio))
        )

    def _after(self, earlier: Sequence[Reading]) -> list[Reading]:
        """The readings of the current window that are later than those of an earlier one."""
        current = self.state.recent[-self.config.window :]
        return [r for r in current if not earlier or r.step > earlier[-1].step]

    def _passed(self, excess: float, se: float, df: int, chosen: bool = False) -> bool:
        """Whether an excess is more than noise; ``chosen`` when the baseline is the best of all
        windows so far.
        """
        looks = 1 + (self.state.count - 1) // max(self.config.window, self.config.every)
        return df > 0 and excess > max(
            _FLAT, se * needed(self.config.standard_errors, looks ** (1 + chosen), df)
        )

    def _gold_fell(self) -> str:
        peak = self.state.peak
        now = self._after(peak)
        if self.config.gold_drop is None or not peak or not now or now[-1].gold is None:
            return ""
        was, gold = _gold(peak), _gold(now)
        fall, se = was.value - gold.value, math.hypot(was.se, gold.se)
        before, proxy = _mean(peak, "proxy"), _mean(now, "proxy")
        rises = proxy.value - before.value > math.hypot(before.se, proxy.se)
        # A mean's error times the root of its prompts is the deviation between prompts.
        deviation = fmean(r.gold.se * math.sqrt(r.gold.df + 1) for r in peak if r.gold)
        counts = rises and fall > self.config.gold_drop * deviation
        if not counts or not self._passed(fall, se, _df(was, gold), chosen=True):
            return ""
        errors = f", {fall / se:.1f} standard errors," if se else ""
        return (
            f"gold fell from {was.value:.3f} ({_steps(peak)}) to {gold.value:.3f}"
            f" ({_steps(now)}){errors} while the reward rose from {before.value:.2f} to"
            f" {proxy.value:.2f}"
        )

    def _ratio(self, name: str, limit: float | None, what: str, unit: str, shrinks: bool) -> str:
        now = self._after(self.state.start)
        if limit is None or not now or getattr(now[-1], name) is None:
            return ""
        was, is_ = _mean(self.state.start, name), _mean(now, name)
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
            f"{what} {'grew' if grew else 'shrank'} {figures} ({_steps(self.state.start)},"
            f" {_steps(now)}); {bound}"
        )

    def _kl(self) -> str:
        now = self.state.recent[-self.config.window :]
        mean, limit = _mean(now, "kl"), self.config.kl
        if limit is None or not self._passed(mean.value - limit, mean.se, mean.df):
            return ""
        return (
            f"the KL to the reference is {mean.value:.3g} nats a response ({_steps(now)}); the"
            f" limit is {limit:g}"
        )

    def _repetition(self) -> str:
        start, limit = self.state.start, self.config.repetition
        now = self._after(start)
        if limit is None or not now:
            return ""
        was, is_ = _mean(start, "repetition"), _mean(now, "repetition")
        if not self._passed(
            is_.value - was.value - limit, math.hypot(was.se, is_.se), _df(was, is_)
        ):
            return ""
        return (
            f"repeated 4-grams rose from {was.value:.1%} to {is_.value:.1%} ({_steps(start)},"
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
