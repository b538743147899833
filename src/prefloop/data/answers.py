"""Read one answer of a row: a text, a message or messages, with or without its prompt before it,
with its thoughts inside or in a column of their own.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prefloop.data.check import BadRow, check_answer, check_text
from prefloop.data.messages import messages_of
from prefloop.data.prompts import ANSWERS, raw_text, same
from prefloop.data.row import Row
from prefloop.data.transcripts import Transcript, parse_hh, transcript_of
from prefloop.records import Conversation, Message

_SPEAKER = re.compile(r"\s*((?:### ?)?(?:Assistant|ASSISTANT)|### Response|<bot>):\s*")
_WRAPPED = re.compile(r"\s*<s>(?:(?!</?s>).)*</s>\s*", re.DOTALL)
_OTHERS = re.compile(
    r"^(?:### ?)?(?:User|USER|Human|Customer|Instruction|<human>) ?:", re.MULTILINE
)
"""Speakers whose lines make an answer a dialogue of its own."""
LONG_PROMPT = 4
"""An answer that begins with its prompt repeats it if the prompt has at least so many words. An
answer may well repeat a short greeting, or a word that it defines.
"""
_SENTENCE_ENDS = frozenset(".?!:;…。？！：")
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""Columns with the thoughts of a row's only answer. After an answer's own name
(``chosen_reasoning``) they hold the thoughts of that answer.
"""


@dataclass(frozen=True)
class Answer:
    """The turns of an answer, and those of its prompt where they stood before it."""

    turns: list[Message]
    before: list[Message]


def answer_of(row: Row, key: str, prompt: Conversation) -> Answer:
    """The answer under ``key``: a text, an assistant message, or messages, with or without the
    prompt before it.
    """
    answer = answer_in(row, row.take(key), key, prompt)
    columns = [*(f"{key}_{name}" for name in THOUGHTS), *(THOUGHTS if key in ANSWERS else ())]
    return dataclasses.replace(answer, turns=with_thoughts(row, answer.turns, columns, key))


def is_setting(row: Row, column: str) -> bool:
    """Whether a column named after thoughts is a setting instead: true or false, or one word such
    as Nemotron's "on".
    """
    value = row[column]
    return isinstance(value, bool) or (
        column in ("reasoning", "thinking") and len(str(value).split()) < 2
    )


def with_thoughts(
    row: Row, turns: list[Message], columns: Sequence[str], key: str
) -> list[Message]:
    """The turns of an answer with the thoughts from a column of their own.

    Raises ``BadRow`` where the answer itself holds other thoughts.
    """
    for column in columns:
        if not row.left(column) or is_setting(row, column):
            continue
        thoughts = row.text(column)
        turn = turns[-1]
        inside = re.match(r"\s*<think>(.*?)</think>", turn.content, re.DOTALL)
        own = turn.reasoning_content or (inside.group(1) if inside else None)
        if own is not None and own.strip() == thoughts.strip():
            row.repeats(column)
        elif own is not None or len(turns) > 1:
            raise BadRow(
                column,
                f"are other thoughts than those in '{key}': keep one, or write them into its turns",
            )
        else:
            row.say(f"thoughts read from '{column}'")
            turns = [dataclasses.replace(turn, reasoning_content=thoughts)]
    return turns


def answer_in(row: Row, value: Any, key: str, prompt: Conversation) -> Answer:
    """The answer that a value holds. ``key`` is its name in errors."""
    if isinstance(value, dict | list):
        if isinstance(value, dict):
            value = [value]
        return _split(messages_of(value, key, row), prompt, key)
    text = row.check_cell(check_text(value, key), key)
    transcript = _transcript(row, text, key, prompt)
    if transcript is not None and not transcript.open:
        return _split(transcript.turns, prompt, key)
    if transcript is not None:
        raise BadRow(key, "ends where the assistant should answer: the answer is empty")
    if text.startswith(("\n\nAssistant:", "\r\n\r\nAssistant:")):
        row.say("Human/Assistant transcripts read as turns")
        return _split(parse_hh(text, key), prompt, key)
    if _WRAPPED.fullmatch(text):
        raise BadRow(
            key,
            "stands between <s> and </s>, a model's tokens: take them off (struck-out text is <del>"
            " in HTML)",
        )
    text = _thought_out(row, _without_speaker(row, row.without_end(text), key), key)
    return Answer([Message("assistant", check_text(_own_words(row, text, key, prompt), key))], [])


