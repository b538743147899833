"""Means and win rates with intervals that respect prompts as clusters.

Several responses to one prompt are not independent evidence: every interval here treats the
*prompt* as the unit that was sampled. The method is a percentile bootstrap that resamples prompts,
and within a resampled prompt the responses of each side.

Plain two-stage resampling is wrong in two known ways, and both are corrected:

- the spread of observed prompt means already holds the noise of their responses, so resampling
  responses as well counts that noise twice (too wide by up to a factor of sqrt 2). Prompt means are
  therefore shrunk towards the grand mean until the variance of the bootstrap equals the unbiased
  s^2/n of n independent prompts: Davison & Hinkley, "Bootstrap Methods", 1997, section 3.8; Ng,
  Grieve & Carpenter, Stata Journal 13(1), 2013;
- with few prompts percentiles are too narrow. The percentiles used are those of a Student t with n
  - 1 degrees of freedom: Hesterberg, "What Teachers Should Know About the Bootstrap", 2015, the
  expanded percentile interval.

A win rate whose prompts all agree (a sweep, or nothing but ties) has no spread to resample. Its
interval is the exact binomial one: at most ``1 - (alpha/2)**(1/n)`` of prompts may be otherwise
(Clopper-Pearson with n of n).

Shapes: R resamples, P prompts, A and B responses of the two sides (padded to the longest).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit  # quantiles of Student's t, true far out in the tails too
from scipy.stats import binomtest

Array = NDArray[np.float64]
_CHUNK_CELLS = 4_000_000  # bounds the memory of one vectorized batch of resamples to some 100 MB
_FLAT = 1e-12


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval; ``n_clusters`` prompts stand behind it."""

    mean: float
    low: float
    high: float
    n_clusters: int


@dataclass(frozen=True)
class WinRate:
    """How often side a beats side b, a tie counting half. ``rate`` and ``ties`` are means of the
    prompts' shares.
    """

    rate: float
    low: float
    high: float
    ties: float
    n_prompts: int
    n_pairs: int


@dataclass(frozen=True)
class SignTest:
    """Prompts that a won, lost and tied, with the p-value of that split if both sides are equally
    good.
    """

    wins: int
    losses: int
    ties: int
    """Left out of the test: they favor neither side."""
    p_value: float
    """Two-sided and exact; 1 when every prompt is a tie."""


def clustered_mean(
    values_by_prompt: Mapping[str, Sequence[float]],
    *,
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
) -> Interval:
    """Mean over prompts of the per-prompt mean, with a bootstrap interval that resamples prompts
    and responses.

    With one prompt the interval speaks about the responses to that prompt only. Raises
    ``ValueError`` naming the prompt whose values are missing, empty or not finite.
    """
    rows = [values[:, None] for values in checked_values(values_by_prompt, "values")]
    mean, low, high, _ = _interval(rows, seed=seed, resamples=resamples, level=level)
    return Interval(mean=mean, low=low, high=high, n_clusters=len(rows))


def win_rate(
    scores_a: Mapping[str, Sequence[float]],
    scores_b: Mapping[str, Sequence[float]],
    *,
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
) -> WinRate:
    """Win rate of a over b from scores: per prompt the mean of ``1[a > b] + 1[a = b] / 2`` over all
    pairs of responses.

    Exchanging the sides gives exactly the mirrored result, interval included. Raises ``ValueError``
    naming the prompt when the prompts differ or a prompt's scores are empty or not finite.
    """
    require_same_prompts(scores_a, scores_b, "a", "b")
    side_a, side_b = (
        checked_values(scores_a, "scores of a"),
        checked_values(scores_b, "scores of b"),
    )
    # One orientation for (a, b) and (b, a), so that both draw the same resamples.
    mirrored = [x.tolist() for x in side_a] > [x.tolist() for x in side_b]
    if mirrored:
        side_a, side_b = side_b, side_a
    pairs = [
        (np.sign(a[:, None] - b[None, :]) + 1) / 2 for a, b in zip(side_a, side_b, strict=True)
    ]
    result = _win_rate(pairs, seed=seed, resamples=resamples, level=level)
    if not mirrored:
        return result
    return replace(result, rate=1 - result.rate, low=1 - result.high, high=1 - result.low)


def verdict_win_rate(
    verdicts_by_prompt: Mapping[str, Sequence[float]],
    *,
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
) -> WinRate:
    """Win rate of a over b from verdicts: 1 a wins, 0 b wins, 0.5 tie. Raises ``ValueError`` naming
    a bad prompt.
    """
    columns = [values[:, None] for values in checked_verdicts(verdicts_by_prompt)]
    return _win_rate(columns, seed=seed, resamples=resamples, level=level)


