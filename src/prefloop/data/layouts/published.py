"""Published layouts that hold two answers and say in another column which one is better."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from prefloop.data import argilla_rows
from prefloop.data.answers import answer_of
from prefloop.data.check import (
    BadRow,
    check_distinct,
    check_prompt,
    check_text,
    json_type,
    number_of,
    truth_of,
)
from prefloop.data.layouts.choices import Choice, choice_in
from prefloop.data.layouts.rated import extra_id_turns
from prefloop.data.messages import messages_of
from prefloop.data.prompts import prompt_of
from prefloop.data.responses import (
    common_start,
    comparison,
    leave_copies,
    two_responses,
    whole_prompt,
)
from prefloop.data.row import Row
from prefloop.data.surroundings import around
from prefloop.data.tools import spelt
from prefloop.records import Comparison, Message, Prompt, Record, Response, Vote

_LIST_OF_TEXTS = re.compile(r"""\s*\[\s*(?:'[^']*'|"[^"]*")\s*[\]'",]""")
_WON = ("winner_model_a", "winner_model_b", "winner_tie")


def read_openai(row: Row) -> Record:
    """A pair of OpenAI's preference files."""
    keys = ("preferred_output", "non_preferred_output")
    prompt = prompt_of(row, "input")
    answers = [answer_of(row, key, prompt) for key in keys]
    prompt = whole_prompt(prompt, answers, keys)
    return comparison(row, prompt, answers[0].turns, answers[1].turns, *keys)


def signed(value: Any, name: str) -> tuple[Choice, int | float | None]:
    """The vote of a preference from -3 (the first is much better) to 3 (the second is), and its
    strength, which is the size of the number.
    """
    number = number_of(value)
    if number is None or abs(number) > 3:
        shown = json_type(value) if number is None else f"{number:g}"
        raise BadRow(
            name,
            f"is {shown}, expected a number from -3 (the first is much better) to 3 (the"
            " second is)",
        )
    if number == 0:
        return "tie", None
    return (0 if number < 0 else 1), abs(number)


def _signed_votes(row: Row, whole: str, single: str, size: str, why: str) -> list[Vote]:
    """The votes of single annotators where the file has them, else the one vote that sums them
    up.
    """
    given = row.get(single)
    if isinstance(given, list) and given:
        votes = []
        for index, item in enumerate(given):
            name = f"{single}.{index}"
            if not isinstance(item, dict):
                raise BadRow(name, f"is {json_type(item)}, expected an object")
            choice, strength = signed(item.get(size), f"{name}.{size}")
            reason = item.get(why)
            reason = reason if isinstance(reason, str) and reason.strip() else None
            votes.append(Vote(f"{row.source}#{index}", choice, strength, reason))
        row.evidence(single)
        row.say(f"votes are those of {single}")
        return votes
    choice, strength = signed(row.take(whole), whole)
    row.say(f"the vote is {whole}, its size the strength (1 slight, 2 clear, 3 strong)")
    return [Vote(row.source, choice, strength)]


def read_helpsteer3(row: Row) -> Record:
    """A pair of HelpSteer3, with every annotator's vote."""
    prompt = prompt_of(row, "context" if "context" in row else None)
    prompt, responses = two_responses(row, prompt, "response1", "response2")
    votes = _signed_votes(row, "overall_preference", "individual_preference", "score", "reasoning")
    return Comparison(row.id, prompt, responses, votes, row.meta())


def read_helpsteer2_preference(row: Row) -> Record:
    """A pair of HelpSteer2's preferences."""
    given = row.take("prompt")
    turns = extra_id_turns(given, "prompt", row) if isinstance(given, str) else None
    if turns is None:
        prompt = prompt_of(row, "prompt")
    else:
        prompt = around(row, turns)
        check_prompt(prompt, "prompt")
    prompt, responses = two_responses(row, prompt, "response_1", "response_2")
    votes = _signed_votes(
        row, "preference_strength", "three_most_similar_preferences", "strength", "statement"
    )
    return Comparison(row.id, prompt, responses, votes, row.meta())


