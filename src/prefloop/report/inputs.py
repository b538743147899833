"""What a report is made from: ``summary.json``, the curves in ``events.jsonl``, and the files that
other commands leave beside them.
"""

import json
import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, TypeVar

from prefloop.artifacts.codec import finite
from prefloop.artifacts.manifest import MANIFEST, read_manifest
from prefloop.artifacts.references import meant
from prefloop.artifacts.store import EVENTS, artifact_name
from prefloop.base import jsonl
from prefloop.base.sealed import check_files, read_sealed
from prefloop.errors import DataError, StoreError
from prefloop.records import from_dict
from prefloop.report.evaluations import BenchFile, PairTest
from prefloop.report.former import modern
from prefloop.report.summary import Summary, quoted

T = TypeVar("T")
HELD_OUT = "held_out_loss"
"""Field of a step after which the loss on held-out demonstrations was looked at."""


class Curve:
    """The steps of one stage, in order; ``series(field)`` gives the points that have the field."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def series(self, *path: str) -> tuple[list[float], list[float]]:
        """Steps and values of a field (``"kl"`` or ``"seconds", "generate"``) where it is a finite
        number.
        """
        points = [(row["step"], number(row, *path)) for row in self.rows]
        return [step for step, value in points if value is not None], [
            v for _, v in points if v is not None
        ]

    def has(self, *path: str) -> bool:
        """Whether any step has the field."""
        return bool(self.series(*path)[0])


def number(row: Any, *path: str) -> float | None:
    """The finite number at ``path`` inside nested dictionaries, or ``None``."""
    for name in path:
        row = row.get(name) if isinstance(row, dict) else None
    return (
        finite(float(row)) if isinstance(row, int | float) and not isinstance(row, bool) else None
    )


def read_summary(path: Path) -> Summary:
    """Read and check ``summary.json``, without the verdicts of a reward model at chance.

    Raises ``DataError`` naming the field and its value.
    """
    summary = read_file(path, Summary, "Run the pipeline again to rewrite it", modern)
    if summary is None and not path.parent.is_dir():
        raise DataError(f"'{path.parent}' is not the folder of a run{meant(path.parent)}")
    if summary is None:
        raise DataError(
            f"{path}: not found. A report needs a run that has finished; run the pipeline first"
        )
    return quoted(summary)


def read_bench(path: Path) -> BenchFile | None:
    """Read and check ``bench.json``; ``None`` when the run was not benchmarked."""
    return read_file(path, BenchFile, "Run prefloop bench again to rewrite it")


def read_reward_eval(path: Path) -> dict[str, PairTest]:
    """Read and check ``reward-eval.json``, tests by the name of their file; nothing when there is
    none.
    """
    return (
        read_file(path, dict[str, PairTest], "Run prefloop reward eval again to rewrite it") or {}
    )


def read_file(
    path: Path, kind: type[T], fix: str, prepare: Callable[[Any], Any] = lambda raw: raw
) -> T | None:
    """Read and check a JSON file; ``None`` where there is none.

    ``prepare`` is applied before the check. Raises ``DataError`` naming the field and its value,
    with ``fix`` behind it.
    """
    if not os.path.lexists(path):
        return None
    try:
        raw = read_sealed(path, required=False)
    except StoreError as error:
        raise DataError(f"{error}. {fix}") from None
    try:
        return from_dict(kind, encodable(prepare(raw)))
    except ValueError as error:
        raise DataError(f"{path}: {error}. {fix}") from None


def read_curves(path: Path) -> tuple[dict[str, Curve], int]:
    """Curves by stage from ``events.jsonl`` and the number of lines that could not be read.

    A killed process leaves a torn line and a rerun appends, so unreadable lines are skipped and
    counted. A stage that starts again forgets its earlier steps; one that resumes from a checkpoint
    rewinds to the first step it repeats. No file means no curves.
    """
    if not path.exists():
        return {}, 0
    curves: dict[str, dict[int, dict[str, Any]]] = {}
    unreadable = 0
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in filter(str.strip, lines):
            try:
                event = json.loads(line)
            except ValueError:
                unreadable += 1
                continue
            if isinstance(event, dict) and isinstance(event.get("stage"), str):
                _apply(event, curves.setdefault(event["stage"], {}))
    return {
        stage: Curve(list(steps.values())) for stage, steps in curves.items() if steps
    }, unreadable


def _apply(event: dict[str, Any], steps: dict[int, dict[str, Any]]) -> None:
    """Take one event into the steps of its stage; kinds of event that are not known here change
    nothing.
    """
    step = event.get("step")
    if event.get("event") == "stage" and event.get("status") == "started":
        steps.clear()
    elif event.get("event") in ("step", "held_out") and isinstance(step, int):
        for stale in [known for known in steps if known > step]:
            del steps[stale]
        if (
            event["event"] == "held_out"
        ):  # a look comes just before the step after which it was taken
            steps[step] = {"step": step, HELD_OUT: event.get("loss")}
        else:
            steps[step] = event | {
                name: value for name, value in steps.get(step, {}).items() if name == HELD_OUT
            }


def curves_of(run_dir: Path, summary: Summary, notes: list[str]) -> tuple[dict[str, Curve], int]:
    """As ``read_curves`` of the run's log, but of a stage whose artifact the store has from its
    own, whose hash is known.

    What is damaged is left out, and ``notes`` say so.
    """
    curves, unreadable = read_curves(run_dir / EVENTS)
    stores = {
        place.resolve().parent
        for place in sorted((run_dir / "artifacts").glob("*"))
        if place.is_symlink()
    }
    for stage in summary.stages:
        for folder in (
            store / artifact_name(stage.name, stage.key) for store in sorted(stores) if stage.key
        ):
            if os.path.lexists(folder / MANIFEST):
                curves.pop(stage.name, None)
                path = _whole(folder, EVENTS, {stage.key}, notes)
                curves |= read_curves(path)[0] if path else {}
    return curves, unreadable


def artifact_file(
    run_dir: Path,
    summary: Summary,
    slot: str,
    file: str,
    notes: list[str],
    stage: str | None = None,
) -> Path | None:
    """A file of an artifact, unless the link was moved on by a later command than the one that the
    summary is of.

    Nothing where it is damaged, and ``notes`` say so.
    """
    keys = {known.key for known in summary.stages if known.name == (stage or slot) and known.key}
    folder = run_dir / "artifacts" / slot
    return _whole(folder, file, keys, notes) if os.path.lexists(folder / MANIFEST) else None


def _whole(folder: Path, file: str, keys: Collection[str], notes: list[str]) -> Path | None:
    """The file, where the artifact has it, has one of ``keys`` (or there are none), and the hash is
    that of its manifest.
    """
    try:
        manifest = read_manifest(folder, required=False)
        if file not in manifest.files or (keys and manifest.key not in keys):
            return None
        check_files(folder, {file: manifest.files[file]})
    except StoreError as error:
        note = (
            f"The artifact {folder.name} is damaged, and what it holds left out ({error}). Run the"
            " pipeline again."
        )
        notes += [note] if note not in notes else []
        return None
    return folder / file


def read_rows(path: Path | None, kind: type[T], notes: list[str]) -> Iterator[T]:
    """The rows of an artifact's file; none when there is no file.

    Reading ends, and ``notes`` say so, at a row that this version cannot read.
    """
    if path is None:
        return
    try:
        for row in jsonl.read_rows(path):
            yield from_dict(kind, encodable(row))
    except ValueError as error:
        notes.append(
            f"{path.parent.name}/{path.name}: another version of prefloop wrote it, and the rest"
            f" is left out ({error}). Run the pipeline again."
        )


def encodable(value: Any) -> Any:
    """Replace lone surrogates, which JSON can carry and UTF-8 cannot: one odd response must not
    cost the report.
    """
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, list):
        return [encodable(item) for item in value]
    if isinstance(value, dict):
        return {encodable(key): encodable(item) for key, item in value.items()}
    return value
