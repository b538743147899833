"""Rows that Argilla exports: answers are votes, suggestions are not, and a doubt refuses the
row.
"""

from typing import Any

import pytest

from prefloop.data.argilla_rows import left_out, matches, read
from prefloop.data.check import BadRow
from prefloop.data.row import Row
from prefloop.records import Comparison, Message, Prompt, Rating, Thumb, Vote

FIELDS = {"prompt": "Which bread keeps longest?", "response_1": "Rye.", "response_2": "None."}
MESSAGES = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello?"}]


def answer(value: Any, who: str = "u1", status: str | None = "submitted") -> dict[str, Any]:
    return {"value": value, "user_id": who} | ({} if status is None else {"status": status})


def exported(
    fields: dict[str, Any] = FIELDS, status: str = "completed", **answers: list[Any]
) -> dict[str, Any]:
    """A row as ``dataset.records.to_list()`` gives it."""
    return {
        "id": "r1",
        "fields": fields,
        "metadata": {"batch": 3},
        "suggestions": {},
        "responses": answers,
        "vectors": {},
        "status": status,
        "_server_id": "s1",
    }


def flat(
    answers: dict[str, list[Any]], fields: dict[str, Any] = FIELDS, **more: Any
) -> dict[str, Any]:
    """A row of ``to_datasets()``: each question's answers are (value, user, status)."""
    row: dict[str, Any] = {"id": "r1", "status": "completed", "_server_id": "s1", **fields, **more}
    for name, given in answers.items():
        row[f"{name}.responses"] = [value for value, _, _ in given]
        row[f"{name}.responses.users"] = [user for _, user, _ in given]
        row[f"{name}.responses.status"] = [status for _, _, status in given]
    return row


def one(row: dict[str, Any]) -> Any:
    assert matches(row)
    (record,) = read(row, "r1", "file:x")
    return record


def votes(row: dict[str, Any]) -> list[Vote]:
    return list(one(row).votes)


def refused(row: dict[str, Any]) -> str:
    with pytest.raises(BadRow) as bad:
        read(row, "r1", "file:x")
    return f"{bad.value.field}: {bad.value.problem}"


def test_every_annotators_submitted_answer_is_a_vote() -> None:
    row = exported(better=[answer("response_2"), answer("response_1", "u2"), answer("tie", "u3")])
    record = one(row)
    assert isinstance(record, Comparison) and record.meta == {"batch": 3}
    assert record.prompt == [Message("user", FIELDS["prompt"])]
    assert [response.text for response in record.responses] == ["Rye.", "None."]
    assert record.votes == [Vote("u1", 1), Vote("u2", 0), Vote("u3", "tie")]


def test_votes_for_the_rejected_response_are_not_turned_round() -> None:
    fields = {"prompt": "p?", "chosen": "yes", "rejected": "no"}
    row = flat({"preference": [("rejected", "u1", "submitted")]}, fields)
    assert votes(row) == [Vote("u1", 1)]


def test_drafts_and_discards_are_no_votes_and_are_counted() -> None:
    given = [
        ("response_1", "a", "draft"),
        ("response_1", "b", "discarded"),
        ("response_2", "c", "submitted"),
    ]
    row = flat(
        {"better": given}, **{"better.suggestion": "response_1", "better.suggestion.score": 0.9}
    )
    assert votes(row) == [Vote("c", 1)]
    assert left_out(row) == {"draft answer": 1, "discarded answer": 1, "suggestion": 1}


def test_a_suggestion_alone_is_no_vote() -> None:
    row = flat({}, **{"better.suggestion": "response_1", "better.suggestion.agent": "judge"})
    assert votes(row) == [] and one(row).meta == {}
    nested = exported() | {
        "suggestions": {"better": {"value": "response_1", "score": None, "agent": None}}
    }
    assert votes(nested) == [] and left_out(nested) == {"suggestion": 1}


def test_an_answer_without_a_status_counts_only_where_nothing_else_completed_the_record() -> None:
    assert votes(exported(better=[answer("response_2", status=None)])) == [Vote("u1", 1)]
    two = [answer("response_2", status=None), answer("response_1", "u2", status=None)]
    assert "does not say which answers were submitted" in refused(exported(better=two))
    assert "to_datasets()" in refused(exported(status="pending", better=two[:1]))


