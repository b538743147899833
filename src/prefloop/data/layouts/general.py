"""Layouts that many projects share: pairs, thumbs, demonstrations and prompts, recognized by their
columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefloop.base.console import listed
from prefloop.data.answers import THOUGHTS, answer_in, answer_of, is_setting, with_thoughts
from prefloop.data.check import BadRow, check_prompt, check_text, json_type
from prefloop.data.judged import verdict
from prefloop.data.messages import ROLES, exchange_keys, is_messages, messages_of, speaker_key
from prefloop.data.prompts import (
    ANSWERS,
    CONVERSATIONS,
    TEXTS,
    conversation_of,
    prompt_column,
    prompt_of,
    same,
    turns_at,
)
from prefloop.data.responses import (
    answered,
    common_start,
    comparison,
    demonstration,
    imitated,
    leave_copies,
    paired,
    prompt_and_answer,
    rating,
    refuse_other_answers,
    whole_prompt,
)
from prefloop.data.row import Row
from prefloop.data.surroundings import around, says
from prefloop.data.transcripts import parse_hh, transcript_of
from prefloop.records import Conversation, Message, Prompt, Record

Columns = Mapping[str, Any]

PAIRS = (
    ("chosen", "rejected"),
    ("accepted", "rejected"),
    ("win", "lose"),
    ("chosen_response", "rejected_response"),
    ("response_j", "response_k"),
)
"""Names of the columns of the preferred answer and the other one."""
PREFERRED = ("response", "completion", "output")
"""Columns of an answer that is the preferred one where the row has a rejected one too."""
REJECTED = ("rejected_response", "rejected")
"""Columns of such a rejected answer."""


def pair_columns(row: Columns) -> tuple[str, str] | None:
    """The columns of the preferred answer and the other one; ``None`` where there are none."""
    return next(((good, bad) for good, bad in PAIRS if good in row and bad in row), None)


def two_outputs(row: Columns) -> bool:
    """Whether ``output`` holds the preferred answer and the other one, as in LLaMA-Factory's older
    pairs.
    """
    return isinstance(row.get("output"), list)


def read_hh(row: Row) -> Record:
    """A pair of two whole conversations in hh-rlhf's text."""
    chosen, rejected = (parse_hh(row.text(key), key) for key in ("chosen", "rejected"))
    prompt, (good, bad) = common_start(row, (chosen, rejected), ("chosen", "rejected"))
    return comparison(row, prompt, good, bad, "chosen", "rejected")


def read_pair(row: Row) -> Record:
    """A pair of a preferred answer and another one, with their prompt."""
    if pair_columns(row) is None and two_outputs(row):
        return _two_outputs(row)
    return paired(row, *(pair_columns(row) or PAIRS[0]))


def _two_outputs(row: Row) -> Record:
    outputs = row.take("output")
    if not isinstance(outputs, list) or len(outputs) != 2:
        raise BadRow(
            "output", f"is {json_type(outputs)}, expected the chosen and the rejected answer"
        )
    prompt = prompt_of(row, "instruction" if "instruction" in row else None)
    keys = ("output.0", "output.1")
    answers = [
        answer_in(row, output, key, prompt) for output, key in zip(outputs, keys, strict=True)
    ]
    prompt = whole_prompt(prompt, answers, keys)
    return comparison(row, prompt, answers[0].turns, answers[1].turns, *keys)


def read_implicit(row: Row) -> Record:
    """A pair of two whole conversations with a common start."""
    first, second = pair_columns(row) or PAIRS[0]
    chosen, rejected = (list(_whole(row, key)) for key in (first, second))
    prompt, (good, bad) = common_start(row, (chosen, rejected), (first, second))
    return comparison(row, prompt, good, bad, first, second)


def _whole(row: Row, key: str) -> list[Message]:
    given = row.take(key)
    if isinstance(given, str):
        transcript = transcript_of(check_text(given, key), key, row, whole=True)
        if transcript is None or transcript.open:
            raise BadRow(key, "is text without a prompt: add a column 'prompt', or write messages")
        return transcript.turns
    return messages_of(given, key, row)


def read_swift_pair(row: Row) -> Record:
    """A pair as in ms-swift: the last answer of a conversation, or the only answer, is the
    preferred one, and a rejected answer or conversation is given with it.
    """
    other_key = row.first(*REJECTED) or REJECTED[0]
    if "messages" not in row:
        return paired(row, row.first(*PREFERRED) or PREFERRED[0], other_key)
    if "rejected_messages" in row:
        keys = ("messages", "rejected_messages")
        chosen, rejected = (messages_of(row.take(key), key, row) for key in keys)
        prompt, (good, bad) = common_start(row, (chosen, rejected), keys)
        return comparison(row, prompt, good, bad, *keys)
    prompt, turns = answered(conversation_of(row, "messages"), "messages")
    other = answer_of(row, other_key, prompt)
    prompt = whole_prompt(prompt, [other], [other_key])
    return comparison(row, prompt, turns, other.turns, "messages", other_key)