def clustered_share(
    shares_by_prompt: Mapping[str, Sequence[float]],
    *,
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
) -> Interval:
    """As ``clustered_mean``, for numbers between 0 and 1: the interval stays there and is exact
    where nothing varies.
    """
    rate = verdict_win_rate(shares_by_prompt, seed=seed, resamples=resamples, level=level)
    return Interval(rate.rate, rate.low, rate.high, rate.n_prompts)


def sign_test(verdicts_by_prompt: Mapping[str, Sequence[float]]) -> SignTest:
    """Exact sign test of a win rate of one half. The unit is the prompt, won by the side with the
    larger share of its verdicts.

    Arbuthnot 1710; Dixon & Mood, JASA 41, 1946. Raises ``ValueError`` naming a bad prompt.
    """
    lead_P = prompt_means(checked_verdicts(verdicts_by_prompt)) - 0.5
    wins, losses = int((lead_P > _FLAT).sum()), int((lead_P < -_FLAT).sum())
    decided = wins + losses
    p_value = float(binomtest(wins, decided).pvalue) if decided else 1.0
    return SignTest(wins, losses, len(lead_P) - decided, p_value)


def checked_values(values_by_prompt: Mapping[str, Sequence[float]], what: str) -> list[Array]:
    """The values of every prompt as arrays, sorted by prompt id; ``ValueError`` naming a bad
    prompt.
    """
    if not values_by_prompt:
        raise ValueError(f"{what}: no prompts given")
    columns = []
    for prompt_id in sorted(values_by_prompt):
        values = np.asarray(values_by_prompt[prompt_id], dtype=np.float64)
        if values.ndim != 1 or not values.size:
            raise ValueError(
                f"{what} of prompt '{prompt_id}': expected a list of numbers, found shape"
                f" {values.shape}"
            )
        columns.append(values)
    # One check of all values: a check of each prompt's takes longer than the statistics do.
    if not np.isfinite(np.concatenate(columns)).all():
        prompt_id, values = next(
            (key, x)
            for key, x in zip(sorted(values_by_prompt), columns, strict=True)
            if not np.isfinite(x).all()
        )
        bad = int(np.flatnonzero(~np.isfinite(values))[0])
        raise ValueError(
            f"{what} of prompt '{prompt_id}': entry {bad} is {values[bad]}, not a finite number"
        )
    return columns


def checked_verdicts(verdicts_by_prompt: Mapping[str, Sequence[float]]) -> list[Array]:
    """As ``checked_values``, for verdicts: each must lie between 0 and 1."""
    columns = checked_values(verdicts_by_prompt, "verdicts")
    flat = np.concatenate(columns)
    if flat.min() < 0 or flat.max() > 1:
        ids = zip(sorted(verdicts_by_prompt), columns, strict=True)
        prompt_id, values = next((key, x) for key, x in ids if x.min() < 0 or x.max() > 1)
        raise ValueError(
            f"verdicts of prompt '{prompt_id}': expected 1, 0.5 or 0, found {values.tolist()}"
        )
    return columns


def prompt_means(columns: Sequence[Array]) -> Array:
    """Mean of each prompt's values, [P]."""
    sizes_P = np.array([len(values) for values in columns])
    return np.add.reduceat(np.concatenate(columns), np.cumsum(sizes_P) - sizes_P) / sizes_P


def require_same_prompts(
    one: Mapping[str, object], other: Mapping[str, object], name_one: str, name_other: str
) -> None:
    """Raise ``ValueError`` naming the first prompt that only one of the two mappings has."""
    for left, right, has, lacks in (
        (one, other, name_one, name_other),
        (other, one, name_other, name_one),
    ):
        missing = sorted(left.keys() - right.keys())
        if missing:
            raise ValueError(
                f"prompt '{missing[0]}' is in {has} but not in {lacks} ({len(missing)} such"
                " prompts)"
            )


def exact_bounds(rate: float, n_prompts: int, level: float) -> tuple[float, float]:
    """Interval of a rate that is the same on every prompt (Clopper-Pearson with n of n)."""
    others = 1 - ((1 - level) / 2) ** (1 / n_prompts)
    return rate - others * rate, rate + others * (1 - rate)


