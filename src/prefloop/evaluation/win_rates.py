"""Win rates as the summary holds them: by scores of every response, of a judge's duels, and of all
policies against each other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from prefloop.evaluation.compare import Duel
from prefloop.evaluation.standing import REWARD_MODEL
from prefloop.stats.bradley_terry import Ranking
from prefloop.stats.intervals import WinRate, sign_test
from prefloop.stats.length_control import LengthControlled, length_controlled_win_rate

SCORERS = {"gold": "gold scorer", "reward": REWARD_MODEL}
READINGS = (
    ("win_rate_vs_sft", "ci_low", "ci_high"),
    ("llm_win_rate", "llm_ci_low", "llm_ci_high"),
    ("reward_win_rate", "reward_ci_low", "reward_ci_high"),
)
"""Of a policy against SFT: rate and interval by gold scorer, by judge and by reward model."""
NO_JUDGE = "no judge, gold scorer or reward model compares the policies, so there are no win rates"
Scores = Mapping[str, Sequence[float]]
"""By prompt the score of each response."""


def matrix(
    judge: str,
    models: Sequence[str],
    rates: Mapping[tuple[str, str], WinRate],
    ranking: Ranking | None,
) -> dict[str, Any]:
    """Win rates of rows over columns with their intervals, ``None`` on the diagonal, and Elo
    ratings of more than two models.
    """
    both = dict(rates) | {
        (b, a): dataclasses.replace(w, rate=1 - w.rate, low=1 - w.high, high=1 - w.low)
        for (a, b), w in rates.items()
    }
    table = {
        part: [[getattr(both[a, b], part) if a != b else None for b in models] for a in models]
        for part in ("rate", "low", "high")
    }
    elo = (
        {m.name: {"rating": m.elo, "low": m.low, "high": m.high} for m in ranking.models}
        if ranking
        else None
    )
    return {"judge": judge, "policies": list(models), **table, "elo": elo}


def wins_of(mine: Scores, theirs: Scores) -> dict[str, list[float]]:
    """By prompt the verdicts of all pairs of responses."""
    return {i: [0.5 if a == b else float(a > b) for a in mine[i] for b in theirs[i]] for i in mine}


def leads_of(mine: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, list[float]]:
    """By prompt how many characters longer, for all pairs of responses."""
    return {
        i: [float(len(a) - len(b)) for a in mine["text"][i] for b in base["text"][i]]
        for i in mine["text"]
    }


def of_scores(
    mine: Mapping[str, Any], base: Mapping[str, Any], judge: str, resamples: int
) -> dict[str, Any]:
    """What a scorer's verdicts say of a policy against SFT beyond the rate."""
    wins = wins_of(mine[judge], base[judge])
    level = length_controlled_win_rate(wins, leads_of(mine, base), resamples=resamples)
    return {"sign_test_p": sign_test(wins).p_value} | length_controlled(SCORERS[judge], level)


def of_duel(judge: str, duel: Duel) -> dict[str, Any]:
    """What a judge that was asked says of a policy against SFT."""
    return {
        "llm_judge": judge,
        "llm_win_rate": duel.win_rate.rate,
        "llm_ci_low": duel.win_rate.low,
        "llm_ci_high": duel.win_rate.high,
        "llm_disagreement": duel.n_disagreed / max(1, duel.n_comparisons),
        "llm_failed": duel.n_failed,
        "sign_test_p": duel.sign_test.p_value,
    } | length_controlled(judge, duel.length_controlled)


def length_controlled(judge: str, found: LengthControlled) -> dict[str, Any]:
    """A win rate at equal length with the name of whoever gave the verdicts, or why there is
    none.
    """
    if found.unknown:
        return {
            "lc_judge": judge,
            "lc_win_rate": None,
            "lc_ci_low": None,
            "lc_ci_high": None,
            "lc_unknown": found.unknown,
        }
    return {
        "lc_judge": judge,
        "lc_win_rate": found.rate,
        "lc_ci_low": found.low,
        "lc_ci_high": found.high,
    }
