"""Conversations as people and judges read them, part by part with headings.

One rule for judges, chat, Argilla's pages and reports: everything that the model sees or writes is
shown, its thoughts too, because votes and verdicts are about what is trained on. If thoughts were
hidden, two answers that differ in their thoughts only would look the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from prefloop.records import Message, ToolSchema, tools_of


class Part(NamedTuple):
    """One part of a conversation. ``who`` is its heading, such as ``user``, ``assistant thinks`` or
    ``tool get_weather``.
    """

    who: str
    text: str


def prompt_parts(prompt: Sequence[Message]) -> list[Part]:
    """The parts of a prompt: the tools that it offers, if any, and its turns."""
    tools = tools_of(prompt)
    return [*([Part("tools", tools_text(tools))] if tools else []), *parts(prompt)]


def parts(turns: Sequence[Message]) -> list[Part]:
    """The parts of turns, in order: each turn's thoughts, text and calls. A plain turn is one part
    under its role.
    """
    called: dict[str | None, str] = {}
    shown: list[Part] = []
    for turn in turns:
        called |= {call.id: call.name for call in turn.tool_calls if call.id is not None}
        shown += _of_turn(turn, turn.name or called.get(turn.tool_call_id))
    return shown


def tools_text(tools: Sequence[ToolSchema]) -> str:
    """The schemas of tools, a line each."""
    return "\n".join(json.dumps(tool.get("function", tool), ensure_ascii=False) for tool in tools)


def prompt_text(prompt: Sequence[Message]) -> str:
    """A prompt as one text: the text of its only turn, or every part under its heading."""
    shown = prompt_parts(prompt)
    if len(shown) == 1 and shown[0].who == "user":
        return shown[0].text
    return "\n\n".join(f"[{part.who}]\n{part.text}" for part in shown)


def _of_turn(turn: Message, name: str | None) -> Iterator[Part]:
    who = turn.role if not name else f"{turn.role} {' '.join(name.split())}"
    if turn.reasoning_content is not None:
        yield Part(f"{who} thinks", turn.reasoning_content)
    if turn.content or not turn.tool_calls:
        yield Part(who, turn.content)
    if turn.tool_calls:
        yield Part(f"{who} calls", "\n".join(map(str, turn.tool_calls)))
