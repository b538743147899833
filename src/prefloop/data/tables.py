"""Read rows of tables as a stream: parquet, Arrow files, CSV and TSV."""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefloop.data.raw import LONGEST, MOST_KEYS, RawRow, repeated, table_row
from prefloop.errors import DataError

_BATCH = 512
"""Rows that are turned into Python objects at a time."""
_NOT_UTF8 = re.compile("[\udc80-\udcff]")
_SEPARATOR = re.compile(r'\ufeff?"?sep=([^\w\s"]|\t)"?\r?\n?\Z')
TEXT = {".csv": ",", ".tsv": "\t"}
"""The separator by the file's ending. A header of one cell with semicolons, tabs or bars in it
shows another separator, and so does a line ``sep=;`` before it.
"""


def parquet(path: Path) -> Iterator[RawRow]:
    """The rows of a parquet file. Raises ``DataError`` for a broken one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Buffered and not mapped: a column chunk is never held whole.
        with pq.ParquetFile(path, buffer_size=1 << 16, pre_buffer=False) as file:
            yield from _rows(path, file.iter_batches(batch_size=_BATCH, use_threads=False))
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path} is a broken or cut parquet file ({_said(error)}); fetch or write it again"
        ) from None


def arrow(path: Path) -> Iterator[RawRow]:
    """The rows of an Arrow file in the stream format, which ``datasets`` writes, or in the file
    format. Raises ``DataError`` for a broken one.
    """
    import pyarrow as pa

    try:
        with pa.OSFile(str(path), "rb") as file:
            if file.read(6) == b"ARROW1":
                with pa.ipc.open_file(file) as reader:
                    batches = (
                        reader.get_batch(index) for index in range(reader.num_record_batches)
                    )
                    yield from _rows(path, _sliced(batches))
            else:
                file.seek(0)
                with pa.ipc.open_stream(file) as reader:
                    yield from _rows(path, _sliced(reader))
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path} is a broken or cut Arrow file ({_said(error)}); fetch or write it again"
        ) from None


def parquet_rows(path: Path) -> int:
    """Number of rows of a parquet file, from its footer. Raises ``DataError``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return int(pq.read_metadata(path).num_rows)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path} is a broken or cut parquet file ({_said(error)}); fetch or write it again"
        ) from None


def _said(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]


def _sliced(batches: Any) -> Iterator[Any]:
    for batch in batches:
        # Arrow trusts a file's offsets, and a wrong one would crash the process.
        batch.validate(full=True)
        for start in range(0, batch.num_rows, _BATCH):
            yield batch.slice(start, _BATCH)


def _rows(path: Path, batches: Any) -> Iterator[RawRow]:
    import pyarrow as pa

    number = 0
    for batch in batches:
        names = batch.schema.names
        _check_columns(path, len(names))
        if (twice := repeated(names)) is not None:
            raise DataError(f"{path}: two columns are called '{twice[:80]}': rename one of them")
        simple = all(_is_simple(kind) for kind in batch.schema.types)
        try:
            columns = [column.to_pylist(maps_as_pydicts="strict") for column in batch.columns]
        except (pa.ArrowException, ValueError, KeyError, OverflowError) as error:
            raise DataError(
                f"{path}: rows {number + 1} to {number + batch.num_rows} hold a value that Python"
                f" cannot ({_said(error)}); save that column as text"
            ) from None
        for cells in zip(*columns, strict=True) if columns else ((),) * batch.num_rows:
            number += 1
            columns_of_row = zip(names, cells, strict=True)
            if simple:
                value = {name: cell for name, cell in columns_of_row if cell is not None}
                yield RawRow(number, value)
            else:
                yield table_row(number, dict(columns_of_row))


def _check_columns(path: Path, count: int) -> None:
    if count > MOST_KEYS:
        raise DataError(
            f"{path} has {count:,} columns, and no rows have more than {MOST_KEYS:,}: keep those"
            " that a row needs"
        )


def _is_simple(kind: Any) -> bool:
    """Whether values of an Arrow type, nulls aside, are JSON values as they are."""
    import pyarrow as pa

    types = pa.types
    return bool(
        types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_integer(kind)
        or types.is_boolean(kind)
        or types.is_null(kind)
    )


def separated(path: Path, stream: io.BufferedReader, between: str) -> Iterator[RawRow]:
    """The rows of CSV or TSV, with the header's names as keys. Every cell is text, and an empty one
    is absent.

    Rows are numbered from 1 after the header. Raises ``DataError`` for a header that names a column
    twice, and for broken quotes.
    """
    csv.field_size_limit(LONGEST)
    text = io.TextIOWrapper(stream, encoding="utf-8", errors="surrogateescape", newline="")
    lines = _limited(path, text)
    first = next(lines, "")
    if (named := _SEPARATOR.match(first)) is not None:  # Excel writes the separator first.
        between, first = named.group(1), next(lines, "")
    elif between not in first:
        between = next((sign for sign in ";\t|" if sign in first), between)
    head = _head(path, first, lines, between)
    if head is None:
        return
    names, cells = head
    number = 0
    try:
        for row in cells:
            if not row:
                continue
            number += 1
            yield _cells(number, names, row, cells.line_num)
    except csv.Error as error:
        raise DataError(
            f"{path}: the quotes of row {number + 1} (line {cells.line_num}) are broken ({error});"
            " mend them: a quote within a quoted cell is written twice"
        ) from None


def _limited(path: Path, text: io.TextIOWrapper) -> Iterator[str]:
    while line := text.readline(LONGEST):
        if len(line) == LONGEST:
            raise DataError(
                f"{path} has a line longer than {LONGEST >> 20} MiB, which no row of texts is"
            )
        yield line


def _head(
    path: Path, first: str, lines: Iterator[str], between: str
) -> tuple[list[str], Any] | None:
    cells = csv.reader(itertools.chain([first], lines), delimiter=between, strict=True)
    try:
        names = next((row for row in cells if any(cell.strip() for cell in row)), None)
    except csv.Error as error:
        raise DataError(
            f"{path}: the quotes of the header are broken ({error}); mend them"
        ) from None
    if names is None:
        return None
    _check_columns(path, len(names))
    names = [name.strip() or f"column {index}" for index, name in enumerate(names, start=1)]
    if (twice := repeated(names)) is not None:
        raise DataError(
            f"{path}: the header names the column '{twice[:80]}' twice; rename one of them"
        )
    if any(_NOT_UTF8.search(name) for name in names):
        raise DataError(
            f"{path}: the header is not UTF-8; save the file as UTF-8 (iconv -f WINDOWS-1252 -t"
            f" UTF-8 '{path}' > out.csv)"
        )
    return names, cells


def _cells(number: int, names: list[str], row: list[str], line: int) -> RawRow:
    if any(not cell.isascii() and _NOT_UTF8.search(cell) for cell in row):
        shown = [
            cell.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            for cell in row
        ]
        return RawRow(
            number,
            shown,
            f"is not UTF-8 (line {line}); save the file as UTF-8: iconv -f WINDOWS-1252 -t UTF-8",
        )
    if len(row) != len(names):
        return RawRow(
            number,
            row,
            f"has {len(row)} cells where the header has {len(names)} (it ends in line {line});"
            " quote cells that hold the sign between cells",
        )
    return RawRow(number, {name: cell for name, cell in zip(names, row, strict=True) if cell})
