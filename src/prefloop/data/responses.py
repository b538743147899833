"""The answers of a row, wherever their prompt stands: beside them, in front of them in each, or nowhere but there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prefloop.data.check import BadRow, check_answer, check_distinct, check_prompt, check_text, number_of
from prefloop.data.messages import messages_of
from prefloop.data.prompts import CONVERSATIONS, context, last_answer, prompt_of, raw_text, same, turns_at
from prefloop.data.row import Row
from prefloop.data.surroundings import around
from prefloop.data.transcripts import Transcript, parse_hh, transcript_of
from prefloop.records import Comparison, Conversation, Demonstration, Message, Rating, Response, Thumb, Vote

_COPIES = ("raw_chosen", "raw_rejected")
_SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen-rating", "rejected-rating"),
    ("chosen_rating", "rejected_rating"),
    ("rating_chosen", "rating_rejected"),
    ("chosen_reward", "rejected_reward"),
    ("chosen_avg_rating", "rejected_avg_rating"),
)
_SPEAKER = re.compile(r"\s*((?:### ?)?(?:Assistant|ASSISTANT)|### Response|<bot>):\s*")
_WRAPPED = re.compile(r"\s*<s>(?:(?!</?s>).)*</s>\s*", re.DOTALL)
_OTHERS = re.compile(r"^(?:### ?)?(?:User|USER|Human|Customer|Instruction|<human>) ?:", re.MULTILINE)
"""Speakers whose lines make an answer a dialogue of its own."""
_LONG_PROMPT = 4
"""Words from which on an answer that begins with its prompt repeats it; shorter ones may just greet back."""


@dataclass(frozen=True)
class Answer:
    """The turns of an answer, and those of its prompt as they stood before it (none where they did not)."""

    turns: list[Message]
    before: list[Message]


def answer_of(row: Row, key: str, prompt: Conversation) -> Answer:
    """The answer under ``key``: text, an assistant message, messages, with or without the prompt before it."""
    return answer_in(row, row.take(key), key, prompt)


def answer_in(row: Row, value: Any, key: str, prompt: Conversation) -> Answer:
    """The answer that a value is; ``key`` is what it is called in what is said of it."""
    if isinstance(value, dict | list):
        if isinstance(value, dict):
            value = [value]
        return _split(messages_of(value, key, row), prompt, key)
    text = check_text(value, key)
    found = _transcript(row, text, key, prompt)
    if found is not None and not found.open:
        return _split(found.turns, prompt, key)
    if found is not None:
        raise BadRow(key, "ends where the assistant should answer: the answer is empty")
    if text.startswith(("\n\nAssistant:", "\r\n\r\nAssistant:")):
        row.say("Human/Assistant transcripts read as turns")
        return _split(parse_hh(text, key), prompt, key)
    if _WRAPPED.fullmatch(text):
        raise BadRow(
            key, "stands between <s> and </s>, a model's tokens: take them off (struck-out text is <del> in HTML)"
        )
    text = _thought_out(row, _without_speaker(row, row.without_end(text), key), key)
    return Answer([Message("assistant", check_text(_own_words(row, text, key, prompt), key))], [])


def _transcript(row: Row, text: str, key: str, prompt: Conversation) -> Transcript | None:
    """The conversation that an answer's text holds. A dialogue in words is one where it begins with the prompt, else it is the answer."""
    said = dict(row.done), row.transcript
    found = transcript_of(text, key, row, whole=True)
    if found is not None and found.weak and not _prompts_in(found.turns, prompt):
        row.done, row.transcript = said
        return None
    return found


def _without_speaker(row: Row, text: str, key: str) -> str:
    """An answer without the assistant's marker before it, which a transcript leaves there."""
    found = _SPEAKER.match(text)
    if found is None or _OTHERS.search(text):
        return text
    if not row.transcript:
        raise BadRow(
            key,
            f"begins with {found.group(1)!r}, as the assistant's turn of a transcript does: take such markers off the prompt and the answer",
        )
    row.say(f"{found.group(1)!r} taken off answers, the assistant's marker of the transcript")
    return text[found.end() :]


def _thought_out(row: Row, text: str, key: str) -> str:
    """An answer with the ``<think>`` that its prompt's template had opened for it."""
    if not row.thinks or text.lstrip().startswith("<think>"):
        return text
    if "</think>" not in text:
        raise BadRow(
            key,
            "does not close the <think> that its prompt opens: write <think>…</think> into the answer, or no <think> into the prompt",
        )
    row.say("<think> at the end of prompts put before their answers")
    return f"<think>\n{text.lstrip()}"


