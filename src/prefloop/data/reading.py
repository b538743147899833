"""The rows of a file → records: its layout and habits from the first rows, then one pass that names
what is wrong.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any, cast

from prefloop.base.console import listed
from prefloop.data.answers import LONG_PROMPT
from prefloop.data.check import (
    DEEPEST,
    BadRow,
    Finding,
    check_shown,
    check_strings,
    check_text,
    faults,
    json_type,
)
from prefloop.data.convert import SOURCES
from prefloop.data.files import read_rows
from prefloop.data.json_rows import columnar, described, wrapped
from prefloop.data.judged import measured, signed
from prefloop.data.layouts import LAYOUTS, Layout, fitting
from prefloop.data.layouts.rated import ScoredAnswer, joined
from prefloop.data.raw import RawRow
from prefloop.data.row import Habits, Notes, Row
from prefloop.data.seen import Seen
from prefloop.data.source import Source
from prefloop.errors import DataError
from prefloop.records import Demonstration, Prompt, Record

SAMPLE = 20
"""Rows that tell what a file is."""
_sorted_json = json.JSONEncoder(sort_keys=True).encode
_SURE = 3
"""Answers of which every one must begin with its prompt where the prompts are short, for this to be
a habit of the file.
"""


class FileSample:
    """The first rows of a file: what they tell about all of them."""

    def __init__(self, path: Source) -> None:
        self.path = path
        self._first = list(islice(read_rows(path), SAMPLE))
        self._rows = [
            Row(row.value, "sample", f"file:{path.name}")
            for row in self._first
            if row.problem is None
        ]

    def detect(self) -> Layout:
        if not self._first:
            raise DataError(f"{self.path} is empty: it holds no rows")
        if not self._rows:
            found = [Finding(row.number, None, "", row.problem or "") for row in self._first]
            shown = "\n".join(faults(found))
            raise DataError(
                f"{self.path}: not one of the first {len(self._first)} rows can be read\n{shown}"
            )
        if len(self._first) == 1 and columnar(dict(self._rows[0])):
            raise DataError(f"{self.path} {described(dict(self._rows[0]), str(self.path))}")
        fits = Counter(name for row in self._rows for name in fitting(row))
        best = [name for name, count in fits.items() if count == max(fits.values())]
        if len(best) == 1:
            return LAYOUTS[best[0]]
        if len(self._first) == 1 and not fits and wrapped(self._rows[0]):
            raise DataError(f"{self.path} {described(self._rows[0], str(self.path))}")
        lowered = [
            Row({key.strip().lower(): value for key, value in row.items()}) for row in self._rows
        ]
        if not best and (other := {name for row in lowered for name in fitting(row)}):
            named = listed(
                dict.fromkeys(
                    key for row in self._rows for key in row if key != key.strip().lower()
                )
            )
            raise DataError(
                f"{self.path}: no column has a name that is known. In lower case it would be layout"
                f" {listed(sorted(other))}: rename {named}"
            )
        keys = listed(dict.fromkeys(key for row in self._rows for key in row), SAMPLE)
        said = f"rows fit {' and '.join(best)} equally well" if best else "rows fit no known layout"
        known = "\n".join(f"  {layout.name}: {layout.keys}" for layout in LAYOUTS.values())
        raise DataError(
            f"{self.path}: the first {said} (keys found: {keys or 'none'})\nKnown"
            f" layouts:\n{known}\nName the layout with `layout:`, or rename the keys."
        )

    def reason(self, layout: Layout) -> str:
        """Why this layout was taken."""
        fits = sum(layout.name in fitting(row) for row in self._rows)
        row = next(row for row in self._rows if layout.name in fitting(row))
        others = (
            "" if fits == len(self._rows) else f", in {fits} of the first {len(self._rows)} rows"
        )
        return layout.reason(row) + others

    def habits(self, layout: Layout, named: bool = False) -> Habits:
        """Whether the first responses repeat their prompt (most a long one, or every one more than
        a word), and whether most end with a marker.
        """
        begins: list[int] = []
        ended: list[bool] = []
        unknown = Habits(
            None,
            None,
            named,
            frozenset(column for row in self._rows for column in measured(row)),
            frozenset(column for row in self._rows for column in signed(row)),
        )
        for row in self._rows:
            probe = Row(row, "sample", row.source, unknown)
            with contextlib.suppress(BadRow):
                if layout.read is not None:
                    check_strings(dict(probe))
                    layout.read(probe)
                    begins += probe.begins
                    ended += probe.ended
        repeats = 2 * sum(words >= LONG_PROMPT for words in begins) > len(begins)
        repeats = repeats or (len(begins) >= _SURE and all(words > 1 for words in begins))
        return replace(unknown, repeats_prompt=repeats, marks_ends=2 * sum(ended) > len(ended))


class Records:
    """The good records of a file, one pass; what is wrong with the other rows gathers in
    ``findings``.
    """

    def __init__(self, path: Source, layout: Layout, kind: type, habits: Habits) -> None:
        self.path, self.layout, self.kind, self.habits = path, layout, kind, habits
        self.findings: list[Finding] = []
        self.skipped: Counter[str] = Counter()
        self.notes = Notes()
        self.read = 0
        self._stem, self._words_of = path.stem, f"file:{path.name}"
        self._row_of_id = Seen()
        self._repeats: dict[str, int] = {}

    def __iter__(self) -> Iterator[Record]:
        if self.layout.joins:
            for found in joined(cast(Iterator[ScoredAnswer], self._rows())):
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

    def _rows(self) -> Iterator[Record | ScoredAnswer]:
        for raw in read_rows(self.path):
            self.read += 1
            try:
                records, row = self.read_row(raw)
            except BadRow as bad:
                given = raw.value.get("id") if isinstance(raw.value, dict) else None
                id = None if given is None else str(given)[:200]
                self.findings.append(Finding(raw.number, id, bad.field, bad.problem))
            else:
                self._row_of_id.add(row.id, raw.number)
                self.notes.add(row)
                yield from records

    def read_row(self, raw: RawRow) -> tuple[list[Record | ScoredAnswer], Row]:
        """The records of a row and what was done to it. Raises ``BadRow``."""
        if raw.problem is not None:
            raise BadRow("", raw.problem)
        # What was written from a row stands one level deeper, in meta.
        check_strings(raw.value, deepest=DEEPEST + 2 if self.layout.name == "prefloop" else DEEPEST)
        given = raw.value.get("id")
        id = self._derived_id(raw.value) if given is None else self._given_id(given)
        row = Row(raw.value, id, self._words_of, self.habits)
        if self.layout.read is None:
            raise BadRow("", self.layout.way_out)
        found = self.layout.read(row)
        records = found if isinstance(found, list) else [found]
        for record in records:
            if not isinstance(record, Prompt | Demonstration):
                check_shown(record.meta)
            if isinstance(record, ScoredAnswer):
                continue
            if not isinstance(record, SOURCES[self.kind]):
                held, asked = type(record).__name__.lower(), self.kind.__name__.lower()
                raise BadRow("", f"holds a {held}, of which no {asked} can be made")
        return list(records), row

    def _given_id(self, given: Any) -> str:
        id = id_of(given)
        if (row := self._row_of_id.get(id)) is not None:
            if self.layout.several:
                return self._unused(id)
            raise BadRow("id", f"{id[:80]!r} is already the id of row {row}")
        return id

    def _derived_id(self, row: dict[str, Any]) -> str:
        digest = hashlib.sha256(_sorted_json(row).encode("ascii")).hexdigest()[:8]
        return self._unused(f"{self._stem}-{digest}")

    def _unused(self, base: str) -> str:
        """``base``, or with the first number from 2 on that no id has yet."""
        id, number = base, self._repeats.get(base, 1)
        while self._row_of_id.get(id) is not None:
            number += 1
            id = f"{base}-{number}"
        if number > 1:
            self._repeats[base] = number
        return id


def id_of(given: Any) -> str:
    """An id as text; tables with gaps make 1.0 of 1. Raises ``BadRow`` for what is none."""
    if isinstance(given, float) and given.is_integer():
        given = int(given)
    if isinstance(given, bool) or not isinstance(given, str | int):
        raise BadRow("id", f"is {json_type(given)}, expected text or a whole number")
    return check_text(str(given), "id")
