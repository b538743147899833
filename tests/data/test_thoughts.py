"""Thoughts beside an answer are the answer's, or the row is refused; they never stay in meta."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from layout_rows import ASK, BAD, GOOD, NEXT, bot, user
from test_cases_kinds import PAIR, load, refused

from prefloop.records import Message, answer_turns

THOUGHT = "Birds must sleep."


@pytest.mark.parametrize("column", ["reasoning", "reasoning_content", "thinking"])
@pytest.mark.parametrize(
    "row",
    [
        {"prompt": ASK, "response": GOOD},
        {"question": ASK, "answer": GOOD},
        {"instruction": ASK, "output": GOOD},
        {"query": ASK, "response": GOOD},
        {"prompt": ASK, "completion": GOOD},
        {"messages": [user(ASK), bot(GOOD)]},
    ],
)
def test_a_column_of_thoughts_is_the_answers(
    tmp_path: Path, row: dict[str, Any], column: str
) -> None:
    checked = load(tmp_path, row | {column: THOUGHT})
    (record,) = checked.records
    assert answer_turns(record) == [Message("assistant", GOOD, THOUGHT)] and record.meta == {}
    assert checked.notes == [f"thoughts read from '{column}' (in 1 row)"]


def test_thoughts_of_either_answer_of_a_pair_are_read(tmp_path: Path) -> None:
    checked = load(tmp_path, PAIR | {"chosen_reasoning": THOUGHT, "rejected_reasoning": "Why?"})
    first, second = checked.records[0].responses
    assert answer_turns(first) == [Message("assistant", GOOD, THOUGHT)]
    assert answer_turns(second) == [Message("assistant", BAD, "Why?")]
    one = load(tmp_path, PAIR | {"chosen_reasoning": THOUGHT}).records[0]
    assert (
        one.responses[1].turns is None
        or answer_turns(one.responses[1])[0].reasoning_content is None
    )
    assert "row 2, field 'reasoning_content': may belong to either of the two answers" in refused(
        tmp_path, PAIR, PAIR | {"reasoning_content": THOUGHT}
    )


def test_a_setting_is_no_thought(tmp_path: Path) -> None:
    for value in ("on", True):
        record = load(tmp_path, {"prompt": ASK, "response": GOOD, "reasoning": value}).records[0]
        assert record.turns is None or not record.turns
        assert record.meta == {"reasoning": value}


def test_thoughts_that_the_answer_holds_are_left_out_and_others_refuse_the_row(
    tmp_path: Path,
) -> None:
    row = {
        "prompt": ASK,
        "response": f"<think>\n{THOUGHT}\n</think>\n\n{GOOD}",
        "reasoning_content": THOUGHT,
    }
    checked = load(tmp_path, row)
    assert checked.records[0].response == row["response"]
    assert checked.notes == ["columns left out, they repeat the conversation: reasoning_content"]
    assert (
        "row 2, field 'reasoning_content': are other thoughts than those in 'response'"
        in refused(tmp_path, row, row | {"reasoning_content": "Or must they not?"})
    )


def test_reasoning_beside_a_thumb_is_asked_about(tmp_path: Path) -> None:
    row = {"prompt": ASK, "completion": GOOD, "label": True}
    assert "row 2, field 'reasoning': may be what the answer thought or why" in refused(
        tmp_path, row, row | {"reasoning": THOUGHT}
    )
    record = load(tmp_path, row | {"reasoning_content": THOUGHT}).records[0]
    assert answer_turns(record.response) == [Message("assistant", GOOD, THOUGHT)]


@pytest.mark.parametrize(
    "more",
    [
        {"thoughts": THOUGHT},
        {"reasoning_details": [{"type": "reasoning.text", "text": THOUGHT}]},
        {"reasoning": THOUGHT, "reasoning_details": [{"type": "reasoning.text", "text": THOUGHT}]},
    ],
)
def test_thoughts_of_a_turn_are_read_under_every_name(tmp_path: Path, more: dict[str, Any]) -> None:
    turns = [user(NEXT), bot(BAD), user(ASK), bot(GOOD) | more]
    record = load(tmp_path, {"messages": turns}).records[0]
    assert answer_turns(record) == [Message("assistant", GOOD, THOUGHT)]


def test_thoughts_that_cannot_be_read_refuse_the_row(tmp_path: Path) -> None:
    row = {"messages": [user(ASK), bot(GOOD)]}
    for more in (
        {"thoughts": 3},
        {"reasoning_details": [{"type": "reasoning.encrypted", "data": "x"}]},
    ):
        bad = {"messages": [user(ASK), bot(GOOD) | more]}
        assert f"row 2, field 'messages.1.{next(iter(more))}" in refused(tmp_path, row, bad)
