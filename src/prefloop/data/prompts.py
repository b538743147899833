"""The prompt of a row: the column that holds it, and the other columns that may hold it.

An ``instruction`` is followed by its ``input`` or ``context``. Two columns that both hold a prompt
(``instruction`` beside ``question``) refuse the row, unless one says what the other says; what
stands around every prompt is in ``surroundings``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from prefloop.base.console import listed
from prefloop.data.check import BadRow, check_prompt, check_text
from prefloop.data.messages import is_messages, messages_of
from prefloop.data.row import Row
from prefloop.data.surroundings import around, says
from prefloop.data.transcripts import transcript_of
from prefloop.records import Conversation, Message

TEXTS = ("prompt", "question", "instruction", "query")
"""Columns that hold a prompt, most telling first."""
CONVERSATIONS = ("messages", "conversations", "conversation", "contents", "trajectory")
"""Columns that hold turns."""
ANSWERS = ("response", "completion", "output", "answer")
"""Columns that hold an answer."""
_BESIDE = ("input", "context")
"""Columns that follow the instruction."""
_NO_INPUT = ("<noinput>", "<no input>")
"""Alpaca's word for an instruction without an input."""


def prompt_column(row: Mapping[str, Any]) -> str | None:
    """The column that holds a row's prompt: a text, or turns."""
    found = next(
        (key for key in TEXTS if row.get(key) is not None and not written_out(row, key)), None
    )
    found = found or next(
        (key for key in CONVERSATIONS if row.get(key) not in (None, [], "")), None
    )
    if found is None and is_messages(row.get("context")):
        return "context"
    return found or ("input" if row.get("input") is not None else None)


def written_out(row: Mapping[str, Any], key: str) -> bool:
    """Whether a column is the other columns put together, the answer at its end: no prompt, but
    what a trainer once read.
    """
    whole = row.get(key)
    if not isinstance(whole, str):
        return False
    asked = [
        words
        for name in TEXTS
        if name != key and isinstance(words := row.get(name), str) and words.strip()
    ]
    for answer in (row[name].strip() for name in ANSWERS if isinstance(row.get(name), str)):
        before = whole.rstrip().removesuffix(answer).rstrip()
        # A heading or a marker stands before it: a question may end in a word that is its answer.
        ends = answer and whole.rstrip().endswith(answer) and before.endswith((":", "]", ">"))
        if ends and any(words.strip() in before for words in asked):
            return True
    return False


def prompt_of(row: Row, key: str | None = None) -> Conversation:
    """The conversation that a row's answers answer, with what stands around it."""
    key = key or prompt_column(row) or "prompt"
    given = row.take(key)
    if key == "input" and isinstance(given, dict):
        return _openai_input(row, given)
    turns = turns_at(row, key, given)
    if key in TEXTS:
        turns = _beside(row, key, turns)
        turns = _fuller(row, turns)
    found = around(row, turns)
    leave_prompts(row, key, found)
    check_prompt(found, key)
    return found


def leave_prompts(row: Row, key: str, turns: Sequence[Message]) -> None:
    """Leave out the other columns of a prompt where the prompt says what they say; refuse one that
    asks something else.
    """
    for other in TEXTS:
        if other == key or not row.left(other):
            continue
        if not written_out(row, other) and not says(turns, row[other]):
            raise BadRow(
                other,
                f"stands beside '{key}', and nothing says how the two make one prompt: write them"
                " into one column, name one 'system' where it stands in front, or rename it (to"
                f" '{other}_note') where it is no part of the prompt",
            )
        row.repeats(other)


def turns_at(row: Row, key: str, given: Any) -> list[Message]:
    """The turns of a prompt given as text (one user message, or the turns of a transcript) or as
    messages.
    """
    if isinstance(given, list):
        if (
            len(given) == 1
            and isinstance(given[0], dict)
            and isinstance(given[0].get("content"), str)
        ):
            # The one message may hold a whole templated conversation.
            found = transcript_of(given[0]["content"], f"{key}.0.content", row)
            if found is not None and (found.open or len(found.turns) > 1):
                return found.turns
        return messages_of(given, key, row)
    if isinstance(given, dict) and is_messages([given]):
        return messages_of([given], key, row)
    text = row.check_cell(check_text(given, key), key)
    found = transcript_of(text, key, row)
    return (
        [Message("user", check_text(row.without_begin(text), key))]
        if found is None
        else found.turns
    )


