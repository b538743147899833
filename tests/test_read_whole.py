"""What a row says is read once and whole: turns, calls, votes and ends, in whatever column and format they stand."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from layout_rows import ASK, BAD, CALL, GOOD, MORE, NEXT, SYSTEM, TOOL, bot, hh, user

from prefloop.data import sources
from prefloop.data.check import Checked
from prefloop.data.sources import kind_of
from prefloop.errors import DataError
from prefloop.records import Message


def write(folder: Path, *rows: dict[str, Any]) -> Path:
    (folder / "f.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder / "f.jsonl"


def load(path: Path, layout: str = "auto") -> Checked[Any]:
    found: Checked[Any] = getattr(sources, f"load_{kind_of(path, layout)}")(path, layout=layout)
    return found


def refused(path: Path) -> str:
    with pytest.raises(DataError) as error:
        load(path)
    return str(error.value)


# ---- calls


def test_a_call_under_the_old_key_and_the_new_one_is_one_call(tmp_path: Path) -> None:
    old = {"name": "ring", "arguments": {"number": "B12"}}
    turn = {"role": "assistant", "content": None, "tool_calls": [CALL], "function_call": old}
    rest = [{"role": "tool", "content": "Ulm"}, bot("Ulm's.")]
    (record,) = load(write(tmp_path, {"messages": [user(), turn, *rest], "tools": [TOOL]})).records
    assert [(call.name, call.id) for call in record.prompt[1].tool_calls] == [("ring", "r1")]
    other = {**turn, "function_call": {"name": "ring", "arguments": {"number": "B13"}}}
    said = refused(write(tmp_path, {"messages": [user(), bot()]}, {"messages": [user(), other, *rest]}))
    assert "row 2, field 'messages.1.function_call': calls something else than tool_calls beside it" in said
