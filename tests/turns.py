"""Records with all that a model can see: a system turn, tools, thoughts, calls, results."""

from __future__ import annotations

from typing import Any

from prefloop.records import Conversation, Message, Response, ToolCall

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather <now> & here",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def call(city: str = "Bern", id: str = "c1") -> ToolCall:
    return ToolCall("get_weather", {"city": city}, id)


def asked() -> Conversation:
    """A prompt that ends in a tool's result."""
    return Conversation(
        [
            Message("system", "Be brief."),
            Message("user", "Is it warm in Bern?"),
            Message("assistant", "", "I should look.", [call()]),
            Message("tool", '{"celsius": 31, "note": "<sun>"}', tool_call_id="c1"),
        ],
        [WEATHER],
    )


def looked(city: str = "Thun", said: str = "Yes, warm.") -> Response:
    """An answer that thinks, calls, is given a result and speaks."""
    return Response.of(
        [
            Message("assistant", "", "Better ask again.", [call(city, "c2")]),
            Message("tool", "30", tool_call_id="c2", name="get_weather"),
            Message("assistant", said),
        ],
        "sft",
        {"n": 1},
    )
