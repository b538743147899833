"""Read the rows of any source as a stream, and write lines atomically.

All commands and stages read through this module. A file's first bytes tell its format; CSV and TSV
are recognized by their ending. The formats are JSON lines or one JSON array (``json_rows``), and
parquet, Arrow and CSV (``tables``); text may be compressed by gzip or zstd. For any other file an
error says what it is, and what to do. Rows of several shards are numbered through.

A problem within one row is reported with that row, and reading goes on. What makes the rest of a
file unreadable is a ``DataError``.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from prefloop.base.atomic import replacing
from prefloop.data import json_rows, tables
from prefloop.data.raw import RawRow, read_copy
from prefloop.data.source import PathLike, Source
from prefloop.errors import DataError

__all__ = ["RawRow", "count_rows", "read_rows", "write_lines"]

_HEAD = 600
"""Number of first bytes that tell what a file is. The mark of a tar archive comes after 257 of
them.
"""
_ARROW = (b"ARROW1", b"\xff\xff\xff\xff")
_ROWS = "as JSON lines, CSV or parquet"
_YAML = re.compile(rb"(---\s|%YAML|- [\w\"'-]+:\s|[\w-]+:\s*\n\s+- )")
_SIGNS: tuple[tuple[bytes, str], ...] = (
    (b"%PDF", f"is a PDF; save its rows {_ROWS}"),
    (b"7z\xbc\xaf\x27\x1c", "is a 7z archive; unpack it (7z x '{path}') and name the file in it"),
    (b"Rar!\x1a", "is a RAR archive; unpack it and name the file in it"),
    (b"\xfd7zXZ", "is compressed by xz; unpack it (xz -dk '{path}')"),
    (b"\xd0\xcf\x11\xe0", "is an old Excel or Office file; save the sheet as CSV in UTF-8"),
    (b"SQLite format 3", f"is an SQLite database; export the table {_ROWS}"),
    (b"\x89HDF", f"is an HDF5 file; save its rows {_ROWS}"),
    (b"\x93NUMPY", f"is an array of NumPy; save its rows {_ROWS}"),
    (b"Obj\x01", f"is an Avro file; save its rows {_ROWS}"),
    (
        b"version https://git-lfs",
        (
            "is a pointer of git LFS and not the file itself; fetch it (git lfs pull) in its"
            " repository"
        ),
    ),
    (b"PAR1", "is a cut parquet file; fetch it again"),
    (b"PARE", "is an encrypted parquet file; save it without encryption"),
)
_BZIP2 = re.compile(rb"BZh[1-9]1AY&SY")
_PICKLE = re.compile(rb"\x80[\x02-\x05]")
_ENCODINGS: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)


def read_rows(source: Source | PathLike) -> Iterator[RawRow]:
    """The rows of a source, numbered by line in JSON lines (blank lines count but give no row),
    otherwise by row from 1.

    Raises ``DataError`` for a source that cannot be fetched or read to its end, and for a file that
    holds no rows; the message says what the file is.
    """
    source = Source.of(source)
    before = last = 0
    for path in source.files():
        for row in read_copy(path) if source.scheme else _rows(path):
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
        elif (what := _foreign(path, head)) is not None:
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


def _foreign(path: Path, head: bytes) -> str | None:
    """What a file is that starts with ``head`` and holds no rows, with what to do about it;
    ``None`` for text and tables. 512 bytes of ``head`` are enough for most formats.
    """
    for mark, name in _ENCODINGS:
        if head.startswith(mark):
            return _encoded(path, name)
    if re.match(rb"(?:[{\[\"\w]\x00|\x00[{\[\"\w])", head):
        return _encoded(path, "UTF-16LE" if head[1] == 0 else "UTF-16BE")
    if head.startswith(b"PK\x03\x04"):
        return _zip(path)
    if head[257:262] == b"ustar":
        return f"is a tar archive; unpack it (tar -xf '{path}') and name the file in it"
    for sign, description in _SIGNS:
        if head.startswith(sign):
            return description.replace("{path}", str(path))
    if _BZIP2.match(head):
        return f"is compressed by bzip2; unpack it (bunzip2 -k '{path}')"
    if _PICKLE.match(head):
        return f"is a pickle, which can run any code when it is opened; save its rows {_ROWS}"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:200].lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return (
            "is a web page and not data: the download went wrong (a log-in page, an error?); fetch"
            " the file itself"
        )
    if start.startswith(b"<?xml"):
        return f"is XML; save its rows {_ROWS}"
    if path.suffix.lower() in (".yaml", ".yml") or _YAML.match(head):
        return f"is YAML; save its rows as JSON lines: yq -o json -I 0 '.[]' '{path}' > out.jsonl"
    return None


def _encoded(path: Path, name: str) -> str:
    return f"is {name}; save it as UTF-8: iconv -f {name} -t UTF-8 '{path}' > out{path.suffix}"


def _zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        names = []
    if any(name.startswith("xl/") for name in names) or path.suffix.lower() in (".xlsx", ".xlsm"):
        return "is an Excel file; save the sheet as CSV in UTF-8"
    if any(name.endswith("/data.pkl") for name in names):
        return (
            f"is a file of torch.save, which can run code when it is opened; save its rows {_ROWS}"
        )
    first = ", ".join(name[:80] for name in names[:3]) + (" …" if len(names) > 3 else "")
    holds = f", which holds {first}" if names else ""
    return f"is a zip archive{holds}; unpack it (unzip '{path}') and name the file in it"
