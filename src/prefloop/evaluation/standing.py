"""Whether a reward model knows more than chance, by the pairs held out of its training; what it
says is quoted only then.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

REWARD_MODEL = "reward model"
"""What a judge is called that is the run's own reward model."""
MEASURED = ("accuracy", "accuracy_low", "accuracy_high", "held_out_pairs")
"""What ``unproven`` reads of a reward model's metrics."""
_WINS = ("reward_win_rate", "reward_ci_low", "reward_ci_high")
_ASKED = ("llm_win_rate", "llm_ci_low", "llm_ci_high", "llm_disagreement")
_AT_EQUAL_LENGTH = (
    "lc_judge",
    "lc_win_rate",
    "lc_ci_low",
    "lc_ci_high",
    "lc_unknown",
    "sign_test_p",
)


def unproven(reward: Mapping[str, Any]) -> str:
    """Why a reward model's verdicts name no winner: words that follow its name. Empty where it is
    better than chance, or nothing was kept.

    ``reward``: metrics of its stage; ``accuracy_low`` and ``accuracy_high`` are the 95 % interval
    of its accuracy on ``held_out_pairs``.
    """
    if reward.get("held_out_pairs") == 0:
        return (
            "was tested on no pair, since reward.holdout left none aside: nothing says that it is"
            " better than chance"
        )
    low, high, pairs = (
        reward.get(name) for name in ("accuracy_low", "accuracy_high", "held_out_pairs")
    )
    if not isinstance(low, int | float) or not isinstance(high, int | float) or low > 0.5:
        return ""
    share = (
        f"{100 * (reward.get('accuracy') or 0):.1f} % [{100 * low:.1f}, {100 * high:.1f}] of"
        f" {pairs:,} held-out pairs"
    )
    than = "worse than chance" if high < 0.5 else "which does not exclude chance"
    return f"is right on {share}, {than}"


def programs(gold: str, simulated: int, people: int) -> list[str]:
    """What to know of a comparison by a scorer that is a program, and of votes that programs cast;
    nothing where people did both.

    ``gold`` names the scorer, or is empty; ``simulated`` and ``people`` count the annotators, files
    of votes among people.
    """
    told = []
    if gold:
        told.append(
            f"The gold scorer is a program ({gold}): it counts what it was written to count, and"
            " cannot see whether an answer is true or kind."
        )
    if simulated:
        told.append(
            f"{f'Of the annotators {simulated} are' if people else f'The votes are of {simulated}'}"
            " simulated"
            + (
                ", drawn from the gold scorer."
                if people
                else (
                    f" annotator{'' if simulated == 1 else 's'}, drawn from the gold scorer: no"
                    " person labelled anything."
                )
            )
        )
    return told


def quotable(found: Mapping[str, Any], reward: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """A comparison (``results``, ``control``, ``matrix``, ``judging``) without what an unproven
    reward model says, and why that is left out.

    The run's own, and one that ``evaluate.judge`` asks.

    Takes what was read from a file, whatever is in it.
    """
    asked = found.get("judging")
    asked = asked if isinstance(asked, dict) else {}
    out, told = dict(found), []
    for judge, why, wins in (
        (REWARD_MODEL, unproven(reward), _WINS),
        (asked.get("judge"), asked.get("unproven"), _ASKED),
    ):
        if not why:
            continue
        told.append(
            f"The {judge if wins is _WINS else f'judge {judge}'} {why}: its verdicts name no"
            " winner, and are not shown."
        )
        if isinstance(results := out.get("results"), dict):
            out["results"] = {
                n: _without(row, judge, wins) if isinstance(row, dict) else row
                for n, row in results.items()
            }
        if wins is _WINS and isinstance(control := out.get("control"), dict):
            out["control"] = {
                name: reading for name, reading in control.items() if name != "reward"
            }
        if isinstance(matrix := out.get("matrix"), dict) and matrix.get("judge") == judge:
            del out["matrix"]
    return out, " ".join(told)


def _without(row: Mapping[str, Any], judge: Any, wins: tuple[str, ...]) -> dict[str, Any]:
    hidden = (*wins, *(_AT_EQUAL_LENGTH if row.get("lc_judge") == judge else ()))
    return {name: value for name, value in row.items() if name not in hidden}
