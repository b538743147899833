"""Read rows of JSON lines, or of one JSON array, as a stream.

A problem within one row is reported with that row, and reading goes on: text that is no JSON, a key
given twice, a number out of range, endless nesting, bytes that are not UTF-8. In an array, the
brackets and strings of a broken element show where it ends. Where they do not, the rest of the
array is unreadable, which is a ``DataError``.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
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
# The longest token that the json module can stop inside of and blame on its start, except strings:
# '-Infinity', '\ud83d\ude00'.
_LOOKAHEAD = 16
_NO_NUMBER = re.compile(r"\b(?:NaN|Infinity)\b")
_BLANK = re.compile(r"[ \t\r\n]*")
_NOT_UTF8 = re.compile("[\udc80-\udcff]")
_DECODER = json.JSONDecoder(
    object_pairs_hook=object_of, parse_float=finite, parse_constant=no_constant
)
_FOLLOW = json.JSONDecoder(parse_int=len, parse_float=len, parse_constant=len)
"""A decoder for the end of an element that ``_DECODER`` refuses."""
_SHAPE = re.compile(r'"(?:[^"\\]++|\\.)*+("|\\?\Z)|[\[\]{},]', re.DOTALL)
"""The marks by which the end of a broken element is found: strings, the last one perhaps
unfinished, brackets and commas.
"""
_LARGEST_LOOK = 1 << 26
"""Most characters of an object over several lines that are read to say what a file is."""
Again = Callable[[], AbstractContextManager[io.BufferedReader]]
"""Opens the same file once more."""


def lines(path: str, stream: io.BufferedReader, again: Again) -> Iterator[RawRow]:
    """The rows of JSON lines, numbered by line; blank lines count but give no row. Raises
    ``DataError`` where objects extend over several lines, for which the file is opened a second
    time.
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
    """The lines. Of a line that is too long only the beginning, which is too long as well."""
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
    """The problem of a row, with the field where that is a NaN or Infinity."""
    try:
        place, number = (_NO_NUMBER.search(text) and _no_number(json.loads(text))) or ("", "")
    except (ValueError, RecursionError):
        place, number = "", ""
    return (
        f"field '{place}' {refused}"
        if number and f"holds {number}" in str(refused)
        else str(refused)
    )


def _no_number(value: Any, place: str = "") -> tuple[str, str] | None:
    """The place of the first NaN or Infinity in a value, and which of the two it is."""
    if isinstance(value, float) and not math.isfinite(value):
        return place, "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    inner: Iterable[tuple[Any, Any]] = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list):
        inner = enumerate(value)
    places = (_no_number(item, f"{place}.{key}".lstrip(".")) for key, item in inner)
    return next(filter(None, places), None)


def as_object(number: int, value: Any) -> RawRow:
    """A row from a value that should be an object."""
    if not isinstance(value, dict):
        return RawRow(number, value, f"is {json_type(value)}, expected an object")
    if len(value) <= MOST_KEYS:
        return RawRow(number, value)
    problem = (
        f"has {len(value):,} keys, and no row has more than {MOST_KEYS:,}: if its values are the"
        " rows, write one a line"
    )
    return RawRow(number, value, problem)


def _why(error: Exception, placed: bool = True) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg.removesuffix(' at')} at column {error.colno}" if placed else error.msg
    return (
        "nested too deeply"
        if isinstance(error, RecursionError)
        else "a number has more digits than can be read"
    )


def _refuse_spread(path: str, stream: io.BufferedReader) -> None:
    """Raise ``DataError`` where the first object extends over several lines. A broken first line is
    not judged here.
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
    """The first key of an object that holds columns instead of rows: lists, or, as pandas writes
    them, objects by row number.
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
    """The key of an object that holds a list of rows; ``None`` where its lists are those of a
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
    """The rows of a JSON array, numbered by element. Raises ``DataError`` with line and column
    where the array is broken.
    """
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
    """A window on the text of a JSON array, which grows only as far as the current element."""

    def __init__(self, path: str, stream: io.TextIOWrapper) -> None:
        self.path, self.stream = path, stream
        self.window, self.at, self.lines_before = "", 0, 0
        self.clean = True
        """Whether all bytes so far were UTF-8."""

    def more(self) -> bool:
        """Drop what was read and read more; false at the end of the file."""
        # Doubling the chunk keeps the re-reading of one long element linear.
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
        """The next character that is not blank; empty at the end of the file."""
        while True:
            self.at = _BLANK.match(self.window, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self.window):
                return self.window[self.at]
            if not self.more():
                return ""

    def take(self, expected: str) -> None:
        """Skip the character ``expected``. Raises ``DataError`` where another one comes."""
        if self.peek() != expected:
            self.fail(
                f"expected '{expected}'" if self.peek() else "the file ends inside the array",
                self.at,
            )
        self.at += 1

    def row(self, number: int) -> RawRow:
        """Read one element. If only this element is wrong, that is the row's problem."""
        self.peek()
        value, problem = None, None
        try:
            value, end = self._decoded()
        except (ValueError, RecursionError) as error:
            fault, problem = error, self._problem(error)
            end = self._end(problem)
        text = self.window[self.at : end].rstrip() if problem or not self.clean else ""
        if problem and isinstance(fault, RefusedValue):
            problem = _named(fault, text)
        self.at = end
        if text and (bad_byte := _NOT_UTF8.search(text)):
            raw = text.encode("utf-8", "surrogateescape")
            byte = ord(bad_byte.group()) - 0xDC00
            problem = f"is not UTF-8 (byte 0x{byte:02x}); save the file as UTF-8"
            return RawRow(number, raw.decode("utf-8", "backslashreplace"), problem)
        return RawRow(number, text, problem) if problem else as_object(number, value)

    def _decoded(self) -> tuple[Any, int]:
        """The element from ``at`` on, and its end in the window. Raises ``ValueError`` or
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
                # A number near the edge of the window may go on: of '-0.25' the window may hold
                # '-0.', which reads as '-0'.
                if end > len(self.window) - _LOOKAHEAD and self.more():
                    continue
                return value, end

    def _end(self, problem: str) -> int:
        """The end in the window of the broken element from ``at`` on, by its brackets. Raises
        ``DataError`` with ``problem`` where they do not show it.
        """
        while True:
            depth, end = 0, None
            for mark in _SHAPE.finditer(self.window, self.at):
                sign = self.window[mark.start()]
                if sign == '"' and not mark[1]:
                    break
                if depth == 0 and sign in ",]":
                    after = _BLANK.match(self.window, mark.end()).end()  # type: ignore[union-attr]
                    if (
                        sign == ","
                        and self.window[after : after + 1] == "{"
                        and mark.start() > self.at
                    ):
                        return mark.start()
                    if after < len(self.window):
                        raise DataError(f"{self.path}: {problem}")
                    end = mark.start() if sign == "]" and mark.start() > self.at else None
                    break
                depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(sign, 0)
            if not self.more():
                if end is None:
                    raise DataError(f"{self.path}: {problem}")
                return end

    def _problem(self, error: Exception) -> str:
        if isinstance(error, RefusedValue):
            return str(error)
        return self._placed(_why(error, False), getattr(error, "pos", self.at))

    def fail(self, problem: str, position: int) -> NoReturn:
        """Raise ``DataError`` with the line and column of a position in the window."""
        raise DataError(f"{self.path}: {self._placed(problem, position)}")

    def _placed(self, problem: str, position: int) -> str:
        line = self.lines_before + self.window.count("\n", 0, position) + 1
        column = position - self.window.rfind("\n", 0, position)
        return f"line {line}, column {column} is not JSON: {problem}"
