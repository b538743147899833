"""Two answers or several and what says which is better, under the names and words that files have:
read, or named.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from layout_rows import ASK, BAD, GOOD, MORE, bot, user

from prefloop.data import sources
from prefloop.data.check import Checked
from prefloop.data.sources import kind_of
from prefloop.errors import DataError

SIDES = {"prompt": ASK, "response_a": BAD, "response_b": GOOD}
PAIR = {"prompt": ASK, "chosen": GOOD, "rejected": BAD}


def load(folder: Path, *rows: dict[str, Any]) -> Checked[Any]:
    (folder / "f.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
    )
    found: Checked[Any] = getattr(sources, f"load_{kind_of(folder / 'f.jsonl')}")(
        folder / "f.jsonl"
    )
    return found


def refused(folder: Path, *rows: dict[str, Any]) -> str:
    with pytest.raises(DataError) as error:
        load(folder, *rows)
    return str(error.value)


def preferred(pair: Any) -> tuple[str, str]:
    """The better answer and the other one."""
    (vote,) = pair.votes
    first, second = (pair.responses[index].text for index in (vote.choice, 1 - vote.choice))
    return first, second


@pytest.mark.parametrize(
    "column", ["winner", "label", "preferred", "preference", "choice", "better", "human"]
)
@pytest.mark.parametrize(
    "word", ["B", "b", "model_b", "response_b", "Response B", "second", "assistant-b"]
)
def test_the_better_of_two_answers_is_named_by_many_words(
    tmp_path: Path, column: str, word: str
) -> None:
    (pair,) = load(tmp_path, {**SIDES, column: word}).records
    assert preferred(pair) == (GOOD, BAD)


def test_a_winner_may_be_the_name_of_its_model(tmp_path: Path) -> None:
    models = {"model_a": "swift-1", "model_b": "wren-2"}
    for word, choice in (("wren-2", 1), ("swift-1", 0)):
        assert (
            load(tmp_path, {**SIDES, **models, "winner": word}).records[0].votes[0].choice == choice
        )
    said = refused(tmp_path, {**SIDES, **models, "winner": "wren"})
    assert "field 'winner': is 'wren', expected a or b for the better answer, or tie" in said
    same = {**SIDES, "model_a": "wren-2", "model_b": "wren-2", "winner": "wren-2"}
    assert "field 'winner': is 'wren-2', expected a or b" in refused(tmp_path, same)


@pytest.mark.parametrize(
    ("word", "why"),
    [("tie", None), ("Neither", None), ("tie (bothbad)", "both bad"), ("both_bad", "both bad")],
)
def test_words_for_neither_are_a_tie(tmp_path: Path, word: str, why: str | None) -> None:
    for column in ("winner", "preferred"):
        (vote,) = load(tmp_path, {**SIDES, column: word}).records[0].votes
        assert (vote.choice, vote.why) == ("tie", why)


@pytest.mark.parametrize("column", ["winner", "label", "preferred"])
def test_numbers_that_may_count_from_zero_or_one_are_named(tmp_path: Path, column: str) -> None:
    for number in (0, 1, 2):
        said = refused(tmp_path, {**SIDES, column: number})
        assert (
            f"field '{column}': is {number}, expected a or b for the better answer, or tie" in said
        )


def test_numbered_answers_are_told_apart_by_their_names(tmp_path: Path) -> None:
    for name in ("response", "answer"):
        row = {"question": ASK, f"{name}_1": BAD, f"{name}_2": GOOD}
        assert preferred(load(tmp_path, {**row, "preference": f"{name}_2"}).records[0]) == (
            GOOD,
            BAD,
        )
        assert preferred(load(tmp_path, {**row, "preferred": "second"}).records[0]) == (GOOD, BAD)
        said = refused(tmp_path, {**row, "preference": 2})
        assert (
            f"field 'preference': is 2, expected {name}_1 or {name}_2 for the better answer, or tie"
            in said
        )


def test_two_verdicts_that_contradict_each_other_are_named(tmp_path: Path) -> None:
    assert (
        load(tmp_path, {**SIDES, "label": "b", "preferred": "response_b"})
        .records[0]
        .votes[0]
        .choice
        == 1
    )
    said = refused(tmp_path, {**SIDES, "label": "b", "preferred": "A"})
    assert "says something else than" in said


def test_a_battle_without_a_winner_says_so(tmp_path: Path) -> None:
    won = {**SIDES, "winner": "model_b"}
    said = refused(tmp_path, won, won, {**SIDES, "winner": None})
    assert "row 3, field 'winner': is missing" in said and "winner_model_a" not in said


# ---- pairs under other names


@pytest.mark.parametrize(
    "row",
    [
        {"question": ASK, "accepted": GOOD, "rejected": BAD},
        {"instruction": ASK, "input": "", "accepted": GOOD, "rejected": BAD},
        {"prompt": ASK, "win": GOOD, "lose": BAD},
        {"instruction": ASK, "output": GOOD, "rejected": BAD},
        {"prompt": ASK, "completion": GOOD, "rejected": BAD},
        {"query": ASK, "response": GOOD, "rejected": BAD},
        {"prompt": ASK, "output": GOOD, "rejected_response": BAD},
        {"messages": [user(), bot()], "rejected": BAD},
    ],
)
def test_the_preferred_answer_has_many_names(tmp_path: Path, row: dict[str, Any]) -> None:
    (pair,) = load(tmp_path, row).records
    assert preferred(pair) == (GOOD, BAD) and pair.meta == {}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"tie": True}, "field 'tie': says that neither answer is better"),
        (
            {"preference": "rejected"},
            "field 'preference': is 'rejected', and the columns name the other answer",
        ),
        ({"winner": "tie"}, "field 'winner': is 'tie', and the columns name the other answer"),
        ({"label": 0}, "field 'label': is 0, which may mean that the pair is the other way round"),
        (
            {"preference_strength": -2},
            "field 'preference_strength': is -2: by it the rejected answer may be the better one",
        ),
        (
            {"chosen_rm_score": 0.1, "rejected_rm_score": 0.9},
            "field 'rejected_rm_score': is 0.9, higher than",
        ),
    ],
)
def test_a_column_that_contradicts_a_pair_refuses_the_row(
    tmp_path: Path, more: dict[str, Any], said: str
) -> None:
    assert said in refused(tmp_path, PAIR, {**PAIR, **more})


@pytest.mark.parametrize(
    "more", [{"tie": False}, {"label": 1}, {"preference": "chosen"}, {"preference_strength": 2}]
)
def test_a_column_that_agrees_with_a_pair_is_kept(tmp_path: Path, more: dict[str, Any]) -> None:
    assert load(tmp_path, {**PAIR, **more}).records[0].meta == more


# ---- several answers


@pytest.mark.parametrize(
    "better", [{"rewards": [-1.5, 0.25, -3]}, {"preferred": 1}, {"scores": [0, 1, 0]}]
)
def test_numbers_beside_a_list_of_responses_say_which_is_good(
    tmp_path: Path, better: dict[str, Any]
) -> None:
    (best,) = load(tmp_path, {"prompt": ASK, "responses": [BAD, GOOD, MORE], **better}).records
    assert best.best == [1] and [response.text for response in best.responses] == [BAD, GOOD, MORE]


def test_a_word_or_too_few_numbers_beside_a_list_of_responses_are_named(tmp_path: Path) -> None:
    row = {"prompt": ASK, "responses": [BAD, GOOD]}
    assert "field 'rewards': is no list of 2 numbers" in refused(tmp_path, {**row, "rewards": [1]})
    assert "field 'ratings': holds 1 numbers for the 2 answers" in refused(
        tmp_path, {**row, "ratings": [1]}
    )
    assert "field 'preferred': is text, expected the index" in refused(
        tmp_path, {**row, "preferred": "the first"}
    )
    said = refused(tmp_path, {"prompt": ASK, "responses": [bot(BAD), bot()], "preferred": 0})
    assert "field 'preferred': seems to say which response is better; say it as votes" in said


@pytest.mark.parametrize("name", ["responses", "answers", "completions", "candidates"])
@pytest.mark.parametrize("text", ["text", "response", "answer", "content"])
def test_answers_with_a_number_each_are_compared_by_it(
    tmp_path: Path, name: str, text: str
) -> None:
    items = [{text: BAD, "score": 1, "model": "wren"}, {text: GOOD, "score": "3.5"}]
    (pair,) = load(tmp_path, {"prompt": ASK, name: items}).records
    assert (
        preferred(pair) == (GOOD, BAD)
        and pair.votes[0].strength == 2.5
        and pair.responses[0].source == "wren"
    )


def test_ranks_count_downwards_and_answers_that_are_equal_tie(tmp_path: Path) -> None:
    ranked = {"question": ASK, "candidates": [{"text": BAD, "rank": 2}, {"text": GOOD, "rank": 1}]}
    (pair,) = load(tmp_path, ranked).records
    assert preferred(pair) == (GOOD, BAD) and pair.votes[0].strength is None
    tied = {"prompt": ASK, "responses": [{"text": BAD, "reward": 1}, {"text": GOOD, "reward": 1}]}
    assert load(tmp_path, tied).records[0].votes[0].choice == "tie"


def test_answers_graded_twice_or_not_at_all_are_named(tmp_path: Path) -> None:
    items = [{"text": BAD, "score": 1, "rating": 2}, {"text": GOOD, "score": 3, "rating": 1}]
    said = refused(tmp_path, {"prompt": ASK, "responses": items})
    assert (
        "field 'responses': are graded by score and rating: keep the one that says which is better"
        in said
    )
    late = [{"text": BAD, "score": 1}, {"text": GOOD, "score": "high"}]
    good = [{"text": BAD, "score": 1}, {"text": GOOD, "score": 2}]
    said = refused(tmp_path, {"prompt": ASK, "responses": good}, {"prompt": ASK, "responses": late})
    assert "row 2, field 'responses.1.score': is text, expected a number" in said