def test_a_ranking_is_a_vote_and_equal_ranks_are_a_tie() -> None:
    def ranked(first: int, second: int) -> list[dict[str, Any]]:
        return [{"value": "response_1", "rank": first}, {"value": "response_2", "rank": second}]

    row = exported(
        order=[answer(ranked(2, 1)), answer(ranked(1, 2), "u2"), answer(ranked(1, 1), "u3")]
    )
    assert votes(row) == [Vote("u1", 1), Vote("u2", 0), Vote("u3", "tie")]


def test_a_ranking_of_three_compares_every_pair() -> None:
    fields = {"prompt": "p?", **{f"response_{n}": f"text {n}" for n in (1, 2, 3)}}
    ranks = [{"value": f"response_{n}", "rank": rank} for n, rank in ((1, 2), (2, 1), (3, 2))]
    records = read(exported(fields, order=[answer(ranks)]), "r", "file:x")
    assert [(record.id, record.votes[0].choice) for record in records] == [
        ("r/0-1", 1),
        ("r/0-2", "tie"),
        ("r/1-2", 0),
    ]


def test_the_best_of_three_says_nothing_of_the_others() -> None:
    fields = {"prompt": "p?", **{f"response_{letter}": f"text {letter}" for letter in "abc"}}
    records = read(exported(fields, best=[answer("B")]), "r", "file:x")
    assert [(record.id, record.votes[0].choice) for record in records] == [
        ("r/0-1", 1),
        ("r/1-2", 0),
    ]


def test_a_ranking_whose_ranks_the_sdk_left_out_is_refused() -> None:
    row = flat({"order": [(["response_1", "response_2"], "u1", "submitted")]})
    assert "ranking without ranks" in refused(row) and "prefloop label pull" in refused(row)


def test_two_ratings_are_a_vote_with_their_difference_as_strength() -> None:
    row = flat(
        {
            "rating_1": [(5, "a", "submitted"), (3, "b", "submitted"), (1, "c", "draft")],
            "rating_2": [(2, "a", "submitted"), (3, "b", "submitted"), (5, "c", "draft")],
        }
    )
    assert votes(row) == [Vote("a", 0, 3), Vote("b", "tie")]


def test_a_preference_comes_before_ratings_and_the_unused_are_named() -> None:
    row = exported(
        better=[answer("response_2")],
        rating_1=[answer(5)],
        rating_2=[answer(1)],
        comment=[answer("Rye is dry")],
    )
    assert votes(row) == [Vote("u1", 1)]
    assert left_out(row) == {
        "question 'rating_1'": 1,
        "question 'rating_2'": 1,
        "question 'comment'": 1,
    }


def test_good_and_bad_are_thumbs() -> None:
    row = exported({"prompt": "p?", "response": "r"}, quality=[answer("good"), answer("bad", "u2")])
    assert isinstance(one(row), Rating)
    assert votes(row) == [Thumb("u1", "up"), Thumb("u2", "down")]


def test_chats_keep_calls_thoughts_and_tools_in_prompts_and_responses() -> None:
    call = {"type": "function", "function": {"name": "ovens", "arguments": {"town": "Ulm"}}}
    asks = {
        "role": "assistant",
        "content": None,
        "tool_calls": [call],
        "reasoning": "I look.",
        "note": "no",
    }
    result = {"role": "tool", "content": "Two."}
    tools = [{"type": "function", "function": {"name": "ovens", "parameters": {}}}]
    chosen = [asks, result, {"role": "assistant", "content": "Two.", "thinking": "It says so."}]
    rejected = [{"role": "assistant", "content": "None."}]
    beside = {
        "prompt": MESSAGES,
        "chosen": chosen,
        "rejected": rejected,
        "tools": tools,
        "town": "Ulm",
    }
    whole = {**beside, "chosen": [*MESSAGES, *chosen], "rejected": [*MESSAGES, *rejected]}
    del whole["prompt"]
    for fields in (beside, whole):
        row = Row(exported(fields, better=[answer("chosen")]))
        (record,) = read(row, "r1", "file:x")
        assert [turn.role for turn in record.prompt] == [
            "system",
            "user",
        ] and record.prompt.tools == tools
        first, *_, last = record.responses[0].turns
        assert (first.tool_calls[0].name, first.reasoning_content) == ("ovens", "I look.")
        assert (last.content, last.reasoning_content) == ("Two.", "It says so.")
        assert record.responses[1].text == "None." and record.meta == {"town": "Ulm", "batch": 3}
        assert list(row.message_keys) == ["note"] and list(row.done) == [
            "fields kept in meta, not used: town"
        ]
    (rating,) = read(
        exported({"conversation": MESSAGES[1:], "response": chosen}, good=[answer("up")]),
        "r1",
        "file:x",
    )
    assert [turn.role for turn in rating.response.turns] == ["assistant", "tool", "assistant"]


