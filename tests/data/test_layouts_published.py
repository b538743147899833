"""Files with the columns that other projects publish: each is recognized and gives the records that
its publishers mean.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from layout_rows import ASK, BAD, GOOD, LESS, MORE, NEXT, PUBLISHED, SYSTEM, bot, human, tree, user

from prefloop.data import sources
from prefloop.data.check import Checked
from prefloop.data.sources import (
    kind_of,
    load_comparisons,
    load_demonstrations,
    load_prompts,
    load_ratings,
)
from prefloop.errors import DataError
from prefloop.records import BestOf, Comparison, Demonstration, Message, Rating, Vote, answer_turns

SYS = Message("system", SYSTEM)


def write(folder: Path, rows: list[dict[str, Any]], name: str = "f.jsonl") -> Path:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder / name


def load(folder: Path, name: str) -> Checked[Any]:
    path = write(folder, PUBLISHED[name][1])
    found: Checked[Any] = getattr(sources, f"load_{kind_of(path)}")(path)
    return found


def asked(*texts: str, system: bool = False) -> list[Message]:
    """The prompt of these texts in turn, the user's first."""
    turns = [
        Message("assistant" if index % 2 else "user", text) for index, text in enumerate(texts)
    ]
    return [SYS, *turns] if system else turns


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_layout_is_recognized_and_told_by_its_columns(
    tmp_path: Path, name: str
) -> None:
    layout, rows = PUBLISHED[name]
    checked = load(tmp_path, name)
    assert checked.layout == layout and checked.findings == []
    assert checked.reason.startswith("columns ") and f"({layout}: columns " in checked.describe()
    told = checked.reason.removeprefix("columns ").split(", ")
    assert set(told) <= {key for row in rows for key in row}
    # Null columns of an exported table change nothing.
    nulls = dict.fromkeys(
        {"conversations", "messages", "chosen", "label", "system", "tools", "prompt"}
    )
    path = write(tmp_path, [nulls | row for row in rows])
    again: Checked[Any] = getattr(sources, f"load_{kind_of(path)}")(path, layout=layout)
    if all("id" in row for row in rows):
        assert again.records == checked.records
    assert len(again.records) == len(checked.records)


