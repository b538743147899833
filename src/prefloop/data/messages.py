"""Read a file's messages, of whatever convention, into the turns of a record.

Roles are those of OpenAI, ShareGPT, LLaMA-Factory, axolotl, ms-swift and OASST, in any case; others
are refused. Content is text or a list of text parts; pictures and audio are refused by name. Keys
that say how a turn is trained on (``weight``, ``loss``, ``train`` …) become ``learn``. A bare
``mask: 1`` is refused, because loss masks write 1 for what is learnt, while the word "mask" means
what is not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from prefloop.base.console import listed
from prefloop.data.check import (
    BadRow,
    check_text,
    check_turn,
    field_of,
    json_type,
    number_of,
    text_of,
    truth_of,
)
from prefloop.data.judged import learnt, thumb_column
from prefloop.data.row import Row
from prefloop.data.templates_seen import unwrap
from prefloop.data.tools import calls_of, tools_of
from prefloop.records import Message, Role, ToolCall

_BY_ROLE: dict[Role, str] = {
    "system": "system developer",
    "user": "user human prompter",
    "assistant": "assistant gpt bot model chatgpt chatbot ai function_call tool_call",
    "tool": "tool function observation tool_response tool_result ipython environment",
}
ROLES: dict[str, Role] = {name: role for role, names in _BY_ROLE.items() for name in names.split()}
_CALLS = frozenset({"function_call", "tool_call"})

_SPEAKERS = ("role", "from")
_TYPES = ("human", "ai", "system", "tool")
_EXCHANGES = (("input", "output"), ("human", "assistant"), ("user", "assistant"))
_ALTERNATING = ("conversations", "conversation")
"""Columns in which a list of texts alternates between user and assistant, as in LIMA. Elsewhere
such a list may hold the user's texts only.
"""
_TEXTS = ("content", "value", "text", "parts", "refusal")
"""Keys of a turn's text. The text of a refusal is what the assistant says."""
_THOUGHTS = ("reasoning_content", "reasoning", "thinking", "thoughts", "reasoning_details")
_LEARNT = ("weight", "loss", "train", "training", "trainable", "learn", "loss_weight", "loss_mask")
_MASKED = ("mask", "masked", "ignore")
_DETAILS = ("train_detail", "training_detail")
_CALLED = ("tool_calls", "function_call", "function_calls")
_OFFERS = ("tools", "functions")
_EMPTY: tuple[Any, ...] = (None, "", [], {})
"""Values that count as absent. 0 and false do not: they are values of a wrong type for a text or a
list.
"""
_NOT_TEXT = re.compile("image|audio|video|file|document")
_MEDIA = ("images", "image", "audios", "audio", "videos", "video")
_KNOWN = frozenset(
    {*_TEXTS, *_THOUGHTS, *_LEARNT, *_MASKED, *_DETAILS, *_MEDIA, *_CALLED, *_OFFERS}
    | {"name", "tool_call_id"}
)


def is_messages(value: Any) -> bool:
    """Whether a value is a list of messages: objects that each name a speaker, or hold a question
    with its answer.
    """
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(item, dict)
            and (speaker_key(item) is not None or exchange_keys(item) is not None)
            for item in value
        )
    )


def speaker_key(item: Mapping[str, Any]) -> str | None:
    """The key under which a message names its speaker. LangChain's ``type`` is one where it names a
    speaker.
    """
    key = next((key for key in _SPEAKERS if item.get(key) is not None), None)
    kind = item.get("type")
    return "type" if key is None and isinstance(kind, str) and kind in _TYPES else key


def exchange_keys(item: Mapping[str, Any]) -> tuple[str, str] | None:
    """The keys of a question and its answer in one object, as in conversations of distilabel and
    XTuner.
    """
    keys = {key for key, value in item.items() if value is not None} - {"system"}
    return next((names for names in _EXCHANGES if keys == set(names)), None)


def refuse_media(row: Mapping[str, Any], name: str = "") -> None:
    """Refuse a row or message with pictures, audio or video."""
    for key in _MEDIA:
        if row.get(key):
            raise BadRow(
                f"{name}.{key}" if name else key,
                "holds pictures, audio or video; prefloop trains on text: leave them out",
            )


