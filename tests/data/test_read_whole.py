"""What a row says is read once and whole: turns, calls, votes and ends, in whatever column and
format they stand.
"""

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
    (folder / "f.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
    )
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
    said = refused(
        write(tmp_path, {"messages": [user(), bot()]}, {"messages": [user(), other, *rest]})
    )
    assert "row 2, field 'messages.1.function_call': calls something else than tool_calls" in said


def test_a_message_within_a_message_is_no_text_part(tmp_path: Path) -> None:
    inner = {"messages": [{"role": "user", "content": [bot(tool_calls=[CALL])]}, bot()]}
    said = refused(write(tmp_path, {"messages": [user(), bot()]}, inner))
    assert "row 2, field 'messages.0.content.0': is a message within a message" in said


# ---- numbers and truths as a table writes them: every cell of CSV is text


def table(folder: Path, *rows: dict[str, Any]) -> Path:
    with (folder / "f.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / "f.csv"


def both(folder: Path, *rows: dict[str, Any]) -> list[Path]:
    """The same rows as CSV, and as JSON with the texts of CSV in the place of its numbers."""
    texts = [
        {key: value if isinstance(value, list) else str(value) for key, value in row.items()}
        for row in rows
    ]
    return [table(folder, *rows), write(folder, *texts)]


PAIR = {"prompt": ASK, "chosen": GOOD, "rejected": BAD}


@pytest.mark.parametrize(
    ("row", "choice", "strength"),
    [
        ({**PAIR, "score_chosen": 4.5, "score_rejected": 1}, 0, 3.5),
        ({**PAIR, "margin": "1e0"}, 0, 1),
        ({"prompt": ASK, "response_0": GOOD, "response_1": BAD, "better_response_id": 1}, 1, None),
        ({"history": ASK, "human_ref_A": GOOD, "human_ref_B": BAD, "labels": 0}, 1, None),
        ({"prompt": ASK, "response_1": GOOD, "response_2": BAD, "preference_strength": -2}, 0, 2),
        ({"instruction": ASK, "output_1": GOOD, "output_2": BAD, "preference": 2.0}, 1, None),
        (
            {"prompt": ASK, "response_a": GOOD, "response_b": BAD}
            | {"winner_model_a": 0, "winner_model_b": 1, "winner_tie": 0},
            1,
            None,
        ),
        (
            {"prompt": ASK, "response_a": GOOD, "response_b": BAD}
            | {"winner_model_a": "FALSE", "winner_model_b": "FALSE", "winner_tie": "TRUE"},
            "tie",
            None,
        ),
    ],
)
def test_numbers_written_as_text_are_votes_and_strengths(
    tmp_path: Path, row: dict[str, Any], choice: Any, strength: float | None
) -> None:
    for path in both(tmp_path, row):
        ((vote,),) = [record.votes for record in load(path).records]
        assert (vote.choice, vote.strength) == (choice, strength)


def test_scores_written_as_text_that_contradict_their_columns_are_refused(tmp_path: Path) -> None:
    for path in both(tmp_path, {**PAIR, "score_chosen": 1, "score_rejected": 5}):
        assert "field 'score_rejected': is 5, higher than score_chosen (1)" in refused(path)


def test_helpfulness_and_ranks_written_as_text_are_compared(tmp_path: Path) -> None:
    marks = dict.fromkeys(("correctness", "coherence", "complexity", "verbosity"), 2)
    rows = [
        {"prompt": ASK, "response": text, "helpfulness": n, **marks}
        for text, n in ((BAD, 1), (GOOD, "3.5"))
    ]
    (pair,) = load(table(tmp_path, *rows)).records
    assert (pair.votes[0].choice, pair.votes[0].strength) == (1, 2.5)
    scored = [{"response": BAD, "overall_score": "2"}, {"response": GOOD, "overall_score": "10"}]
    (pair,) = load(write(tmp_path, {"instruction": ASK, "completions": scored})).records
    assert (pair.votes[0].choice, pair.votes[0].strength) == (1, 8)
    (best,) = load(write(tmp_path, {"prompt": ASK, "responses": [BAD, GOOD], "best": "1"})).records
    assert best.best == [1]


def test_what_is_no_number_stays_a_text(tmp_path: Path) -> None:
    for word in ("4 stars", "1_000", "nan", "1e999", "٣", "true"):
        checked = load(write(tmp_path, {**PAIR, "score_chosen": word, "score_rejected": "1"}))
        assert checked.records[0].votes[0].strength is None
        assert "columns kept in meta, not used: score_chosen, score_rejected" in checked.notes


def test_truths_written_as_text_are_thumbs_and_masks(tmp_path: Path) -> None:
    for path in both(
        tmp_path,
        *({"prompt": ASK, "completion": GOOD, "label": x} for x in ("TRUE", "FALSE", 1, 0)),
    ):
        assert [record.votes[0].value for record in load(path).records] == [
            "up",
            "down",
            "up",
            "down",
        ]
    for flag in ({"weight": "0"}, {"train": "False"}, {"masked": "true"}):
        (record,) = load(
            write(tmp_path, {"messages": [user(), bot(BAD, **flag), user(NEXT), bot(MORE)]})
        ).records
        assert [turn.learn for turn in record.prompt] == [True, False, True]
    doubt = {"messages": [user(), bot(BAD, mask="1"), user(NEXT), bot(MORE)]}
    assert "which may mean learnt or left out" in refused(
        write(tmp_path, {"messages": [user(), bot()]}, doubt)
    )


def test_an_answer_that_was_cut_is_known_as_cut_from_a_table_too(tmp_path: Path) -> None:
    rows = [
        {"id": n, "prompt": ASK, "response": GOOD, "finished": n == 1, "tokens": 3} for n in (0, 1)
    ]
    assert [record.meta["finished"] for record in load(table(tmp_path, *rows)).records] == [
        False,
        True,
    ]


# ---- thumbs and grades


@pytest.mark.parametrize("column", ["rating", "feedback"])
@pytest.mark.parametrize("answer", ["completion", "response"])
def test_stars_are_no_thumbs_and_the_file_is_told_what_to_do(
    tmp_path: Path, column: str, answer: str
) -> None:
    for grades in ((1, 5, 4), (1, 1, 1), (0, 1, 0)):
        for path in both(
            tmp_path, *({"prompt": f"{ASK} {n}", answer: GOOD, column: n} for n in grades)
        ):
            said = refused(path)
            assert (
                said.count("put true or false into a column 'label'") == 1
                and f"columns {column}" in said
            )
    (record,) = load(write(tmp_path, {"prompt": ASK, answer: GOOD, "stars": 1})).records
    assert record.meta == {"stars": 1}
    for path in both(tmp_path, {"prompt": ASK, answer: GOOD, column: 5}):
        named = "prompt_completion" if answer == "completion" else "prompt_response"
        assert load(path, named).notes == [f"columns kept in meta, not used: {column}"]


def test_conversations_with_stars_are_not_imitated_unasked(tmp_path: Path) -> None:
    for column in ("messages", "conversations"):
        said = refused(write(tmp_path, {column: [user(), bot()], "rating": 2}))
        assert "its numbers grade single answers" in said
    assert (
        load(write(tmp_path, {"prompt": ASK, "answer": "42", "rating": 3})).layout == "prompt_only"
    )


def test_ratings_in_words_are_thumbs_and_a_number_among_them_is_named(tmp_path: Path) -> None:
    words = ["up", "thumbs_down", "True", "Thumbs Up", "false"]
    rows = [{"prompt": ASK, "response": GOOD, "rating": word} for word in words]
    votes = [record.votes[0].value for record in load(table(tmp_path, *rows)).records]
    assert votes == ["up", "down", "up", "up", "down"]
    said = refused(table(tmp_path, *rows, {**rows[0], "rating": 1}, {**rows[0], "rating": "meh"}))
    assert "row 6, field 'rating': is a number: which numbers are a thumb up" in said
    assert "row 7, field 'rating': is 'meh', a judgment of the answer" in said


# ---- turns before an answer

CALM = {"role": "system", "content": SYSTEM}


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": NEXT, "output": hh(ASK, GOOD, NEXT, MORE)},
        {"query": NEXT, "response": hh(ASK, GOOD, NEXT, MORE)},
        {"prompt": NEXT, "completion": [user(), bot(), user(NEXT), bot(MORE)]},
        {"instruction": NEXT, "output": [hh(ASK, GOOD, NEXT, MORE), hh(ASK, GOOD, NEXT, BAD)]},
        {"messages": [user(NEXT), bot(MORE)], "rejected_response": hh(ASK, GOOD, NEXT, BAD)},
        {"messages": [user(NEXT)], "completion": hh(ASK, GOOD, NEXT, MORE), "label": True},
        {
            "conversations": [user(NEXT)],
            "response": [user(), bot(), user(NEXT), bot(MORE)],
            "label": False,
        },
        {"prompt": NEXT, "completion": hh(ASK, GOOD, NEXT, MORE), "label": 1},
    ],
)
def test_turns_that_stand_before_an_answer_are_its_prompt(
    tmp_path: Path, row: dict[str, Any]
) -> None:
    (record,) = load(write(tmp_path, row)).records
    assert [(turn.role, turn.content) for turn in record.prompt] == [
        ("user", ASK),
        ("assistant", GOOD),
        ("user", NEXT),
    ]
    answers = getattr(record, "responses", None) or [getattr(record, "response", None)]
    assert getattr(answers[0], "text", answers[0]) == MORE


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [user(), bot()], "rejected_response": [CALM, user(), bot(BAD)]},
        {"messages": [user()], "completion": [CALM, user(), bot()], "label": True},
        {"instruction": ASK, "output": [[CALM, user(), bot()], [CALM, user(), bot(BAD)]]},
        {"query": ASK, "response": [CALM, user(), bot()]},
        {"instruction": ASK, "output": json.dumps([CALM, user(), bot()])},
    ],
)
def test_a_system_turn_before_an_answer_stands_before_its_prompt(
    tmp_path: Path, row: dict[str, Any]
) -> None:
    (record,) = load(write(tmp_path, row)).records
    assert list(record.prompt) == [Message("system", SYSTEM), Message("user", ASK)]


