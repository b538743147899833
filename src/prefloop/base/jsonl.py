"""JSON lines that prefloop writes and reads back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from prefloop.base.atomic import replacing


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write JSON lines into an artifact under construction, all of them or none."""
    with replacing(path) as file:
        for row in rows:
            file.write(
                json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
            )


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Read an artifact's JSON lines."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)
