"""Conversations for people and judges to read: who says what, part by part.

One rule for every room (judges, chat, Argilla's page, reports): what the model sees or writes is
shown, its thoughts too. Votes and verdicts are about what is trained on. Hiding thoughts was left
out on purpose: two answers that differ in their thoughts alone would look the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from prefloop.records import Message, tools_of


class Part(NamedTuple):
    """One thing that is said; ``who`` is a heading such as ``user``, ``assistant thinks`` or
    ``tool get_weather``.
    """

    who: str
    text: str


def prompt_parts(prompt: Sequence[Message]) -> list[Part]:
    """A prompt: the tools that it offers, where there are any, and its turns."""
    tools = tools_of(prompt)
    return [*([Part("tools", tools_text(tools))] if tools else []), *parts(prompt)]


def parts(turns: Sequence[Message]) -> list[Part]:
    """The turns in order, each as its thoughts, its text and its calls. A plain turn is one part
    under its role.
    """
    called: dict[str | None, str] = {}
    found: list[Part] = []
    for turn in turns:
        called |= {call.id: call.name for call in turn.tool_calls if call.id is not None}
        found += _of_turn(turn, turn.name or called.get(turn.tool_call_id))
    return found


def tools_text(tools: Sequence[dict[str, Any]]) -> str:
    """The schemas of tools, a line each."""
    return "\n".join(json.dumps(tool.get("function", tool), ensure_ascii=False) for tool in tools)


def prompt_text(prompt: Sequence[Message]) -> str:
    """A prompt in one text: that of its only turn alone, else every part under its heading."""
    found = prompt_parts(prompt)
    if len(found) == 1 and found[0].who == "user":
        return found[0].text
    return "\n\n".join(f"[{part.who}]\n{part.text}" for part in found)


def _of_turn(turn: Message, name: str | None) -> Iterator[Part]:
    who = turn.role if not name else f"{turn.role} {' '.join(name.split())}"
    if turn.reasoning_content is not None:
        yield Part(f"{who} thinks", turn.reasoning_content)
    if turn.content or not turn.tool_calls:
        yield Part(who, turn.content)
    if turn.tool_calls:
        yield Part(f"{who} calls", "\n".join(map(str, turn.tool_calls)))
