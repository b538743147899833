"""Win rates by people's standard, from a judge on many prompts and people on some: two corrections
for the judge's errors.

Both take the judge's verdicts on every prompt and, where people voted, pairs of a person's and the
judge's score of the same comparison. Scores are those of side a: 1 win, 0 loss, 0.5 tie (or the
mean of several votes). The prompt is the unit that was sampled: its comparisons are averaged first,
and a prompt that stands on both sides of an estimate counts as one.

``rogan_gladen`` inverts the judge's error rates. Its calibration votes may come from other prompts
with another share of wins, but the judge must err there as it does here. ``prediction_powered``
needs votes on a random sample of the judged prompts and assumes nothing of the judge: prefer it
where such votes exist.

Simulated, 95 % intervals around the plain estimates hold the truth in as little as 45 % of
evaluations when votes are few, the judge is good or the rate is near 0 or 1: a sample without one
error of the judge, or with one lost prompt, does not show how rare they are. Hence

- to the spread of the votes, though not to the estimate, one imagined prompt of each kind is added
  (person and judge for a, person alone, judge alone, neither): the Agresti-Coull idea, used for
  judges by Lee et al. (arXiv 2511.21140);
- intervals are inverted tests, not estimate ± error: Fieller's (J. R. Stat. Soc. B 16, 1954) for
  the ratio of Rogan-Gladen, which is [0, 1] when the votes do not show the judge to be better than
  chance, Wilson's (1927) with the effective sample size for the other.

Shapes: P judged prompts, V prompts with votes, I the four imagined prompts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit  # quantiles of Student's t, true far out in the tails too

from prefloop.errors import DataError
from prefloop.stats.intervals import Array, checked_verdicts, prompt_means

FEWEST_VOTED = 5
_HUMAN_I = np.array([1.0, 1.0, 0.0, 0.0])
_JUDGE_I = np.array([1.0, 0.0, 1.0, 0.0])

Pairs = Mapping[str, Sequence[tuple[float, float]]]
"""By prompt id: (person's score, judge's score) of each comparison that people voted on."""


@dataclass(frozen=True)
class Corrected:
    """A win rate by people's standard."""

    rate: float
    low: float
    high: float
    n_human: int
    """Prompts with people's votes."""
    n_judge: int
    """Prompts the judge has seen."""


@dataclass(frozen=True)
class RoganGladen(Corrected):
    """As ``Corrected``, with the judge's measured error rates."""

    sensitivity: float
    """Share of a's wins by people's standard that the judge gives to a."""
    specificity: float
    """Share of b's wins by people's standard that the judge gives to b."""


@dataclass(frozen=True)
class PredictionPowered(Corrected):
    """As ``Corrected``, with the weight that the judge's verdicts were given."""

    weight: float
    """0 when the judge's verdicts are unrelated to people's votes, near 1 when it follows them."""


