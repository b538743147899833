"""Set bad rows aside, so that the rest of a file can be used: rows that cannot be read, and rows
that a model cannot take.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from prefloop.base.console import counted, say
from prefloop.base.jsonl import write_rows
from prefloop.data.check import Finding
from prefloop.data.files import read_rows, write_lines
from prefloop.data.source import Source
from prefloop.errors import DataError, TooLongError
from prefloop.records import Record

R = TypeVar("R", bound=Record)
V = TypeVar("V")
TOO_LONG, UNUSABLE = "too-long", "unusable"
"""Why rows were set aside, in the name of their file. ``UNUSABLE`` is for rows of which not all are
too long.
"""


def set_aside(
    source: Source, findings: list[Finding], folder: str | os.PathLike[str] | None
) -> Path:
    """Write the bad rows of a source to ``<stem>.quarantine.jsonl`` in ``folder``, or next to the
    source.

    They are copied in a second pass over the source, so that loading holds no raw rows.
    """
    target = Path(folder or source.folder) / f"{source.stem}.quarantine.jsonl"
    bad = {finding.row: finding for finding in findings}
    rows = (row for row in read_rows(source) if row.number in bad)
    lines = (_quarantined(bad[row.number], row.value) for row in islice(rows, len(bad)))
    write_lines(target, lines)
    return target


def _quarantined(finding: Finding, raw: Any) -> bytes:
    entry = {"row": finding.row, "problem": finding.problem, "field": finding.field, "raw": raw}
    try:
        return json.dumps(entry, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        # An unpaired surrogate has no UTF-8; as an escape it is kept exactly.
        return json.dumps(entry).encode("ascii")


class Unusable:
    """Rows that the encoder refuses. They are set aside in a file, or counted and refused together.

    ``target`` is the file, with ``too-long`` in its name; ``None`` refuses the rows. ``what`` names
    one row in messages, ``way`` says how a user sets them aside.
    """

    def __init__(
        self, target: Path | None, what: str = "row", way: str = "data.bad_rows: quarantine"
    ) -> None:
        self._target, self.what, self._way = target, what, way
        self._rows: list[dict[str, str]] = []
        self._only_long = True
        self.count = 0
        self.first = ""
        """The first problem."""

    def add(self, ids: Iterable[str], error: DataError) -> None:
        """Note rows that failed together, as all rows of one prompt do."""
        self._only_long &= isinstance(error, TooLongError)
        self.first = self.first or str(error)
        for id in ids:
            self.count += 1
            if self._target is not None:
                self._rows.append({"id": id, "problem": str(error)})

    def settle(self, read: int) -> None:
        """Finish after ``read`` rows: write the rows that are set aside, and log their number once.
        Raises ``DataError`` with the number of refused rows where none are set aside.
        """
        if not self.count:
            return
        if self._target is None:
            many = f"{self.count} of {counted(read, self.what)} cannot be used, the first: "
            way_out = f", or set such rows aside ({self._way})" if self.count < read else ""
            raise DataError(f"{many if self.count > 1 else ''}{self.first}{way_out}")
        name = self._target.name
        name = name if self._only_long else name.replace(TOO_LONG, UNUSABLE)
        write_rows(self._target.with_name(name), self._rows)
        say(f"  {counted(self.count, self.what)} set aside in {name}: {self.first}", "yellow")


def encoded(
    records: Iterable[R], encode: Callable[[R], V], unusable: Unusable
) -> list[tuple[R, V]]:
    """Every record that ``encode`` takes, with its result. The others go to ``unusable``. Raises
    ``DataError`` when none is left.
    """
    out: list[tuple[R, V]] = []
    read = 0
    for record in records:
        read += 1
        try:
            out.append((record, encode(record)))
        except DataError as error:
            unusable.add([record.id], error)
    unusable.settle(read)
    if read and not out:
        raise DataError(
            f"none of {counted(read, unusable.what)} can be used, the first: {unusable.first}"
        )
    return out
