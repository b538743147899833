"""The prompt of a row: the column that holds it, and the columns that stand around it in every layout.

``system``, ``system_prompt`` or ``system_message`` stand in front, ``history`` after them, ``tools`` or ``functions`` beside.
An empty one counts as absent; one of another type, or a second system turn of another text, refuses the row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from prefloop.data.check import BadRow, check_prompt, check_text, json_type
from prefloop.data.messages import is_messages, messages_of, refuse_media
from prefloop.data.row import Row
from prefloop.data.tools import tools_of
from prefloop.data.transcripts import PARSED, literal, transcript_of
from prefloop.records import Conversation, Message

TEXTS = ("prompt", "question", "instruction", "query")
"""Columns that hold a prompt, most telling first."""
CONVERSATIONS = ("messages", "conversations", "conversation")
"""Columns that hold turns."""
SYSTEMS = ("system", "system_prompt", "system_message")
_BESIDE = ("input", "context")
"""Columns that follow the instruction."""


def prompt_column(row: Mapping[str, Any]) -> str | None:
    """The column that holds a row's prompt: a text, or turns."""
    found = next((key for key in TEXTS if row.get(key) is not None), None)
    found = found or next((key for key in CONVERSATIONS if row.get(key) not in (None, [], "")), None)
    if found is None and is_messages(row.get("context")):
        return "context"
    return found or ("input" if row.get("input") is not None else None)


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
    check_prompt(found, key)
    return found


def turns_at(row: Row, key: str, given: Any) -> list[Message]:
    """The turns of a prompt given as text (one user message, or the turns of a transcript) or as messages."""
    if isinstance(given, list):
        if len(given) == 1 and isinstance(given[0], dict) and isinstance(given[0].get("content"), str):
            # The one message may hold a whole templated conversation.
            found = transcript_of(given[0]["content"], f"{key}.0.content", row)
            if found is not None and (found.open or len(found.turns) > 1):
                return found.turns
        return messages_of(given, key, row)
    if isinstance(given, dict) and is_messages([given]):
        return messages_of([given], key, row)
    text = check_text(given, key)
    found = transcript_of(text, key, row)
    return [Message("user", text)] if found is None else found.turns


def raw_text(row: Row) -> str | None:
    """The words of the prompt as its column has them, to see whether an answer repeats them."""
    key = prompt_column(row)
    value = row.get(key) if key else None
    return value if isinstance(value, str) else None


def conversation_of(row: Row, key: str) -> Conversation:
    """The turns of a column that holds a whole conversation, with what stands around it."""
    given = row.take(key)
    if isinstance(given, str):
        found = transcript_of(check_text(given, key), key, row)
        if found is None:
            raise BadRow(key, "is text, expected a list of messages")
        if found.open:
            raise BadRow(key, "ends where the assistant should answer")
        return around(row, found.turns)
    return around(row, messages_of(given, key, row))


def around(row: Row, turns: Sequence[Message], tools: Any = None, history: bool = True) -> Conversation:
    """``turns`` after the row's system text and history, with its tools; without ``history`` where that column is the prompt itself."""
    refuse_media(row)
    system = _system(row)
    before = _history(row) if history else []
    own = [turn for turn in turns if turn.role == "system"]
    if before and own and turns[0].role == "system":
        before, turns = [turns[0], *before], turns[1:]
    whole = [*before, *turns]
    if system is not None:
        first = next((turn for turn in whole if turn.role == "system"), None)
        if first is None:
            whole.insert(0, Message("system", system))
        elif first.content.strip() != system.strip():
            raise BadRow(
                next(key for key in SYSTEMS if row.get(key)),
                "says something else than the system turn beside it: keep one",
            )
    schemas = tools_of(tools, "input.tools") if tools is not None else []
    for key in ("tools", "functions"):
        if key in row and (found := tools_of(row.take(key), key)):
            if schemas and schemas != found:
                raise BadRow(key, "offers other tools than the other column of tools: keep one")
            schemas = found
    return Conversation(whole, schemas)


def _system(row: Row) -> str | None:
    texts = {key: text for key in SYSTEMS if (text := row.optional(key)) is not None}
    if len({text.strip() for text in texts.values()}) > 1:
        first, second, *_ = texts
        raise BadRow(second, f"says something else than '{first}': keep one")
    return next(iter(texts.values()), None)


def _history(row: Row) -> list[Message]:
    """Earlier turns: pairs of user and assistant texts, or messages."""
    if "history" not in row:
        return []
    value = row.take("history")
    if isinstance(value, str) and value.strip():
        row.say(PARSED)
        value = literal(value, "history") or value
    if value == "" or value == []:
        return []
    if is_messages(value):
        return messages_of(value, "history", row)
    if not isinstance(value, list):
        raise BadRow("history", f"is {json_type(value)}, expected a list of [user text, assistant text] or of messages")
    turns = []
    for index, pair in enumerate(value):
        if not isinstance(pair, list) or len(pair) != 2:
            raise BadRow(f"history.{index}", f"is {json_type(pair)}, expected [user text, assistant text]")
        turns.append(Message("user", check_text(pair[0], f"history.{index}.0")))
        turns.append(Message("assistant", check_text(pair[1], f"history.{index}.1")))
    return turns


def _beside(row: Row, key: str, turns: list[Message]) -> list[Message]:
    """The instruction and, on a new line, its input, as in LLaMA-Factory."""
    for other in _BESIDE:
        if other not in row or (other == "context" and not isinstance(row[other], str)):
            continue
        if key == "instruction":
            text = row.optional(other)
        elif not isinstance(row[other], str) or not row[other].strip():
            continue
        else:
            raise BadRow(
                other,
                f"stands beside '{key}', and nothing says where it belongs: put it into '{key}', or rename the column",
            )
        if text is not None:
            turns = [*turns[:-1], dataclasses.replace(turns[-1], content=f"{turns[-1].content}\n{text}")]
    return turns


def _fuller(row: Row, turns: list[Message]) -> list[Message]:
    """The conversation of another column whose last turn is this prompt: it says more."""
    for key in CONVERSATIONS:
        value = row.get(key)
        if is_messages(value):
            whole = messages_of(value, key, row)
            if len(whole) > len(turns) and whole[-1].role == "user" and same(whole[-len(turns) :], turns):
                row.use(key)
                return whole
    return turns


def same(some: Sequence[Message], others: Sequence[Message]) -> bool:
    """Whether turns say the same; blanks at their ends and what is learnt of them do not count."""
    return len(some) == len(others) and all(_said(a) == _said(b) for a, b in zip(some, others, strict=True))


def last_answer(turns: Sequence[Message]) -> tuple[list[Message], list[Message]]:
    """What stands before the assistant's turns at the end of a conversation, and those turns; none where another speaks last."""
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
        raise BadRow(
            "input.messages", f"is missing (found: {', '.join(k[:40] for k in list(given)[:12]) or 'nothing'})"
        )
    found = around(row, messages_of(given["messages"], "input.messages", row), given.get("tools"))
    row.message_keys |= dict.fromkeys(f"input.{key}" for key in given if key not in ("messages", "tools"))
    check_prompt(found, "input.messages")
    return found


def context(prompt: Sequence[Message]) -> Conversation:
    """The prompt whose assistant turns are read and not imitated: the file says that they are the prompt."""
    found = Conversation.of(prompt)
    return Conversation(
        (dataclasses.replace(turn, learn=False) if turn.role == "assistant" else turn for turn in found), found.tools
    )
