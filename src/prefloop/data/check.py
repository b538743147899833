"""What is wrong with a row, said with its number and field; and the checks every layout shares.

A reader raises :class:`BadRow`; ``sources`` turns it into a :class:`Finding` with the row's number. Nothing is repaired
and nothing is dropped without a finding or a count: a row is used as it stands, reported, or counted as skipped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from prefloop.console import listed, neutral, shortened
from prefloop.data.source import Source
from prefloop.errors import DataError
from prefloop.records import BestOf, Comparison, Demonstration, Message, Rating, Record, Role

R = TypeVar("R")

SHOWN = 5
"""Findings printed in an error; the count covers the rest."""

# ShareGPT and LLaMA-Factory name the speakers differently from the chat templates.
ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
}

_UNUSABLE = re.compile("[\x00\ud800-\udfff]")
_DEEPEST = 100


class BadRow(ValueError):
    """A row that cannot be used: the field (empty when it is the row as a whole) and the problem."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(problem)
        self.field = field
        self.problem = problem


@dataclass(frozen=True)
class Finding:
    """One bad row: its line number (element number in a JSON array) from 1, its id if it has one, and the problem."""

    row: int
    id: str | None
    field: str
    problem: str

    def __str__(self) -> str:
        where = f", field '{shortened(neutral(self.field), 120)}'" if self.field else ""
        return f"row {self.row}{where}: {shortened(neutral(self.problem), 500)}"


@dataclass
class Checked(Generic[R]):
    """The usable records of a file and what was found on the way.

    ``rows_read`` counts the rows looked at, good or bad, blank lines excluded. ``skipped`` counts, by reason, good rows
    or responses that hold nothing for the loader that was asked: a tied comparison has no preferred response.
    """

    records: list[R]
    findings: list[Finding]
    path: Source
    layout: str
    rows_read: int
    quarantine: Path | None
    skipped: dict[str, int] = field(default_factory=dict)
    count: int | None = None
    """Usable records, when they went elsewhere and ``records`` is empty."""
    kind: str = ""

    def describe(self) -> str:
        """One line: ``240 prompts from train.jsonl (prefloop), 2 rows quarantined in train.quarantine.jsonl (the first one)``."""
        noun = (type(self.records[0]).__name__ if self.records else self.kind or "record").lower()
        line = f"{_count(len(self.records) if self.count is None else self.count, noun)} from {self.path.name} ({self.layout})"
        if self.findings and self.quarantine:
            line += f", {_count(len(self.findings), 'row')} quarantined in {self.quarantine.name} ({self.findings[0]})"
        return line + "".join(f", {number} skipped: {reason}" for reason, number in self.skipped.items())


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def unusable(path: Source, layout: str, findings: list[Finding], rows_read: int) -> DataError:
    """The error for a file with bad rows: how many, the first few, and what to do."""
    bad, good = len(findings), rows_read - len(findings)
    lines = [f"{path}: {bad} of {_count(rows_read, 'row')} cannot be used (layout {layout})"]
    lines += [f"  {finding}" for finding in findings[:SHOWN]]
    if bad > SHOWN:
        lines.append(f"  and {bad - SHOWN} more")
    if good:
        lines.append(
            f"Fix them, or set them aside and use the other {good}: `data.bad_rows: quarantine` in a pipeline, `--bad-rows quarantine` of "
            "`prefloop label push` and `agree`, `--quarantine FOLDER` of `prefloop check`, `judge`, `judge calibrate` and `reward eval`."
        )
    else:
        lines.append("Not one row is left to use: fix them, or name the layout if it was taken for the wrong one.")
    return DataError("\n".join(lines))


