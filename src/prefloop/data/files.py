"""Read the rows of any source as a stream, and write lines atomically.

All commands and stages read through this module. A file's first bytes tell its format; CSV and TSV
are recognized by their ending. The formats are JSON lines or one JSON array (``json_rows``), and
parquet, Arrow and CSV (``tables``); text may be compressed by gzip or zstd. For any other file an
error says what it is, and what to do (``foreign``). Rows of several shards are numbered through.

A problem within one row is reported with that row, and reading goes on. What makes the rest of a
file unreadable is a ``DataError``.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from prefloop.base.atomic import replacing
from prefloop.data import copies, foreign, json_rows, tables
from prefloop.data.raw import RawRow
from prefloop.data.source import PathLike, Source
from prefloop.errors import DataError

__all__ = ["RawRow", "count_rows", "read_rows", "write_lines"]

_HEAD = 600
"""Number of first bytes that tell what a file is. The mark of a tar archive comes after 257 of
them.
"""
_ARROW = (b"ARROW1", b"\xff\xff\xff\xff")


def read_rows(source: Source | PathLike) -> Iterator[RawRow]:
    """The rows of a source, numbered by line in JSON lines (blank lines count but give no row),
    otherwise by row from 1.

    Raises ``DataError`` for a source that cannot be fetched or read to its end, and for a file that
    holds no rows; the message says what the file is.
    """
    source = Source.of(source)
    before = last = 0
    for path in source.files():
        for row in copies.read_copy(path) if source.scheme else _rows(path):
            last = before + row.number
            yield RawRow(last, row.value, row.problem) if before else row
        before = last


def count_rows(source: Source | PathLike) -> int | None:
    """Number of rows of a source on this machine; ``None`` where it cannot be read, which the stage
    that needs it reports better.
    """
    source = Source.of(source)
    try:
        return sum(map(_counted, source.files())) if source.exists() else None
    except DataError:
        return None


def _counted(path: Path) -> int:
    with opened(path) as stream:
        head = stream.peek(_HEAD)[:_HEAD]
        if head.startswith(b"PAR1"):
            return tables.parquet_rows(path)
        if head.lstrip().startswith(b"{") and path.suffix not in tables.TEXT:
            return sum(bool(line.strip()) for line in stream)
    return sum(1 for _ in _rows(path))


def _rows(path: Path) -> Iterator[RawRow]:
    with opened(path) as stream:
        head = stream.peek(_HEAD)[:_HEAD]
        if head.startswith(b"PAR1") and path.stat().st_size > 12:
            yield from tables.parquet(path)
        elif head.startswith(_ARROW):
            yield from tables.arrow(path)
        elif (what := foreign.what(path, head)) is not None:
            raise DataError(f"{path} {what}")
        elif (ending := _text_ending(path)) in tables.TEXT:
            yield from tables.separated(path, stream, tables.TEXT[ending])
        elif head.lstrip()[:1] == b"[":
            yield from json_rows.elements(str(path), stream)
        else:
            yield from json_rows.lines(str(path), stream, lambda: opened(path))


def _text_ending(path: Path) -> str:
    """The ending without compression: ``.csv`` of ``a.csv`` and ``a.csv.gz``."""
    name = path.name.lower()
    for ending in (".gz", ".zst"):
        name = name.removesuffix(ending)
    return Path(name).suffix


@contextlib.contextmanager
def opened(path: Path) -> Iterator[io.BufferedReader]:
    """The bytes of a file, decompressed, without a UTF-8 byte order mark. Raises ``DataError``,
    also for read errors within the ``with`` block.
    """
    try:
        with path.open("rb") as raw, _unpacked(path, raw) as stream:
            if stream.peek(3)[:3] == b"\xef\xbb\xbf":
                stream.read(3)
            yield stream
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} is a broken or incomplete gzip file ({error}); fetch or compress it again"
        ) from None
    except FileNotFoundError:
        raise DataError(f"no such file: {path}") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None


@contextlib.contextmanager
def _unpacked(path: Path, raw: io.BufferedReader) -> Iterator[io.BufferedReader]:
    mark = raw.peek(4)[:4]
    if mark[:2] == b"\x1f\x8b":
        with gzip.GzipFile(fileobj=raw) as unzipped:
            yield io.BufferedReader(unzipped)
    elif mark == b"\x28\xb5\x2f\xfd":
        import pyarrow as pa

        try:
            # Python's zstandard reads a truncated file without an error.
            with pa.input_stream(str(path), compression="zstd") as unpacked:
                yield io.BufferedReader(unpacked)
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{path} is a broken or incomplete zstd file ({error}); fetch or compress it again"
            ) from None
    elif path.suffix in (".gz", ".zst") and mark:
        kind = {".gz": "gzip", ".zst": "zstd"}[path.suffix]
        raise DataError(
            f"{path} is not a {kind} file although its name ends in {path.suffix}; rename it or"
            " fetch it again"
        )
    else:
        yield raw


def write_lines(path: Path, lines: Iterable[bytes]) -> None:
    """Write ``lines``, gzipped if the name ends in .gz. ``path`` is replaced only once all of them
    are on disk.
    """
    with replacing(path) as raw:
        # No name and no time in the header: the same records give the same bytes.
        out: Any = contextlib.nullcontext(raw)
        if path.suffix == ".gz":
            out = gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0)
        with out as stream:
            for line in lines:
                stream.write(line + b"\n")