def messages_of(value: Any, name: str, row: Row) -> list[Message]:
    """The turns of a list of messages. Raises ``BadRow`` for an empty list, unknown roles and turns
    without text.
    """
    if not isinstance(value, list):
        raise BadRow(name, f"is {json_type(value)}, expected a list of messages")
    if not value:
        raise BadRow(name, "is an empty list")
    ends_before = len(row.ended)
    turns: list[Message] = []
    texts = name in _ALTERNATING and all(isinstance(item, str) for item in value)
    if texts:
        row.say("texts in turn read as the user's and the assistant's")
    for index, item in enumerate(value):
        where = f"{name}.{index}"
        if texts:
            item = {
                "role": "user" if index % 2 == 0 else "assistant",
                "content": check_text(item, where),
            }
        keys = exchange_keys(item) if isinstance(item, dict) else None
        if keys is not None:
            pair = [*(["system"] if item.get("system") not in _EMPTY else []), *keys]
            roles = ("system", "user", "assistant")[-len(pair) :]
            for key, role in zip(pair, roles, strict=True):
                spoken = {"role": role, "content": item[key]}
                if (turn := message_of(spoken, f"{where}.{key}", row)) is not None:
                    turns.append(turn)
        elif (turn := message_of(item, where, row)) is not None:
            turns.append(turn)
    if not turns:
        raise BadRow(name, "holds an empty system turn alone")
    # Only the last answer of a conversation shows whether the file marks ends: some files write one
    # marker after the whole.
    row.ended[ends_before:] = row.ended[ends_before:][-1:]
    return turns


def message_of(item: Any, name: str, row: Row) -> Message | None:
    """One turn; ``None`` for an empty system turn."""
    if not isinstance(item, dict):
        raise BadRow(name, f"is {json_type(item)}, expected an object with role and content")
    if isinstance(inner := item.get("data"), dict) and speaker_key(item) == "type":
        item = inner | {"type": item["type"]}  # LangChain's.
    refuse_media(item, name)
    role_key = speaker_key(item) or "role"
    speaker = text_of(item, role_key, f"{name}.{role_key}").strip().casefold()
    if speaker not in ROLES:
        raise BadRow(
            f"{name}.{role_key}",
            f"unknown role {item[role_key][:40]!r} (known: {', '.join(ROLES)}); rename it to who"
            " speaks",
        )
    role = ROLES[speaker]
    key, content, thoughts = _content(item, name, ROLES[speaker])
    for offer in _OFFERS:
        if item.get(offer) not in _EMPTY:
            row.offer(tools_of(item[offer], f"{name}.{offer}"), f"{name}.{offer}")
    calls = _calls(item, name, row)
    if speaker in _CALLS and not calls:
        calls, content = calls_of(content, f"{name}.{key}", row.message_keys), ""
        if not calls:
            raise BadRow(f"{name}.{key}", "holds no tool call")
    if calls and role != "assistant":
        raise BadRow(
            f"{name}.tool_calls", f"stand in the {role}'s turn; the assistant alone calls tools"
        )
    if role == "system" and not content.strip():
        row.say("empty system turns left out")
        return None
    if thoughts is not None and role != "assistant":
        raise BadRow(
            f"{name}.{_THOUGHTS[0]}",
            f"stands in the {role}'s turn; the assistant alone has thoughts",
        )
    learn = _learn(item, name)
    judged = learnt(item, name) if role == "assistant" and _is_imitated(name, row) else {}
    for judge, good in judged.items():
        if learn is not None and learn != good:
            raise BadRow(
                f"{name}.{judge}",
                "contradicts what else the message says of its turn: keep one of them",
            )
        learn = good
    if learn is False and judged:
        row.say(f"turns that {listed(judged)} calls bad are context and not learnt")
    others = [
        k
        for k, v in item.items()
        if v not in _EMPTY and k not in _KNOWN and k not in judged and k != role_key
    ]
    if learn is True and role != "assistant":
        others += [k for k in _LEARNT if item.get(k) is not None and truth_of(item[k])]
    row.message_keys |= dict.fromkeys(others)
    content = _bare(content, role, f"{name}.{key}", row)
    message = Message(
        role,
        row.without_end(content) if role == "assistant" else content,
        thoughts,
        calls,
        _word(item, "tool_call_id", name),
        _word(item, "name", name),
        True if learn is None or role != "assistant" else learn,
    )
    check_turn(message, name)
    return message


