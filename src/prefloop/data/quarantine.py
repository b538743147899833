"""Bad rows set aside, so that the rest of a file can be used."""

from __future__ import annotations

import json
import os
from itertools import islice
from pathlib import Path
from typing import Any

from prefloop.data.check import Finding
from prefloop.data.files import read_rows, write_lines
from prefloop.data.source import Source


def set_aside(source: Source, findings: list[Finding], folder: str | os.PathLike[str] | None) -> Path:
    """Write the bad rows of a source to ``<stem>.quarantine.jsonl`` in ``folder``, else beside it.

    They are copied in a second pass over it, so that no raw row is held while loading.
    """
    target = Path(folder or source.folder) / f"{source.stem}.quarantine.jsonl"
    bad = {finding.row: finding for finding in findings}
    rows = (row for row in read_rows(source) if row.number in bad)
    lines = (_quarantined(bad[row.number], row.value) for row in islice(rows, len(bad)))
    write_lines(target, lines)
    return target


def _quarantined(finding: Finding, raw: Any) -> bytes:
    entry = {"row": finding.row, "problem": finding.problem, "field": finding.field, "raw": raw}
    try:
        return json.dumps(entry, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        # An unpaired surrogate has no UTF-8; as an escape it is kept exactly.
        return json.dumps(entry).encode("ascii")