def _own_words(row: Row, text: str, key: str, prompt: Conversation) -> str:
    """An answer's text without the prompt before it, where the file writes both."""
    asked = [words.strip() for words in (raw_text(row), prompt[-1].content) if words and words.strip()]
    found = next((words for words in sorted(asked, key=len, reverse=True) if _begins(text, words)), None)
    row.begins.append(0 if found is None else 1 + (len(found.split()) >= _LONG_PROMPT))
    if found is None or row.habits.repeats_prompt is None:
        return text
    if row.habits.repeats_prompt:
        return text.strip()[len(found) :].strip()
    if row.begins[-1] == 2:
        raise BadRow(
            key,
            "begins with its prompt, as most answers of this file do not: take the prompt off, or leave the row out",
        )
    row.begins[-1] = 0
    return text


def _begins(text: str, prompt: str) -> bool:
    own = text.strip()
    return (
        own.startswith(prompt) and len(own) > len(prompt) and not (own[len(prompt)].isalnum() and prompt[-1].isalnum())
    )


def _split(turns: list[Message], prompt: Conversation, key: str) -> Answer:
    """An answer's turns apart from those of its prompt before them."""
    if turns[0].role == "assistant":
        check_answer(turns, key)
        return Answer(turns, [])
    for before in _prompts_in(turns, prompt):
        rest = turns[len(before) :]
        if not rest:
            raise BadRow(key, f"ends with the {turns[-1].role}'s turn, expected the assistant's")
        check_answer(rest, key)
        return Answer(rest, before)
    if turns[-1].role != "assistant":
        raise BadRow(key, f"ends with the {turns[-1].role}'s turn, expected the assistant's")
    raise BadRow(key, "holds turns before the response that are not the prompt's")


def _prompts_in(turns: list[Message], prompt: Conversation) -> list[list[Message]]:
    """The turns before an answer that are its prompt, or say more than the prompt's own column."""
    own = [turn for turn in prompt if turn.role != "system"]
    has_system = len(own) < len(prompt)
    found = []
    if same(turns[: len(prompt)], prompt):
        found.append(turns[: len(prompt)])
    elif has_system and same(turns[: len(own)], own):
        found.append(turns[: len(own)])
    elif not has_system and turns[0].role == "system" and same(turns[1 : len(own) + 1], own):
        found.append(turns[: len(own) + 1])
    elif len(own) == 1:
        # The column holds the last question of a longer conversation.
        last = max((i for i, turn in enumerate(turns) if turn.role == "user"), default=-1)
        if last >= 0 and same([turns[last]], own):
            found.append(turns[: last + 1])
    return found


def whole_prompt(prompt: Conversation, answers: Sequence[Answer], keys: Sequence[str]) -> Conversation:
    """The prompt, or the fuller one that stands before every answer that has one."""
    fuller = [(key, a.before) for key, a in zip(keys, answers, strict=True) if len(a.before) > len(prompt)]
    for key, before in fuller[1:]:
        if not same(before, fuller[0][1]):
            raise BadRow(key, f"its prompt is not that of '{fuller[0][0]}'")
    if not fuller:
        return prompt
    before = fuller[0][1]
    if prompt[0].role == "system" and before[0].role != "system":
        before = [prompt[0], *before]
    return Conversation(before, prompt.tools)


def paired(row: Row, first: str, second: str, key: str | None = None) -> Comparison:
    """Two answers of which the first is the preferred one, beside their prompt."""
    prompt = prompt_of(row, key)
    answers = [answer_of(row, name, prompt) for name in (first, second)]
    return comparison(
        row, whole_prompt(prompt, answers, (first, second)), answers[0].turns, answers[1].turns, first, second
    )


def common_start(
    row: Row, first: list[Message], second: list[Message], keys: tuple[str, str]
) -> tuple[Conversation, list[Message], list[Message]]:
    """Two conversations → the prompt that they share and what follows it in each.

    The prompt ends with a user's or a tool's turn; where the conversations differ from an assistant turn on, everything after is the answer.
    """
    for key, whole in zip(keys, (first, second), strict=True):
        if whole[-1].role != "assistant":
            raise BadRow(key, f"ends with the {whole[-1].role}'s turn, expected the assistant's")
    shared = 0
    while shared < min(len(first), len(second)) and same([first[shared]], [second[shared]]):
        shared += 1
    differ = shared + 1
    while shared and first[shared - 1].role not in ("user", "tool"):
        shared -= 1
    rests = first[shared:], second[shared:]
    if not shared and all(rest and rest[0].role == "assistant" for rest in rests):
        raise BadRow(keys[0], "has no message before the assistant's: there is no prompt")
    if not shared or not all(rest and rest[0].role == "assistant" for rest in rests):
        raise BadRow(keys[1], f"its prompt is not that of '{keys[0]}' (they differ from turn {differ})")
    for key, rest in zip(keys, rests, strict=True):
        check_answer(rest, key)
    prompt = around(row, first[:shared])
    check_prompt(prompt, keys[0])
    return prompt, *rests


