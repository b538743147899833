"""What the judges of a run found, judge by judge: which one leads, what it says of a policy against
SFT, and of SFT against itself.
"""

from collections.abc import Iterable
from typing import NamedTuple

from prefloop.report.page import decimal, percent
from prefloop.report.schema import BASELINE, Estimate, PolicyResult, Summary, rivals

JUDGES = {"gold": "gold scorer", "llm": "judge", "reward": "reward model"}
"""Judges from the one to trust most to the one that learnt from the votes that trained the
policies; ``judge`` is what ``evaluate.judge`` names.
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
        (judge for judge in JUDGES if any(win_of(r, judge).value is not None for r in compared)),
        None,
    )


def name_of(results: Iterable[PolicyResult], judge: str) -> str:
    """What to call a judge: the one that ``evaluate.judge`` names by its own name, all of them
    where results differ in it.
    """
    names = (
        dict.fromkeys(result.llm_judge for result in results if result.llm_judge)
        if judge == "llm"
        else {}
    )
    return f"{JUDGES[judge]} {', '.join(names)}".strip()


def win_of(result: PolicyResult, judge: str) -> Estimate:
    """Win rate against SFT under a judge."""
    return {"gold": result.win, "llm": result.llm_win, "reward": result.reward_win}[judge]


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
    plain = win_of(result, judge)
    ratio = (result.length_mean or 0.0) / sft.length_mean if sft.length_mean else 1.0
    if 1 / MUCH_LONGER < ratio < MUCH_LONGER or plain.value is None:
        return Lead(plain)
    said = f"its answers are {decimal(ratio, 1)} times as long as SFT's"
    controlled = result.lc_judge == (result.llm_judge if judge == "llm" else JUDGES[judge])
    if not controlled or result.lc_win.value is None:
        return Lead(
            plain,
            f" ({said}; no rate at equal"
            f" length{f': {result.lc_unknown}' if result.lc_unknown else ' is known'})",
        )
    return Lead(result.lc_win, f" at equal length ({said}; {percent(plain.value)} % as they are)")


def control_of(summary: Summary, judge: str) -> Estimate:
    """Win rate of SFT against itself under a judge; a judge that was asked for is not asked about
    that.
    """
    control = summary.control
    return {"gold": control.gold.win, "llm": Estimate(None), "reward": control.reward.win}[judge]
