"""Read which of two answers is better, in the words that files use for it; and files that hold the
two side by side.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from prefloop.data.check import BadRow, json_type
from prefloop.data.prompts import TEXTS, prompt_of
from prefloop.data.responses import two_responses
from prefloop.data.row import Row
from prefloop.records import Comparison, Record, Vote

Choice = Literal[0, 1, "tie"]

SIDES = tuple(
    (f"{name}_{a}", f"{name}_{b}")
    for name in ("response", "answer", "completion", "output")
    for a, b in ("ab", "12")
)
"""Names of the columns of two answers, of which neither is called the better one."""
VERDICTS = ("human", "winner", "preferred", "preference", "choice", "better", "label", "vote")
"""Columns that say which of the two answers is better."""
_SPEAKERS = ("response", "answer", "completion", "output", "model", "assistant", "option")
_TIES = {
    **dict.fromkeys(("tie", "tied", "draw", "equal", "neither", "both"), None),
    **dict.fromkeys(("both_bad", "bothbad", "tie_bothbad", "tie_both_bad"), "both bad"),
}
_BETWEEN = re.compile(r"[\s_()-]+")


def sides_of(row: Mapping[str, Any]) -> tuple[str, str] | None:
    """The columns of a row's two answers; ``None`` where it has none."""
    return next((pair for pair in SIDES if all(key in row for key in pair)), None)


def is_judgment(row: Mapping[str, Any]) -> bool:
    """Whether a row has a prompt, two answers side by side, and a column that says which is
    better.
    """
    return (
        any(key in row for key in TEXTS)
        and sides_of(row) is not None
        and any(key in row for key in VERDICTS)
    )


def choice_in(value: Any, name: str, row: Row, sides: tuple[str, str]) -> tuple[Choice, str | None]:
    """The vote that a word expresses, and why it is a tie. The word is a side's letter or name, its
    model's name, or a word for neither.

    Raises ``BadRow`` for other words, and for numbers, which some files count from 0 and others
    from 1.
    """
    word = _BETWEEN.sub("_", value.strip().casefold()).strip("_") if isinstance(value, str) else ""
    if word in _TIES:
        return "tie", _TIES[word]
    letters = [side.rpartition("_")[2] for side in sides]
    for choice, letter in zip((0, 1), letters, strict=True):
        names = {f"{speaker}_{letter}" for speaker in _SPEAKERS}
        names |= {letter} if letter.isalpha() else set()
        model = row.get(f"model_{letter}")
        other = str(row.get(f"model_{letters[1 - choice]}"))
        is_model = False
        if isinstance(value, str) and isinstance(model, str):
            is_model = value.strip() == model.strip() != other.strip()
        if word in names or word == ("first", "second")[choice] or is_model:
            return (0 if choice == 0 else 1), None
    shown = f"{value}" if isinstance(value, int | float) else json_type(value)
    shown = repr(value[:40]) if isinstance(value, str) else shown
    short = " or ".join(letters) if letters[0].isalpha() else " or ".join(sides)
    raise BadRow(name, f"is {shown}, expected {short} for the better answer, or tie")


def read_judgments(row: Row) -> Record:
    """A comparison of two responses, with the votes of one person or several."""
    prompt = prompt_of(row)
    sides = sides_of(row) or SIDES[0]
    prompt, responses = two_responses(row, prompt, *sides)
    key = row.first(*VERDICTS) or VERDICTS[0]
    given = row.take(key)
    if isinstance(given, list):
        votes = []
        for index, word in enumerate(given):
            choice, why = choice_in(word, f"{key}.{index}", row, sides)
            votes.append(Vote(f"{row.source}#{index}", choice, why=why))
    else:
        choice, why = choice_in(given, key, row, sides)
        votes = [Vote(f"{row.source}#0", choice, why=why)]
        for other in [other for other in VERDICTS if other in row and other != key]:
            if choice_in(row.take(other), other, row, sides)[0] != choice:
                raise BadRow(other, f"says something else than '{key}': keep one of the two")
    return Comparison(row.id, prompt, responses, votes, row.meta("model_a", "model_b"))
