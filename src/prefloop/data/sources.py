"""Load prompts, demonstrations, comparisons and ratings from any source, row by row, as checked
records.

``files.read_rows`` reads rows of every format. The layout (``layouts.LAYOUTS``) is recognized from
the first rows, or named. A file serves every loader whose records it holds or can be turned into
(``convert``). Rows are not repaired, and no second layout is tried within one file.

Options of every loader:
- ``layout``: a name in ``LAYOUTS``, or ``auto``.
- ``bad_rows``: ``"error"`` refuses a file with a bad row. ``"quarantine"`` writes bad rows to
  ``<stem>.quarantine.jsonl`` in ``quarantine_dir``, or next to the file, and uses the rest. An
  earlier quarantine file is replaced.
- ``limit``: take the first n good records, and read no further than needed.

A record without an id gets ``<stem>-<8 hex digits of its row's SHA-256>``, and ``-2``, ``-3`` …
when repeated.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, cast

from prefloop.data.check import Checked, unusable
from prefloop.data.convert import SOURCES, convert
from prefloop.data.files import write_lines
from prefloop.data.layouts import LAYOUTS, Layout
from prefloop.data.quarantine import set_aside
from prefloop.data.reading import SAMPLE, FileSample, Records
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
"""Kinds of record by the names that people use. A source is taken for the first kind that it holds.
"""
_BAD_ROWS = ("error", "quarantine")


def load_prompts(
    path: Source | PathLike,
    *,
    layout: str = "auto",
    bad_rows: str = "error",
    quarantine_dir: PathLike | None = None,
    limit: int | None = None,
) -> Checked[Prompt]:
    """The distinct prompts of a file of any layout, in order of first appearance. Raises
    ``DataError``.
    """
    return load(Prompt, path, layout, bad_rows, quarantine_dir, limit)


def load_demonstrations(
    path: Source | PathLike,
    *,
    layout: str = "auto",
    bad_rows: str = "error",
    quarantine_dir: PathLike | None = None,
    limit: int | None = None,
) -> Checked[Demonstration]:
    """Prompts with an answer to imitate: written as such, preferred in a pair, or up-voted. Raises
    ``DataError``.
    """
    return load(Demonstration, path, layout, bad_rows, quarantine_dir, limit)


def load_comparisons(
    path: Source | PathLike,
    *,
    layout: str = "auto",
    bad_rows: str = "error",
    quarantine_dir: PathLike | None = None,
    limit: int | None = None,
) -> Checked[Comparison]:
    """Pairs of responses with votes: written as such, or up-voted and down-voted responses to the
    same prompt, paired. Raises ``DataError``.

    In a plain chosen/rejected pair the chosen response is the first, with one vote for it by
    ``file:<file name>``.
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
    """Responses with thumbs: written as such, or both responses of every decided pair. Raises
    ``DataError``.
    """
    return load(Rating, path, layout, bad_rows, quarantine_dir, limit)


