"""Answers that begin with their prompt: what repeats it is taken off, what answers with the same
words is left.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prefloop.data.sources import load_comparisons, load_demonstrations


def write(folder: Path, *rows: dict[str, Any]) -> Path:
    (folder / "f.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
    )
    return folder / "f.jsonl"


def texts(path: Path) -> list[str]:
    return [record.response for record in load_demonstrations(path).records]


@pytest.mark.parametrize(
    "words",
    [["Rome", "Gravity", "Moss", "Tin"], ["Blue moss", "Old tin", "Fast birds", "Warm rain"]],
)
def test_definitions_that_begin_with_the_word_they_define_are_kept(
    tmp_path: Path, words: list[str]
) -> None:
    rows = [{"prompt": word, "response": f"{word} is what many people know."} for word in words]
    assert texts(write(tmp_path, *rows)) == [row["response"] for row in rows]


def test_greetings_that_greet_back_are_kept_in_both_answers(tmp_path: Path) -> None:
    rows = [
        {"prompt": hello, "chosen": f"{hello}! How can I help?", "rejected": f"{hello}. What now?"}
        for hello in ("Hello", "Good day", "Hi there", "Hey")
    ]
    found = load_comparisons(write(tmp_path, *rows))
    assert [r.text for pair in found.records for r in pair.responses] == [
        row[key] for row in rows for key in ("chosen", "rejected")
    ]
    assert found.notes == []


def test_one_repeated_word_is_no_habit_even_before_a_new_sentence(tmp_path: Path) -> None:
    rows = [
        {"prompt": hello, "response": f"{hello} How can I help?"}
        for hello in ("Hello!", "Morning!", "Hey!")
    ]
    assert texts(write(tmp_path, *rows)) == [row["response"] for row in rows]


def test_an_answer_that_goes_on_with_the_sentence_of_its_prompt_is_kept(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"In the old town of {town}", "response": f"In the old town of {town}{rest}"}
        for town, rest in (
            ("Ur", ", there was a well."),
            ("Bo", " nobody slept."),
            ("Ka", "'s people sang."),
        )
    ]
    assert texts(write(tmp_path, *rows)) == [row["response"] for row in rows]


@pytest.mark.parametrize("between", [" ", "\n", "\n\n"])
def test_long_prompts_and_every_short_one_that_answers_repeat_are_taken_off(
    tmp_path: Path, between: str
) -> None:
    long = [
        {"prompt": f"How long do swifts sleep, {n}", "response": f"{n}{between}Minutes."}
        for n in range(4)
    ]
    for row in long:
        row["response"] = f"How long do swifts sleep, {row['response']}"
    assert texts(write(tmp_path, *long, {"prompt": "Why?", "response": "So."})) == [
        "Minutes."
    ] * 4 + ["So."]
    short = [{"prompt": f"Why {n}?", "response": f"Why {n}?{between}Because."} for n in range(4)]
    assert texts(write(tmp_path, *short)) == ["Because."] * 4
    # One answer that does not repeat its short prompt: the others may just as well quote it.
    assert (
        texts(write(tmp_path, *short, {"prompt": "Why x?", "response": "So."}))[0]
        == f"Why 0?{between}Because."
    )