def _is_imitated(name: str, row: Row) -> bool:
    """Whether a turn belongs to a conversation that is learnt as it is: one without a rejected
    answer, and without a thumb for the whole.
    """
    return (
        name.partition(".")[0] in ("messages", "conversations", "conversation")
        and not any("rejected" in column for column in row)
        and thumb_column(row) is None
    )


def _content(item: Mapping[str, Any], name: str, role: Role) -> tuple[str, str, str | None]:
    """The key of a turn's text, the text, and the thoughts before it."""
    keys = [key for key in _TEXTS if item.get(key) is not None]
    spoken = [
        _thought(item[key], f"{name}.{key}") for key in _THOUGHTS if item.get(key) not in _EMPTY
    ]
    if not keys:
        if all(item.get(key) in _EMPTY for key in _CALLED):
            key = "value" if "from" in item else "content"
            field_of(item, key, f"{name}.{key}")
        return "content", "", _one(spoken, f"{name}.{_THOUGHTS[0]}")
    texts = []
    for key in keys:
        value = item[key]
        if role == "tool" and (
            isinstance(value, dict) or (isinstance(value, list) and not _are_parts(value))
        ):
            value = json.dumps(value, ensure_ascii=False)
        if isinstance(value, list):
            value, thoughts = parts_of(value, f"{name}.{key}")
            spoken += thoughts
        if not isinstance(value, str):
            raise BadRow(f"{name}.{key}", f"is {json_type(value)}, expected text")
        if value or len(keys) == 1:
            texts.append(value)
    text = _one(texts, f"{name}.{keys[-1]}") or ""
    return keys[0], text, _one(spoken, f"{name}.{_THOUGHTS[0]}")


def _one(texts: list[str], name: str) -> str | None:
    different = list(dict.fromkeys(texts))
    if len(different) > 1:
        raise BadRow(name, "says something else than another key of the same meaning: keep one")
    return different[0] if different else None


def _thought(value: Any, name: str) -> str:
    """Thoughts given as text, or as OpenRouter's list of ``reasoning.text``."""
    if isinstance(value, list) and all(isinstance(part, dict) for part in value):
        for index, part in enumerate(value):
            if part.get("type") not in ("reasoning.text", "thinking", "text", None):
                raise BadRow(
                    f"{name}.{index}",
                    f"is of type {str(part['type'])[:40]!r}; thoughts are read as text",
                )
        value = "".join(
            text_of(part, "thinking" if "thinking" in part else "text", f"{name}.{index}.text")
            for index, part in enumerate(value)
        )
    if not isinstance(value, str):
        raise BadRow(name, f"is {json_type(value)}, expected text")
    return value


def _are_parts(value: list[Any]) -> bool:
    """Whether a tool's result is a list of text parts, or a list that is the result itself."""
    return all(
        isinstance(part, str) or (isinstance(part, dict) and ("type" in part or "text" in part))
        for part in value
    )


