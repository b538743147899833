"""Local copies of rows that were fetched: JSON lines with an object for each row, or, for a row
with a problem, a pair of its value and the problem.
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
    """The folder for copies, next to the caches of the hub's own tools (``HF_HOME``). Each kind of
    address has a subfolder.
    """
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "prefloop"


def write_copy(place: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write rows to ``place``, as a whole or not at all, and return their number. Values become
    plain JSON (``raw.plain``). Raises ``DataError``.
    """
    count = 0
    with replacing(place) as file:
        for count, row in enumerate(rows, start=1):
            raw = table_row(count, row)
            entry = raw.value if raw.problem is None else [raw.value, raw.problem]
            file.write(json.dumps(entry).encode("ascii") + b"\n")
    return count


def read_copy(place: Path) -> Iterator[RawRow]:
    """The rows of a copy. Raises ``DataError`` for a damaged one."""
    try:
        with place.open("rb") as file:
            for number, line in enumerate(file, start=1):
                value = json.loads(line)
                yield RawRow(number, value) if isinstance(value, dict) else RawRow(number, *value)
    except (OSError, ValueError, TypeError):
        raise DataError(
            f"the copy {place} is damaged: delete it, and it is fetched again"
        ) from None
