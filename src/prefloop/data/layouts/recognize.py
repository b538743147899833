"""What a layout is, and how a row's layout is recognized by its columns. Every test takes the row
and returns whether it fits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from prefloop.data.judged import scale_column, thumb_column
from prefloop.data.layouts import choices, general, own, written
from prefloop.data.layouts.general import has_prompt, has_turns, pair_columns
from prefloop.data.layouts.rated import ScoredAnswer
from prefloop.data.prompts import ANSWERS, CONVERSATIONS, TEXTS, written_out
from prefloop.data.row import Row
from prefloop.data.transcripts import is_hh as is_transcript
from prefloop.records import Record

Columns = Mapping[str, Any]


@dataclass(frozen=True)
class Layout:
    """A layout: its name, its keys for messages, the kinds of record that a row can hold, and how
    to recognize and to read a row.
    """

    name: str
    keys: str
    kinds: tuple[type, ...]
    matches: Callable[[Columns], bool]
    read: Callable[[Row], Record | list[Record] | ScoredAnswer] | None
    tells: tuple[str, ...] = ()
    """The columns by which it is recognized, of which a file has some. Default: the words of
    ``keys``.
    """
    several: bool = False
    """Rows may share an id, which is then the prompt's."""
    joins: bool = False
    """Its rows are single answers with a number. Neighboring rows with one prompt make comparisons.
    """
    way_out: str = ""
    """What to do instead, for a layout that cannot be read."""

    def reason(self, row: Columns) -> str:
        """Why a row was recognized as this layout, for the log."""
        words = self.tells or tuple(self.keys.replace(",", " ").split())
        columns = dict.fromkeys(word for word in words if word in row)
        return f"columns {', '.join(columns)}" if columns else "as named"


def has(*needed: str, without: tuple[str, ...] = ()) -> Callable[[Columns], bool]:
    """Test for rows with all columns of ``needed`` and none of ``without``."""
    return lambda row: all(key in row for key in needed) and not any(key in row for key in without)


def paired(row: Columns) -> bool:
    """Whether a row has a preferred answer and another one."""
    return pair_columns(row) is not None and not own.is_best_of(row)


def alone(row: Columns) -> bool:
    """Whether no column holds a prompt, so that the answers must hold it."""
    return (
        not has_prompt(row)
        and not isinstance(row.get("input"), str)
        and not any(k in row for k in CONVERSATIONS)
    )


def is_hh(row: Columns) -> bool:
    """Whether a row is a pair of hh-rlhf's transcripts."""
    columns = pair_columns(row)
    return columns is not None and alone(row) and any(is_transcript(row[key]) for key in columns)


def is_implicit(row: Columns) -> bool:
    """Whether a row is a pair of conversations that hold their prompt."""
    return paired(row) and alone(row) and not is_hh(row)


def asked(*keys: str) -> Callable[[Columns], bool]:
    """Test for pairs in which one of ``keys`` is the first column that could hold the prompt."""
    every = (*TEXTS, *CONVERSATIONS, "input")
    return lambda row: paired(row) and next((key for key in every if key in row), None) in keys


def is_alpaca_pair(row: Columns) -> bool:
    """Whether a row is a pair of LLaMA-Factory, in the new form or the older one."""
    return asked("instruction")(row) or (
        "instruction" in row and pair_columns(row) is None and general.two_outputs(row)
    )


def is_swift_pair(row: Columns) -> bool:
    """Whether a row is a pair of ms-swift, in which the preferred answer has the column of a
    demonstration.
    """
    if pair_columns(row) is not None:
        return False
    if "messages" in row:
        return any(key in row for key in ("rejected_messages", *general.REJECTED))
    answer = next((row[key] for key in general.PREFERRED if key in row), None)
    return (
        has_prompt(row)
        and isinstance(answer, str | dict | list)
        and any(key in row for key in general.REJECTED)
    )