def raw_text(row: Row) -> str | None:
    """The words of the prompt as its column has them, to see whether an answer repeats them."""
    key = prompt_column(row)
    value = row.get(key) if key else None
    return value if isinstance(value, str) else None


def conversation_of(row: Row, key: str) -> Conversation:
    """The turns of a column that holds a whole conversation, with what stands around it."""
    given = row.take(key)
    if isinstance(given, str):
        found = transcript_of(check_text(given, key), key, row, whole=True)
        if found is None:
            raise BadRow(key, "is text, expected a list of messages")
        if found.open:
            raise BadRow(key, "ends where the assistant should answer")
        return around(row, found.turns)
    return around(row, messages_of(given, key, row))


def _beside(row: Row, key: str, turns: list[Message]) -> list[Message]:
    """The instruction and, on a new line, its input, as in LLaMA-Factory."""
    if key != "instruction":
        return turns
    for other in _BESIDE:
        if other in row and not is_messages(row[other]):
            text = row.optional(other)
            if text is not None and text.strip().casefold() in _NO_INPUT:
                row.say("inputs that say <noinput> read as none")
            elif text is not None:
                turns = [
                    *turns[:-1],
                    dataclasses.replace(turns[-1], content=f"{turns[-1].content}\n{text}"),
                ]
    return turns


def _fuller(row: Row, turns: list[Message]) -> list[Message]:
    """The conversation of another column up to this prompt, where it is the last question there: it
    says more.
    """
    for key in CONVERSATIONS:
        value = row.get(key)
        if is_messages(value):
            whole = messages_of(value, key, row)
            end = max(
                (i for i, turn in enumerate(whole, start=1) if turn.role == "user"), default=0
            )
            if end > len(turns) and same(whole[end - len(turns) : end], turns):
                if end == len(whole):
                    row.use(key)
                return whole[:end]
    return turns


def same(some: Sequence[Message], others: Sequence[Message]) -> bool:
    """Whether turns say the same; blanks at their ends and what is learnt of them do not count."""
    return len(some) == len(others) and all(
        _said(a) == _said(b) for a, b in zip(some, others, strict=True)
    )


def last_answer(turns: Sequence[Message]) -> tuple[list[Message], list[Message]]:
    """What stands before the assistant's turns at the end of a conversation, and those turns; none
    where another speaks last.
    """
    start = len(turns)
    while start and turns[start - 1].role == "assistant":
        start -= 1
    return list(turns[:start]), list(turns[start:])


def _said(turn: Message) -> tuple[Any, ...]:
    calls = [(call.name, call.arguments) for call in turn.tool_calls]
    return turn.role, turn.content.strip(), (turn.reasoning_content or "").strip(), calls


def _openai_input(row: Row, given: dict[str, Any]) -> Conversation:
    """``{"messages": […], "tools": […]}`` of OpenAI's preference files."""
    if given.get("messages") is None:
        raise BadRow("input.messages", f"is missing (found: {listed(given) or 'nothing'})")
    found = around(row, messages_of(given["messages"], "input.messages", row), given.get("tools"))
    row.message_keys |= dict.fromkeys(
        f"input.{key}" for key in given if key not in ("messages", "tools")
    )
    check_prompt(found, "input.messages")
    return found


def context(prompt: Sequence[Message]) -> Conversation:
    """The prompt whose assistant turns are read and not imitated: the file says that they are the
    prompt.
    """
    found = Conversation.of(prompt)
    return Conversation(
        (
            dataclasses.replace(turn, learn=False) if turn.role == "assistant" else turn
            for turn in found
        ),
        found.tools,
    )
