"""What is wrong with a row, with its number and field; and the checks that all layouts share.

A reader raises :class:`BadRow`, and ``sources`` turns it into a :class:`Finding` with the row's
number. Rows are not repaired, and none disappears silently: a row is used as it is, reported, or
counted as skipped.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from prefloop.base.console import counted, listed, neutral, shortened
from prefloop.data.source import Source
from prefloop.errors import DataError
from prefloop.records import (
    Comparison,
    Demonstration,
    Message,
    Prompt,
    Rating,
    Record,
    Response,
    answer_turns,
)

R = TypeVar("R")

SHOWN = 5
"""Number of findings that an error prints. It counts the rest."""
DEEPEST = 100
"""Deepest nesting of a row. A record written from one is deeper by ``meta``."""

_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_UNUSABLE = re.compile("[\x00\ud800-\udfff]")


class BadRow(ValueError):
    """A row that cannot be used. It holds the field (empty for the row as a whole) and the problem,
    both shortened to what a person reads.
    """

    def __init__(self, field: str, problem: str) -> None:
        self.field = shortened(field, 400)
        self.problem = shortened(problem, 2000)
        super().__init__(self.problem)


@dataclass(frozen=True)
class Finding:
    """One bad row: its line number (in a JSON array the element's number) from 1, its id if it has
    one, and the problem.
    """

    row: int
    id: str | None
    field: str
    problem: str

    @property
    def fault(self) -> str:
        """The fault without the row number, safe to print."""
        where = f"field '{neutral(self.field[:80])}': " if self.field else ""
        return where + shortened(neutral(self.problem), 400)

    def __str__(self) -> str:
        return f"row {self.row}, {self.fault}" if self.field else f"row {self.row}: {self.fault}"


@dataclass
class Checked(Generic[R]):
    """The usable records of a file, and how the file was read.

    ``rows_read`` counts good and bad rows, without blank lines. ``skipped`` counts, by reason, good
    rows or responses that give the loader no record: a tied comparison has no preferred response.
    """

    records: list[R]
    findings: list[Finding]
    path: Source
    layout: str
    rows_read: int
    quarantine: Path | None
    skipped: dict[str, int] = field(default_factory=dict)
    count: int | None = None
    """Number of usable records, when they went elsewhere and ``records`` is empty."""
    kind: str = ""
    reason: str = ""
    """Why the layout was chosen: the columns by which it was recognized."""
    notes: list[str] = field(default_factory=list)
    """What was done to the rows, and which columns were not used, a line each."""

    def describe(self) -> str:
        """A summary for the log, such as ``240 prompts from train.jsonl (prefloop: columns id,
        prompt), 2 rows quarantined in … (the first one)``, then a line for each note.
        """
        noun = (type(self.records[0]).__name__ if self.records else self.kind or "record").lower()
        number = len(self.records) if self.count is None else self.count
        layout = f"{self.layout}: {self.reason}" if self.reason else self.layout
        line = f"{counted(number, noun)} from {self.path.name} ({layout})"
        if self.findings and self.quarantine:
            line += (
                f", {counted(len(self.findings), 'row')} quarantined in {self.quarantine.name}"
                f" ({self.findings[0]})"
            )
        line += "".join(
            f", {number:,} skipped: {reason}" for reason, number in self.skipped.items()
        )
        return "\n".join([line, *(f"    {note}" for note in self.notes)])


def unusable(path: Source, layout: str, findings: list[Finding], rows_read: int) -> DataError:
    """The error for a file with bad rows: how many there are, the first few or their kinds, and
    what to do.
    """
    bad, good = len(findings), rows_read - len(findings)
    lines = [f"{path}: {bad:,} of {counted(rows_read, 'row')} cannot be used (layout {layout})"]
    if good:
        lines += [f"  {finding}" for finding in findings[:SHOWN]]
        if bad > SHOWN:
            lines.append(f"  and {bad - SHOWN:,} more")
        lines.append(
            f"Fix them, or set them aside and use the other {good:,}: `data.bad_rows: quarantine`"
            " in a pipeline, `--bad-rows quarantine` of `prefloop label push` and `agree`,"
            " `--quarantine FOLDER` of `prefloop check`, `judge`, `judge calibrate` and `reward"
            " eval`."
        )
    else:
        lines += faults(findings)
        lines.append(
            "Not one row is left to use: fix them, or name the layout if it was taken for the wrong"
            " one."
        )
    return DataError("\n".join(lines))


def faults(findings: Sequence[Finding]) -> list[str]:
    """The faults of rows by kind, the most frequent first: ``4 rows: field 'prompt': is empty (the
    first is row 2)``.
    """
    kinds = Counter(finding.fault for finding in findings)
    first: dict[str, int] = {}
    for finding in findings:
        first.setdefault(finding.fault, finding.row)
    lines, left = [], len(findings)
    for fault, number in kinds.most_common(SHOWN):
        row = first[fault]
        comma = "," if fault.startswith("field ") else ":"
        many = f"  {number:,} rows: {fault} (the first is row {row})"
        lines.append(f"  row {row}{comma} {fault}" if number == 1 else many)
        left -= number
    return [*lines, f"  and {left:,} more"] if left else lines


def check_strings(value: Any, name: str = "", depth: int = 0, deepest: int = DEEPEST) -> None:
    """Refuse a row with a value that tokenizers or UTF-8 files cannot hold: NUL, unpaired
    surrogates, infinite numbers, endless nesting. Raises ``BadRow``.
    """
    if depth > deepest:
        raise BadRow(name[:40], f"is nested more than {deepest} levels deep")
    if isinstance(value, str):
        if match := _UNUSABLE.search(value):
            kind = (
                "a NUL character"
                if match.group() == "\x00"
                else f"the unpaired surrogate U+{ord(match.group()):04X}"
            )
            raise BadRow(name, f"holds {kind} at character {match.start() + 1}")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise BadRow(name, "is not a finite number")
    elif isinstance(value, dict):
        for key, item in value.items():
            if _UNUSABLE.search(key):
                raise BadRow(
                    name, f"has a key with a NUL character or an unpaired surrogate: {key[:80]!r}"
                )
            check_strings(item, f"{name}.{key}" if name else key, depth + 1, deepest)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            check_strings(item, f"{name}.{index}", depth + 1, deepest)


def mended(value: Any) -> Any:
    """The value with U+FFFD in place of every character that ``check_strings`` refuses."""
    if isinstance(value, str):
        return _UNUSABLE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {mended(key): mended(item) for key, item in value.items()}
    return [mended(item) for item in value] if isinstance(value, list) else value


def field_of(row: Any, key: str, name: str | None = None) -> Any:
    """The value under ``key`` of an object. Raises ``BadRow`` for a row that is no object, and for
    a missing or null value, with the keys that the row has.
    """
    if not isinstance(row, Mapping):
        raise BadRow((name or key).rpartition(".")[0], f"is {json_type(row)}, expected an object")
    value = row.get(key)
    if value is None:
        raise BadRow(
            name or key,
            f"is missing (found: {listed(k for k in row if row.get(k) is not None) or 'nothing'})",
        )
    return value


def text_of(row: Mapping[str, Any], key: str, name: str | None = None) -> str:
    """The text under ``key``. Raises ``BadRow`` for a missing, empty or blank one and for another
    type.
    """
    return check_text(field_of(row, key, name), name or key)


def check_text(value: Any, name: str) -> str:
    """``value`` if it is a string that is not blank. Raises ``BadRow``."""
    if not isinstance(value, str):
        raise BadRow(name, f"is {json_type(value)}, expected text")
    if not value.strip():
        raise BadRow(name, "is empty" if not value else "holds only whitespace")
    return value


def number_of(value: Any) -> int | float | None:
    """The number that a value is, or that its text spells, as every cell of CSV does; ``None`` for
    anything else and for numbers too large to compute with.
    """
    if isinstance(value, str):
        value = float(value) if _NUMBER.fullmatch(value.strip()) else None
        if value is not None and value.is_integer() and abs(value) < 2**53:
            value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e300:
        return None
    return value


def truth_of(value: Any) -> bool | None:
    """The truth that a value expresses: true or false, 1 or 0, or a text that spells one of them in
    any case; ``None`` for anything else.
    """
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and (word := value.strip().casefold()) in ("true", "false"):
        return word == "true"
    number = number_of(value)
    return bool(number) if number in (0, 1) else None


def check_turn(message: Message, name: str) -> None:
    """Refuse an empty turn. A turn with tool calls may have no text, and a tool may return
    nothing.
    """
    if not message.tool_calls and message.role != "tool":
        check_text(message.content, f"{name}.content")


def check_prompt(messages: Sequence[Message], name: str) -> None:
    """Refuse a prompt that an assistant cannot answer: without messages, with an empty one, or with
    a last one that is neither the user's nor a tool's.
    """
    if not messages:
        raise BadRow(name, "has no message")
    for index, message in enumerate(messages):
        check_turn(message, f"{name}.{index}")
    if messages[-1].role not in ("user", "tool"):
        raise BadRow(
            name,
            f"ends with the {messages[-1].role}'s turn, expected the user's or a tool's result",
        )


def check_answer(turns: Sequence[Message], name: str) -> None:
    """Refuse an answer that does not begin and end with the assistant."""
    for index, message in enumerate(turns):
        check_turn(message, f"{name}.{index}" if len(turns) > 1 else name)
    for message, verb in ((turns[-1], "ends"), (turns[0], "begins")):
        if message.role != "assistant":
            raise BadRow(name, f"{verb} with the {message.role}'s turn, expected the assistant's")


def check_distinct(first_text: str, second_text: str, first: str, second: str) -> None:
    """Refuse two responses with the same text: such a pair teaches nothing. ``first`` and
    ``second`` are the names of their columns.
    """
    if first_text.strip() == second_text.strip():
        raise BadRow(second, f"is the same text as '{first}'")


def check_record(record: Record) -> None:
    """Check the contents of a record read from prefloop JSONL, whose types ``records.from_dict``
    has checked.
    """
    if not record.id.strip():
        raise BadRow("id", "is empty")
    check_prompt(record.prompt, "prompt")
    if isinstance(record, Demonstration):
        check_text(record.response, "response")
        check_answer(answer_turns(record), "turns" if record.turns else "response")
    elif isinstance(record, Rating):
        _check_response(record.response, "response")
    elif not isinstance(record, Prompt):
        for index, response in enumerate(record.responses):
            _check_response(response, f"responses.{index}")
    if isinstance(record, Comparison):
        texts = record.first.text, record.second.text
        check_distinct(*texts, "responses.0.text", "responses.1.text")


def check_shown(meta: Mapping[str, Any]) -> None:
    """Refuse a ``meta["shown"]`` that is no order of two responses. It is swapped with the
    responses, in a comparison and in what becomes one.
    """
    if "shown" not in meta:
        return
    shown = meta["shown"]
    whole = isinstance(shown, list) and all(
        isinstance(i, int) and not isinstance(i, bool) for i in shown
    )
    if not whole or sorted(shown) != [0, 1]:
        raise BadRow(
            "meta.shown",
            "is no order of the two responses, such as [1, 0]; rename it where it says something"
            " else",
        )


def _check_response(response: Response, name: str) -> None:
    check_text(response.text, f"{name}.text")
    check_answer(answer_turns(response), f"{name}.turns" if response.turns else f"{name}.text")
    check_finished(response.meta, f"{name}.meta.finished")


def check_finished(meta: Mapping[str, Any], name: str) -> None:
    """Refuse a ``finished`` other than true and false. It says whether an answer has an end."""
    if not isinstance(meta.get("finished", True), bool):
        raise BadRow(name, f"is {json_type(meta['finished'])}, expected true or false")


def json_type(value: Any) -> str:
    """The JSON name of a value's type, with its article."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    names = {str: "text", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)
