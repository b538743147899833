"""Layouts of prefloop's own next to its records: answers, judgments, references, best of n."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefloop.data import check
from prefloop.data.answers import answer_of
from prefloop.data.check import BadRow, check_text, number_of, truth_of
from prefloop.data.prompts import context, prompt_of
from prefloop.data.responses import whole_prompt
from prefloop.data.row import Row
from prefloop.records import BestOf, Demonstration, Record, Response

GOLD = ("best", "gold", "preferred", "scores", "rewards")
"""Columns that say which of several responses are good: their indices, or a number for each
response.
"""
_NUMBERS = ("scores", "rewards")


def is_best_of(row: Mapping[str, Any]) -> bool:
    """Whether a row has several responses of which some are good, as texts."""
    if "prompt" not in row:
        return False
    if "chosen" in row and "rejected" in row:
        return _strings(row["chosen"]) or _strings(row["rejected"])
    return _strings(row.get("responses")) and any(key in row for key in GOLD)


def _strings(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], str)


def read_answer(row: Row) -> Record:
    """A model's answer. Its prompt may have several."""
    prompt = prompt_of(row)
    answer = answer_of(row, "response", prompt)
    if (finished := truth_of(row.get("finished"))) is not None:
        row["finished"] = finished
    check.check_finished(row, "finished")
    row.evidence("finished", "tokens")
    prompt = context(whole_prompt(prompt, [answer], ["response"]))
    return Demonstration.of(row.id, prompt, answer.turns, row.meta())


def read_best_of(row: Row) -> Record:
    """Several responses of which some are marked as good."""
    prompt = prompt_of(row)
    if "chosen" in row:
        good, bad = (_texts(row, key) for key in ("chosen", "rejected"))
        texts, best = [*good, *bad], list(range(len(good)))
    else:
        texts = _texts(row, "responses")
        best = _gold(row, len(texts))
    responses = [Response(text, row.source) for text in texts]
    try:
        return BestOf(row.id, prompt, responses, best, row.meta())
    except ValueError as error:
        raise BadRow(
            "best", str(error).rpartition("Value error, ")[2].partition(" [type")[0]
        ) from None


def _gold(row: Row, count: int) -> list[int]:
    """The indices of the good responses, given as an index, a list of indices, or a score for each
    response, of which the highest are good.
    """
    key = row.first(*GOLD)
    if key is None:
        raise BadRow(
            "best", f"is missing: nothing says which response is good (one of {', '.join(GOLD)})"
        )
    value = row.take(key)
    if key in _NUMBERS:
        row.evidence(key)
        numbers = [number_of(item) for item in value] if isinstance(value, list) else []
        known = [number for number in numbers if number is not None]
        if len(known) != count or len(numbers) != count:
            raise BadRow(key, f"is no list of {count} numbers, one for each response")
        return [i for i, number in enumerate(known) if number == max(known)]
    indices = value if isinstance(value, list) else [value]
    whole = [number for i in indices if isinstance(number := number_of(i), int)]
    if len(whole) != len(indices):
        raise BadRow(
            key,
            f"is {check.json_type(value)}, expected the index of the best response or a list of"
            " them",
        )
    return whole


def _texts(row: Row, key: str) -> list[str]:
    value = row.take(key)
    listed = value if isinstance(value, list) else [value]
    names = [f"{key}.{i}" for i in range(len(listed))]
    return [
        check_text(row.without_end(check_text(text, n)), n)
        for text, n in zip(listed, names, strict=True)
    ]


def read_references(row: Row) -> Record:
    """A prompt with reference answers."""
    key = "references" if row.get("references") else "reference"
    value = row.take(key)
    texts = value if isinstance(value, list) else [value]
    if not texts:
        raise BadRow(key, "is an empty list")
    references = [check_text(text, f"{key}.{index}") for index, text in enumerate(texts)]
    both = "references" in row and "reference" in row
    if both and row["reference"] not in texts and row["reference"] != value:
        raise BadRow("reference", "is none of 'references': keep one of the two columns")
    row.use("references", "reference")
    return Demonstration(
        row.id, context(prompt_of(row)), references[0], row.meta() | {"references": references}
    )
