"""Published layouts with answers in lists, in numbered columns or as calls, and conversations in
the forms that projects write.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from layout_rows import ASK, BAD, GOOD, MORE, NEXT, SYSTEM, TOOL, bot, user
from test_cases_kinds import PLAIN, load, pair_of, plain, refused

from prefloop.records import BestOf, Message, answer_turns

WEBGPT = {
    "question": {"full_text": ASK},
    "answer_0": BAD,
    "score_0": -0.5,
    "answer_1": GOOD,
    "score_1": 0.5,
}
SUMMARIES = {
    "info": {
        "id": "t3",
        "post": "A long story.",
        "title": "Help",
        "subreddit": "birds",
        "article": None,
    },
    "summaries": [{"text": f" {BAD}", "policy": "ref"}, {"text": f" {GOOD}", "policy": "sup4"}],
    "choice": 1,
    "worker": "ann",
}


SAID = (("human", NEXT), ("ai", MORE), ("human", ASK), ("ai", GOOD))


def votes(record: Any) -> list[tuple[str, Any, Any]]:
    return [(vote.annotator, vote.choice, vote.strength) for vote in record.votes]


@pytest.mark.parametrize("name", ["generations", "completions", "answers", "responses"])
def test_answers_in_a_list_with_ratings_are_compared_two_by_two(tmp_path: Path, name: str) -> None:
    row = {
        "input": ASK,
        name: [GOOD, BAD, MORE],
        "rating": [5, 3, None],
        "generation_models": ["a", "b", "c"],
    }
    if name == "responses":
        row = {"prompt": ASK, **{key: value for key, value in row.items() if key != "input"}}
    checked = load(tmp_path, row)
    (record,) = checked.records
    assert list(record.prompt) == PLAIN and [(r.text, r.source) for r in record.responses] == [
        (GOOD, "a"),
        (BAD, "b"),
    ]
    assert votes(record) == [("file:f.jsonl", 0, 2)] and record.meta == {}
    assert "answers without a number in 'rating' are not compared (in 1 row)" in checked.notes
    assert "row 2, field 'rating': holds 1 numbers for the 3 answers" in refused(
        tmp_path, row, row | {"rating": [1]}
    )
    assert "row 2, field 'rating.1': is text" in refused(
        tmp_path, row, row | {"rating": [1, "good", 2]}
    )


def test_responses_with_scores_stay_best_of_n(tmp_path: Path) -> None:
    (record,) = load(tmp_path, {"prompt": ASK, "responses": [GOOD, BAD], "scores": [2, 1]}).records
    assert isinstance(record, BestOf) and record.best == [0]


def test_webgpt_is_read_by_its_scores(tmp_path: Path) -> None:
    record = pair_of(tmp_path, WEBGPT)
    assert list(record.prompt) == PLAIN and votes(record) == [("file:f.jsonl", 1, 1.0)]
    assert votes(pair_of(tmp_path, WEBGPT | {"score_1": -0.5})) == [("file:f.jsonl", "tie", None)]
    assert "row 2, field 'question.full_text': is missing" in refused(
        tmp_path, WEBGPT, WEBGPT | {"question": {}}
    )


def test_summaries_are_asked_for_as_their_authors_did(tmp_path: Path) -> None:
    record = pair_of(tmp_path, SUMMARIES)
    assert (
        record.prompt[0].content == "SUBREDDIT: r/birds\nTITLE: Help\nPOST: A long story.\nTL;DR:"
    )
    assert votes(record) == [("ann", 1, None)] and [r.source for r in record.responses] == [
        "ref",
        "sup4",
    ]
    article = pair_of(tmp_path, SUMMARIES | {"info": {"article": "News."}})
    assert article.prompt[0].content == "Article:\n\nNews.\n\nTL;DR:"
    blank = SUMMARIES | {
        "summaries": [{"text": " </s>", "policy": "ref"}, SUMMARIES["summaries"][1]]
    }
    assert "row 2, field 'summaries.0.text': is empty" in refused(tmp_path, SUMMARIES, blank)
    assert "row 2, field 'choice': is '2'" in refused(
        tmp_path, SUMMARIES, SUMMARIES | {"choice": 2}
    )


def test_stack_exchange_is_read_by_the_scores_of_its_answers(tmp_path: Path) -> None:
    row = {
        "qid": 1,
        "question": ASK,
        "answers": [{"text": BAD, "pm_score": 1}, {"text": GOOD, "pm_score": 5}],
    }
    assert votes(pair_of(tmp_path, row)) == [("file:f.jsonl", 1, None)]


def test_xlams_calls_are_the_answer(tmp_path: Path) -> None:
    calls = [{"name": "look_up", "arguments": {"word": "swift"}}]
    row = {"query": ASK, "tools": json.dumps([TOOL]), "answers": json.dumps(calls)}
    (record,) = load(tmp_path, row).records
    (turn,) = answer_turns(record)
    assert [(call.name, call.arguments) for call in turn.tool_calls] == [
        ("look_up", {"word": "swift"})
    ]
    assert record.prompt.tools == [TOOL] and list(record.prompt) == PLAIN and record.meta == {}


def test_an_input_asks_beside_a_pair(tmp_path: Path) -> None:
    assert plain(pair_of(tmp_path, {"input": ASK, "chosen": GOOD, "rejected": BAD}))
    record = pair_of(tmp_path, {"system": SYSTEM, "input": ASK, "chosen": GOOD, "rejected": BAD})
    assert list(record.prompt) == [Message("system", SYSTEM), *PLAIN]


def test_a_trajectory_is_the_prompt_of_a_pair(tmp_path: Path) -> None:
    record = pair_of(
        tmp_path,
        {"trajectory": [user(NEXT), bot(MORE), user(ASK)], "chosen": GOOD, "rejected": BAD},
    )
    assert [turn.content for turn in record.prompt] == [NEXT, MORE, ASK]


@pytest.mark.parametrize(
    "row",
    [
        {"conversation": [{"input": NEXT, "output": MORE}, {"input": ASK, "output": GOOD}]},
        {"conversations": [{"human": NEXT, "assistant": MORE}, {"human": ASK, "assistant": GOOD}]},
        {"conversations": [NEXT, MORE, ASK, GOOD]},
        {"messages": [{"type": who, "content": text} for who, text in SAID]},
        {"messages": [{"type": who, "data": {"content": text}} for who, text in SAID]},
        {
            "contents": [
                {"role": who.replace("ai", "model"), "parts": [{"text": text}]}
                for who, text in SAID
            ]
        },
    ],
)
def test_conversations_are_read_in_every_form(tmp_path: Path, row: dict[str, Any]) -> None:
    (record,) = load(tmp_path, row).records
    said = [(turn.role, turn.content) for turn in [*record.prompt, *answer_turns(record)]]
    assert said == [("user", NEXT), ("assistant", MORE), ("user", ASK), ("assistant", GOOD)]


def test_a_system_text_stands_in_an_exchange(tmp_path: Path) -> None:
    (record,) = load(
        tmp_path, {"conversation": [{"system": SYSTEM, "input": ASK, "output": GOOD}]}
    ).records
    assert list(record.prompt) == [Message("system", SYSTEM), *PLAIN]


def test_a_refusal_is_what_the_assistant_says(tmp_path: Path) -> None:
    for turn in (
        {"content": None, "refusal": BAD},
        {"content": [{"type": "refusal", "refusal": BAD}]},
    ):
        row = {"messages": [user(ASK), {"role": "assistant", **turn}]}
        assert load(tmp_path, row).records[0].response == BAD
    both = {"messages": [user(ASK), {"role": "assistant", "content": GOOD, "refusal": BAD}]}
    assert "row 2, field 'messages.1.refusal': says something else" in refused(tmp_path, row, both)


@pytest.mark.parametrize("value", [{"wings": 2, "note": "ä"}, [{"wings": 2}]])
def test_a_tools_result_that_is_no_text_is_written_as_json(tmp_path: Path, value: Any) -> None:
    call = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"name": "look_up", "arguments": {}}],
    }
    row = {"messages": [user(ASK), call, {"role": "tool", "content": value}, bot(GOOD)]}
    record = load(tmp_path, row).records[0]
    assert record.prompt[-1] == Message("tool", json.dumps(value, ensure_ascii=False))
