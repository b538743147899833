"""Thumbs for stages that learn from single responses."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from prefloop.artifacts.store import Artifact
from prefloop.base.console import say
from prefloop.base.jsonl import read_rows
from prefloop.data.convert import comparison_to_ratings
from prefloop.data.sources import write_jsonl
from prefloop.records import Comparison, from_dict
from prefloop.runs.work import Work


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
