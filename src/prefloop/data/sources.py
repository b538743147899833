"""Sources of prompts, demonstrations, comparisons and ratings, read row by row into checked records.

``files.read_rows`` gives the rows of every format. The layout (``layouts.LAYOUTS``) is detected from the first rows or
named. A file serves every loader whose records it holds or can be turned into (``convert``). Dropped on purpose:
repairing rows, and guessing a second layout within one file.

Options of every loader: ``layout`` is a name in ``LAYOUTS`` or ``auto``; ``bad_rows="error"`` refuses a file with a bad
row, ``"quarantine"`` writes bad rows to ``<stem>.quarantine.jsonl`` (in ``quarantine_dir``, else beside the file; an
earlier one is replaced) and uses the rest; ``limit`` takes the first so many good records and reads no further than it
must. A record without an id gets ``<stem>-<8 hex digits of its row's SHA-256>``, and ``-2``, ``-3`` … when repeated.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, cast

from prefloop.console import listed
from prefloop.data.check import SHOWN, BadRow, Checked, Finding, check_strings, check_text, json_type, unusable
from prefloop.data.convert import SOURCES, convert
from prefloop.data.files import read_rows, write_lines
from prefloop.data.json_rows import described, wrapped
from prefloop.data.layouts import LAYOUTS, Layout
from prefloop.data.quarantine import set_aside
from prefloop.data.seen import Seen
from prefloop.data.source import PathLike, Source
from prefloop.errors import ConfigError, DataError, nearest
from prefloop.records import BestOf, Comparison, Demonstration, Prompt, Rating, Record, to_dict

R = TypeVar("R", Prompt, Demonstration, Comparison, Rating, BestOf)

KINDS: dict[str, type] = {
    "comparisons": Comparison,
    "best_of": BestOf,
    "ratings": Rating,
    "demonstrations": Demonstration,
    "prompts": Prompt,
}
"""By the names that people use; the first that a source holds is what it is taken for."""
_SAMPLE = 20
_BAD_ROWS = ("error", "quarantine")


def load_prompts(
    path: Source | PathLike,
    *,
    layout: str = "auto",
    bad_rows: str = "error",
    quarantine_dir: PathLike | None = None,
    limit: int | None = None,
) -> Checked[Prompt]:
    """The distinct prompts of a file of any layout, in order of first appearance. Raises ``DataError``."""
    return load(Prompt, path, layout, bad_rows, quarantine_dir, limit)


def load_demonstrations(
    path: Source | PathLike,
    *,
    layout: str = "auto",
    bad_rows: str = "error",
    quarantine_dir: PathLike | None = None,
    limit: int | None = None,
) -> Checked[Demonstration]:
    """Prompts with an answer to imitate: as written, preferred in a pair, or up-voted. Raises ``DataError``."""
    return load(Demonstration, path, layout, bad_rows, quarantine_dir, limit)


def load_comparisons(
    path: Source | PathLike,
    *,
    layout: str = "auto",
    bad_rows: str = "error",
    quarantine_dir: PathLike | None = None,
    limit: int | None = None,
) -> Checked[Comparison]:
    """Pairs with votes: as written, or up- and down-voted responses paired within a prompt. Raises ``DataError``.

    A plain chosen/rejected pair has the chosen response first and one vote for it by ``file:<file name>``.
    """
    return load(Comparison, path, layout, bad_rows, quarantine_dir, limit)


def load_ratings(
    path: Source | PathLike,
    *,
    layout: str = "auto",
    bad_rows: str = "error",
    quarantine_dir: PathLike | None = None,
    limit: int | None = None,
) -> Checked[Rating]:
    """Responses with thumbs: as written, or both responses of every decided pair. Raises ``DataError``."""
    return load(Rating, path, layout, bad_rows, quarantine_dir, limit)


def load_best_of(
    path: Source | PathLike,
    *,
    layout: str = "auto",
    bad_rows: str = "error",
    quarantine_dir: PathLike | None = None,
    limit: int | None = None,
) -> Checked[BestOf]:
    """Prompts with several responses of which some are known to be good. Raises ``DataError``."""
    return load(BestOf, path, layout, bad_rows, quarantine_dir, limit)


def copy_records(
    kind: type[R],
    path: Source | PathLike,
    target: PathLike,
    *,
    layout: str = "auto",
    bad_rows: str = "error",
    quarantine_dir: PathLike | None = None,
    limit: int | None = None,
    keep: Callable[[R], bool] = lambda _: True,
) -> Checked[R]:
    """Write the records of a file that ``keep`` accepts to ``target`` in the prefloop layout, one at a time; the result holds their number.

    Raises ``DataError`` as the loaders do; ``target`` is then not written.
    """

    def take(records: Iterator[R]) -> int:
        count = 0

        def counted() -> Iterator[bytes]:
            nonlocal count
            for record in records:
                count += 1
                if keep(record):
                    yield _line(record)

        write_lines(Path(target), counted())
        return count

    try:
        return load(kind, path, layout, bad_rows, quarantine_dir, limit, take)
    except DataError:
        Path(target).unlink(missing_ok=True)
        raise


def count_records(
    kind: str,
    path: Source | PathLike,
    *,
    layout: str = "auto",
    bad_rows: str = "error",
    quarantine_dir: PathLike | None = None,
) -> Checked[Any]:
    """Read a source as the loader of ``kind`` (a name in ``KINDS``) does and keep no record; the result holds their number. Raises ``DataError``."""
    return load(KINDS[kind], path, layout, bad_rows, quarantine_dir, None, lambda records: sum(1 for _ in records))


def holds(kind: type, path: Source | PathLike, layout: str = "auto") -> bool:
    """Whether the rows of a file are records of ``kind`` as they stand; the first rows tell where a layout has several kinds."""
    name = detect_layout(path) if layout == "auto" else layout
    if name not in LAYOUTS or kind not in LAYOUTS[name].kinds:
        return False
    return len(LAYOUTS[name].kinds) == 1 or kind in {
        type(record) for record in islice(Records(Source.of(path), LAYOUTS[name], kind), _SAMPLE)
    }


def kind_of(path: Source | PathLike, layout: str = "auto") -> str:
    """What a file holds: comparisons, best_of, ratings, demonstrations or prompts. Raises ``DataError`` where its layout cannot be told."""
    return next((name for name, kind in KINDS.items() if holds(kind, path, layout)), "comparisons")


def detect_layout(path: Source | PathLike) -> str:
    """The layout that fits most of the first rows. Raises ``DataError`` if none does, or several equally."""
    path = Source.of(path)
    first = list(islice(read_rows(path), _SAMPLE))
    sample = [row.value for row in first if row.problem is None]
    if not first:
        raise DataError(f"{path} is empty: it holds no rows")
    if not sample:
        shown = "\n".join(f"  {Finding(row.number, None, '', row.problem or '')}" for row in first[:SHOWN])
        raise DataError(f"{path}: not one of the first {len(first)} rows is a JSON object\n{shown}")
    fits = Counter(name for row in sample for name, layout in LAYOUTS.items() if layout.matches(row))
    best = [name for name, count in fits.items() if count == max(fits.values())]
    if len(best) == 1:
        return best[0]
    if len(first) == 1 and not fits and wrapped(sample[0]):
        raise DataError(f"{path} {described(sample[0], str(path))}")
    keys = listed(dict.fromkeys(key for row in sample for key in row))
    found = f"rows fit {' and '.join(best)} equally well" if best else "rows fit no known layout"
    known = "\n".join(f"  {layout.name}: {layout.keys}" for layout in LAYOUTS.values())
    raise DataError(
        f"{path}: the first {found} (keys found: {keys or 'none'})\nKnown layouts:\n{known}\n"
        "Name the layout with `layout:`, or rename the keys."
    )


def write_jsonl(path: PathLike, records: Iterable[Record]) -> None:
    """Write records in the prefloop layout, UTF-8, gzipped if the name ends in .gz, complete or not at all."""
    write_lines(Path(path), (_line(record) for record in records))


_sorted_json = json.JSONEncoder(sort_keys=True).encode
_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def _line(record: Record) -> bytes:
    try:
        return _json(to_dict(record)).encode("utf-8")
    except (TypeError, ValueError) as error:
        kind = type(record).__name__.lower()
        raise DataError(f"{kind} {record.id!r} cannot be written as JSON: {error}") from None


def load(
    kind: type[R],
    path: Source | PathLike,
    layout: str,
    bad_rows: str,
    quarantine_dir: PathLike | None,
    limit: int | None,
    take: Callable[[Iterator[R]], list[R] | int] = list,
    reader: type[Records] | None = None,
) -> Checked[R]:
    """What every loader does. ``take`` says what becomes of the records: a list, or only how many there were (they went elsewhere).

    ``reader`` makes records of rows, by other rules than ``Records`` where it is given. Raises ``DataError`` and ``ConfigError``.
    """
    path = Source.of(path)
    if bad_rows not in _BAD_ROWS:
        raise ConfigError(f"bad_rows is {bad_rows!r}; {nearest(str(bad_rows), _BAD_ROWS)}")
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}; it takes the first so many records and must be at least 1, or absent")
    if layout != "auto" and layout not in LAYOUTS:
        raise ConfigError(f"layout {layout!r} is unknown; {nearest(str(layout), ['auto', *LAYOUTS])}")
    known = LAYOUTS[detect_layout(path) if layout == "auto" else layout]
    _check_kind(kind, path, known)
    rows = (reader or Records)(path, known, kind)
    skipped: Counter[str] = Counter()
    records = cast(Iterator[R], islice(convert(rows, kind, skipped), limit))
    kept = take(records)
    if not rows.read:
        raise DataError(f"{path} is empty: it holds no rows")
    if rows.findings and (bad_rows == "error" or len(rows.findings) == rows.read):
        raise unusable(path, known.name, rows.findings, rows.read)
    count = kept if isinstance(kept, int) else len(kept)
    if not count:
        reasons = "; ".join(f"{number} {reason}" for reason, number in skipped.items())
        raise DataError(f"{path}: its {rows.read} rows give no {kind.__name__.lower()} (skipped: {reasons})")
    quarantine = set_aside(path, rows.findings, quarantine_dir) if rows.findings else None
    found = [] if isinstance(kept, int) else kept
    return Checked(found, rows.findings, path, known.name, rows.read, quarantine, dict(skipped), count, kind.__name__)


def _check_kind(kind: type, path: Source, layout: Layout) -> None:
    if set(SOURCES[kind]) & set(layout.kinds):
        return
    holds = " or ".join(f"{held.__name__.lower()}s" for held in layout.kinds)
    able = ", ".join(name for name, other in LAYOUTS.items() if set(SOURCES[kind]) & set(other.kinds))
    raise DataError(
        f"{path} is in layout {layout.name}, which holds {holds}: no {kind.__name__.lower()} can be made of them. "
        f"Use a file in one of: {able}."
    )


def id_of(given: Any) -> str:
    """An id as text. Raises ``BadRow`` for what is none."""
    if isinstance(given, bool) or not isinstance(given, str | int):
        raise BadRow("id", f"is {json_type(given)}, expected text or a whole number")
    return check_text(str(given), "id")


class Records:
    """The good records of a file, one pass; what is wrong with the other rows gathers in ``findings``."""

    def __init__(self, path: Source, layout: Layout, kind: type) -> None:
        self.path, self.layout, self.kind = path, layout, kind
        self._stem, self.words_of = path.stem, f"file:{path.name}"
        self.findings: list[Finding] = []
        self.read = 0
        self._row_of_id = Seen()
        self._repeats: dict[str, int] = {}

    def __iter__(self) -> Iterator[Record]:
        for row in read_rows(self.path):
            self.read += 1
            try:
                if row.problem is not None:
                    raise BadRow("", row.problem)
                record = self.record(row.value, row.number)
            except BadRow as bad:
                given = row.value.get("id") if isinstance(row.value, dict) else None
                id = None if given is None else str(given)
                self.findings.append(Finding(row.number, id, bad.field, bad.problem))
            else:
                self._row_of_id.add(record.id, row.number)
                yield record

    def record(self, row: dict[str, Any], number: int) -> Record:
        """The record of an object, the ``number``-th row. Raises ``BadRow``."""
        check_strings(row)
        given = row.get("id")
        id = self._derived_id(row) if given is None else self._given_id(given)
        record = self.layout.read(row, id, self.words_of)
        if not isinstance(record, SOURCES[self.kind]):
            found, asked = type(record).__name__.lower(), self.kind.__name__.lower()
            raise BadRow("", f"holds a {found}, of which no {asked} can be made")
        return record

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
