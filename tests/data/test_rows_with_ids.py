"""Rows with an id, prompt and response that prefloop did not write are read as the same rows
without an id; its own stand as they are.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from layout_rows import ASK, BAD, CALL, GOOD, MORE, NEXT, TOOL, bot, hh, human, user

from prefloop.data import sources
from prefloop.data.check import Checked
from prefloop.data.sources import kind_of
from prefloop.errors import DataError
from prefloop.records import (
    Conversation,
    Demonstration,
    Message,
    Prompt,
    Rating,
    Record,
    Response,
    Thumb,
)

CHATML = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


def write(folder: Path, *rows: dict[str, Any]) -> Path:
    (folder / "f.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
    )
    return folder / "f.jsonl"


def load(folder: Path, *rows: dict[str, Any]) -> Checked[Any]:
    path = write(folder, *rows)
    found: Checked[Any] = getattr(sources, f"load_{kind_of(path)}")(path)
    return found


def refused(folder: Path, *rows: dict[str, Any]) -> str:
    with pytest.raises(DataError) as error:
        load(folder, *rows)
    return str(error.value)


FOREIGN: dict[str, dict[str, Any]] = {
    "an end marker": {"prompt": [user()], "response": f"{GOOD}<|im_end|>"},
    "a templated prompt": {"prompt": [user(CHATML.format(ASK))], "response": f"{GOOD}<|im_end|>"},
    "a transcript": {"prompt": [user(f"{hh(ASK)}\n\nAssistant:")], "response": GOOD},
    "a repeated prompt": {"prompt": [user()], "response": f"{ASK} {GOOD}"},
    "from and value": {"prompt": [human()], "response": GOOD},
    "text parts": {
        "prompt": [{"role": "user", "content": [{"type": "text", "text": ASK}]}],
        "response": GOOD,
    },
    "a role in capitals": {"prompt": [{"role": "User", "content": ASK}], "response": GOOD},
    "another key of a message": {"prompt": [user() | {"timestamp": 1}], "response": GOOD},
    "an answer as a message": {"prompt": ASK, "response": bot()},
    "an answer as messages": {"prompt": ASK, "response": [bot()]},
    "a system column": {"prompt": [user()], "response": GOOD, "system": ""},
    "turns as a number": {"prompt": [user()], "response": GOOD, "turns": 1},
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_an_id_changes_nothing_of_what_a_row_says(tmp_path: Path, kind: str) -> None:
    row = FOREIGN[kind]
    with_id, without = (load(tmp_path, found).records[0] for found in ({"id": "a", **row}, row))
    assert with_id.id == "a" and isinstance(with_id, Demonstration)
    for record in (with_id, without):
        assert (list(record.prompt), record.response) == ([Message("user", ASK)], GOOD)
    assert with_id.meta == without.meta


def test_calls_weights_and_tools_beside_an_id_are_those_of_other_rows(tmp_path: Path) -> None:
    asked = [
        user(),
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "42"},
        bot(BAD, weight=0),
        user(NEXT),
    ]
    row = {"id": "a", "prompt": asked, "response": MORE, "tools": json.dumps([TOOL])}
    (record,) = load(tmp_path, row).records
    assert (
        record.prompt[1].tool_calls[0].name
        and record.prompt[1].content == ""
        and record.prompt.tools
    )
    assert [turn.learn for turn in record.prompt] == [True, False, True, False, True]


@pytest.mark.parametrize(
    "responses",
    [
        [{"text": f"{GOOD}</s>"}, {"text": f"{BAD}</s>"}],
        [f"{GOOD}</s>", f"{BAD}</s>"],
        [bot(f"{GOOD}</s>"), bot(f"{BAD}</s>")],
        [{"text": hh(ASK, GOOD)}, {"text": hh(ASK, BAD)}],
    ],
)
def test_responses_written_by_others_are_read_as_answers(
    tmp_path: Path, responses: list[Any]
) -> None:
    votes = [{"annotator": "ann", "choice": 1}]
    (pair,) = load(
        tmp_path,
        {"id": "a", "prompt": f"[INST] {ASK} [/INST]", "responses": responses, "votes": votes},
    ).records
    assert [list(pair.prompt), *(response.text for response in pair.responses)] == [
        [Message("user", ASK)],
        GOOD,
        BAD,
    ]
    assert pair.votes[0].choice == 1
    rated = {
        "prompt": ASK,
        "response": responses[0],
        "votes": [{"annotator": "ann", "value": "up"}],
    }
    (rating,) = load(tmp_path, rated).records
    assert rating.response.text == GOOD and rating.votes[0].value == "up"


@pytest.mark.parametrize(
    "record",
    [
        Prompt("a", Conversation([Message("user", CHATML.format(ASK))])),
        Demonstration("a", Conversation([Message("user", ASK)]), f"{GOOD}<|im_end|>"),
        Demonstration("a", Conversation([Message("user", ASK)]), f"{ASK} {GOOD}", {"rating": 1}),
        Demonstration(
            "a",
            Conversation([Message("user", ASK), Message("assistant", BAD), Message("user", NEXT)]),
            MORE,
        ),
        Rating(
            "a",
            Conversation([Message("user", hh(ASK))]),
            Response(f"{GOOD}</s>"),
            [Thumb("ann", "down")],
        ),
    ],
)
def test_what_prefloop_wrote_stands_as_it_is(tmp_path: Path, record: Record) -> None:
    sources.write_jsonl(tmp_path / "own.jsonl", [record])
    found = getattr(sources, f"load_{kind_of(tmp_path / 'own.jsonl')}")(tmp_path / "own.jsonl")
    assert found.records == [record] and found.layout == "prefloop" and found.notes == []


def test_a_row_by_hand_may_say_which_turns_of_its_prompt_are_learnt(tmp_path: Path) -> None:
    asked = [user(), bot() | {"learn": True}, user(NEXT), bot(BAD), user(NEXT)]
    (record,) = load(tmp_path, {"id": "a", "prompt": asked, "response": MORE}).records
    assert [turn.learn for turn in record.prompt] == [True, True, True, False, True]


# ---- what is told


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"responses": [12, "b"]},
            "field 'responses.0': is a number, expected text or an object with 'text'",
        ),
        (
            {"responses": [{"texts": "a"}, "b"]},
            "field 'responses.0.text': is missing (found: texts)",
        ),
        (
            {"responses": [{"text": "a", "source": 1}, "b"]},
            "field 'responses.0.source': is a number, expected text",
        ),
        ({"responses": "a"}, "field 'responses': is text, expected a list of responses"),
        (
            {"response": "a", "votes": 12},
            "field 'votes': is a number: which numbers are a thumb up",
        ),
    ],
)
def test_faults_are_told_in_words_of_the_file(
    tmp_path: Path, row: dict[str, Any], said: str
) -> None:
    assert said in refused(tmp_path, {"id": "a", "prompt": ASK, **row})


def test_votes_as_a_number_are_a_judgment_and_not_a_missing_response(tmp_path: Path) -> None:
    assert "which numbers are a thumb up, the file does not say" in refused(
        tmp_path, {"prompt": ASK, "response": GOOD, "votes": 12}
    )


def test_an_id_that_a_table_made_a_fraction_of_is_the_whole_number(tmp_path: Path) -> None:
    rows = [
        {"id": 1.0, "prompt": ASK, "chosen": GOOD, "rejected": BAD},
        {"id": 2, "prompt": NEXT, "chosen": GOOD, "rejected": BAD},
    ]
    assert [record.id for record in load(tmp_path, *rows).records] == ["1", "2"]
    assert "field 'id': is a number, expected text or a whole number" in refused(
        tmp_path, rows[1], {**rows[0], "id": 1.5}
    )


@pytest.mark.parametrize("meta", ["from a forum", ["x"], 3])
def test_meta_that_is_no_object_is_kept_under_its_name(tmp_path: Path, meta: Any) -> None:
    for row in (
        {"prompt": ASK, "chosen": GOOD, "rejected": BAD},
        {"id": "a", "prompt": ASK, "response": GOOD},
    ):
        assert load(tmp_path, {**row, "meta": meta}).records[0].meta == {"meta": meta}
