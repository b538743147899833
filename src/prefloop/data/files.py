"""Rows of a JSONL file or of one JSON array, gzipped or not, read as a stream; and lines written atomically.

What spoils one line of JSONL is reported on that row and reading goes on; what leaves the rest of the file unreadable
(a broken gzip stream, a broken array, another encoding) is a ``DataError``.
"""

from __future__ import annotations

import contextlib
import difflib
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from prefloop.atomic import replacing
from prefloop.data.check import json_type
from prefloop.errors import DataError

_CHUNK = 1 << 16
# The longest thing json can stop in the middle of and blame on its start, strings aside: '-Infinity', '\ud83d\ude00'.
_LOOKAHEAD = 16
_BLANK = re.compile(r"[ \t\r\n]*")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


@dataclass(frozen=True)
class RawRow:
    """One row as it stands: its number from 1, its value (the line's text when that is not JSON) and what is wrong."""

    number: int
    value: Any
    problem: str | None = None


def stem(path: Path) -> str:
    """The file's name without ``.gz`` and without its suffix: ``train`` for ``train.jsonl.gz``."""
    return Path(path.name.removesuffix(".gz")).stem


def read_rows(path: Path) -> Iterator[RawRow]:
    """The rows of ``path``, by line number in JSONL (blank ones count, but give no row), by element in an array."""
    with _opened(path) as stream:
        head = stream.peek(4)
        if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise DataError(f"{path} is UTF-16; save it as UTF-8")
        if head[:3] == b"\xef\xbb\xbf":
            stream.read(3)
            head = head[3:]
        yield from _elements(path, stream) if head.lstrip()[:1] == b"[" else _lines(stream)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[io.BufferedReader]:
    try:
        with path.open("rb") as raw:
            if raw.peek(2)[:2] == b"\x1f\x8b":
                with gzip.GzipFile(fileobj=raw) as unzipped:
                    yield io.BufferedReader(unzipped)
            elif path.suffix == ".gz":
                raise DataError(f"{path} is not a gzip file although its name ends in .gz; rename it or fetch it again")
            else:
                yield raw
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} is a broken or incomplete gzip file ({error}); fetch or compress it again") from None
    except FileNotFoundError:
        raise DataError(f"no such file: {path}{_neighbour(path)}") from None
    except IsADirectoryError:
        raise DataError(f"{path} is a folder; name a file in it") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None


def _neighbour(path: Path) -> str:
    if not path.parent.is_dir():
        return f" (there is no folder {path.parent})"
    close = difflib.get_close_matches(path.name, os.listdir(path.parent), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def _lines(stream: io.BufferedReader) -> Iterator[RawRow]:
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        try:
            yield _object(number, _DECODER.decode(line.decode("utf-8").rstrip()))
        except UnicodeDecodeError as error:
            text = line.decode("utf-8", "backslashreplace").rstrip("\r\n")
            byte = line[error.start]
            yield RawRow(
                number, text, f"is not UTF-8 (byte 0x{byte:02x} at position {error.start + 1}); save it as UTF-8"
            )
        except (ValueError, RecursionError) as error:
            yield RawRow(number, line.decode("utf-8").rstrip("\r\n"), f"is not one line of JSON: {_why(error)}")


def _object(number: int, value: Any) -> RawRow:
    return RawRow(number, value, None if isinstance(value, dict) else f"is {json_type(value)}, expected an object")


def _why(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg.removesuffix(' at')} at column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _elements(path: Path, stream: io.BufferedReader) -> Iterator[RawRow]:
    source = _Array(path, io.TextIOWrapper(stream, encoding="utf-8", newline=""))
    number = 0
    try:
        source.take("[")
        unread = source.peek() != "]"
        while unread:
            number += 1
            yield _object(number, source.value())
            unread = source.peek() == ","
            if unread:
                source.take(",")
        source.take("]")
        if source.peek():
            source.fail("there is more after the end of the array", source.at)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 ({error.reason}, somewhere after row {number}); save it as UTF-8"
        ) from None


class _Array:
    """A window on the text of a JSON array that grows only as far as the element being read."""

    def __init__(self, path: Path, stream: io.TextIOWrapper) -> None:
        self.path, self.stream = path, stream
        self.window, self.at, self.lines_before = "", 0, 0

    def more(self) -> bool:
        """Let go of what was read and take in more; false at the end of the file."""
        # Doubling keeps the re-reading of one long element linear.
        chunk = self.stream.read(max(_CHUNK, len(self.window) - self.at))
        if not chunk:
            return False
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
            self.fail(f"expected '{expected}'" if self.peek() else "the file ends inside the array", self.at)
        self.at += 1

    def value(self) -> Any:
        """Read one element."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self.window, self.at)
            except json.JSONDecodeError as error:
                unfinished = error.msg.startswith("Unterminated") or error.pos >= len(self.window) - _LOOKAHEAD
                if not (unfinished and self.more()):
                    self.fail(error.msg, error.pos)
            except (ValueError, RecursionError) as error:
                self.fail(_why(error), self.at)
            else:
                # A number near the edge of the window may go on: '-0' is all there is of '-0.25' in '-0.'.
                if end > len(self.window) - _LOOKAHEAD and self.more():
                    continue
                self.at = end
                return value

    def fail(self, problem: str, position: int) -> NoReturn:
        line = self.lines_before + self.window.count("\n", 0, position) + 1
        column = position - self.window.rfind("\n", 0, position)
        raise DataError(f"{self.path}: line {line}, column {column} is not JSON: {problem}")


def write_lines(path: Path, lines: Iterable[bytes]) -> None:
    """Write ``lines`` (gzipped if the name ends in .gz), replacing ``path`` only once all of them are on disk."""
    with replacing(path) as raw:
        # No name and no time in the header: the same records give the same bytes.
        zipped = gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) if path.suffix == ".gz" else None
        with zipped or contextlib.nullcontext(raw) as out:
            for line in lines:
                out.write(line + b"\n")