def is_thumb(row: Columns) -> bool:
    """Whether a row has one answer and a plain yes or no. A response in prefloop's own form has its
    own reader.
    """
    if thumb_column(row) is None or written.holds_response(row):
        return False
    if paired(row) or "response_a" in row or any(key in row for key in general.REJECTED):
        return False
    turns = has_turns(row, *CONVERSATIONS)
    return turns or (has_prompt(row) and any(key in row for key in ANSWERS))


UNRATED = ("chosen", "rejected", "responses", "response_a", "completions", "rejected_response")


def demonstrates(prompt: tuple[str, ...], answer: tuple[str, ...]) -> Callable[[Columns], bool]:
    """Test for rows in which one of ``prompt`` is the first column of a prompt, and one of
    ``answer`` exists. Other columns do not matter.
    """
    every = (*TEXTS, "input")

    def fits(row: Columns) -> bool:
        if (
            thumb_column(row) is not None
            or any(key in row for key in UNRATED)
            or written.is_prefloop(row)
        ):
            return False
        first = next((key for key in every if key in row and not written_out(row, key)), None)
        return (
            first in prompt
            and isinstance(row[first], str | list)
            and any(key in row for key in answer)
        )

    return fits


is_alpaca = demonstrates(("instruction",), ("output",))
is_completion = demonstrates(("prompt",), ("completion",))
is_query = demonstrates(("query",), ("response",))
is_answer_row = has("id", "prompt", "response", "finished", "tokens")


def is_response(row: Columns) -> bool:
    """Whether a row has a prompt and its answer under other names than those of TRL, alpaca and
    ms-swift.
    """
    if is_alpaca(row) or is_completion(row) or is_query(row) or is_answer_row(row):
        return False
    if isinstance(row.get("output"), list):
        return False
    plain = demonstrates(("prompt",), ("response", "output"))(row)
    # With 'prompt', an 'answer' is what a scorer compares with; with 'question' it is the answer.
    asked = demonstrates(("question", "query", "instruction", "input"), ANSWERS)(row)
    return plain or asked


def has_answer(row: Columns) -> bool:
    """Whether a column holds an answer, or two do."""
    if pair_columns(row) is not None or choices.sides_of(row) is not None:
        return True
    return any(
        key in row
        for key in (*UNRATED, "response", "completion", "output", "chosen_response", "response_j")
    )


def turns_alone(*keys: str) -> Callable[[Columns], bool]:
    """Test for rows with turns in one of ``keys`` and no answer elsewhere. A prompt next to them
    may repeat one of their questions.
    """

    def fits(row: Columns) -> bool:
        if has_answer(row) or "rejected_messages" in row or thumb_column(row) is not None:
            return False
        turns = [row[key] for key in keys if key in row]
        return any(map(general.talks, turns)) or (bool(turns) and not has_prompt(row))

    return fits


def is_graded(row: Columns) -> bool:
    """Whether a row has an answer with a number on a scale, which would otherwise be taken for one
    to imitate.
    """
    column = scale_column(row)
    if column is None or thumb_column(row) is not None:
        return False
    rest = {key: "" if key == column else value for key, value in row.items()}
    turns = turns_alone(*CONVERSATIONS)(rest) and any(
        general.talks(row.get(key)) for key in CONVERSATIONS
    )
    return turns or any(fits(rest) for fits in (is_alpaca, is_completion, is_query, is_response))


def is_references(row: Columns) -> bool:
    """Whether a row has a prompt with reference answers."""
    return (
        "prompt" in row
        and not has_answer(row)
        and bool(row.get("references") or row.get("reference"))
    )


def is_prompt_only(row: Columns) -> bool:
    """Whether a row has a prompt and no answer."""
    first = next((key for key in TEXTS if key in row), None)
    if first is None or has_answer(row) or written.is_prefloop(row) or is_references(row):
        return False
    if isinstance(row[first], dict) or ("answer" in row and first != "prompt"):
        return False
    if any(general.talks(row.get(key)) for key in CONVERSATIONS):
        return False
    return thumb_column(row) is None or not has_turns(row, *CONVERSATIONS)
