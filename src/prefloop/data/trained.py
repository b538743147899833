"""The prompts that training saw. Every file is read as the stage that learnt from it read it.

One file may serve several stages. A limit counts records, and the rows that they come from differ
by kind: a prompt in two rows is one prompt and two demonstrations.
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
"""The roles of training files, as ``data`` and a manifest's ``reads`` name them."""


def roles_read(reads: Collection[str]) -> tuple[str, ...]:
    """The roles among the names of fields that artifacts have read; all roles where none is among
    them, since nothing was recorded then.
    """
    return tuple(role for role in ROLES if role in reads) or ROLES


def trained_prompts(
    files: Mapping[str, Source], layout: str, limit: int | None, scratch: Path
) -> Iterator[Prompted]:
    """Every record of the training files by role, one at a time, without rows that training could
    not use.

    ``scratch`` is a folder for copies. Raises ``DataError`` for a file that has changed since.
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
    """The kinds of record that stages read from a file. From thumbs KTO learns one by one, and the
    other losses learn from the pairs that they form.
    """
    if role == "comparisons":
        return [Rating, Comparison] if holds(Rating, source, layout) else [Comparison]
    return [Demonstration if role == "demonstrations" else Prompt]