def test_turns_before_an_answer_that_are_not_its_prompts_are_named(tmp_path: Path) -> None:
    rows: list[tuple[dict[str, Any], str]] = [
        (
            {"instruction": ASK, "output": hh(NEXT, GOOD)},
            "field 'output': holds turns before the response",
        ),
        (
            {"instruction": ASK, "output": [hh(NEXT, GOOD), BAD]},
            "field 'output.0': holds turns before the response",
        ),
        (
            {"prompt": ASK, "response": GOOD, "label": 1, "messages": [user(NEXT), bot(MORE)]},
            "field 'messages': is another conversation than the prompt and its answers",
        ),
    ]
    for row, says in rows:
        assert says in refused(write(tmp_path, row))


def test_earlier_turns_are_learnt_where_the_layout_says_so(tmp_path: Path) -> None:
    for layout, row in (
        ("alpaca", {"instruction": NEXT, "output": MORE}),
        ("swift", {"query": NEXT, "response": MORE}),
    ):
        checked = load(write(tmp_path, {**row, "history": [[ASK, GOOD]]}))
        assert checked.layout == layout and all(turn.learn for turn in checked.records[0].prompt)


def test_system_and_tools_stand_around_shps_post_which_is_called_history(tmp_path: Path) -> None:
    row = {"history": ASK, "human_ref_A": GOOD, "human_ref_B": BAD, "labels": 1}
    (record,) = load(write(tmp_path, {**row, "system": SYSTEM, "tools": [TOOL]})).records
    assert (
        list(record.prompt) == [Message("system", SYSTEM), Message("user", ASK)]
        and record.meta == {}
    )
    assert record.prompt.tools == [TOOL]