def test_a_system_field_and_earlier_turns_stand_before_whole_conversations() -> None:
    hello, hi = MESSAGES[1], {"role": "assistant", "content": "Hi!"}
    more = [hello, hi, {"role": "user", "content": "Rye?"}]
    ends = [{"role": "assistant", "content": text} for text in ("Yes.", "No.", "Perhaps.")]
    fields = {f"response_{n}": [*more, end] for n, end in enumerate(ends, start=1)} | {
        "system": "Be kind."
    }
    pairs = read(exported(fields, best=[answer("response_1")]), "r1", "file:x")
    assert [turn.content for turn in pairs[0].prompt] == ["Be kind.", "Hello?", "Hi!", "Rye?"]
    assert [[r.text for r in pair.responses] for pair in pairs] == [
        ["Yes.", "No."],
        ["Yes.", "Perhaps."],
    ]
    fields["response_3"] = [{"role": "user", "content": "Bye?"}, ends[2]]
    assert refused(exported(fields, best=[answer("response_1")])) == (
        "response_3: its prompt is not that of 'response_1' (they differ from turn 1)"
    )
    fuller = {"prompt": "Rye?", "response_1": [*more, ends[0]], "response_2": "No."}
    assert len(one(exported(fuller, best=[answer("response_1")])).prompt) == 3


def test_chats_are_prompts_with_all_their_turns() -> None:
    fields = {"prompt": MESSAGES, "response_1": "Hi!", "response_2": "No."}
    assert [m.role for m in one(exported(fields, better=[answer("1")])).prompt] == [
        "system",
        "user",
    ]
    whole = {"chosen": [*MESSAGES, {"role": "assistant", "content": "Hi!"}]}
    whole["rejected"] = [*MESSAGES, {"role": "assistant", "content": "No."}]
    record = one(exported(whole, pick=[answer("rejected")]))
    assert [m.role for m in record.prompt] == ["system", "user"] and record.votes == [Vote("u1", 1)]
    assert [response.text for response in record.responses] == ["Hi!", "No."]


def test_a_system_prompt_stands_before_the_prompt_and_other_columns_are_kept() -> None:
    row = flat({"better": [("response_1", "u1", "submitted")]}, system="Be brief.", topic="bread")
    assert one(row).prompt[0] == Message("system", "Be brief.") and one(row).meta == {
        "topic": "bread"
    }


def test_prompts_without_responses_are_prompts() -> None:
    assert one(exported({"prompt": "p?"}, topic=[answer("bread")])) == Prompt(
        "r1", [Message("user", "p?")], {"batch": 3}
    )


