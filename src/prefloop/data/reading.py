"""Turn the rows of a file into records. The first rows give the file's layout and habits; one pass
then reads all rows and collects what is wrong with them.
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
"""Number of first rows by which a file's layout is recognized."""
_sorted_json = json.JSONEncoder(sort_keys=True).encode
_SURE = 3
"""With short prompts, a file repeats its prompts only if at least so many answers all begin with
theirs.
"""


class FileSample:
    """The first rows of a file, and what they show about all of its rows."""

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
            findings = [Finding(row.number, None, "", row.problem or "") for row in self._first]
            shown = "\n".join(faults(findings))
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
        keys = dict.fromkeys(key for row in self._rows for key in row)
        if not best and (other := {name for row in lowered for name in fitting(row)}):
            capitals = listed(key for key in keys if key != key.strip().lower())
            raise DataError(
                f"{self.path}: no column has a name that is known. In lower case it would be layout"
                f" {listed(sorted(other))}: rename {capitals}"
            )
        fit = f"fit {' and '.join(best)} equally well" if best else "fit no known layout"
        known = "\n".join(f"  {layout.name}: {layout.keys}" for layout in LAYOUTS.values())
        raise DataError(
            f"{self.path}: the first rows {fit} (keys found: {listed(keys, SAMPLE) or 'none'})\n"
            f"Known layouts:\n{known}\nName the layout with `layout:`, or rename the keys."
        )

    def reason(self, layout: Layout) -> str:
        """Why this layout was chosen, for the log."""
        fits = sum(layout.name in fitting(row) for row in self._rows)
        row = next(row for row in self._rows if layout.name in fitting(row))
        others = (
            "" if fits == len(self._rows) else f", in {fits} of the first {len(self._rows)} rows"
        )
        return layout.reason(row) + others

    def habits(self, layout: Layout, named: bool = False) -> Habits:
        """The habits of the file. Responses repeat their prompt if most begin with a long one, or
        all with one of several words. They mark their ends if most end with a marker.
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
    """The good records of a file, in one pass. What is wrong with the other rows is collected in
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
            for record in joined(cast(Iterator[ScoredAnswer], self._rows())):
                if isinstance(record, str):
                    self.skipped[record] += 1
                else:
                    yield record
        else:
            yield from cast(Iterator[Record], self._rows())

    def why_none(self) -> str:
        """What happened to the rows, for the case that none gave a record."""
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
        """The records of a row, and the row with notes of what was done to it. Raises
        ``BadRow``.
        """
        if raw.problem is not None:
            raise BadRow("", raw.problem)
        # prefloop's own files hold what other files have one level deeper, in ``meta``.
        check_strings(raw.value, deepest=DEEPEST + 2 if self.layout.name == "prefloop" else DEEPEST)
        given = raw.value.get("id")
        id = self._derived_id(raw.value) if given is None else self._given_id(given)
        row = Row(raw.value, id, self._words_of, self.habits)
        if self.layout.read is None:
            raise BadRow("", self.layout.way_out)
        read = self.layout.read(row)
        records: list[Record | ScoredAnswer] = [*read] if isinstance(read, list) else [read]
        for record in records:
            if not isinstance(record, Prompt | Demonstration):
                check_shown(record.meta)
            if isinstance(record, ScoredAnswer):
                continue
            if not isinstance(record, SOURCES[self.kind]):
                held, asked = type(record).__name__.lower(), self.kind.__name__.lower()
                raise BadRow("", f"holds a {held}, of which no {asked} can be made")
        return records, row

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
        """``base``, or ``base-2``, ``base-3`` … with the first number that no id has yet."""
        id, number = base, self._repeats.get(base, 1)
        while self._row_of_id.get(id) is not None:
            number += 1
            id = f"{base}-{number}"
        if number > 1:
            self._repeats[base] = number
        return id


def id_of(given: Any) -> str:
    """An id as text. Tables with gaps turn 1 into 1.0, which becomes 1 again. Raises ``BadRow`` for
    a value that cannot be an id.
    """
    if isinstance(given, float) and given.is_integer():
        given = int(given)
    if isinstance(given, bool) or not isinstance(given, str | int):
        raise BadRow("id", f"is {json_type(given)}, expected text or a whole number")
    return check_text(str(given), "id")
