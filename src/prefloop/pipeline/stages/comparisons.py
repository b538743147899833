"""What stages that learn from votes ask of the artifact that holds them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from prefloop.artifacts.store import Artifact
from prefloop.base.console import say
from prefloop.base.jsonl import read_rows
from prefloop.data.convert import comparison_to_ratings
from prefloop.data.quarantine import TOO_LONG, Unusable
from prefloop.data.sources import write_jsonl
from prefloop.errors import DataError
from prefloop.records import Comparison, from_dict
from prefloop.runs.work import Work


def unusable_of(comparisons: Artifact, folder: Path) -> Unusable:
    """What a stage does with rows that it cannot use: into ``folder`` when the labels were read
    with ``bad_rows: quarantine``.
    """
    aside = comparisons.metrics.get("bad_rows") == "quarantine"
    return Unusable(folder / f"{TOO_LONG}.quarantine.jsonl" if aside else None)


def has_pairs(comparisons: Artifact) -> bool:
    """Whether the votes are, or form, pairs: thumbs do where a prompt has a response with a thumb
    up and one with a thumb down.
    """
    return not comparisons.metrics.get("thumbs") or bool(comparisons.metrics.get("comparisons"))


def require_pairs(comparisons: Artifact, who: str) -> None:
    """Raise ``DataError`` where ``who`` would learn from pairs and there are thumbs that form
    none.
    """
    if not has_pairs(comparisons):
        file = comparisons.manifest.reads.get("comparisons", "the file")
        raise DataError(
            f"'{file}' holds thumbs that form no pairs (no prompt has a response with a thumb up"
            f" and one with a thumb down), and {who} learns from pairs: learn from the thumbs with"
            " --algo kto, or add such responses"
        )


def ratings_of(comparisons: Artifact, work: Work) -> Path:
    """Thumbs as people gave them, or what the votes on pairs amount to."""
    given = comparisons / "ratings.jsonl"
    if given.is_file():
        return given
    derived = work.scratch / "ratings.jsonl"
    skipped: Counter[str] = Counter()
    rows = (from_dict(Comparison, row) for row in read_rows(comparisons / "comparisons.jsonl"))
    write_jsonl(derived, (rating for row in rows for rating in comparison_to_ratings(row, skipped)))
    for reason, count in skipped.items():
        say(f"  {count} pairs give no thumbs: {reason}")
    return derived