def test_records_of_argilla_1() -> None:
    values = {"better": {"value": "response_2"}, "why": {"value": "short"}}
    nested = {
        "fields": FIELDS,
        "responses": [
            {"user_id": "u1", "values": values, "status": "submitted"},
            {"user_id": "u2", "values": {}, "status": "discarded"},
        ],
        "metadata": {},
        "external_id": "r1",
        "suggestions": [],
    }
    assert votes(nested) == [Vote("u1", 1)] and left_out(nested)["discarded answer"] == 1
    column = [answer("response_1", "u1"), answer("response_2", "u2", "discarded")]
    row = {
        **FIELDS,
        "better": column,
        "better-suggestion": "response_2",
        "external_id": "7",
        "metadata": '{"n": 1}',
    }
    assert votes(row) == [Vote("u1", 0)] and one(row).meta == {"n": 1}
    for empty in (None, "null", " null\n", " "):
        assert (
            one({**row, "metadata": empty}).meta == {}
            and one({**nested, "metadata": empty}).meta == {}
        )
    lists = {key: [one[key] for one in column] for key in ("value", "user_id", "status")}
    assert votes({**row, "better": lists}) == [Vote("u1", 0)]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            exported(better=[answer("response_9")]),
            "'better' (label: response_9) says by its values what is better",
        ),
        (exported(better=[answer("response_1"), answer("unsure", "u2")]), "response_1, unsure"),
        (exported(better=[answer("1")], preferred=[answer("2")]), "which of the questions"),
        (exported(quality=[answer(4)]), "none of the questions 'quality' (rating: 4)"),
        (
            exported({"prompt": "p?", "response": "r"}, toxic=[answer("yes")]),
            "'toxic' (label: yes)",
        ),
        (
            exported({"prompt": "p?", "context": "c", **FIELDS}, better=[answer("1")]),
            "'prompt', 'context' are the prompt",
        ),
        (exported({"words": "p?"}), "none of the fields 'words' is a prompt"),
        (
            exported(FIELDS | {"response_2": " "}, better=[answer("1")]),
            "response_2: holds only whitespace",
        ),
        (
            exported(FIELDS | {"response_2": "Rye."}, better=[answer("1")]),
            "response_2: is the same text as 'response_1'",
        ),
        (exported(better=[answer("1"), answer("2")]), "responses.better: has two answers of 'u1'"),
        (exported(better=[answer("1", status="kept")]), "(it has the status 'kept')"),
        (
            flat({"better": [("1", "u1", "submitted")]}) | {"better.responses.users": []},
            "one entry for each of the 1",
        ),
        (exported(better={"value": ["1"], "user_id": []}), "lists of different lengths"),
        (exported(better="1"), "responses.better: is text, expected a list of answers"),
        (
            exported(
                order=[
                    answer(
                        [
                            {"value": "response_1", "rank": "first"},
                            {"value": "response_2", "rank": 2},
                        ]
                    )
                ]
            ),
            "has the rank 'first'",
        ),
    ],
)
def test_what_cannot_be_read_for_certain_is_named(row: dict[str, Any], said: str) -> None:
    assert said in refused(row)


def test_what_prefloop_pushed_comes_back_unescaped_and_in_its_own_order() -> None:
    hidden = {
        "digest": "0",
        "meta": {"topic": "html"},
        "swapped": True,
        "responses": [{"source": "sft", "meta": {}}, {"source": "base", "meta": {}}],
    }
    fields = {
        "prompt": [{"role": "user", "content": "&lt;b&gt; &amp;amp;?"}],
        "response_a": "second",
        "response_b": "first",
    }
    row = exported(fields, preferred=[answer("A")], strength=[answer("clear")], why=[answer("so")])
    record = one(row | {"metadata": {"prefloop": hidden}})
    assert record.prompt == [Message("user", "<b> &amp;?")] and record.meta == {
        "topic": "html",
        "shown": [1, 0],
    }
    assert [(r.text, r.source) for r in record.responses] == [("first", "sft"), ("second", "base")]
    assert record.votes == [Vote("u1", 1, 2, "so")]
    assert "is not what prefloop sent" in refused(row | {"metadata": {"prefloop": {"swapped": 1}}})


def test_rows_of_other_layouts_are_not_taken_for_argillas() -> None:
    rows = [
        {"prompt": "p", "chosen": "a", "rejected": "b"},
        {
            "id": "x",
            "prompt": "p",
            "responses": [{"text": "a"}, {"text": "b"}],
            "votes": [{"annotator": "a", "choice": 0}],
        },
        {"messages": MESSAGES, "status": "ok"},
        {"prompt": "p", "completion": "c", "label": True},
        {"conversations": [{"from": "human", "value": "x"}], "id": "1"},
    ]
    assert not any(map(matches, rows))
