"""Whether a reward model is better than chance on the pairs held out of its training. Only then
are its verdicts quoted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

REWARD_MODEL = "reward model"
"""The name of the run's own reward model as a judge."""
MEASURED = ("accuracy", "accuracy_low", "accuracy_high", "held_out_pairs")
"""What ``unproven`` reads of a reward model's metrics."""


def unproven(reward: Mapping[str, Any]) -> str:
    """Why a reward model's verdicts name no winner, in words that follow its name.

    Empty where it is better than chance, or nothing was measured.

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
    """Cautions about a gold scorer that is a program, and about votes that programs cast; none
    where people did both.

    ``gold`` names the scorer, or is empty; ``simulated`` and ``people`` count the annotators, files
    of votes among people.
    """
    notes = []
    if gold:
        notes.append(
            f"The gold scorer is a program ({gold}): it counts what it was written to count, and"
            " cannot see whether an answer is true or kind."
        )
    if simulated:
        notes.append(
            f"{f'Of the annotators {simulated} are' if people else f'The votes are of {simulated}'}"
            " simulated"
            + (
                ", drawn from the gold scorer."
                if people
                else (
                    f" annotator{'' if simulated == 1 else 's'}, drawn from the gold scorer: no"
                    " person labeled anything."
                )
            )
        )
    return notes
