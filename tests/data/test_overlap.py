"""Evaluation prompts that stand in the training set are found, counted and named."""

from __future__ import annotations

from turns import call

from prefloop.base.console import shortened
from prefloop.data.overlap import Match, overlap
from prefloop.records import Message, Prompt

LONG = (
    "please write a short and polite letter to my landlord about the heating that has not worked"
    " since monday morning"
)


def prompt(id: str, *turns: str) -> Prompt:
    roles = ("user", "assistant")
    return Prompt(id, [Message(roles[i % 2], text) for i, text in enumerate(turns)])  # type: ignore[arg-type]


def test_the_same_prompt_is_found_whatever_its_case_blanks_and_marks() -> None:
    found = overlap(
        [prompt("t0", "Other"), prompt("t1", "What's the capital -- of France?")],
        [prompt("e", "what s THE capital\nof france")],
    )
    assert found.matches == [Match("e", "t1", "prompt")] and found.ids == {"e"}


def test_the_last_turn_counts_under_another_conversation_unless_it_is_short() -> None:
    train = [prompt("t", "Hello", "Hi!", "How do I bake a plain cake?", "Well", "go on")]
    assert overlap(train[:0], [prompt("e", "x")]).matches == []
    asked = [prompt("a", "How do I bake a plain cake?"), prompt("b", "Tell me", "About?", "go on")]
    train.append(prompt("u", "Good day", "Hi", "How do I bake a plain cake?"))
    assert overlap(train, asked).matches == [Match("a", "u", "last turn")]


def test_half_of_the_13_grams_make_a_match_and_a_shared_instruction_does_not() -> None:
    inside = prompt("inside", LONG)
    frame = prompt(
        "frame",
        LONG + " and now comes a question of my own that is quite another one, longer than all that"
        " stood before it here",
    )
    found = overlap([prompt("t", "So, " + LONG + " thank you")], [inside, frame])
    assert found.matches == [Match("inside", "t", "13-gram")] and not found.seen
    assert (
        found.describe()
        == "none of 2 prompts is in the training set; 1 more shares words with a prompt in it (1 by"
        " 13-gram): inside (as t)"
    )
    assert found.matches[0].train_text.startswith("So, ") and found.matches[0].text == shortened(
        LONG, 300
    )


def test_words_of_the_assistant_are_no_prompt() -> None:
    assert overlap([prompt("t", "Hi", LONG, "And so?")], [prompt("e", LONG)]).matches == []


def test_the_strongest_kind_is_named_and_counts_add_up() -> None:
    found = overlap(
        [prompt("t0", "Now: " + LONG), prompt("t1", LONG)],
        [prompt("e", LONG), prompt("f", "quite another question")],
    )
    assert found.matches == [Match("e", "t1", "prompt")]
    assert found.to_dict() == {
        "prompts": 2,
        "distinct": 2,
        "overlapping": 1,
        "kinds": {"prompt": 1, "last turn": 0, "13-gram": 0},
        "matches": [
            {
                "id": "e",
                "train_id": "t1",
                "kind": "prompt",
                "text": shortened(LONG, 300),
                "train_text": shortened(LONG, 300),
            }
        ],
    }
    assert found.describe() == "1 of 2 prompts is in the training set: e (as t1)"
    assert overlap([], [prompt("e", "x")]).describe() == "none of 1 prompts is in the training set"


def test_records_that_share_a_prompt_are_counted_as_rows() -> None:
    rows = [prompt("a", "A question?"), prompt("b", "a QUESTION"), prompt("c", "Another one?")]
    assert (
        overlap([], rows).describe()
        == "none of 3 rows (2 different prompts) is in the training set"
    )
    found = overlap([prompt("t", "a question")], rows)
    assert found.describe().startswith(
        "2 of 3 rows (2 different prompts) are in the training set: a (as t)"
    )
    assert found.to_dict()["distinct"] == 2


def test_tool_results_and_system_turns_are_no_last_turn_and_thoughts_no_prompt() -> None:
    result = "the weather in Bern is sunny today"
    asks, looks, answers = (
        Message("user", "Is it warm in Bern now?"),
        Message("assistant", "", "Hm.", [call()]),
        Message("tool", result),
    )
    train = [Prompt("t", [Message("system", "Be brief."), asks, looks, answers])]
    assert overlap(train, [Prompt("e", [asks])]).matches == [Match("e", "t", "last turn")]
    assert (
        overlap(
            train, [Prompt("e", [Message("user", "What about Basel then?"), looks, answers])]
        ).matches
        == []
    )
    same = Prompt(
        "e",
        [Message("system", "Be brief."), asks, Message("assistant", "", "HM", [call()]), answers],
    )
    assert overlap(train, [same]).matches == [Match("e", "t", "prompt")]
    other = Prompt(
        "e",
        [
            Message("system", "Be brief."),
            asks,
            Message("assistant", "", "Hm.", [call("Basel")]),
            answers,
        ],
    )
    assert overlap(train, [other]).matches == [Match("e", "t", "last turn")]