def load_best_of(
    path: Source | PathLike,
    *,
    layout: str = "auto",
    bad_rows: str = "error",
    quarantine_dir: PathLike | None = None,
    limit: int | None = None,
) -> Checked[BestOf]:
    """Prompts with several responses of which some are marked as good. Raises ``DataError``."""
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
    """Write the records of a file that ``keep`` accepts to ``target`` in the prefloop layout, one
    at a time. The result holds their number.

    Raises ``DataError`` as the loaders do. ``target`` is not written then.
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
    look: Callable[[Any], None] | None = None,
) -> Checked[Any]:
    """Read a source as the loader of ``kind`` (a name in ``KINDS``) does. Every record is handed to
    ``look`` and none is kept; the result holds their number. Raises ``DataError``.
    """

    def take(records: Iterator[Any]) -> int:
        count = 0
        for record in records:
            if look:
                look(record)
            count += 1
        return count

    return load(KINDS[kind], path, layout, bad_rows, quarantine_dir, None, take)


def holds(kind: type, path: Source | PathLike, layout: str = "auto") -> bool:
    """Whether the rows of a file are records of ``kind`` without conversion. Where a layout has
    several kinds, the first rows decide.
    """
    sample = FileSample(Source.of(path))
    known = sample.detect() if layout == "auto" else LAYOUTS.get(layout)
    if known is None or kind not in known.kinds:
        return False
    if len(known.kinds) == 1:
        return True
    rows = Records(sample.path, known, kind, sample.habits(known, layout != "auto"))
    return kind in {type(record) for record in islice(rows, SAMPLE)}


def kind_of(path: Source | PathLike, layout: str = "auto") -> str:
    """The kind of record that a file holds: comparisons, best_of, ratings, demonstrations or
    prompts. Raises ``DataError`` where its layout is not recognized.
    """
    layout = detect_layout(path) if layout == "auto" else layout
    held = [
        name for name, kind in KINDS.items() if layout in LAYOUTS and kind in LAYOUTS[layout].kinds
    ]
    # Where none of the first rows can be read, the loader reports what is wrong with them.
    return next(
        (name for name in held if holds(KINDS[name], path, layout)),
        held[0] if held else "comparisons",
    )


def detect_layout(path: Source | PathLike) -> str:
    """The layout that fits most of the first rows. Raises ``DataError`` if none fits, or several
    equally well.
    """
    return FileSample(Source.of(path)).detect().name


def write_jsonl(path: PathLike, records: Iterable[Record]) -> None:
    """Write records in the prefloop layout, in UTF-8, gzipped if the name ends in .gz. The file is
    written as a whole or not at all.
    """
    write_lines(Path(path), (_line(record) for record in records))


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
    """Load records of ``kind``. ``take`` decides what happens to them: it returns a list, or only
    their number if they went elsewhere.

    ``reader`` reads rows by other rules than ``Records``. Raises ``DataError`` and ``ConfigError``.
    """
    path = Source.of(path)
    if bad_rows not in _BAD_ROWS:
        raise ConfigError(f"bad_rows is {bad_rows!r}; {nearest(str(bad_rows), _BAD_ROWS)}")
    if limit is not None and limit < 1:
        raise ConfigError(
            f"limit is {limit}; it takes the first so many records and must be at least 1, or"
            " absent"
        )
    if layout != "auto" and layout not in LAYOUTS:
        raise ConfigError(
            f"layout {layout!r} is unknown; {nearest(str(layout), ['auto', *LAYOUTS])}"
        )
    sample = FileSample(path)
    known = sample.detect() if layout == "auto" else LAYOUTS[layout]
    reason = sample.reason(known) if layout == "auto" else "as named"
    _check_kind(kind, path, known, reason)
    rows = (reader or Records)(path, known, kind, sample.habits(known, layout != "auto"))
    records = cast(Iterator[R], islice(convert(rows, kind, rows.skipped), limit))
    kept = take(records)
    if not rows.read:
        raise DataError(f"{path} is empty: it holds no rows")
    if rows.findings and (bad_rows == "error" or len(rows.findings) == rows.read):
        raise unusable(path, known.name, rows.findings, rows.read)
    count = kept if isinstance(kept, int) else len(kept)
    if not count:
        raise DataError(
            f"{path}: its {rows.read} rows give no {kind.__name__.lower()} ({rows.why_none()})"
        )
    quarantine = set_aside(path, rows.findings, quarantine_dir) if rows.findings else None
    return Checked(
        [] if isinstance(kept, int) else kept,
        rows.findings,
        path,
        known.name,
        rows.read,
        quarantine,
        dict(rows.skipped),
        count,
        kind.__name__,
        reason,
        rows.notes.lines(),
    )


def _check_kind(kind: type, path: Source, layout: Layout, reason: str) -> None:
    if layout.read is None:
        raise DataError(
            f"{path} is in layout {layout.name} ({reason}), and no record can be made of it:"
            f" {layout.way_out}."
        )
    if set(SOURCES[kind]) & set(layout.kinds):
        return
    holds = " or ".join(f"{held.__name__.lower()}s" for held in layout.kinds)
    able = ", ".join(
        name for name, other in LAYOUTS.items() if set(SOURCES[kind]) & set(other.kinds)
    )
    raise DataError(
        f"{path} is in layout {layout.name}, which holds {holds}: no {kind.__name__.lower()} can be"
        f" made of them. Use a file in one of: {able}."
    )