def is_arena(row: Mapping[str, Any]) -> bool:
    """Whether a row is a battle of Arena or a human judgment of MT-bench."""
    if not ("winner" in row or all(key in row for key in _WON)):
        return False
    return all(key in row for key in ("conversation_a", "conversation_b")) or all(
        key in row for key in ("prompt", "response_a", "response_b")
    )


def read_arena(row: Row) -> Record:
    """A battle of two models: conversations with the same questions, and the winner."""
    if "conversation_a" in row or "conversation_b" in row:
        conversations = [
            messages_of(_list(row, key), key, row) for key in ("conversation_a", "conversation_b")
        ]
        # MT-bench's judges saw only the first turn where `turn` is 1. Elsewhere `turn` counts the
        # turns of the row.
        turn = number_of(row.get("turn"))
        if turn is not None and turn > 0 and turn == int(turn):
            judged = [_until(each, int(turn)) for each in conversations]
            if judged != conversations:
                row.say("turns after the one that was judged (`turn`) left out")
            conversations = judged
            row.use("turn")
        keys = ("conversation_a", "conversation_b")
    else:
        keys = ("response_a", "response_b")
        asked, first, second = (_texts(row, key) for key in ("prompt", *keys))
        conversations = [_alternating(asked, first, keys[0]), _alternating(asked, second, keys[1])]
    prompt, answers = common_start(row, conversations, keys)
    responses = [
        Response.of(turns, _model(row, key))
        for turns, key in zip(answers, ("model_a", "model_b"), strict=True)
    ]
    check_distinct(responses[0].text, responses[1].text, *keys)
    leave_copies(row, prompt, answers)
    choice, why = _winner(row)
    judge = row.get("judge")
    if isinstance(judge, list) and all(isinstance(part, str) for part in judge):
        judge = " ".join(judge)
    annotator = row.source
    if isinstance(judge, str) and judge.strip():
        annotator = judge
        row.use("judge")
    meta = row.meta("model_a", "model_b", "turn")
    return Comparison(row.id, prompt, responses, [Vote(annotator, choice, why=why)], meta)


def _list(row: Row, key: str) -> Any:
    value = row.take(key)
    if not isinstance(value, str):
        return value
    if not isinstance(messages := spelt(value), list):
        raise BadRow(key, f"is text that spells no list of messages ({value[:40]!r})")
    return messages


def _until(turns: list[Message], turn: int) -> list[Message]:
    """The first ``turn`` questions with their answers."""
    asked = [index for index, each in enumerate(turns) if each.role == "user"]
    return turns if turn >= len(asked) else turns[: asked[turn]]


def _texts(row: Row, key: str) -> list[str]:
    """The texts of the turns. Arena's 55k file writes them as JSON."""
    value = row.take(key)
    if isinstance(value, str):
        texts = spelt(value) if value.lstrip().startswith("[") else None
        if texts is None and _LIST_OF_TEXTS.match(value):
            raise BadRow(
                key,
                "looks like a list of texts written as a string and cannot be parsed: write it as"
                " JSON",
            )
        value = texts if isinstance(texts, list) and texts else [value]
    if not isinstance(value, list) or not value:
        raise BadRow(
            key,
            f"is {json_type(value) if value != [] else 'an empty list'}, expected a list of texts",
        )
    return [check_text(text, f"{key}.{index}") for index, text in enumerate(value)]


def _alternating(asked: list[str], answers: list[str], key: str) -> list[Message]:
    if len(asked) != len(answers):
        raise BadRow(key, f"has {len(answers)} answers to the {len(asked)} turns of 'prompt'")
    turns: list[Message] = []
    for question, answer in zip(asked, answers, strict=True):
        turns += [Message("user", question), Message("assistant", answer)]
    return turns


def _model(row: Row, key: str) -> str:
    value = row.get(key)
    row.use(key)
    return value if isinstance(value, str) and value.strip() else row.source


