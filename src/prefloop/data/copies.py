"""Copies of rows that came from elsewhere: JSON lines, an object for each row, and for a row with a
problem the pair of its value and that.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from prefloop.base.atomic import replacing
from prefloop.data.raw import RawRow, table_row
from prefloop.errors import DataError


def cache_home() -> Path:
    """Where copies of every kind of address lie, a folder each: beside what the hub's own tools
    keep (``HF_HOME``).
    """
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "prefloop"


def write_copy(place: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write rows to ``place``, whole or not at all, and return their number; their values are made
    plain (``raw.plain``). Raises ``DataError``.
    """
    count = 0
    with replacing(place) as file:
        for count, row in enumerate(rows, start=1):
            made = table_row(count, row)
            file.write(
                json.dumps(
                    made.value if made.problem is None else [made.value, made.problem]
                ).encode("ascii")
                + b"\n"
            )
    return count


def read_copy(place: Path) -> Iterator[RawRow]:
    """The rows of a copy. Raises ``DataError`` for one that was changed since."""
    try:
        with place.open("rb") as file:
            for number, line in enumerate(file, start=1):
                value = json.loads(line)
                yield RawRow(number, value) if isinstance(value, dict) else RawRow(number, *value)
    except (OSError, ValueError, TypeError):
        raise DataError(
            f"the copy {place} is damaged: delete it, and it is fetched again"
        ) from None
