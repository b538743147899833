"""Whatever annotators type, what a pull writes can be read again: by the loader, by agreement, by a
run.
"""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from prefloop.cli import _main, guarded
from prefloop.data.argilla_votes import ArgillaQuestion, ArgillaReading
from prefloop.data.sources import load_comparisons, load_ratings, write_jsonl
from prefloop.labeling.argilla.convert import from_argilla
from prefloop.labeling.argilla.datasets import ArgillaUser
from prefloop.labeling.argilla.forms import to_rg
from prefloop.labeling.argilla.pulled import Pulled, pulled
from prefloop.records import Comparison, Message, Rating, Response

HOSTILE = [
    "\x00",
    "a\x00b",
    "\ud800",
    "half \udc00 an emoji",
    "\ufffe\uffff",
    "\u2028\u2029",
    "\r\n\v\f\x1c\x85",
    "\x1b[31mred\x07",
    "\u202eright",
    "\ufeffbom",
    "NaN",
    "1e999",
    "null",
    "{}",
    "=1+1",
    '"',
    "\\",
    "\\u0000",
    "<script>&lt;",
    " ",
    "\t",
    "",
    "ü🌍",
    "a" * 10_000,
]
PEOPLE = {"u1": ArgillaUser("ann"), "u2": ArgillaUser("b\x00en")}


def answer(number: int, values: dict[str, Any], user: str = "u1") -> dict[str, Any]:
    at = f"2026-11-30T10:00:{number % 60:02}"
    given = {name: {"value": value} for name, value in values.items()}
    return {
        "id": f"a{number}",
        "user_id": user,
        "status": "submitted",
        "values": given,
        "inserted_at": at,
        "updated_at": at,
    }


def item(record: Comparison | Rating, *answers: dict[str, Any]) -> dict[str, Any]:
    """A record as the server's JSON has it."""
    sent = json.loads(to_rg(record, "d").api_model().model_dump_json())
    return {**sent, "id": f"server-{record.id}", "responses": list(answers)}


def pair(id: str) -> Comparison:
    return Comparison(id, [Message("user", f"q {id}?")], [Response("yes"), Response("no")])


def read_again(found: Pulled, folder: Path) -> list[Any]:
    write_jsonl(folder / "votes.jsonl", found.records)
    load = load_comparisons if isinstance(found.records[0], Comparison) else load_ratings
    return load(folder / "votes.jsonl").records


@pytest.mark.parametrize("seed", range(20))
def test_what_a_pull_writes_is_read_as_it_was(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)

    def typed() -> str:
        return "".join(rng.choices([*HOSTILE, "x", "because "], k=rng.randint(1, 4)))

    ids = [f"p{n}" for n in range(12)]
    own = [
        item(
            pair(id),
            answer(0, {"preferred": rng.choice(["A", "B", "tie"]), "why": typed()}),
            answer(1, {"preferred": "A", "strength": "clear", "why": typed()}, "u2"),
        )
        for id in ids
    ]
    thumbs = [
        item(
            Rating(id, [Message("user", "q")], Response("yes")),
            answer(0, {"thumb": "up", "why": typed()}),
        )
        for id in ids
    ]
    for items in (own, thumbs):
        found = pulled(items, PEOPLE)
        assert not found.refused and len(found.records) == len(ids)
        assert read_again(found, tmp_path) == found.records
        raw = [response for each in items for response in each["responses"]]
        unreadable = sum(
            any(c == "\x00" or 0xD800 <= ord(c) <= 0xDFFF for c in one["values"]["why"]["value"])
            or one["user_id"] == "u2"
            for one in raw
        )
        assert [
            line for line in found.notes if line.startswith(f"{unreadable} answer")
        ] or not unreadable


@pytest.mark.parametrize("seed", range(10))
def test_records_of_another_hand_that_no_file_can_carry_are_set_aside_by_name(
    seed: int, tmp_path: Path
) -> None:
    rng = random.Random(seed)
    better = ArgillaQuestion("better", "label_selection", ("l", "r"), means={"l": 0, "r": 1})
    reading = ArgillaReading(
        ("ask",), ("left", "right"), preferred=better, why=ArgillaQuestion("why", "text")
    )
    shown = [[0, 1], "x", [1, 1], {}]
    items = [
        {
            "id": f"s{n}",
            "external_id": rng.choice([f"id{n}", f"id{n // 2}", None]),
            "fields": {
                "ask": rng.choice([*HOSTILE, "q"]),
                "left": rng.choice([*HOSTILE, "yes"]),
                "right": f"no {n}",
            },
            "metadata": {"shown": rng.choice(shown), "note": rng.choice(HOSTILE)}
            if rng.random() < 0.5
            else None,
            "responses": [answer(n, {"better": "l", "why": rng.choice(HOSTILE)})],
        }
        for n in range(40)
    ]
    items.append(
        {
            **items[0],
            "id": "good",
            "external_id": "good",
            "metadata": None,
            "fields": {"ask": "q", "left": "l", "right": "r"},
        }
    )
    found = pulled(items, PEOPLE, reading=reading, source="argilla:d")
    assert found.refused and len(found.records) + len(found.refused) == len(items)
    assert read_again(found, tmp_path) == found.records
    assert (
        "cannot be used left out, the first" in found.describe() and "\x00" not in found.describe()
    )


def test_a_why_with_a_nul_is_shown_and_the_file_passes_check_and_agree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items = [
        item(
            pair(f"p{n}"),
            answer(0, {"preferred": "A", "why": "a\x00b"}),
            answer(1, {"preferred": "A"}, "u2"),
        )
        for n in range(3)
    ]
    found = pulled(items, PEOPLE)
    assert {vote.why for record in found.records for vote in record.votes} == {"a\ufffdb", None}
    assert (
        "answers with characters that no file can carry, such as NUL: each is now \ufffd"
        in found.describe()
    )
    file = tmp_path / "labels.jsonl"
    write_jsonl(file, found.records)
    assert guarded(_main, ["check", str(file)]) == 0, capsys.readouterr().err
    assert guarded(_main, ["label", "agree", str(file)]) == 0, capsys.readouterr().err


def test_rows_of_the_sdk_with_a_nul_in_an_answer_are_read(
    capsys: pytest.CaptureFixture[str],
) -> None:
    row = {
        "id": "r",
        "status": "completed",
        "fields": {"prompt": "q", "response_a": "yes", "response_b": "no"},
        "metadata": {},
        "responses": {
            "preferred": [{"value": "A", "user_id": "u1", "status": "submitted"}],
            "why": [{"value": "a\x00b", "user_id": "u1", "status": "submitted"}],
        },
    }
    [record] = from_argilla([row], questions=("preferred=preferred", "why=why"))
    assert record.votes[0].why == "a\ufffdb" and "no file can carry" in capsys.readouterr().out