def _winner(row: Row) -> tuple[Choice, str | None]:
    if "winner" in row or not all(key in row for key in _WON):
        return choice_in(row.take("winner"), "winner", row, ("response_a", "response_b"))
    flags = [truth_of(row.take(key)) for key in _WON]
    if None in flags or flags.count(True) != 1:
        raise BadRow(_WON[0], f"and {', '.join(_WON[1:])} are not one 1 and two 0")
    choices: tuple[Choice, ...] = (0, 1, "tie")
    return choices[flags.index(True)], None


def read_safe_rlhf(row: Row) -> Record:
    """A pair of PKU-SafeRLHF. The better response is the vote; which response is safer is another
    question and stays in meta.
    """
    prompt = prompt_of(row, "prompt")
    prompt, responses = two_responses(row, prompt, "response_0", "response_1")
    better = number_of(row.take("better_response_id"))
    if better not in (0, 1):
        raise BadRow(
            "better_response_id", f"is {str(row['better_response_id'])[:40]!r}, expected 0 or 1"
        )
    vote = Vote(row.source, 0 if better == 0 else 1)
    return Comparison(row.id, prompt, responses, [vote], row.meta())


def read_alpaca_eval(row: Row) -> Record:
    """A pair of alpaca_eval's annotations. 1 and 2 name the better output and 1.5 is a tie; numbers
    between say how sure the judge is.
    """
    prompt = prompt_of(row, "instruction")
    texts = [row.text(key) for key in ("output_1", "output_2")]
    check_distinct(texts[0], texts[1], "output_1", "output_2")
    responses = [
        Response(text, _model(row, f"generator_{n}")) for n, text in enumerate(texts, start=1)
    ]
    votes = []
    if "preference" in row:
        value = number_of(row.take("preference"))
        if value is None or not 1 <= value <= 2:
            raise BadRow(
                "preference",
                f"is {str(row['preference'])[:40]!r}, expected 1, 2 or a number between them",
            )
        name = row.source
        if isinstance(row.get("annotator"), str) and row["annotator"].strip():
            name = row.take("annotator")
        choice: Choice = "tie" if value == 1.5 else 0 if value < 1.5 else 1
        votes = [Vote(name, choice)]
        if value not in (1, 1.5, 2):
            row.say(
                "preferences between 1 and 2 are a vote for the nearer output; they stay in meta"
            )
        row.evidence("preference")
    return Comparison(row.id, prompt, responses, votes, row.meta("generator_1", "generator_2"))


def read_mt_bench_question(row: Row) -> Record:
    """The first turn of an MT-bench question. The second asks about an answer that the row does not
    hold.
    """
    turns = row.take("turns")
    if not isinstance(turns, list) or not turns:
        raise BadRow(
            "turns",
            f"is {json_type(turns) if turns != [] else 'an empty list'}, expected the user's turns"
            " as texts",
        )
    texts = [check_text(text, f"turns.{index}") for index, text in enumerate(turns)]
    if len(texts) > 1:
        row.say(
            "second turns of MT-bench questions are not used: each asks about the answer to the"
            " first; they stay in meta"
        )
    row.evidence("turns", "question_id")
    prompt = around(row, [Message("user", texts[0])])
    return Prompt(row.id, prompt, row.meta())


def read_shp(row: Row) -> Record:
    """A pair of Stanford's SHP: two comments on a post. Label 1 means that the first has more
    votes.
    """
    prompt = around(row, [Message("user", row.text("history"))])
    prompt, responses = two_responses(row, prompt, "human_ref_A", "human_ref_B")
    label = number_of(row.take("labels"))
    if label not in (0, 1):
        raise BadRow(
            "labels", f"is {str(row['labels'])[:40]!r}, expected 1 (A is preferred) or 0 (B is)"
        )
    vote = Vote(row.source, 0 if label == 1 else 1)
    return Comparison(row.id, prompt, responses, [vote], row.meta())


def read_argilla(row: Row) -> list[Record]:
    """The records of a row that Argilla exported. Submitted answers are the votes; suggestions and
    other answers are not.
    """
    records = argilla_rows.read(row, row.id, row.source)
    row.use(*row)
    for reason in argilla_rows.left_out(row, row.source):
        row.say(f"not used: {reason}")
    return records