def read_thumb(row: Row) -> Record:
    """A rating: an answer with a plain yes or no."""
    refuse_other_answers(row)
    up = verdict(row, must=True)
    if up is None:
        raise BadRow(
            "label", f"is missing (found: {listed(row)}): nothing says whether the answer is good"
        )
    if "reasoning" in row and not is_setting(row, "reasoning"):
        raise BadRow(
            "reasoning",
            "may be what the answer thought or why it was judged so: name it 'reasoning_content' or"
            " 'reason'",
        )
    key, turns_key = row.first(*ANSWERS), row.first(*CONVERSATIONS)
    if key is not None and (turns_key is not None or has_prompt(row)):
        return rating(row, *prompt_and_answer(row, key, None if has_prompt(row) else turns_key), up)
    if turns_key is None:
        raise BadRow(key or "completion", "has no prompt" if key else "is missing")
    whole = conversation_of(row, turns_key)
    _leave_prompt(row, turns_key, whole)
    prompt, turns = answered(whole, turns_key)
    return rating(row, prompt, with_thoughts(row, turns, THOUGHTS, turns_key), up)


def read_alpaca(row: Row) -> Record:
    """An instruction with its output, and earlier turns, which LLaMA-Factory learns too."""
    return demonstration(row, "output", "instruction", learnt=True)


def read_query(row: Row) -> Record:
    """A query and response of ms-swift, with earlier turns, which are learnt too."""
    return demonstration(row, "response", "query", learnt=True)


def read_prompted(row: Row) -> Record:
    """A demonstration: a prompt with its answer."""
    key = next((key for key in ANSWERS if key in row and key != prompt_column(row)), "response")
    return demonstration(row, key)


def read_turns(row: Row, key: str) -> Record:
    """A conversation whose last turn is the answer if it is the assistant's, else a prompt. Masked
    turns are context.
    """
    turns = conversation_of(row, key)
    _leave_prompt(row, key, turns)
    _check_mask(row)
    if (other := row.first("response", "completion", "output")) is not None:
        raise BadRow(
            other,
            f"holds an answer next to '{key}', and most rows of the file have none: put it into"
            f" '{key}'",
        )
    if turns[-1].role != "assistant":
        check_prompt(turns, key)
        return Prompt(row.id, turns, row.meta())
    prompt, answer = answered(turns, key)
    return imitated(row, prompt, with_thoughts(row, answer, THOUGHTS, key))


def read_conversations(row: Row) -> Record:
    """A conversation of ShareGPT."""
    return read_turns(row, row.first("conversations", "conversation") or "conversations")


def read_messages(row: Row) -> Record:
    """A conversation of OpenAI or Gemini."""
    return read_turns(row, row.first("messages", "contents") or "messages")


def _leave_prompt(row: Row, key: str, turns: Conversation) -> None:
    """Leave out a prompt column that repeats a question of the conversation. Raises ``BadRow`` for
    one that asks something else.
    """
    for column in (name for name in TEXTS if name in row):
        asked = row[column]
        if asked not in ("", []) and not says(turns, asked):
            given = turns_at(row, column, asked)
            parts = (turns[start : start + len(given)] for start in range(len(turns)))
            if not any(same(given, part) for part in parts):
                raise BadRow(column, f"is no turn of '{key}': keep one of the two columns")
        row.repeats(column)


def talks(value: Any) -> bool:
    """Whether a value is a conversation in which the assistant speaks."""
    return is_messages(value) and any(
        exchange_keys(item)
        or ROLES.get(str(item.get(speaker_key(item) or "role")).strip().casefold()) == "assistant"
        for item in value
    )


def _check_mask(row: Row) -> None:
    """Check NeMo's mask, which names the speaker whose turns are not learnt. The user's never
    are.
    """
    mask = row.get("mask")
    if isinstance(mask, str) and mask.casefold() in ("user", "human"):
        row.use("mask")
    elif mask is not None:
        raise BadRow(
            "mask",
            f"is {str(mask)[:40]!r}; turns are masked one by one, with `weight: 0` in a message",
        )


def read_text(row: Row) -> Record:
    """A text that is a whole conversation in a known template's markers."""
    text = row.text("text")
    transcript = transcript_of(text, "text", row, whole=True)
    if transcript is None:
        raise BadRow(
            "text",
            "is text without a known template's markers: nothing says what is the prompt and what"
            " the answer; write messages",
        )
    if transcript.open:
        prompt = around(row, transcript.turns)
        check_prompt(prompt, "text")
        return Prompt(row.id, prompt, row.meta())
    prompt, answer = answered(around(row, transcript.turns), "text")
    return imitated(row, prompt, answer)


def read_prompt(row: Row) -> Record:
    """A prompt without an answer."""
    prompt = prompt_of(row)
    leave_copies(row, prompt, [])
    return Prompt(row.id, prompt, row.meta())


def has_prompt(row: Columns) -> bool:
    """Whether a column of its own holds the prompt, as text or messages."""
    return any(key in row for key in TEXTS)


def has_turns(row: Columns, *keys: str) -> bool:
    """Whether one of ``keys`` holds turns."""
    return any(
        key in row and (is_messages(row[key]) or isinstance(row[key], str | list)) for key in keys
    )
