"""Columns that judge an answer: read where they can only be a thumb, named where they cannot, in
every row of a file.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from layout_rows import ASK, BAD, GOOD, MORE, NEXT, bot, gpt, human, user

from prefloop.data import sources
from prefloop.data.check import Checked
from prefloop.data.sources import kind_of, load_comparisons, load_demonstrations, load_ratings
from prefloop.errors import DataError

DEMONSTRATIONS: dict[str, dict[str, Any]] = {
    "prompt_completion": {"prompt": ASK, "completion": GOOD},
    "prompt_response": {"question": ASK, "answer": GOOD},
    "alpaca": {"instruction": ASK, "output": GOOD},
    "swift": {"query": ASK, "response": GOOD},
    "messages": {"messages": [user(), bot()]},
    "sharegpt": {"conversations": [human(), gpt()]},
    "text": {
        "text": f"<|im_start|>user\n{ASK}<|im_end|>\n<|im_start|>assistant\n{GOOD}<|im_end|>\n"
    },
}
ANSWER = {"prompt": ASK, "response": GOOD}


def write(folder: Path, *rows: dict[str, Any]) -> Path:
    (folder / "f.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
    )
    return folder / "f.jsonl"


def load(folder: Path, *rows: dict[str, Any], layout: str = "auto") -> Checked[Any]:
    path = write(folder, *rows)
    found: Checked[Any] = getattr(sources, f"load_{kind_of(path, layout)}")(path, layout=layout)
    return found


def refused(folder: Path, *rows: dict[str, Any], layout: str = "auto") -> str:
    with pytest.raises(DataError) as error:
        load(folder, *rows, layout=layout)
    return str(error.value)


# ---- thumbs that are rare, or come late


@pytest.mark.parametrize(
    "thumb", [{"label": False}, {"kto_tag": "false"}, {"feedback": "down"}, {"thumbs_up": 0}]
)
@pytest.mark.parametrize("layout", DEMONSTRATIONS)
def test_a_thumb_down_in_a_late_row_is_never_imitated(
    tmp_path: Path, layout: str, thumb: dict[str, Any]
) -> None:
    row = DEMONSTRATIONS[layout]
    up = {key: "up" if value == "down" else True for key, value in thumb.items()}
    checked = load(tmp_path, *[row] * 22, {**row, **thumb}, {**row, **up})
    assert checked.layout == layout and len(checked.records) == 23
    assert checked.skipped == {"not up-voted": 1}


def test_empty_votes_in_most_rows_do_not_hide_the_others(tmp_path: Path) -> None:
    row = DEMONSTRATIONS["messages"]
    checked = load(
        tmp_path,
        {**row, "label": False},
        *[{**row, "label": None}] * 13,
        *[{**row, "label": False}] * 7,
    )
    assert (len(checked.records), checked.skipped) == (13, {"not up-voted": 8})
    with (tmp_path / "f.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [
                ["prompt", "response", "feedback"],
                *([ASK, GOOD, w] for w in ["", "", "", "up", "down"]),
            ]
        )
    found = load_demonstrations(tmp_path / "f.csv")
    assert (len(found.records), found.skipped) == (4, {"not up-voted": 1})


@pytest.mark.parametrize("layout", DEMONSTRATIONS)
def test_a_late_answer_that_was_rejected_is_named(tmp_path: Path, layout: str) -> None:
    row = DEMONSTRATIONS[layout]
    for column in ("rejected_response", "rejected", "chosen", "responses"):
        said = refused(tmp_path, *[row] * 22, {**row, column: BAD})
        assert f"row 23, field '{column}': is a second answer" in said


def test_a_late_answer_that_was_rejected_is_named_among_thumbs_too(tmp_path: Path) -> None:
    rated = {**ANSWER, "label": True}
    said = refused(tmp_path, *[rated] * 3, {**rated, "rejected": BAD})
    assert "row 4, field 'rejected': is a second answer" in said
    assert load(tmp_path, {**rated, "rejected": BAD}).layout == "swift_pairs"


def test_a_late_answer_beside_a_conversation_is_named(tmp_path: Path) -> None:
    rows = [{"messages": [user(), bot()]}] * 21
    assert "row 22, field 'response': holds an answer next to 'messages'" in refused(
        tmp_path, *rows, {"messages": [user()], "response": BAD}
    )


# ---- names and words


@pytest.mark.parametrize(
    ("column", "up", "down"),
    [
        *[("feedback", *words) for words in (("like", "dislike"), ("👍", "👎🏽"), ("Thumbs up", "thumbsDown"), ("positive", "negative"), ("good", "bad"))],  # noqa: E501
        *[("label", *words) for words in ((1, -1), ("desirable", "undesirable"), ("Good", "Bad"), ("👍", "👎"), ("chosen", "rejected"), ("1.0", "0.0"))],  # noqa: E501
        *[(column, True, False) for column in ("thumbs_up", "liked", "accepted", "is_chosen", "isCorrect", "is-good", "rating", "score")],  # noqa: E501
        *[(column, 1, 0) for column in ("thumb", "vote", "liked", "user_vote", "upvoted")],
        *[("thumbs_down", *words) for words in ((False, True), (0, 1), ("no", "yes"))],
        *[(column, "yes", "no") for column in ("liked", "approved", "human_preferred")],
        ("thumbs", "up", "down"),
        ("answer", "accept", "reject"),
        ("rating", "good", "bad"),
        ("quality", "good", "bad"),
    ],
)  # fmt: skip
def test_plain_votes_are_thumbs_under_many_names(
    tmp_path: Path, column: str, up: Any, down: Any
) -> None:
    found = load(tmp_path, {**ANSWER, column: up}, {**ANSWER, column: down})
    assert found.layout == "kto" and [rating.votes[0].value for rating in found.records] == [
        "up",
        "down",
    ]


@pytest.mark.parametrize(
    ("up", "down"),
    [
        ({"response": GOOD, "thumb": "up"}, {"response": BAD, "thumb": "down"}),
        ({"response": GOOD, "label": True}, {"response": BAD, "label": False}),
        ({"completion": GOOD, "label": 1}, {"completion": BAD, "label": 0}),
        ({"completion": GOOD, "label": "up"}, {"completion": BAD, "label": "down"}),
        ({"response": {"text": GOOD}, "thumb": "up"}, {"response": {"text": BAD}, "thumb": "down"}),
        ({"response": {"text": GOOD}, "label": True}, {"response": {"text": BAD}, "label": False}),
    ],
)
def test_thumbs_are_read_as_people_write_them(
    tmp_path: Path, up: dict[str, Any], down: dict[str, Any]
) -> None:
    found = load(tmp_path, *({"prompt": ASK, **row} for row in (up, down)))
    assert [(r.response.text, [v.value for v in r.votes]) for r in found.records] == [
        (GOOD, ["up"]),
        (BAD, ["down"]),
    ]


@pytest.mark.parametrize(
    "votes", [["up"], [{"annotator": "a", "thumb": "up"}], [{"annotator": "a", "value": "yes"}]]
)
@pytest.mark.parametrize("response", [GOOD, {"text": GOOD}])
def test_votes_that_are_none_are_told_how_one_looks(
    tmp_path: Path, votes: list[Any], response: Any
) -> None:
    said = refused(tmp_path, {"prompt": ASK, "response": response, "votes": votes})
    assert "row 1, field 'votes.0" in said and "dictionary" not in said and "instance" not in said
    for example in (
        '[{"annotator": "ann", "value": "up"}]',
        '{"prompt": "…", "response": "…", "label": true}',
    ):
        assert example in said
    assert '"label": true}' in refused(
        tmp_path, {"prompt": ASK, "response": GOOD, "thumb": "so so"}
    )


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("label", ["math", "code"], "is 'math', expected true or false"),
        ("label", ["yes", "no"], "is 'yes', expected true or false"),
        ("label", ["positive", "negative"], "is 'positive', expected true or false"),
        ("score", [0, 1], "is 0 in a file of nothing but 0 and 1, which may be a vote"),
        ("reward", [1, -1], "is 1 in a file of nothing but 0 and 1"),
        (
            "feedback",
            ["It should say more.", "Too long."],
            "is 'It should say more.', a judgment of the answer",
        ),
        ("feedback", [{"score": 0}, {"score": 1}], "is an object, a judgment of the answer"),
        ("annotation", ["fine", "so so"], "is 'fine', a judgment of the answer"),
        ("is_safe", [False, True], "judges one side of the answer"),
        ("votes", ["many", "few"], "is 'many', a judgment of the answer"),
        ("answer", ["ignore", "ignore"], "is 'ignore', neither accept nor reject"),
        ("thumbs_down", ["bad", "good"], "is 'bad', expected true or false"),
    ],
)
def test_judgments_that_cannot_be_read_are_named_with_what_to_do(
    tmp_path: Path, column: str, values: list[Any], said: str
) -> None:
    told = refused(tmp_path, *({**ANSWER, column: value} for value in values))
    assert f"field '{column}': {said}" in told
    assert (
        "into a column 'label'" in told
        or "rename the column" in told
        or "leave the row out" in told
    )
    renamed = load(tmp_path, *({**ANSWER, "note": value} for value in values))
    assert (
        renamed.kind == "Demonstration" and "columns kept in meta, not used: note" in renamed.notes
    )


@pytest.mark.parametrize("column", ["rating", "grade", "votes", "userRating"])
def test_grades_are_asked_about_and_kept_where_the_layout_is_named(
    tmp_path: Path, column: str
) -> None:
    rows: list[dict[str, Any]] = [{**ANSWER, column: grade} for grade in (1, 5, 3)]
    assert "which numbers are a thumb up, the file does not say" in refused(tmp_path, *rows)
    assert len(load(tmp_path, *rows, layout="prompt_response").records) == 3
    late: list[dict[str, Any]] = [*[ANSWER] * 22, {**ANSWER, column: 1}]
    assert f"row 23, field '{column}': is a number: which numbers" in refused(tmp_path, *late)


def test_a_file_that_is_named_a_demonstration_still_imitates_no_thumb_down(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{**ANSWER, "label": False}, ANSWER]
    assert load(tmp_path, *rows, layout="prompt_response").skipped == {"not up-voted": 1}


def test_scores_on_a_scale_are_kept_and_said_not_to_be_used(tmp_path: Path) -> None:
    for scores in ((4.25, 5.2, 1.0), (-3.2, 0, 2.5), ("0.5", "1", "0")):
        found = load(
            tmp_path, *({"conversations": [human(), gpt()], "score": score} for score in scores)
        )
        assert len(found.records) == 3 and found.notes == ["columns kept in meta, not used: score"]


def test_zero_between_minus_one_and_one_is_neither_up_nor_down(tmp_path: Path) -> None:
    said = refused(tmp_path, *({**ANSWER, "vote": vote} for vote in (1, -1, 0)))
    assert "row 3, field 'vote': is 0 where other rows have -1: neither up nor down" in said


def test_two_columns_that_say_different_things_are_named_and_a_grade_beside_a_thumb_is_kept(
    tmp_path: Path,
) -> None:
    said = refused(tmp_path, {**ANSWER, "label": True}, {**ANSWER, "label": True, "thumb": "down"})
    assert (
        "row 2, field 'thumb': is a thumb down, and 'label' a thumb up: keep one of the two" in said
    )
    found = load(tmp_path, {**ANSWER, "label": True, "liked": "yes", "rating": 5})
    assert found.records[0].votes[0].value == "up" and found.notes == [
        "columns kept in meta, not used: rating"
    ]


def test_a_layout_of_thumbs_names_the_column_that_it_cannot_read(tmp_path: Path) -> None:
    for column in ("rating", "feedback"):
        said = refused(tmp_path, {**ANSWER, column: 4}, layout="kto")
        assert f"field '{column}': is a number" in said and "'label': is missing" not in said
    assert "field 'label': is missing (found: prompt, response)" in refused(
        tmp_path, ANSWER, layout="kto"
    )


def test_thumbs_of_names_and_words_make_pairs(tmp_path: Path) -> None:
    rows = [{**ANSWER, "feedback": "👍"}, {**ANSWER, "response": BAD, "feedback": "👎"}]
    (pair,) = load_comparisons(write(tmp_path, *rows)).records
    assert [(response.text) for response in pair.responses] == [GOOD, BAD]


# ---- keys of messages


@pytest.mark.parametrize(
    "key",
    [
        *(
            {"rating": "bad"},
            {"feedback": "thumbs_down"},
            {"annotation": "👎"},
            {"label": False},
            {"vote": -1},
        ),
        *({"trainable": False}, {"loss_mask": 0}, {"loss_weight": 0.0}, {"ignore": True}),
    ],
)
def test_turns_that_a_message_calls_bad_are_context(tmp_path: Path, key: dict[str, Any]) -> None:
    (record,) = load(
        tmp_path, {"messages": [user(), bot(BAD, **key), user(NEXT), bot(MORE)]}
    ).records
    assert [turn.learn for turn in record.prompt] == [True, False, True]
    found = load_demonstrations(
        write(tmp_path, {"messages": [user(), bot()]}, {"messages": [user(), bot(BAD, **key)]})
    )
    assert [record.response for record in found.records] == [GOOD]
    assert found.skipped == {"every assistant turn is masked out (weight 0)": 1}


@pytest.mark.parametrize(
    "key", [{"rating": -1}, {"rating": 4}, {"feedback": {"rating": "down"}}, {"score": 0}]
)
def test_keys_of_messages_that_judge_and_cannot_be_read_are_named(
    tmp_path: Path, key: dict[str, Any]
) -> None:
    said = refused(tmp_path, {"messages": [user(), bot()]}, {"messages": [user(), bot(BAD, **key)]})
    assert (
        f"row 2, field 'messages.1.{next(iter(key))}': judges the turn" in said
        and "`weight: 0`" in said
    )


def test_a_turn_that_is_learnt_and_called_bad_is_named(tmp_path: Path) -> None:
    said = refused(
        tmp_path,
        {"messages": [user(), bot()]},
        {"messages": [user(), bot(BAD, weight=1, rating="bad")]},
    )
    assert "field 'messages.1.rating': contradicts" in said


def test_ratings_inside_the_answers_of_pairs_and_thumbs_change_nothing(tmp_path: Path) -> None:
    pair = {"chosen": [user(), bot(rating=5)], "rejected": [user(), bot(BAD, rating=1)]}
    (record,) = load(tmp_path, pair).records
    assert record.responses[1].text == BAD and record.responses[1].turns == []
    (rating,) = load_ratings(
        write(tmp_path, {"messages": [user(), bot(BAD, rating="bad")], "label": False})
    ).records
    assert rating.votes[0].value == "down" and rating.response.turns == []


@pytest.mark.parametrize("column", ["judgment", "judgement"])
def test_a_judgment_in_either_spelling_is_a_thumb(tmp_path: Path, column: str) -> None:
    rows = [{**ANSWER, column: True}, {**ANSWER, column: False}]
    ratings = load(tmp_path, *rows).records
    assert [vote.value for rating in ratings for vote in rating.votes] == ["up", "down"]