def rogan_gladen(
    judge_by_prompt: Mapping[str, Sequence[float]], pairs_by_prompt: Pairs, *, level: float = 0.95
) -> RoganGladen:
    """Win rate corrected by sensitivity q1 and specificity q0: ``(p + q0 - 1) / (q0 + q1 - 1)``, p
    being the judge's rate.

    Rogan & Gladen, Am. J. Epidemiol. 107, 1978; for judges arXiv 2511.21140. With h a person's and
    j the judge's score, ``q1 = mean(h j) / mean(h)`` and
    ``q0 = mean((1 - h)(1 - j)) / mean(1 - h)``: a tie is half a win and half a loss, for which the
    formula still holds exactly. Prompts of ``pairs_by_prompt`` may be among those of
    ``judge_by_prompt`` or others; which of two responses is called a must mean the same in both.
    Raises ``ValueError`` for a bad score, ``DataError`` for fewer than 5 prompts with votes, votes
    that all go to one side, or a judge no better than chance.
    """
    ids, judge_P = _by_prompt(judge_by_prompt)
    voted, human, judge = _pairs(pairs_by_prompt)
    n, n_all = len(voted), len(ids)
    won_V = prompt_means(human)
    both_V = prompt_means([x * y for x, y in zip(human, judge, strict=True)])
    against_V = prompt_means([(1 - x) * y for x, y in zip(human, judge, strict=True)])
    if not 0 < won_V.mean() < 1:
        raise DataError(
            f"people's votes on {n} prompts all go to one side, so one of the judge's two error"
            " rates cannot be measured; give votes on more prompts, or use the prediction-powered"
            " rate"
        )
    raw = judge_P.mean()
    sensitivity, false_alarm = both_V.sum() / won_V.sum(), against_V.sum() / (1 - won_V).sum()
    gain = sensitivity - false_alarm
    if gain <= 0:
        raise DataError(
            f"on {n} prompts with votes the judge's sensitivity {sensitivity:.2f} and specificity"
            f" {1 - false_alarm:.2f} are no better than chance (sum 1), so its win rate cannot be"
            " corrected by them; use another judge, or the prediction-powered rate"
        )
    rate = float(np.clip((raw - false_alarm) / gain, 0, 1))
    row = {prompt_id: position for position, prompt_id in enumerate(ids)}
    shared_V = np.array([row.get(prompt_id, -1) for prompt_id in voted])
    low, high = _fieller(judge_P, won_V, both_V, against_V, shared_V, level)
    return RoganGladen(
        rate,
        min(low, rate),
        max(high, rate),
        n,
        n_all,
        sensitivity=float(sensitivity),
        specificity=float(1 - false_alarm),
    )


def prediction_powered(
    judge_by_prompt: Mapping[str, Sequence[float]], pairs_by_prompt: Pairs, *, level: float = 0.95
) -> PredictionPowered:
    """Win rate
    ``mean(human) + weight * (mean(judge, all prompts) - mean(judge, prompts with votes))``.

    Prediction-powered inference (arXiv 2301.09633) with the weight that makes the variance smallest
    (power tuning, PPI++, arXiv 2311.01453), in survey sampling the regression estimator. A judge
    that follows people narrows the interval; one that does not gets a weight near 0 and cannot bias
    the result. The prompts with votes must be a random sample of the judged ones. Raises
    ``ValueError`` for a bad score or voted prompts the judge has not seen, ``DataError`` for fewer
    than 5 prompts with votes.
    """
    _, judge_P = _by_prompt(judge_by_prompt)
    unseen = sorted(pairs_by_prompt.keys() - judge_by_prompt.keys())
    if unseen:
        raise ValueError(
            f"prompt '{unseen[0]}' has human votes but no judge verdict ({len(unseen)} such"
            " prompts)"
        )
    _, human, judge = _pairs(pairs_by_prompt)
    human_V, judge_V = prompt_means(human), prompt_means(judge)
    n, n_all = len(human_V), len(judge_P)
    weight, _ = _regression(human_V, judge_V)
    rate = float(np.clip(human_V.mean() + weight * (judge_P.mean() - judge_V.mean()), 0, 1))

    human_VI, judge_VI = np.append(human_V, _HUMAN_I), np.append(judge_V, _JUDGE_I)
    slope, rest = _regression(human_VI, judge_VI)
    center = human_VI.mean() + slope * (np.append(judge_P, _JUDGE_I).mean() - judge_VI.mean())
    # Residuals of a regression do not correlate with its predictor, so the two variances add.
    variance = rest / (len(human_VI) - 2) / len(human_VI)
    if n_all > 1:
        variance += slope**2 * float(judge_P.var(ddof=1)) / n_all
    size = max(center * (1 - center), 1e-3) / variance
    t = float(stdtrit(n - 2, (1 + level) / 2))
    middle = (rate * size + t**2 / 2) / (size + t**2)
    reach = t * math.sqrt(rate * (1 - rate) * size + t**2 / 4) / (size + t**2)
    low, high = max(0.0, min(middle - reach, rate)), min(1.0, max(middle + reach, rate))
    return PredictionPowered(rate, low, high, n, n_all, weight=weight)