def percentile_tail(n_clusters: int, level: float) -> float:
    """Lower percentile (as a share) at which a bootstrap over ``n_clusters`` prompts covers
    ``level``.
    """
    tail = (1 - level) / 2
    return tail if n_clusters == 1 else NormalDist().cdf(float(stdtrit(n_clusters - 1, tail)))


def _win_rate(pairs: list[Array], *, seed: int, resamples: int, level: float) -> WinRate:
    rate, low, high, flat = _interval(pairs, seed=seed, resamples=resamples, level=level)
    if flat:
        low, high = exact_bounds(rate, len(pairs), level)
    ties = float(np.mean([(cells == 0.5).mean() for cells in pairs]))
    n_pairs = sum(cells.size for cells in pairs)
    return WinRate(rate, max(low, 0.0), min(high, 1.0), ties, n_prompts=len(pairs), n_pairs=n_pairs)


def _interval(
    cells: list[Array], *, seed: int, resamples: int, level: float
) -> tuple[float, float, float, bool]:
    """Mean of the per-prompt means of ``cells`` (one [A, B] table a prompt), interval, and whether
    nothing varies.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, found {level}")
    if resamples < 1:
        raise ValueError(f"resamples must be 1 or more, found {resamples}")
    means_P = np.array([table.mean() for table in cells])
    mean = float(means_P.mean())
    within_P = np.array([_within_variance(table) for table in cells])
    draws_R = _draws(
        cells, means_P, _shrinkage(means_P, within_P), np.random.default_rng(seed), resamples
    )
    tail = percentile_tail(len(cells), level)
    low, high = np.quantile(draws_R, [tail, 1 - tail])
    flat = bool(np.ptp(means_P) < _FLAT and within_P.max() < _FLAT)
    return mean, float(low), float(high), flat


def _within_variance(table_AB: Array) -> float:
    """Exact variance of the table's mean when its rows and its columns are both resampled with
    replacement.
    """
    n_a, n_b = table_AB.shape
    if table_AB.size == 1:
        return 0.0
    mean = table_AB.mean()
    row_A, column_B = table_AB.mean(axis=1) - mean, table_AB.mean(axis=0) - mean
    rest_AB = table_AB - mean - row_A[:, None] - column_B[None, :]
    return float(
        (row_A**2).sum() / n_a**2
        + (column_B**2).sum() / n_b**2
        + (rest_AB**2).sum() / (n_a * n_b) ** 2
    )


def _shrinkage(means_P: Array, within_P: Array) -> float:
    """Factor on the prompts' deviations that gives the two-stage bootstrap the variance s^2/n."""
    n, between = len(means_P), means_P.var()
    if n == 1 or between < _FLAT**2:
        return 0.0
    return math.sqrt(max(0.0, n / (n - 1) - within_P.mean() / between))


def _draws(
    cells: list[Array], means_P: Array, shrink: float, rng: np.random.Generator, resamples: int
) -> Array:
    """Bootstrap distribution of the mean over prompts, [R]."""
    n = len(cells)
    counts_P2 = np.array([table.shape for table in cells])
    width_a, width_b = (int(width) for width in counts_P2.max(axis=0))
    cells_PAB = np.zeros((n, width_a, width_b))
    for row, table in enumerate(cells):
        cells_PAB[row, : table.shape[0], : table.shape[1]] = table
    weights_PA = (np.arange(width_a) < counts_P2[:, :1]) / counts_P2[:, :1]
    weights_PB = (np.arange(width_b) < counts_P2[:, 1:]) / counts_P2[:, 1:]
    center = means_P.mean()
    offsets_P = center + shrink * (means_P - center) - means_P

    draws = []
    step = max(1, _CHUNK_CELLS // cells_PAB.size)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        prompt_RP = rng.integers(n, size=(size, n))
        counts_RP2 = counts_P2[prompt_RP]
        pick_RPA = (rng.random((size, n, width_a)) * counts_RP2[..., :1]).astype(np.intp)
        pick_RPB = (rng.random((size, n, width_b)) * counts_RP2[..., 1:]).astype(np.intp)
        drawn_RPAB = cells_PAB[
            prompt_RP[..., None, None], pick_RPA[..., :, None], pick_RPB[..., None, :]
        ]
        rows_RPA = np.einsum("rpab,rpb->rpa", drawn_RPAB, weights_PB[prompt_RP])
        means_RP = np.einsum("rpa,rpa->rp", rows_RPA, weights_PA[prompt_RP])
        draws.append((means_RP + offsets_P[prompt_RP]).mean(axis=1))
    return np.concatenate(draws)