def _transcript(row: Row, text: str, key: str, prompt: Conversation) -> Transcript | None:
    """The conversation that an answer's text holds. A dialogue in words counts as one only where it
    begins with the prompt; otherwise it is the answer.
    """
    before = dict(row.done), row.transcript
    transcript = transcript_of(text, key, row, whole=True)
    if transcript is not None and transcript.weak and not _prompt_in(transcript.turns, prompt):
        row.done, row.transcript = before
        return None
    return transcript


def _without_speaker(row: Row, text: str, key: str) -> str:
    """An answer without the assistant's marker before it, which transcripts leave there."""
    marker = _SPEAKER.match(text)
    if marker is None or _OTHERS.search(text):
        return text
    if not row.transcript:
        raise BadRow(
            key,
            f"begins with {marker.group(1)!r}, as the assistant's turn of a transcript does: take"
            " such markers off the prompt and the answer",
        )
    row.say(f"{marker.group(1)!r} taken off answers, the assistant's marker of the transcript")
    return text[marker.end() :]


def _thought_out(row: Row, text: str, key: str) -> str:
    """An answer with the ``<think>`` that its prompt's template had opened for it."""
    if not row.thinks or text.lstrip().startswith("<think>"):
        return text
    if "</think>" not in text:
        raise BadRow(
            key,
            "does not close the <think> that its prompt opens: write <think>…</think> into the"
            " answer, or no <think> into the prompt",
        )
    row.say("<think> at the end of prompts put before their answers")
    return f"<think>\n{text.lstrip()}"


def _own_words(row: Row, text: str, key: str, prompt: Conversation) -> str:
    """An answer's text without the prompt before it, where the file writes both."""
    asked = [(words or "").strip() for words in (raw_text(row), prompt[-1].content)]
    longest_first = sorted(filter(None, asked), key=len, reverse=True)
    repeated = next((words for words in longest_first if _begins(text, words)), None)
    row.begins.append(0 if repeated is None else len(repeated.split()))
    if repeated is None or row.habits.repeats_prompt is None:
        return text
    if row.habits.repeats_prompt:
        return text.strip()[len(repeated) :].strip()
    if row.begins[-1] >= LONG_PROMPT:
        raise BadRow(
            key,
            "begins with its prompt, as most answers of this file do not: take the prompt off, or"
            " leave the row out",
        )
    row.begins[-1] = 0
    return text


def _begins(text: str, prompt: str) -> bool:
    """Whether a text repeats its prompt and then begins anew. A text that continues the prompt's
    own sentence is an answer.
    """
    own = text.strip()
    rest = own[len(prompt) :]
    if not own.startswith(prompt) or not rest:
        return False
    if prompt[-1] in _SENTENCE_ENDS:
        return rest[0] not in _SENTENCE_ENDS
    after = rest.lstrip()
    return len(after) < len(rest) and (
        "\n" in rest[: len(rest) - len(after)] or not after[0].islower()
    )


def _split(turns: list[Message], prompt: Conversation, key: str) -> Answer:
    """Split an answer's turns from those of its prompt before them."""
    if turns[0].role == "assistant":
        check_answer(turns, key)
        return Answer(turns, [])
    if before := _prompt_in(turns, prompt):
        rest = turns[len(before) :]
        if not rest:
            raise BadRow(key, f"ends with the {turns[-1].role}'s turn, expected the assistant's")
        check_answer(rest, key)
        return Answer(rest, before)
    if turns[-1].role != "assistant":
        raise BadRow(key, f"ends with the {turns[-1].role}'s turn, expected the assistant's")
    raise BadRow(key, "holds turns before the response that are not the prompt's")


def _prompt_in(turns: list[Message], prompt: Conversation) -> list[Message] | None:
    """The turns before an answer that are its prompt, or a longer form of the prompt's own
    column.
    """
    own = [turn for turn in prompt if turn.role != "system"]
    has_system = len(own) < len(prompt)
    if same(turns[: len(prompt)], prompt):
        return turns[: len(prompt)]
    if has_system and same(turns[: len(own)], own):
        return turns[: len(own)]
    if not has_system and turns[0].role == "system" and same(turns[1 : len(own) + 1], own):
        return turns[: len(own) + 1]
    if len(own) == 1:
        # The column holds the last question of a longer conversation.
        last = max((i for i, turn in enumerate(turns) if turn.role == "user"), default=-1)
        if last >= 0 and same([turns[last]], own):
            return turns[: last + 1]
    return None
