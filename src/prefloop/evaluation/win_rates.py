"""Win rates as an ``Evaluation`` holds them: by scores of every response, by a judge's duels, and
of all policies against each other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from prefloop.artifacts.results import (
    GOLD,
    JUDGE,
    REWARD,
    AtEqualLength,
    Estimate,
    Matrix,
    PolicyResult,
)
from prefloop.evaluation.compare import Duel
from prefloop.evaluation.standing import REWARD_MODEL
from prefloop.stats.bradley_terry import Ranking
from prefloop.stats.intervals import Interval, WinRate, sign_test
from prefloop.stats.length_control import LengthControlled, length_controlled_win_rate

SCORERS = {GOLD: "gold scorer", REWARD: REWARD_MODEL}
NO_JUDGE = "no judge, gold scorer or reward model compares the policies, so there are no win rates"
Scores = Mapping[str, Sequence[float]]
"""The score of each response, by prompt id."""


def estimate_of(measured: WinRate | Interval) -> Estimate:
    """A measured rate or mean with its interval."""
    value = measured.rate if isinstance(measured, WinRate) else measured.mean
    return Estimate(value, measured.low, measured.high)


def matrix(
    judge: str,
    models: Sequence[str],
    rates: Mapping[tuple[str, str], WinRate],
    ranking: Ranking | None,
) -> Matrix:
    """Win rates of rows over columns with their intervals, ``None`` on the diagonal, and Elo
    ratings of more than two models.
    """
    both = dict(rates) | {
        (b, a): dataclasses.replace(w, rate=1 - w.rate, low=1 - w.high, high=1 - w.low)
        for (a, b), w in rates.items()
    }
    rate, low, high = (
        [[getattr(both[a, b], part) if a != b else None for b in models] for a in models]
        for part in ("rate", "low", "high")
    )
    rated = ranking.models if ranking else ()
    elo = {model.name: Estimate(model.elo, model.low, model.high) for model in rated}
    return Matrix(judge, list(models), rate, low, high, elo)


def wins_of(mine: Scores, theirs: Scores) -> dict[str, list[float]]:
    """The verdicts on all pairs of responses, by prompt id."""
    return {i: [0.5 if a == b else float(a > b) for a in mine[i] for b in theirs[i]] for i in mine}


def leads_of(mine: Scores, base: Scores) -> dict[str, list[float]]:
    """How many characters longer each response is than the other of its pair, by prompt id; takes
    their lengths.
    """
    return {i: [float(a - b) for a in mine[i] for b in base[i]] for i in mine}


def of_scores(
    result: PolicyResult,
    judge: str,
    wins: Scores,
    leads: Scores,
    resamples: int,
) -> PolicyResult:
    """``result`` with the sign test and the rate at equal length of a scorer (``gold`` or
    ``reward``).

    ``wins`` and ``leads`` are those of ``wins_of`` and ``leads_of`` against SFT.
    """
    level = length_controlled_win_rate(wins, leads, resamples=resamples)
    return dataclasses.replace(
        result,
        sign_test_p=sign_test(wins).p_value,
        at_equal_length=at_equal_length(SCORERS[judge], level),
    )


def of_duel(result: PolicyResult, judge: str, duel: Duel) -> PolicyResult:
    """``result`` with everything that a judge's duel of the policy against SFT measured."""
    return dataclasses.replace(
        result,
        wins={**result.wins, JUDGE: estimate_of(duel.win_rate)},
        judge=judge,
        disagreement=duel.n_disagreed / max(1, duel.n_comparisons),
        failed=duel.n_failed,
        sign_test_p=duel.sign_test.p_value,
        at_equal_length=at_equal_length(judge, duel.length_controlled),
    )


def at_equal_length(judge: str, measured: LengthControlled) -> AtEqualLength:
    """A win rate at equal length with the name of the judge, or why there is none."""
    if measured.unknown:
        return AtEqualLength(judge, unknown=measured.unknown)
    return AtEqualLength(judge, estimate_of(measured))