def comparison(
    row: Row, prompt: Conversation, chosen: list[Message], rejected: list[Message], first: str, second: str
) -> Comparison:
    """The pair of two answers, the first preferred, with the strength that the file's scores say."""
    responses = [Response.of(turns, row.source) for turns in (chosen, rejected)]
    check_distinct(responses[0].text, responses[1].text, first, second)
    row.repeats(*_COPIES)
    leave_copies(row, prompt, (chosen, rejected))
    vote = Vote(row.source, 0, strength_of(row))
    return Comparison(row.id, prompt, responses, [vote], row.meta())


def two_responses(row: Row, prompt: Conversation, first: str, second: str) -> tuple[Conversation, list[Response]]:
    """Two answers of which another column says which is better, and the prompt that they answer."""
    answers = [answer_of(row, key, prompt) for key in (first, second)]
    responses = [Response.of(answer.turns, row.source) for answer in answers]
    check_distinct(responses[0].text, responses[1].text, first, second)
    prompt = whole_prompt(prompt, answers, (first, second))
    leave_copies(row, prompt, [answer.turns for answer in answers])
    return prompt, responses


def leave_copies(row: Row, prompt: Conversation, answers: Sequence[list[Message]]) -> None:
    """Leave out the columns that repeat the prompt with one of its answers; refuse those that say another conversation."""
    own = [turn for turn in prompt if turn.role != "system"]
    for key in (key for key in CONVERSATIONS if key in row and key in row.unused):
        value = row[key]
        if value == [] or value == "":
            row.repeats(key)
        else:
            turns = [turn for turn in turns_at(row, key, value) if turn.role != "system"]
            if not any(same(turns, [*own, *answer]) for answer in (*answers, [])):
                raise BadRow(key, "is another conversation than the prompt and its answers: keep one of them")
            row.repeats(key)


def strength_of(row: Row) -> int | float | None:
    """How much better the first answer is by the file's own scores: a difference on the file's scale.

    Raises ``BadRow`` where the scores prefer the other one. Columns stay in meta, where they are evidence.
    """
    for good, bad in _SCORES:
        if good not in row or bad not in row:
            continue
        first, second = number_of(row.get(good)), number_of(row.get(bad))
        if first is None or second is None:
            continue
        if second > first:
            raise BadRow(bad, f"is {second:g}, higher than {good} ({first:g}): the columns contradict each other")
        return _strength(row, first - second, f"{good} - {bad}", good, bad)
    margin = number_of(row.get("margin"))
    if margin is None:
        return None
    if margin < 0:
        raise BadRow("margin", f"is {margin:g}: by it the rejected answer is the better one")
    return _strength(row, margin, "margin", "margin")


def _strength(row: Row, strength: int | float, said: str, *keys: str) -> int | float | None:
    row.evidence(*keys)
    if strength == 0:
        row.say(f"{said} is 0: the vote has no strength")
        return None
    row.say(f"strength of the vote is {said}, on the file's own scale")
    return strength


def beside(row: Row, key: str, prompt_key: str | None = None) -> tuple[Conversation, list[Message]]:
    """The one answer of a row and the prompt in another column, with the turns of either that the other lacks."""
    prompt = prompt_of(row, prompt_key)
    answer = answer_of(row, key, prompt)
    prompt = whole_prompt(prompt, [answer], [key])
    leave_copies(row, prompt, [answer.turns])
    return prompt, answer.turns


def rating(row: Row, prompt: Conversation, turns: list[Message], up: bool) -> Rating:
    """An answer with the file's thumb."""
    leave_copies(row, prompt, [turns])
    return Rating(
        row.id, prompt, Response.of(turns, row.source), [Thumb(row.source, "up" if up else "down")], row.meta()
    )


def demonstration(row: Row, key: str, prompt_key: str | None = None, learnt: bool = False) -> Demonstration:
    """An answer to imitate beside its prompt, whose own assistant turns are context unless the layout says that they are ``learnt``."""
    prompt, turns = beside(row, key, prompt_key)
    return Demonstration.of(row.id, prompt if learnt else context(prompt), turns, row.meta())


def answered(turns: Conversation, key: str) -> tuple[Conversation, list[Message]]:
    """A conversation's prompt and its last answer; refuses one that does not end with the assistant's turn."""
    if turns[-1].role != "assistant":
        raise BadRow(key, f"ends with the {turns[-1].role}'s turn, expected the assistant's")
    before, answer = last_answer(turns)
    prompt = Conversation(before, turns.tools)
    check_prompt(prompt, key)
    return prompt, answer
