"""Rows of JSON lines and of one JSON array, as a stream.

What spoils one row is reported on that row and reading goes on: no JSON, a key given twice, a
number without end, endless nesting, bytes that are no UTF-8, in a line or in an element of an
array. An element that is no JSON ends where its brackets and strings say; where they do not say it,
the rest of the array is unreadable, which is a ``DataError``.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, NoReturn

from prefloop.data.check import json_type
from prefloop.data.raw import (
    LONGEST,
    MOST_KEYS,
    RawRow,
    RefusedValue,
    finite,
    no_constant,
    object_of,
)
from prefloop.errors import DataError

_CHUNK = 1 << 16
# The longest thing json can stop in the middle of and blame on its start, strings aside:
# '-Infinity', '\ud83d\ude00'.
_LOOKAHEAD = 16
_NO_NUMBER = re.compile(r"\b(?:NaN|Infinity)\b")
_BLANK = re.compile(r"[ \t\r\n]*")
_NOT_UTF8 = re.compile("[\udc80-\udcff]")
_DECODER = json.JSONDecoder(
    object_pairs_hook=object_of, parse_float=finite, parse_constant=no_constant
)
_FOLLOW = json.JSONDecoder(parse_int=len, parse_float=len, parse_constant=len)
"""Finds the end of what ``_DECODER`` refuses."""
_SHAPE = re.compile(r'"(?:[^"\\]++|\\.)*+("|\\?\Z)|[\[\]{},]', re.DOTALL)
"""What tells where a broken element ends: strings, the last one perhaps unfinished, brackets and
commas.
"""
_LARGEST_LOOK = 1 << 26
"""Characters of an object over several lines that are looked at to say what a file is."""
Again = Callable[[], AbstractContextManager[io.BufferedReader]]
"""Opens the same file once more."""


def lines(path: str, stream: io.BufferedReader, again: Again) -> Iterator[RawRow]:
    """By line number; blank lines count, but give no row. Raises ``DataError`` for objects that go
    over several lines, seen with a second look.
    """
    first = True
    for number, line in enumerate(_limited(stream), start=1):
        if not line.strip():
            continue
        row = _line(number, line)
        if first and row.problem is not None and line.lstrip()[:1] == b"{":
            with again() as start:
                _refuse_spread(path, start)
        first = False
        yield row


def _limited(stream: io.BufferedReader) -> Iterator[bytes]:
    """The lines; of one that is too long the beginning, which is too long as well."""
    while line := stream.readline(LONGEST + 1):
        yield line
        if len(line) > LONGEST:
            while not line.endswith(b"\n") and (line := stream.readline(_CHUNK)):
                pass


def _line(number: int, line: bytes) -> RawRow:
    if len(line) > LONGEST:
        return RawRow(
            number,
            line[:1000].decode("utf-8", "backslashreplace"),
            f"is longer than {LONGEST >> 20} MiB, which no row of texts is",
        )
    try:
        return as_object(number, _DECODER.decode(line.decode("utf-8").rstrip()))
    except UnicodeDecodeError as error:
        text = line.decode("utf-8", "backslashreplace").rstrip("\r\n")
        return RawRow(
            number,
            text,
            f"is not UTF-8 (byte 0x{line[error.start]:02x} at position {error.start + 1}); save it"
            " as UTF-8",
        )
    except RefusedValue as refused:
        text = line.decode("utf-8").rstrip("\r\n")
        return RawRow(number, text, _named(refused, text))
    except (ValueError, RecursionError) as error:
        return RawRow(
            number, line.decode("utf-8").rstrip("\r\n"), f"is not one line of JSON: {_why(error)}"
        )


def _named(refused: RefusedValue, text: str) -> str:
    """What is wrong with a row, with the field of a number that is none."""
    try:
        found = _no_number(json.loads(text)) if _NO_NUMBER.search(text) else None
    except (ValueError, RecursionError):
        found = None
    return (
        f"field '{found[0]}' {refused}"
        if found and f"holds {found[1]}" in str(refused)
        else str(refused)
    )


def _no_number(value: Any, place: str = "") -> tuple[str, str] | None:
    """Where the first NaN or Infinity of a value stands, and which it is."""
    if isinstance(value, float) and not math.isfinite(value):
        return place, "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return next(
        (found for key, item in inner if (found := _no_number(item, f"{place}.{key}".lstrip(".")))),
        None,
    )


def as_object(number: int, value: Any) -> RawRow:
    """A row that should be an object."""
    if isinstance(value, dict):
        return RawRow(
            number,
            value,
            (
                None
                if len(value) <= MOST_KEYS
                else (
                    f"has {len(value):,} keys, and no row has more than {MOST_KEYS:,}: if its"
                    " values are the rows, write one a line"
                )
            ),
        )
    return RawRow(number, value, f"is {json_type(value)}, expected an object")


def _why(error: Exception, placed: bool = True) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg.removesuffix(' at')} at column {error.colno}" if placed else error.msg
    return (
        "nested too deeply"
        if isinstance(error, RecursionError)
        else "a number has more digits than can be read"
    )


def _refuse_spread(path: str, stream: io.BufferedReader) -> None:
    """Say what the file is when its first object goes over several lines; a broken first line is
    let be.
    """
    text = ""
    while len(text) < _LARGEST_LOOK and (
        chunk := stream.read(max(_CHUNK, len(text))).decode("utf-8", "replace")
    ):
        text = (text + chunk).lstrip()
        try:
            value, end = _FOLLOW.raw_decode(text)
        except json.JSONDecodeError as error:
            if not (error.msg.startswith("Unterminated") or error.pos >= len(text) - _LOOKAHEAD):
                return
        except (ValueError, RecursionError):
            return
        else:
            if "\n" in text[:end]:
                more = text[end:].strip() or stream.read(_CHUNK).strip()
                raise DataError(f"{path} {described(value, path, bool(more))}")
            return


def described(value: Any, path: str, more: bool = False) -> str:
    """What a file is whose first JSON value is an object over several lines, and the command that
    makes rows of it.
    """
    if more:
        return (
            "holds JSON objects over several lines each; put every object on a line: jq -c ."
            f" '{path}' > out.jsonl"
        )
    if key := columnar(value):
        return (
            f"holds columns and not rows; make rows of it: jq -c '(.{_path(key)}|keys_unsorted[])"
            f" as $i | with_entries(.value |= .[$i])' '{path}' > out.jsonl"
        )
    if key := wrapped(value):
        return (
            f"is one JSON object whose rows stand under '{key}'; take them out: jq -c"
            f" '.{_path(key)}[]' '{path}' > out.jsonl"
        )
    keys = ", ".join(list(value)[:10]) if isinstance(value, dict) else ""
    return (
        f"is one JSON object (keys: {keys[:200]}) and no list of rows; if it is one row, put it on"
        f" a line: jq -c . '{path}' > out.jsonl"
    )


def columnar(value: Any) -> str | None:
    """The first key of an object that holds columns instead of rows, as lists or, of pandas, as
    objects by row number.
    """
    if not isinstance(value, dict) or len(value) < 2:
        return None
    for kind in (list, dict):
        columns = [
            column for column in value.values() if isinstance(column, kind) and len(column) > 1
        ]
        cells = [
            item
            for column in columns
            for item in (column.values() if isinstance(column, dict) else column)
        ]
        numbered = kind is list or all(str(key).isdigit() for column in columns for key in column)
        alike = len({len(column) for column in columns}) == 1 and len(columns) == len(value)
        if alike and numbered and not any(isinstance(item, dict) for item in cells):
            return str(next(iter(value)))
    return None


def _path(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z_]\w*", key) else f'"{key}"'


def wrapped(value: Any) -> str | None:
    """The key of an object that holds a list of rows; none where its lists are those of a
    conversation, which a row has too.
    """
    if not isinstance(value, dict) or "id" in value:
        return None
    for key, items in value.items():
        objects = (
            isinstance(items, list) and items and all(isinstance(item, dict) for item in items)
        )
        if objects and not any(
            {"role", "from", "content", "text", "annotator", "function"} & item.keys()
            for item in items
        ):
            return str(key)
    return None


def elements(path: str, stream: io.BufferedReader) -> Iterator[RawRow]:
    """By element number. Raises ``DataError`` with line and column where the array is broken."""
    source = _Array(
        path, io.TextIOWrapper(stream, encoding="utf-8", errors="surrogateescape", newline="")
    )
    number = 0
    source.take("[")
    unread = source.peek() != "]"
    while unread:
        number += 1
        yield source.row(number)
        unread = source.peek() == ","
        if unread:
            source.take(",")
    source.take("]")
    if source.peek():
        source.fail("there is more after the end of the array", source.at)


class _Array:
    """A window on the text of a JSON array that grows only as far as the element being read."""

    def __init__(self, path: str, stream: io.TextIOWrapper) -> None:
        self.path, self.stream = path, stream
        self.window, self.at, self.lines_before = "", 0, 0
        self.clean = True
        """Whether no byte so far was outside UTF-8."""

    def more(self) -> bool:
        """Let go of what was read and take in more; false at the end of the file."""
        # Doubling keeps the re-reading of one long element linear.
        held = len(self.window) - self.at
        if held > LONGEST:
            raise DataError(
                f"{self.path}: the element in line"
                f" {self.lines_before + self.window.count(chr(10), 0, self.at) + 1} is longer than"
                f" {LONGEST >> 20} MiB, which no row of texts is"
            )
        chunk = self.stream.read(max(_CHUNK, held))
        if not chunk:
            return False
        self.clean = self.clean and (chunk.isascii() or not _NOT_UTF8.search(chunk))
        self.lines_before += self.window.count("\n", 0, self.at)
        self.window, self.at = self.window[self.at :] + chunk, 0
        return True

    def peek(self) -> str:
        """The next character that is not blank, or nothing at the end of the file."""
        while True:
            self.at = _BLANK.match(self.window, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self.window):
                return self.window[self.at]
            if not self.more():
                return ""

    def take(self, expected: str) -> None:
        """Step over ``expected``."""
        if self.peek() != expected:
            self.fail(
                f"expected '{expected}'" if self.peek() else "the file ends inside the array",
                self.at,
            )
        self.at += 1

    def row(self, number: int) -> RawRow:
        """Read one element; what is wrong with it alone is the row's problem."""
        self.peek()
        value, problem = None, None
        try:
            value, end = self._decoded()
        except (ValueError, RecursionError) as error:
            fault, problem = error, self._said(error)
            end = self._end(problem)
        text = self.window[self.at : end].rstrip() if problem or not self.clean else ""
        if problem and isinstance(fault, RefusedValue):
            problem = _named(fault, text)
        self.at = end
        if text and (found := _NOT_UTF8.search(text)):
            raw = text.encode("utf-8", "surrogateescape")
            problem = (
                f"is not UTF-8 (byte 0x{ord(found.group()) - 0xDC00:02x}); save the file as UTF-8"
            )
            return RawRow(number, raw.decode("utf-8", "backslashreplace"), problem)
        return RawRow(number, text, problem) if problem else as_object(number, value)

    def _decoded(self) -> tuple[Any, int]:
        """The element from ``at`` on and where it ends in the window. Raises ``ValueError`` or
        ``RecursionError`` for a broken one.
        """
        while True:
            try:
                value, end = _DECODER.raw_decode(self.window, self.at)
            except json.JSONDecodeError as error:
                unfinished = (
                    error.msg.startswith("Unterminated")
                    or error.pos >= len(self.window) - _LOOKAHEAD
                )
                if not (unfinished and self.more()):
                    raise
            else:
                # A number near the edge of the window may go on: '-0' is all there is of '-0.25' in
                # '-0.'.
                if end > len(self.window) - _LOOKAHEAD and self.more():
                    continue
                return value, end

    def _end(self, said: str) -> int:
        """Where the broken element from ``at`` on ends in the window by its brackets. Raises
        ``DataError`` that says ``said`` where they do not tell.
        """
        while True:
            depth, end = 0, None
            for found in _SHAPE.finditer(self.window, self.at):
                sign = self.window[found.start()]
                if sign == '"' and not found[1]:
                    break
                if depth == 0 and sign in ",]":
                    after = _BLANK.match(self.window, found.end()).end()  # type: ignore[union-attr]
                    if (
                        sign == ","
                        and self.window[after : after + 1] == "{"
                        and found.start() > self.at
                    ):
                        return found.start()
                    if after < len(self.window):
                        raise DataError(f"{self.path}: {said}")
                    end = found.start() if sign == "]" and found.start() > self.at else None
                    break
                depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(sign, 0)
            if not self.more():
                if end is None:
                    raise DataError(f"{self.path}: {said}")
                return end

    def _said(self, error: Exception) -> str:
        return (
            str(error)
            if isinstance(error, RefusedValue)
            else self._placed(_why(error, False), getattr(error, "pos", self.at))
        )

    def fail(self, problem: str, position: int) -> NoReturn:
        """Raise ``DataError`` with the line and column of a position in the window."""
        raise DataError(f"{self.path}: {self._placed(problem, position)}")

    def _placed(self, problem: str, position: int) -> str:
        line = self.lines_before + self.window.count("\n", 0, position) + 1
        column = position - self.window.rfind("\n", 0, position)
        return f"line {line}, column {column} is not JSON: {problem}"
