"""Values of another type than a reader expects are named; none is dropped, and none counts as what
it spells.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prefloop.data.layouts.rated import MOST_ANSWERS
from prefloop.data.sources import load_best_of, load_comparisons, load_demonstrations, write_jsonl
from prefloop.errors import DataError
from prefloop.records import Comparison, from_dict

ASK = {"role": "user", "content": "q"}
BOT = {"role": "assistant", "content": "a"}
VOTE = {"annotator": "p", "choice": 0}
PAIR = {"id": "1", "prompt": [ASK], "responses": [{"text": "a"}, {"text": "b"}], "votes": [VOTE]}


def refused(folder: Path, load: Any, good: dict[str, Any], bad: dict[str, Any]) -> str:
    """What is said of the second of two rows."""
    (folder / "f.jsonl").write_text(json.dumps(good) + "\n" + json.dumps(bad))
    with pytest.raises(DataError) as error:
        load(folder / "f.jsonl")
    return str(error.value)


@pytest.mark.parametrize("value", [0, False])
@pytest.mark.parametrize(
    "key", ["tools", "functions", "reasoning_content", "thinking", "tool_calls", "function_call"]
)
def test_a_falsy_value_of_a_message_is_not_passed_over(
    tmp_path: Path, key: str, value: Any
) -> None:
    good = {"messages": [ASK, BOT]}
    said = refused(tmp_path, load_demonstrations, good, {"messages": [ASK, {**BOT, key: value}]})
    assert (
        f"row 2, field 'messages.1.{key}" in said
        or "row 2, field 'messages.1.reasoning_content" in said
    )


def test_who_speaks_said_twice_is_told(tmp_path: Path) -> None:
    (tmp_path / "f.jsonl").write_text(
        json.dumps({"messages": [ASK, {**BOT, "from": "some model"}]})
    )
    assert "message keys not used: from" in load_demonstrations(tmp_path / "f.jsonl").notes


@pytest.mark.parametrize(
    ("vote", "said"),
    [
        ({"strength": "3"}, "votes.0.strength"),
        ({"strength": "NaN"}, "votes.0.strength"),
        ({"strength": True}, "votes.0.strength"),
        ({"strength": 10**400}, "votes.0.strength"),
        ({"strength": -1}, "by it the other response may be the better one"),
        ({"choice": True}, "votes.0.choice"),
        ({"choice": "0"}, "votes.0.choice"),
    ],
)
def test_a_vote_says_what_it_says_in_its_own_types(
    tmp_path: Path, vote: dict[str, Any], said: str
) -> None:
    assert said in refused(
        tmp_path, load_comparisons, PAIR, PAIR | {"id": "2", "votes": [VOTE | vote]}
    )


def test_a_strength_without_end_is_none_in_a_record_either() -> None:
    for strength in (float("nan"), float("inf"), "inf"):
        with pytest.raises(ValueError, match=r"votes\.0\.strength"):
            from_dict(Comparison, PAIR | {"votes": [VOTE | {"strength": strength}]})


def test_the_best_response_is_a_whole_number(tmp_path: Path) -> None:
    row = {"id": "1", "prompt": [ASK], "responses": PAIR["responses"], "best": [0]}
    for best in (["0"], [True], [0.5]):
        assert "field 'best.0'" in refused(
            tmp_path, load_best_of, row, row | {"id": "2", "best": best}
        )


def test_a_reference_beside_others_is_one_of_them(tmp_path: Path) -> None:
    row = {"prompt": "q", "references": ["a", "b"]}
    said = refused(tmp_path, load_demonstrations, row, row | {"reference": "c"})
    assert "row 2, field 'reference': is none of 'references'" in said


def test_answers_that_would_make_millions_of_pairs_are_refused(tmp_path: Path) -> None:
    few = [{"text": f"answer {i}", "score": i} for i in range(2)]
    many = [{"text": f"answer {i}", "score": i} for i in range(MOST_ANSWERS + 1)]
    row = {"prompt": "q", "responses": few}
    assert "501 answers to one prompt" in refused(
        tmp_path, load_comparisons, row, row | {"responses": many}
    )


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        (
            {
                "question": {"full_text": "q"},
                "answer_0": "a",
                "score_0": 0,
                "answer_1": "b",
                "score_1": 1,
            },
            {"question": "q", "answer_0": "a", "score_0": 0, "answer_1": "b", "score_1": 1},
        ),
        (
            {
                "question": "q",
                "answers": [{"text": "a", "pm_score": 1}, {"text": "b", "pm_score": 2}],
            },
            {"question": "q", "answers": [{"text": "a", "pm_score": 1}, {"text": "b"}]},
        ),
    ],
)
def test_a_row_without_what_its_layout_stands_on_is_named(
    tmp_path: Path, good: dict[str, Any], bad: dict[str, Any]
) -> None:
    good_rows = "".join(json.dumps(good | {"id": str(i)}) + "\n" for i in range(3))
    (tmp_path / "f.jsonl").write_text(good_rows + json.dumps(bad))
    checked = load_comparisons(tmp_path / "f.jsonl", bad_rows="quarantine")
    assert [finding.row for finding in checked.findings] == [4]


def test_columns_beside_an_exported_record_stay_in_meta(tmp_path: Path) -> None:
    answer = {"value": "response_2", "user_id": "u", "status": "submitted"}
    fields = {"prompt": "q", "response_1": "a", "response_2": "b"}
    row = {"fields": fields, "responses": {"better": [answer]}, "status": "completed", "batch": "x"}
    (tmp_path / "f.jsonl").write_text(json.dumps(row))
    checked = load_comparisons(tmp_path / "f.jsonl")
    assert checked.records[0].meta["batch"] == "x"
    assert any("columns kept in meta, not used: batch" in note for note in checked.notes)


def test_an_order_of_showing_that_is_none_is_named_wherever_it_may_become_a_pairs(
    tmp_path: Path,
) -> None:
    thumb = {"prompt": "q", "completion": "a", "label": True}
    grade = {"helpfulness": 1, "correctness": 1, "coherence": 1, "complexity": 1, "verbosity": 1}
    for good in (thumb, {"prompt": "q", "response": "a", **grade}):
        said = refused(tmp_path, load_comparisons, good, good | {"shown": [0, 0]})
        assert "row 2, field 'meta.shown': is no order of the two responses" in said


def test_a_null_in_json_as_text_is_no_key_and_the_record_reads_back_the_same(
    tmp_path: Path,
) -> None:
    tool = {
        "type": None,
        "function": {"name": "f", "parameters": {"type": "object", "required": None}},
    }
    call = {"function": {"name": "f", "arguments": '{"a": null, "b": [null, 1]}'}}
    row = {
        "messages": [ASK, {"role": "assistant", "tool_calls": [call]}],
        "tools": json.dumps([tool]),
    }
    (tmp_path / "f.jsonl").write_text(json.dumps(row))
    records = load_demonstrations(tmp_path / "f.jsonl").records
    assert records[0].turns[0].tool_calls[0].arguments == {"b": [None, 1]}
    write_jsonl(tmp_path / "again.jsonl", records)
    assert load_demonstrations(tmp_path / "again.jsonl").records == records
