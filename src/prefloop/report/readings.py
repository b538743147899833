"""The judges of a run: which one leads the report, and its win rates of policies against SFT and of
SFT against itself.
"""

from collections.abc import Iterable
from typing import NamedTuple

from prefloop.artifacts.results import (
    BASELINE,
    GOLD,
    JUDGE,
    REWARD,
    UNKNOWN,
    Estimate,
    PolicyResult,
    rivals,
)
from prefloop.report.page import decimal, percent
from prefloop.report.summary import Summary

JUDGES = {GOLD: "gold scorer", JUDGE: "judge", REWARD: "reward model"}
"""Judges from the one to trust most to the one that learnt from the votes that trained the
policies.
"""
MUCH_LONGER = 1.5
"""Ratio of mean lengths from which the rate at equal length leads: a judge's taste for length would
be read as quality.
"""


def judge_of(summary: Summary) -> str | None:
    """The judge whose win rates lead the report: gold where it was run, else the judge asked for,
    else the reward model, else none.
    """
    compared = [summary.results[name] for name in rivals(summary.results)]
    return next(
        (judge for judge in JUDGES if any(r.win(judge).value is not None for r in compared)),
        None,
    )


def name_of(results: Iterable[PolicyResult], judge: str) -> str:
    """What to call a judge: the one that ``evaluate.judge`` names by its own name, all of them
    where results differ in it.
    """
    names = dict.fromkeys(r.judge for r in results if r.judge) if judge == JUDGE else {}
    return f"{JUDGES[judge]} {', '.join(names)}".strip()


class Lead(NamedTuple):
    """The win rate against SFT that a policy's headline rests on, and words to add where that is
    the one at equal length.
    """

    win: Estimate
    addition: str = ""


def lead_of(summary: Summary, policy: str, judge: str) -> Lead:
    """The judge's win rate, or the one at equal length where the policy's answers are much longer
    or shorter than SFT's.
    """
    result, sft = summary.results[policy], summary.results.get(BASELINE, PolicyResult())
    plain, level = result.win(judge), result.at_equal_length
    ratio = (result.length_mean or 0.0) / sft.length_mean if sft.length_mean else 1.0
    if 1 / MUCH_LONGER < ratio < MUCH_LONGER or plain.value is None:
        return Lead(plain)
    times = f"its answers are {decimal(ratio, 1)} times as long as SFT's"
    of_judge = level.judge == (result.judge if judge == JUDGE else JUDGES[judge])
    if not of_judge or level.win.value is None:
        why = f": {level.unknown}" if level.unknown else " is known"
        return Lead(plain, f" ({times}; no rate at equal length{why})")
    return Lead(level.win, f" at equal length ({times}; {percent(plain.value)} % as they are)")


def control_of(summary: Summary, judge: str) -> Estimate:
    """Win rate of SFT against itself under a judge; a judge that was asked for is not asked about
    that.
    """
    return summary.control.get(judge, UNKNOWN)
