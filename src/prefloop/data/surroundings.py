"""Read the columns around a prompt, which are the same in every layout: its system text, earlier
turns, tools, and other parts.

System texts (``SYSTEMS``, in any spelling: ``systemPrompt``, ``System``) come first, then
``history`` and ``chat_history``; ``tools`` or ``functions`` become the prompt's tools. An empty
column counts as absent. A column of another type, or a second system turn of another text, refuses
the row. So does a column whose name says that it is part of the prompt (``PARTS``), if its words
occur nowhere in it: the file does not say where it belongs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prefloop.data.check import BadRow, check_text, json_type
from prefloop.data.messages import is_messages, messages_of, parts_of, refuse_media
from prefloop.data.row import Row
from prefloop.data.tools import spelt, tools_of
from prefloop.data.transcripts import PARSED, literal
from prefloop.records import Conversation, Message, ToolSchema

SYSTEMS = ("system", "system_prompt", "system_message", "system_instruction")
_SYSTEMS = frozenset(name.replace("_", "") for name in SYSTEMS)
HISTORIES = ("history", "chat_history")
PARTS = (
    "input",
    "context",
    "contexts",
    "passage",
    "passages",
    "document",
    "documents",
    "article",
    "background",
    "persona",
    "choices",
    "options",
)
"""Names of columns that are part of the prompt, at a place that the file does not tell."""


def is_system(key: str) -> bool:
    """Whether a column's name is a name of the system text."""
    return key.replace("_", "").casefold() in _SYSTEMS


def around(
    row: Row, turns: Sequence[Message], tools: Any = None, history: bool = True
) -> Conversation:
    """``turns`` after the row's system text and history, with its tools. ``history`` is false where
    that column is something else.
    """
    refuse_media(row)
    key, system = _system(row)
    before = _history(row, turns) if history else []
    own = [turn for turn in turns if turn.role == "system"]
    if before and own and turns[0].role == "system":
        before, turns = [turns[0], *before], turns[1:]
    whole = [*before, *turns]
    if system is not None:
        first = next((turn for turn in whole if turn.role == "system"), None)
        if first is None:
            whole.insert(0, Message("system", system))
        elif first.content.strip() != system.strip():
            raise BadRow(key, "says something else than the system turn: keep one")
    _check_parts(row, whole)
    return Conversation(whole, _tools(row, tools))


def says(turns: Sequence[Message], value: Any) -> bool:
    """Whether every text of a value occurs in ``turns``, as whole words."""
    spoken = " ".join(" ".join(turn.content for turn in turns).split())
    texts = (re.escape(" ".join(text.split())) for text in texts_in(value))
    return all(re.search(rf"(?<!\w){text}(?!\w)", spoken) for text in texts)


def texts_in(value: Any) -> Iterator[str]:
    """The texts that a column holds. Of messages only what is said, not who says it."""
    if isinstance(value, str):
        if value.strip():
            yield value
    elif isinstance(value, list):
        for item in value:
            yield from texts_in(item)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if key not in ("role", "from"):
                yield from texts_in(item)


def _check_parts(row: Row, turns: Sequence[Message]) -> None:
    for key in PARTS:
        if row.left(key) and not says(turns, row[key]):
            raise BadRow(
                key,
                "looks like a part of the prompt, and nothing says where it belongs: write it into"
                " the prompt, name it 'system' where it stands in front, or rename it (to"
                f" '{key}_note') where it is no part",
            )


def _system(row: Row) -> tuple[str, str | None]:
    texts = {
        key: text for key in row if is_system(key) and (text := _system_text(row, key)) is not None
    }
    if len({text.strip() for text in texts.values()}) > 1:
        first, second, *_ = texts
        raise BadRow(second, f"says something else than '{first}': keep one")
    return next(iter(texts.items()), ("system", None))


def _system_text(row: Row, key: str) -> str | None:
    """A system text, given as text, as a message, or as the text parts of one."""
    value = row.take(key)
    if isinstance(value, dict) and ("parts" in value or value.get("role") == "system"):
        value = value.get("parts", value.get("content"))
    if isinstance(value, list):
        value, thoughts = parts_of(value, key)
        if thoughts:
            raise BadRow(key, "holds thoughts; the assistant alone has them")
    if not isinstance(value, str):
        raise BadRow(key, f"is {json_type(value)}, expected text")
    return value if value.strip() else None


def _tools(row: Row, given: Any) -> list[ToolSchema]:
    """The tools of the row, from its columns, from the system turns in its conversation, or from
    the prompt's own object.
    """
    tools_by_key = dict(row.offered)
    if given is not None:
        tools_by_key["input.tools"] = tools_of(given, "input.tools")
    for key in ("tools", "functions"):
        if key in row:
            tools_by_key[key] = tools_of(row.take(key), key)
    schemas: list[ToolSchema] = []
    for key, offered in tools_by_key.items():
        if schemas and offered and schemas != offered:
            raise BadRow(key, "offers other tools than another column or turn: keep one")
        schemas = schemas or offered
    row.tools = schemas
    return schemas


def _history(row: Row, turns: Sequence[Message]) -> list[Message]:
    """Earlier turns, given as pairs of user and assistant texts or as messages. A `context` of
    messages next to a prompt counts as history too.
    """
    keys = [key for key in HISTORIES if row.left(key)]
    if row.left("context") and is_messages(row["context"]):
        keys.append("context")
    earlier_turns: dict[str, list[Message]] = {
        key: read for key in keys if (read := _earlier(row, key))
    }
    if len(earlier_turns) > 1:
        first, second, *_ = earlier_turns
        if earlier_turns[first] != earlier_turns[second]:
            raise BadRow(second, f"says something else than '{first}': keep one")
    for key, earlier in earlier_turns.items():
        if turns and earlier[-1] == turns[-1] and turns[-1].role == "user":
            earlier = earlier[:-1]  # It ends with the question itself.
        if earlier and earlier[-1].role == "user" and turns and turns[0].role == "user":
            raise BadRow(
                key,
                "ends with the user's turn, and the prompt is another one: end it with the"
                " assistant's answer",
            )
        return earlier
    return []


def _earlier(row: Row, key: str) -> list[Message]:
    value = row.take(key)
    if isinstance(value, str) and value.strip():
        row.say(PARSED)
        parsed = literal(value, key) or spelt(value)
        value = parsed if isinstance(parsed, list) else value
    if value == "" or value == []:
        return []
    if is_messages(value):
        return messages_of(value, key, row)
    if not isinstance(value, list):
        raise BadRow(
            key,
            f"is {json_type(value)}, expected a list of [user text, assistant text] or of messages",
        )
    turns = []
    for index, pair in enumerate(value):
        if not isinstance(pair, list) or len(pair) != 2:
            raise BadRow(
                f"{key}.{index}", f"is {json_type(pair)}, expected [user text, assistant text]"
            )
        turns.append(Message("user", check_text(pair[0], f"{key}.{index}.0")))
        turns.append(Message("assistant", check_text(pair[1], f"{key}.{index}.1")))
    return turns
