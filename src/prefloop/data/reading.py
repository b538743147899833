"""The rows of a file → records: its layout and habits from the first rows, then one pass that names what is wrong."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, cast

from prefloop.data.check import (
    DEEPEST,
    BadRow,
    Finding,
    check_shown,
    check_strings,
    check_text,
    faults,
    json_type,
    named,
)
from prefloop.data.convert import SOURCES
from prefloop.data.files import RawRow, read_rows, stem
from prefloop.data.layouts import LAYOUTS, Layout, fitting
from prefloop.data.layouts.rated import Scored, joined
from prefloop.data.row import Habits, Notes, Row
from prefloop.errors import DataError
from prefloop.records import Record

SAMPLE = 20
"""Rows that tell what a file is."""
_SURE = 3
"""Answers from which on even greetings that begin with their prompt are a habit of the file."""


class Sample:
    """The first rows of a file: what they tell about all of them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._first = list(islice(read_rows(path), SAMPLE))
        self._rows = [Row(row.value, "sample", f"file:{path.name}") for row in self._first if row.problem is None]

    def detect(self) -> Layout:
        if not self._first:
            raise DataError(f"{self.path} is empty: it holds no rows")
        if not self._rows:
            found = [Finding(row.number, None, "", row.problem or "") for row in self._first]
            shown = "\n".join(faults(found))
            raise DataError(f"{self.path}: not one of the first {len(self._first)} rows is a JSON object\n{shown}")
        fits = Counter(name for row in self._rows for name in fitting(row))
        best = [name for name, count in fits.items() if count == max(fits.values())]
        if len(best) == 1:
            return LAYOUTS[best[0]]
        keys = named(dict.fromkeys(key for row in self._rows for key in row), SAMPLE)
        said = f"rows fit {' and '.join(best)} equally well" if best else "rows fit no known layout"
        known = "\n".join(f"  {layout.name}: {layout.keys}" for layout in LAYOUTS.values())
        raise DataError(
            f"{self.path}: the first {said} (keys found: {keys or 'none'})\nKnown layouts:\n{known}\n"
            "Name the layout with `layout:`, or rename the keys."
        )

    def reason(self, layout: Layout) -> str:
        """Why this layout was taken."""
        fits = sum(layout.name in fitting(row) for row in self._rows)
        row = next(row for row in self._rows if layout.name in fitting(row))
        others = "" if fits == len(self._rows) else f", in {fits} of the first {len(self._rows)} rows"
        return layout.reason(row) + others

    def habits(self, layout: Layout) -> Habits:
        """Whether most of the first responses begin with their prompt, more than greetings do."""
        begins: list[int] = []
        for row in self._rows:
            probe = Row(row, "sample", row.source, Habits(None))
            with contextlib.suppress(BadRow):
                if layout.read is not None:
                    check_strings(dict(probe))
                    layout.read(probe)
                    begins += probe.begins
        found = [how for how in begins if how]
        return Habits(2 * len(found) > len(begins) and (2 in found or len(found) >= _SURE))


class Records:
    """The good records of a file, one pass; what is wrong with the other rows gathers in ``findings``."""

    def __init__(self, path: Path, layout: Layout, kind: type, habits: Habits) -> None:
        self.path, self.layout, self.kind, self.habits = path, layout, kind, habits
        self.findings: list[Finding] = []
        self.skipped: Counter[str] = Counter()
        self.notes = Notes()
        self.read = 0
        self._row_of_id: dict[str, int] = {}
        self._repeats: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Record]:
        if self.layout.joins:
            for found in joined(cast(Iterator[Scored], self._rows())):
                if isinstance(found, str):
                    self.skipped[found] += 1
                else:
                    yield found
        else:
            yield from cast(Iterator[Record], self._rows())

    def why_none(self) -> str:
        """What became of the rows where no record came of them."""
        skipped = "; ".join(f"{number} {why}" for why, number in self.skipped.items())
        return "; ".join([*([f"skipped: {skipped}"] if skipped else []), *self.notes.lines()])

    def _rows(self) -> Iterator[Record | Scored]:
        for raw in read_rows(self.path):
            self.read += 1
            try:
                records, row = self._read(raw)
            except BadRow as bad:
                given = raw.value.get("id") if isinstance(raw.value, dict) else None
                id = None if given is None else str(given)[:200]
                self.findings.append(Finding(raw.number, id, bad.field, bad.problem))
            else:
                self._row_of_id[row.id] = raw.number
                self.notes.add(row)
                yield from records

    def _read(self, raw: RawRow) -> tuple[list[Record | Scored], Row]:
        if raw.problem is not None:
            raise BadRow("", raw.problem)
        # What was written from a row stands one level deeper, in meta.
        check_strings(raw.value, deepest=DEEPEST + 2 if self.layout.name == "prefloop" else DEEPEST)
        given = raw.value.get("id")
        id = self._derived_id(raw.value) if given is None else self._given_id(given)
        row = Row(raw.value, id, f"file:{self.path.name}", self.habits)
        if self.layout.read is None:
            raise BadRow("", self.layout.way_out)
        found = self.layout.read(row)
        records = found if isinstance(found, list) else [found]
        for record in records:
            if isinstance(record, Scored):
                continue
            check_shown(record)
            if not isinstance(record, SOURCES[self.kind]):
                held, asked = type(record).__name__.lower(), self.kind.__name__.lower()
                raise BadRow("", f"holds a {held}, of which no {asked} can be made")
        return list(records), row

    def _given_id(self, given: Any) -> str:
        if isinstance(given, bool) or not isinstance(given, str | int):
            raise BadRow("id", f"is {json_type(given)}, expected text or a whole number")
        id = check_text(str(given), "id")
        if id in self._row_of_id:
            if self.layout.several:
                return self._unused(id)
            raise BadRow("id", f"{id[:80]!r} is already the id of row {self._row_of_id[id]}")
        return id

    def _derived_id(self, row: dict[str, Any]) -> str:
        digest = hashlib.sha256(json.dumps(row, sort_keys=True).encode("ascii")).hexdigest()[:8]
        return self._unused(f"{stem(self.path)}-{digest}")

    def _unused(self, base: str) -> str:
        while True:
            self._repeats[base] += 1
            id = base if self._repeats[base] == 1 else f"{base}-{self._repeats[base]}"
            if id not in self._row_of_id:
                return id
