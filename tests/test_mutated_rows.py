"""Whatever stands in a row, it is read into a record or named: no traceback, no row lost, nothing accepted that cannot be kept."""

from __future__ import annotations

import ast
import contextlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from mutated_rows import mutated

from prefloop.data.check import BadRow, check_record, check_strings
from prefloop.data.layouts import LAYOUTS
from prefloop.data.layouts.rated import Scored
from prefloop.data.row import Row
from prefloop.data.sources import (
    load_best_of,
    load_comparisons,
    load_demonstrations,
    load_prompts,
    load_ratings,
    write_jsonl,
)
from prefloop.errors import DataError
from prefloop.records import BestOf, Comparison, Demonstration, Message, Prompt, Rating, from_dict, to_dict

LOADERS: dict[type, Any] = {
    Comparison: load_comparisons,
    Demonstration: load_demonstrations,
    Prompt: load_prompts,
    Rating: load_ratings,
    BestOf: load_best_of,
}


# What the records say in their own words: who speaks, which answer won, which id the row has.
OWN_WORDS = {
    "role",
    "from",
    "speaker",
    "type",
    "id",
    "label",
    "kto_tag",
    "thumb",
    "desirable",
    "feedback",
    "is_good",
    "preferred",
    "rating",
    "winner",
    "human",
    "strength",
    "better_response_id",
    "labels",
    "overall_preference",
    "preference_strength",
    "score",
    "winner_model_a",
    "winner_model_b",
    "winner_tie",
    "weight",
    "loss",
    "train",
    "masked",
    "training",
}


def texts(value: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every text within a value and the keys that lead there; texts that are JSON or Python lists and objects are looked into."""
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from texts(item, (*at, str(key)))
    elif isinstance(value, str) and value.strip():
        held = None
        for read in (json.loads, ast.literal_eval):
            with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                held = held if isinstance(held, dict | list) else read(value)
        if isinstance(held, dict | list):
            yield from texts(held, at)
        else:
            yield at, value.strip()


def vanished(row: Row, records: list[Any]) -> list[str]:
    """Texts of a row that stand in none of its records and that no note speaks of."""
    parts = [
        [each.prompt, each.prompt.tools, each.response, each.meta] if isinstance(each, Scored) else each
        for each in records
    ]
    kept = "\n".join(text for _, text in texts(json.loads(json.dumps(parts, default=to_dict_or_list))))
    noted = {*row.repeated, *(key.rpartition(".")[2] for key in row.message_keys)}
    return [text for at, text in texts(dict(row)) if text not in kept and not {*at} & (OWN_WORDS | noted)]


def to_dict_or_list(value: Any) -> Any:
    return value.to_dict() if isinstance(value, Message) else to_dict(value)


def read(layout: str, values: dict[str, Any]) -> list[Any]:
    """The records of one row, checked; ``BadRow`` is the one way out."""
    check_strings(values)
    row = Row(values, "row", "file:x")
    found = LAYOUTS[layout].read(row)
    records = found if isinstance(found, list) else [found]
    if not any(
        word in said
        for said in row.done
        for word in ("taken off", "unwrapped", "parsed", "transcripts", "left out", "no comparison")
    ):
        assert vanished(row, records) == [] or layout in ("hh", "helpsteer2_preference"), (row.done, values)
    for record in records:
        if not isinstance(record, Scored):
            check_record(record)
            assert from_dict(type(record), json.loads(json.dumps(to_dict(record), allow_nan=False))) == record
    return records


def check_rows(number: int, seed: int) -> Counter[str]:
    """Read so many rows one by one, and again as files by every loader; returns how many were accepted and named."""
    told: Counter[str] = Counter()
    files: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for layout, row in islice(mutated(seed), number):
        files[layout].append(row)
        try:
            read(layout, row)
        except BadRow as bad:
            assert bad.problem and isinstance(bad.field, str)
            told["named"] += 1
        else:
            told["accepted"] += 1
    assert told["named"] + told["accepted"] == number
    with TemporaryDirectory() as folder:
        for layout, rows in files.items():
            _check_file(Path(folder), layout, rows, told)
    return told


def _check_file(folder: Path, layout: str, rows: list[dict[str, Any]], told: Counter[str]) -> None:
    path = folder / f"{layout}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for kind in LAYOUTS[layout].kinds:
        for named in (layout, "auto"):
            try:
                checked = LOADERS[kind](path, layout=named, bad_rows="quarantine", quarantine_dir=folder)
            except DataError as error:
                assert len(str(error)) < 9000 and "\x1b" not in str(error)
                told["files refused"] += 1
                continue
            assert checked.rows_read == len(rows)
            aside = list(filter(None, checked.quarantine.read_text().split("\n"))) if checked.quarantine else []
            assert [json.loads(line)["row"] for line in aside] == [finding.row for finding in checked.findings]
            assert "\x1b" not in checked.describe()
            write_jsonl(folder / "again.jsonl", checked.records)
            again = LOADERS[kind](folder / "again.jsonl", layout="prefloop")
            assert again.records == checked.records
            told["files read"] += 1


@pytest.mark.parametrize("seed", [1, 2])
def test_a_damaged_row_is_read_or_named_and_never_a_traceback(seed: int) -> None:
    told = check_rows(1000, seed)
    assert told["accepted"] > 100 and told["named"] > 100 and told["files read"] > 20