def check_strings(value: Any, name: str = "", depth: int = 0) -> None:
    """Refuse NUL and unpaired surrogates anywhere in a row: tokenizers and UTF-8 files cannot carry them."""
    if depth > _DEEPEST:
        raise BadRow(name[:40], f"is nested more than {_DEEPEST} levels deep")
    if isinstance(value, str):
        if found := _UNUSABLE.search(value):
            kind = (
                "a NUL character" if found.group() == "\x00" else f"the unpaired surrogate U+{ord(found.group()):04X}"
            )
            raise BadRow(name, f"holds {kind} at character {found.start() + 1}")
    elif isinstance(value, dict):
        for key, item in value.items():
            if _UNUSABLE.search(key):
                raise BadRow(name, f"has a key with a NUL character or an unpaired surrogate: {key!r}")
            check_strings(item, f"{name}.{key}" if name else key, depth + 1)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            check_strings(item, f"{name}.{index}", depth + 1)


def field_of(row: Mapping[str, Any], key: str, name: str | None = None) -> Any:
    """What stands under ``key``; a row without it is refused with the keys it has."""
    if key not in row:
        raise BadRow(name or key, f"is missing (found: {listed(row) or 'nothing'})")
    return row[key]


def text_of(row: Mapping[str, Any], key: str, name: str | None = None) -> str:
    """The text under ``key``; refuses a missing, non-string, empty or whitespace-only one."""
    return check_text(field_of(row, key, name), name or key)


def check_text(value: Any, name: str) -> str:
    """``value`` if it is a string with something in it."""
    if not isinstance(value, str):
        raise BadRow(name, f"is {json_type(value)}, expected text")
    if not value.strip():
        raise BadRow(name, "is empty" if not value else "holds only whitespace")
    return value


def messages_of(value: Any, name: str) -> list[Message]:
    """A message list, each message ``{role, content}`` or ``{from, value}``; refuses empty ones and unknown roles."""
    if not isinstance(value, list):
        raise BadRow(name, f"is {json_type(value)}, expected a list of messages")
    if not value:
        raise BadRow(name, "is an empty list")
    return [_message(item, f"{name}.{index}") for index, item in enumerate(value)]


def _message(item: Any, name: str) -> Message:
    if not isinstance(item, dict):
        raise BadRow(name, f"is {json_type(item)}, expected an object with role and content")
    role_key, text_key = ("from", "value") if "from" in item else ("role", "content")
    speaker = text_of(item, role_key, f"{name}.{role_key}")
    if speaker not in ROLES:
        raise BadRow(f"{name}.{role_key}", f"unknown role {speaker[:40]!r} (known: {', '.join(ROLES)})")
    return Message(ROLES[speaker], text_of(item, text_key, f"{name}.{text_key}"))


def check_prompt(messages: list[Message], name: str) -> list[Message]:
    """``messages`` if an assistant can answer them: some messages, none empty, the last one the user's."""
    if not messages:
        raise BadRow(name, "has no message")
    for index, message in enumerate(messages):
        check_text(message.content, f"{name}.{index}.content")
    if messages[-1].role != "user":
        raise BadRow(name, f"ends with the {messages[-1].role}'s turn, expected the user's")
    return messages


def check_distinct(chosen: str, rejected: str, first: str, second: str) -> None:
    """Refuse two responses that are the same text: such a pair teaches nothing."""
    if chosen.strip() == rejected.strip():
        raise BadRow(second, f"is the same text as '{first}'")


def check_record(record: Record) -> None:
    """The content checks on a record read from prefloop JSONL, whose types ``records.from_dict`` has checked."""
    if not record.id.strip():
        raise BadRow("id", "is empty")
    check_prompt(record.prompt, "prompt")
    if isinstance(record, Demonstration):
        check_text(record.response, "response")
    elif isinstance(record, Rating):
        check_text(record.response.text, "response.text")
    elif isinstance(record, Comparison | BestOf):
        for index, response in enumerate(record.responses):
            check_text(response.text, f"responses.{index}.text")
    if isinstance(record, Comparison):
        check_distinct(record.responses[0].text, record.responses[1].text, "responses.0.text", "responses.1.text")


def json_type(value: Any) -> str:
    """The JSON name of a value's type, with its article."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    names = {str: "text", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)