# name: prompt, chosen, rejected
PAIRS: dict[str, tuple[list[Message], str, str]] = {
    "trl explicit": (asked(ASK), GOOD, BAD),
    "trl implicit": (asked(ASK), GOOD, BAD),
    "hh-rlhf": (asked(ASK, GOOD, NEXT), MORE, LESS),
    "ultrafeedback_binarized": (asked(ASK), GOOD, BAD),
    "ultrafeedback by argilla": (asked(ASK), GOOD, BAD),
    "llama-factory alpaca pairs": (asked(ASK), GOOD, BAD),
    "llama-factory older pairs": (asked(ASK), GOOD, BAD),
    "llama-factory ranking": (asked(ASK), GOOD, BAD),
    "chosen_response": (asked(ASK), GOOD, BAD),
    "ms-swift pairs": (asked(ASK), GOOD, BAD),
    "ms-swift message pairs": (asked(ASK), GOOD, BAD),
    "openai preferences": (asked(ASK), GOOD, BAD),
    "stack exchange pairs": (asked(ASK), GOOD, BAD),
    "rewardbench": (asked(ASK), GOOD, BAD),
    "messages beside a pair": (asked(ASK), GOOD, BAD),
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_has_its_prompt_and_a_vote_of_the_file_for_the_chosen_answer(
    tmp_path: Path, name: str
) -> None:
    (record,) = load(tmp_path, name).records
    prompt, chosen, rejected = PAIRS[name]
    assert isinstance(record, Comparison) and list(record.prompt) == prompt
    assert [response.text for response in record.responses] == [chosen, rejected]
    assert [(vote.annotator, vote.choice) for vote in record.votes] == [("file:f.jsonl", 0)]


def test_a_system_column_stands_before_the_question_and_an_empty_one_is_none(
    tmp_path: Path,
) -> None:
    without, with_system = load(tmp_path, "orca_dpo_pairs").records
    assert (without.prompt, with_system.prompt) == (asked(ASK), asked(ASK, system=True))


# name: prompt, answer
ANSWERS: dict[str, tuple[list[Message], str]] = {
    "trl prompt-completion": (asked(ASK), GOOD),
    "trl language modeling": (asked(ASK, GOOD, NEXT), MORE),
    "ultrachat": (asked(ASK, GOOD, NEXT), MORE),
    "llama-factory alpaca": (
        asked(ASK, GOOD, "Name two birds\nthat sleep in the air", system=True),
        "Swifts and frigate birds.",
    ),
    "ms-swift": (asked(ASK, GOOD, NEXT, system=True), MORE),
    "openorca": (asked(ASK, system=True), GOOD),
    "dolly": (asked("Say when they sleep.\nSwifts sleep in the air."), "In flight."),
    "question and answer": (asked(ASK), GOOD),
    "guanaco": (asked(ASK, GOOD, NEXT), MORE),
    "alpaca_eval outputs": (asked(ASK), GOOD),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_demonstration_has_everything_before_its_answer(tmp_path: Path, name: str) -> None:
    (record,) = load(tmp_path, name).records
    assert isinstance(record, Demonstration)
    assert (list(record.prompt), record.response, record.turns) == (*ANSWERS[name], [])


@pytest.mark.parametrize("name", ["trl unpaired", "llama-factory kto", "thumbs"])
def test_labels_are_thumbs_and_never_demonstrations_of_what_was_voted_down(
    tmp_path: Path, name: str
) -> None:
    up, down = load(tmp_path, name).records
    assert isinstance(up, Rating) and isinstance(down, Rating)
    assert [(r.response.text, r.votes[0].value) for r in (up, down)] == [
        (GOOD, "up"),
        (BAD, "down"),
    ]
    learnt = load_demonstrations(tmp_path / "f.jsonl")
    assert [record.response for record in learnt.records] == [GOOD] and learnt.skipped == {
        "not up-voted": 1
    }


def test_flags_of_messages_say_what_is_learnt(tmp_path: Path) -> None:
    (axolotl,) = load(tmp_path, "axolotl flags").records
    assert [(turn.role, turn.learn) for turn in axolotl.prompt] == [
        ("system", True),
        ("user", True),
        ("assistant", False),
        ("user", True),
    ]
    (openai,) = load(tmp_path, "openai fine-tuning").records
    call = openai.prompt[1]
    assert (call.content, call.learn, call.tool_calls[0].arguments) == (
        "",
        False,
        {"number": "B12"},
    )
    assert (
        openai.prompt[2] == Message("tool", "Ulm", tool_call_id="r1")
        and openai.response == "Ulm's."
    )


@pytest.mark.parametrize(
    "name", ["llama-factory sharegpt with tools", "ms-swift tools", "openai fine-tuning"]
)
def test_tools_their_calls_and_their_results_are_carried(tmp_path: Path, name: str) -> None:
    (record,) = load(tmp_path, name).records
    (tool,) = record.prompt.tools
    assert tool["type"] == "function" and tool["function"]["name"] == "ring"
    (call,) = (call for turn in record.prompt for call in turn.tool_calls)
    assert (call.name, call.arguments) == ("ring", {"number": "B12"})
    assert record.prompt[-1].role == "tool" and record.response == "Ulm's."


def test_an_answer_of_several_turns_is_carried_whole(tmp_path: Path) -> None:
    (record,) = load(tmp_path, "trl explicit with tools").records
    chosen, rejected = record.responses
    assert [(turn.role, len(turn.tool_calls)) for turn in answer_turns(chosen)] == [
        ("assistant", 1),
        ("tool", 0),
        ("assistant", 0),
    ]
    assert (
        answer_turns(rejected) == [Message("assistant", "I guess Rome's.")]
        and len(record.prompt.tools) == 1
    )
    (learnt,) = load_demonstrations(tmp_path / "f.jsonl").records
    assert learnt.turns == chosen.turns and learnt.prompt.tools == record.prompt.tools
    ratings = load_ratings(tmp_path / "f.jsonl").records
    assert [rating.response for rating in ratings] == [chosen, rejected]


def test_scores_are_the_strength_of_the_vote_and_stay_in_meta(tmp_path: Path) -> None:
    checked = load(tmp_path, "ultrafeedback_binarized")
    (record,) = checked.records
    assert record.votes == [Vote("file:f.jsonl", 0, 2.5)]
    assert record.meta == {"prompt_id": "f0e1", "score_chosen": 8.5, "score_rejected": 6.0}
    assert (
        "strength of the vote is score_chosen - score_rejected, on the file's own scale (in 1 row)"
        in checked.notes
    )
    assert "columns left out, they repeat the conversation: messages" in checked.notes
    assert "columns kept in meta, not used: prompt_id" in checked.notes
    assert load(tmp_path, "ultrafeedback by argilla").records[0].votes[0].strength == 2.75


@pytest.mark.parametrize(
    ("more", "field"),
    [({"score_chosen": 1, "score_rejected": 2}, "score_rejected"), ({"margin": -0.5}, "margin")],
)
def test_scores_that_contradict_their_columns_are_refused(
    tmp_path: Path, more: dict[str, Any], field: str
) -> None:
    row = {"prompt": ASK, "chosen": GOOD, "rejected": BAD}
    path = write(tmp_path, [row, row | more])
    with pytest.raises(
        DataError, match=rf"row 2, field '{field}': is .*(contradict|the better one)"
    ):
        load_comparisons(path)


def test_helpsteers_answers_meet_the_next_one_to_their_prompt(tmp_path: Path) -> None:
    rows = PUBLISHED["helpsteer2"][1]
    alone = {**rows[0], "prompt": NEXT, "response": MORE}
    even = [{**alone, "prompt": "And owls?", "response": text} for text in (GOOD, BAD)]
    checked = load_comparisons(write(tmp_path, [*rows, alone, *even]))
    first, second = checked.records
    assert (first.prompt, first.votes) == (asked(ASK), [Vote("file:f.jsonl", 0, 3)])
    assert [response.meta["helpfulness"] for response in first.responses] == [4, 1]
    assert second.votes == [Vote("file:f.jsonl", "tie")]
    assert checked.skipped == {"no other answer to the same prompt next to it": 1}


def test_signed_preferences_say_the_side_and_how_much_better(tmp_path: Path) -> None:
    (record,) = load(tmp_path, "helpsteer2 preference").records
    assert record.prompt == asked(ASK, GOOD, NEXT) and record.votes == [Vote("file:f.jsonl", 1, 2)]
    (record,) = load(tmp_path, "helpsteer3").records
    assert record.prompt == asked(ASK, GOOD, NEXT)
    assert record.votes == [
        Vote("file:f.jsonl#0", 0, 3, "The first knows."),
        Vote("file:f.jsonl#1", 0, 1, "The first is kinder."),
        Vote("file:f.jsonl#2", "tie", None, "The same."),
    ]
    (row,) = PUBLISHED["helpsteer3"][1]
    path = write(tmp_path, [row, row | {"individual_preference": [], "overall_preference": 4}])
    with pytest.raises(
        DataError, match="row 2, field 'overall_preference': is 4, expected a number from -3"
    ):
        load_comparisons(path)


def test_one_row_of_rated_answers_gives_every_pair(tmp_path: Path) -> None:
    found = load(tmp_path, "ultrafeedback").records
    assert [record.id.rpartition("/")[2] for record in found] == ["0-1", "0-2", "1-2"]
    assert [record.votes[0].choice for record in found] == [0, 0, "tie"]
    assert [record.votes[0].strength for record in found] == [3.0, 3.0, None]
    assert [response.source for response in found[0].responses] == ["big", "small"]
    found = load(tmp_path, "nectar").records
    assert {record.prompt[0].content for record in found} == {ASK}
    assert [(record.votes[0].choice, record.votes[0].strength) for record in found] == [
        (0, None)
    ] * 3
    assert [record.responses[0].text for record in found] == [GOOD, GOOD, LESS]


def test_a_battle_names_its_models_and_its_judge(tmp_path: Path) -> None:
    found = load(tmp_path, "arena 33k").records
    assert [record.votes[0].choice for record in found] == [0, 1, "tie", "tie"]
    assert [record.votes[0].why for record in found] == [None, None, None, "both bad"]
    assert {vote.annotator for record in found for vote in record.votes} == {"arena_user_7"}
    first = found[0]
    assert [response.source for response in first.responses] == [
        "big",
        "small",
    ] and first.prompt == asked(ASK)
    assert [turn.content for turn in answer_turns(first.responses[0])] == [GOOD, NEXT, MORE]
    (record,) = load(tmp_path, "arena 55k").records
    assert record.votes[0].choice == 1 and record.id == "30192"
    assert [turn.content for turn in answer_turns(record.responses[1])] == [BAD, NEXT, LESS]


def test_judges_of_the_first_turn_saw_the_first_turn(tmp_path: Path) -> None:
    checked = load(tmp_path, "mt-bench human judgments")
    (record,) = checked.records
    assert [response.text for response in record.responses] == [BAD, GOOD]
    assert record.votes == [Vote("author_2", 1)]
    assert "turns after the one that was judged (`turn`) left out (in 1 row)" in checked.notes


def test_better_is_the_vote_and_safer_is_named_as_not_used(tmp_path: Path) -> None:
    checked = load(tmp_path, "safe-rlhf")
    assert checked.records[0].votes == [Vote("file:f.jsonl", 1)]
    assert (
        "columns kept in meta, not used: is_response_0_safe, is_response_1_safe, safer_response_id"
        in checked.notes
    )


def test_every_message_of_a_tree_with_ranked_replies_is_compared(tmp_path: Path) -> None:
    found = {
        record.id.partition("/")[2]: record for record in load(tmp_path, "oasst trees").records
    }
    assert found["0-1"].prompt == asked(ASK) and found["0-1"].votes[0].choice == 0
    deeper = found["0.0/0-1"]
    assert deeper.prompt == asked(ASK, GOOD, NEXT)
    assert [r.text for r in deeper.responses] == [LESS, MORE] and deeper.votes[0].choice == 1
    lone = {"message_tree_id": "t2", "prompt": tree(ASK, "prompter", tree(GOOD, "assistant"))}
    checked = load_comparisons(write(tmp_path, [*PUBLISHED["oasst trees"][1], lone]))
    assert len(checked.records) == 2
    assert (
        "trees without two ranked replies to one message give nothing (in 1 row)" in checked.notes
    )


def test_preferences_of_alpaca_eval_and_shp_are_votes(tmp_path: Path) -> None:
    first, second = load(tmp_path, "alpaca_eval annotations").records
    assert (first.votes, second.votes) == ([Vote("careful", 1)], [Vote("careful", "tie")])
    assert [response.source for response in first.responses] == ["small", "big"]
    (record,) = load(tmp_path, "shp").records
    assert [r.text for r in record.responses] == [BAD, GOOD] and record.votes[0].choice == 1


def test_of_mt_bench_questions_the_first_turn_is_the_prompt_and_that_is_said(
    tmp_path: Path,
) -> None:
    checked = load(tmp_path, "mt-bench questions")
    assert checked.records[0].prompt == asked(ASK)
    assert checked.records[0].meta == {"question_id": 81, "category": "birds", "turns": [ASK, NEXT]}
    assert any(
        note.startswith("second turns of MT-bench questions are not used") for note in checked.notes
    )


def test_several_right_answers_are_best_of_n(tmp_path: Path) -> None:
    (record,) = load(tmp_path, "rewardbench 2").records
    assert isinstance(record, BestOf) and record.best == [0] and len(record.responses) == 4


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (
            [{"question_id": 81, "model_id": "m", "choices": [{"turns": [GOOD]}]}],
            "answers stand in it without their",
        ),
        (
            [{"message_id": "m", "parent_id": "p", "text": ASK, "role": "prompter"}],
            "it holds single messages of trees",
        ),
        (
            [{"prompt": ASK, "completions": ["First.", "Then."], "labels": [True, False]}],
            "it labels the steps",
        ),
    ],
)
def test_what_cannot_be_read_is_named_with_the_way_out(
    tmp_path: Path, rows: list[dict[str, Any]], says: str
) -> None:
    for loader in (load_comparisons, load_demonstrations, load_prompts):
        with pytest.raises(DataError, match=f"no record can be made of it: {says}"):
            loader(write(tmp_path, rows))


def test_an_answer_to_a_question_of_the_second_turn_is_not_taken_for_one_of_the_first(
    tmp_path: Path,
) -> None:
    rows = [
        {
            "prompt": NEXT,
            "chosen": [user(), bot(), user(NEXT), bot(MORE)],
            "rejected": [user(), bot(), user(NEXT), bot(LESS)],
        }
    ]
    (record,) = load_comparisons(write(tmp_path, rows)).records
    assert record.prompt == asked(ASK, GOOD, NEXT) and [r.text for r in record.responses] == [
        MORE,
        LESS,
    ]
    rows = [
        {
            "conversations": [human()],
            "chosen": [human(NEXT), {"from": "gpt", "value": MORE}],
            "rejected": BAD,
        }
    ]
    with pytest.raises(
        DataError, match="holds turns before the response that are not the prompt's"
    ):
        load_comparisons(write(tmp_path, rows))