def _fieller(
    judge_P: Array,
    won_V: Array,
    both_V: Array,
    against_V: Array,
    shared_V: NDArray[np.int64],
    level: float,
) -> tuple[float, float]:
    """Rates θ for which ``p - θ q1 - (1 - θ)(1 - q0)`` is within its error of 0; ``shared_V`` is
    each voted prompt's row in P, or -1.
    """
    judge_PI, n = np.append(judge_P, _JUDGE_I), len(won_V)
    won_VI, both_VI = np.append(won_V, _HUMAN_I), np.append(both_V, _HUMAN_I * _JUDGE_I)
    against_VI = np.append(against_V, (1 - _HUMAN_I) * _JUDGE_I)
    raw, hit, false_alarm = (
        judge_PI.mean(),
        both_VI.sum() / won_VI.sum(),
        against_VI.sum() / (1 - won_VI).sum(),
    )
    # What each prompt adds to the error of p, of q1 and of 1 - q0 (linearized ratios).
    raw_PI = (judge_PI - raw) / len(judge_PI)
    hit_VI = (both_VI - hit * won_VI) / won_VI.sum()
    alarm_VI = (against_VI - false_alarm * (1 - won_VI)) / (1 - won_VI).sum()
    # The error at θ is a sum over prompts of (u - θ w); a prompt on both sides enters once, with
    # both its parts.
    u_V, w_V = -alarm_VI[:n], (hit_VI - alarm_VI)[:n]
    known = shared_V >= 0
    u_V = u_V + np.where(known, raw_PI[shared_V], 0.0)
    alone_P = np.delete(raw_PI[: len(judge_P)], shared_V[known])
    uu = (
        (u_V**2).sum()
        + (alone_P**2).sum()
        + (raw_PI[len(judge_P) :] ** 2).sum()
        + (alarm_VI[n:] ** 2).sum()
    )
    uw = u_V @ w_V + (alarm_VI[n:] ** 2).sum()
    ww = (w_V**2).sum() + (hit_VI[n:] ** 2).sum() + (alarm_VI[n:] ** 2).sum()

    z = NormalDist().inv_cdf((1 + level) / 2)
    gain, lead = hit - false_alarm, raw - false_alarm
    square, linear, constant = gain**2 - z**2 * ww, gain * lead - z**2 * uw, lead**2 - z**2 * uu
    if gain <= 0 or square <= 0:
        return 0.0, 1.0
    root = math.sqrt(max(0.0, linear**2 - square * constant))
    return float(np.clip((linear - root) / square, 0, 1)), float(
        np.clip((linear + root) / square, 0, 1)
    )


def _regression(y_V: Array, x_V: Array) -> tuple[float, float]:
    """Least-squares slope of y on x, and the sum of squared residuals."""
    x_V, y_V = x_V - x_V.mean(), y_V - y_V.mean()
    spread = float(x_V @ x_V)
    slope = float(x_V @ y_V) / spread if spread > 0 else 0.0
    return slope, float(((y_V - slope * x_V) ** 2).sum())


def _by_prompt(judge_by_prompt: Mapping[str, Sequence[float]]) -> tuple[list[str], Array]:
    return sorted(judge_by_prompt), prompt_means(checked_verdicts(judge_by_prompt))


def _pairs(pairs_by_prompt: Pairs) -> tuple[list[str], list[Array], list[Array]]:
    """Ids, people's and the judge's scores of every prompt with votes."""
    if len(pairs_by_prompt) < FEWEST_VOTED:
        raise DataError(
            f"a correction needs human votes on at least {FEWEST_VOTED} prompts, found"
            f" {len(pairs_by_prompt)}"
        )
    human = checked_verdicts(
        {prompt_id: [h for h, _ in pairs] for prompt_id, pairs in pairs_by_prompt.items()}
    )
    judge = checked_verdicts(
        {prompt_id: [j for _, j in pairs] for prompt_id, pairs in pairs_by_prompt.items()}
    )
    return sorted(pairs_by_prompt), human, judge
