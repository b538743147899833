"""A response as a judge gets it: its text, or the whole record where it has more than text."""

from __future__ import annotations

from typing import Any

from prefloop.records import Message, Response, answer_turns

Reply = str | Response
"""The text of a plain response, or the ``Response`` where it has turns: thoughts, tool calls and
their results.
"""


def reply_of(response: Response) -> Reply:
    """The form in which a judge gets a response."""
    return response if response.turns else response.text


def text_of(reply: Reply) -> str:
    """The reply as people read it."""
    return reply if isinstance(reply, str) else reply.text


def turns_of(reply: Reply) -> list[Message]:
    """The reply's turns. Plain text is one turn of the assistant."""
    return [Message("assistant", reply)] if isinstance(reply, str) else answer_turns(reply)


def response_of(reply: Reply) -> Response:
    """The reply as a record."""
    return Response(reply) if isinstance(reply, str) else reply


def same_as(reply: Reply) -> Any:
    """The identity of a reply, ready for JSON: its text, or its turns. Whether it was cut does not
    count.
    """
    return reply if isinstance(reply, str) else reply.said()


def differ(one: Reply, other: Reply) -> bool:
    """Whether two replies differ. Blanks around plain texts do not count."""
    first, second = same_as(one), same_as(other)
    if isinstance(first, str) and isinstance(second, str):
        return first.strip() != second.strip()
    return bool(first != second)