# ---- ends of turns

TOKEN = "The token is <eos>"


@pytest.mark.parametrize("shape", ["text", "messages", "pair", "best"])
def test_an_end_marker_is_taken_off_where_most_answers_have_one_and_kept_where_one_has(
    tmp_path: Path, shape: str
) -> None:
    def row(text: str, number: int) -> dict[str, Any]:
        asked = f"{ASK} {number}"
        return {
            "text": {"prompt": asked, "completion": text},
            "messages": {"messages": [user(asked), bot(), user(NEXT), bot(text)]},
            "pair": {"prompt": asked, "chosen": text, "rejected": text.replace("The", "A")},
            "best": {"prompt": asked, "responses": [text, text.replace("The", "A")], "best": [0]},
        }[shape]

    def answers(*texts: str) -> tuple[list[str], list[str]]:
        checked = load(write(tmp_path, *(row(text, number) for number, text in enumerate(texts))))
        firsts = [
            getattr(record, "responses", [getattr(record, "response", "")])[0]
            for record in checked.records
        ]
        return [getattr(first, "text", first) for first in firsts], checked.notes

    plain = "The token is it."
    texts, notes = answers(plain, TOKEN, plain)
    assert texts == [plain, TOKEN, plain]
    assert notes == [
        "answers that end with <eos> kept as they are: most answers of this file do not (in 1 row)"
    ]
    texts, notes = answers(f"{plain}</s>", f"{plain}<|im_end|>\n", plain)
    assert texts == [plain, plain, plain]
    assert {note.partition(" (in")[0] for note in notes} == {
        "end-of-turn markers (</s>) taken off answers",
        "end-of-turn markers (<|im_end|>) taken off answers",
    }


def test_an_answer_of_nothing_but_an_end_marker_is_empty(tmp_path: Path) -> None:
    rows = [{"prompt": ASK, "completion": text} for text in (GOOD, MORE, "<|im_end|>")]
    assert "row 3, field 'completion': is empty" in refused(write(tmp_path, *rows))
    best = [{"prompt": ASK, "responses": [GOOD, text], "best": 0} for text in (MORE, BAD, "</s>")]
    assert "row 3, field 'responses.1': is empty" in refused(write(tmp_path, *best))