def parts_of(parts: list[Any], name: str) -> tuple[str, list[str]]:
    """The text of a list of parts, joined without separator as chat templates join them, and the
    thoughts among the parts.
    """
    texts: list[str] = []
    thoughts: list[str] = []
    for index, part in enumerate(parts):
        where = f"{name}.{index}"
        if isinstance(part, str):
            texts.append(part)
            continue
        if not isinstance(part, dict):
            raise BadRow(where, f"is {json_type(part)}, expected a text part")
        refuse_media(part, where)
        if any(part.get(key) is not None for key in _SPEAKERS):
            raise BadRow(where, "is a message within a message, expected a text part")
        kind = part.get("type", "text")
        if kind in ("text", "input_text", "output_text", "refusal"):
            text = part.get("text", part.get("content", part.get("refusal")))
            if not isinstance(text, str):
                raise BadRow(f"{where}.text", f"is {json_type(text)}, expected text")
            (thoughts if part.get("thought") is True else texts).append(text)
        elif kind in ("thinking", "reasoning"):
            given = (part[key] for key in ("thinking", "reasoning", "text") if key in part)
            thoughts.append(_thought(next(given, None), where))
        elif isinstance(kind, str) and _NOT_TEXT.search(kind):
            raise BadRow(
                where,
                f"is a part of type {kind[:40]!r}; prefloop trains on text: leave the row out",
            )
        else:
            raise BadRow(
                where,
                f"is a part of type {str(kind)[:40]!r}; text parts are read: write it as text or as"
                " tool_calls",
            )
    return "".join(texts), ["".join(thoughts)] if thoughts else []


def _calls(item: Mapping[str, Any], name: str, row: Row) -> list[ToolCall]:
    """A turn's calls, under the new key or an old one. Under several keys they must be the same
    calls.
    """
    calls = {
        key: calls_of(item[key], f"{name}.{key}", row.message_keys)
        for key in _CALLED
        if item.get(key) not in _EMPTY
    }
    first, *others = calls or [""]
    for key in others:
        one, other = ([(c.name, c.arguments) for c in calls[k]] for k in (first, key))
        if one != other:
            raise BadRow(f"{name}.{key}", f"calls something else than {first}: keep one of them")
    return calls.get(first, [])


def _word(item: Mapping[str, Any], key: str, name: str) -> str | None:
    value = item.get(key)
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise BadRow(f"{name}.{key}", f"is {json_type(value)}, expected text")
    return str(value)


def _learn(item: Mapping[str, Any], name: str) -> bool | None:
    """Whether a turn is imitated, by its flags; ``None`` without a flag."""
    flags: dict[str, bool] = {}
    for key in _LEARNT:
        if item.get(key) is not None:
            if (learnt := truth_of(item[key])) is None:
                raise BadRow(
                    f"{name}.{key}", f"is {str(item[key])[:40]!r}, expected true or false (1 or 0)"
                )
            flags[key] = learnt
    for key in _MASKED:
        if item.get(key) is not None:
            masked = truth_of(item[key])
            if masked is None or number_of(item[key]) is not None:
                raise BadRow(
                    f"{name}.{key}",
                    f"is {str(item[key])[:40]!r}, which may mean learnt or left out: write `weight:"
                    " 1` or `weight: 0`",
                )
            flags[key] = not masked
    for key in _DETAILS:
        if item.get(key):
            raise BadRow(
                f"{name}.{key}",
                "marks parts of a turn; prefloop imitates whole turns: use `train` true or false",
            )
    if len(set(flags.values())) > 1:
        raise BadRow(
            f"{name}.{next(reversed(flags))}", f"contradicts {next(iter(flags))}: keep one of them"
        )
    return next(iter(flags.values()), None)


def _bare(content: str, role: Role, name: str, row: Row) -> str:
    """The text of a turn without a chat template's own markers around it."""
    unwrapped = unwrap(content, name)
    if unwrapped is None or not (unwrapped.control or unwrapped.open):
        return row.without_begin(content)
    # Markers that are words and ask for an answer, as alpaca's headings do, belong to a user's
    # turn. Control tokens may stand around any one turn.
    asks = unwrapped.open and not unwrapped.control
    turn = unwrapped.turns[0]
    if (
        unwrapped.open != asks
        or len(unwrapped.turns) != 1
        or turn.role != role
        or turn.reasoning_content is not None
    ):
        template = unwrapped.template
        raise BadRow(
            name,
            f"begins with {template}'s markers and holds more than the {role}'s turn: take the"
            " markers off",
        )
    row.say(f"{unwrapped.template} markers taken off messages")
    return check_text(unwrapped.turns[0].content, name)
