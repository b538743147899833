"""The prompts that training saw: every file is read as the stage that learnt from it read it.

One file may serve several stages. A limit counts records, and which rows they come from differs by
kind: a prompt that stands in two rows is one prompt and two demonstrations.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from prefloop.base.jsonl import read_rows
from prefloop.data.overlap import Prompted
from prefloop.data.source import Source
from prefloop.data.sources import copy_records, holds
from prefloop.errors import DataError
from prefloop.records import Comparison, Demonstration, Prompt, Rating, from_dict

ROLES = ("demonstrations", "comparisons", "prompts")
"""What a training file is for, as ``data`` and a manifest's ``reads`` name it."""


def roles_read(reads: Collection[str]) -> tuple[str, ...]:
    """The roles among the names of fields that artifacts read; all of them where none is, as
    nothing was noted then.
    """
    return tuple(role for role in ROLES if role in reads) or ROLES


def trained_prompts(
    files: Mapping[str, Source], layout: str, limit: int | None, scratch: Path
) -> Iterator[Prompted]:
    """Every record of the training files by role, one at a time; rows that training could not use
    are none.

    ``scratch`` is a folder for copies. Raises ``DataError`` for a file that is not what it was.
    """
    for role, source in files.items():
        kinds = _kinds(role, source, layout)
        for kind in kinds:
            copy = scratch / f"trained-on-{role}.jsonl"
            try:
                copy_records(
                    kind,
                    source,
                    copy,
                    layout=layout,
                    bad_rows="quarantine",
                    quarantine_dir=scratch,
                    limit=limit,
                )
            except DataError:
                if kind is kinds[0]:
                    raise
                continue  # thumbs that form no pairs
            yield from (from_dict(kind, row) for row in read_rows(copy))
            copy.unlink()


def _kinds(role: str, source: Source, layout: str) -> list[Any]:
    """What the stages read of a file: of thumbs KTO learns from each, and the other losses from the
    pairs that they form.
    """
    if role == "comparisons":
        return [Rating, Comparison] if holds(Rating, source, layout) else [Comparison]
    return [Demonstration if role == "demonstrations" else Prompt]
