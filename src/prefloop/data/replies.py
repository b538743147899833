"""A response on its way to a judge: its text alone, or the whole record where it is more than
that.
"""

from __future__ import annotations

from typing import Any

from prefloop.records import Message, Response, answer_turns

Reply = str | Response
"""The text of a plain response; the ``Response`` where it has turns: thoughts, tool calls and their
results.
"""


def reply_of(response: Response) -> Reply:
    """What a judge is given of a response."""
    return response if response.turns else response.text


def text_of(reply: Reply) -> str:
    """The reply as people read it."""
    return reply if isinstance(reply, str) else reply.text


def turns_of(reply: Reply) -> list[Message]:
    """The reply's turns; one of the assistant where it is plain text."""
    return [Message("assistant", reply)] if isinstance(reply, str) else answer_turns(reply)


def response_of(reply: Reply) -> Response:
    """The reply as a record."""
    return Response(reply) if isinstance(reply, str) else reply


def same_as(reply: Reply) -> Any:
    """What makes two replies the same, ready for JSON: the text of a plain one, else its turns. Cut
    or not plays no part.
    """
    return reply if isinstance(reply, str) else reply.said()


def differ(one: Reply, other: Reply) -> bool:
    """Whether two replies say different things; blanks around plain texts are no difference."""
    first, second = same_as(one), same_as(other)
    if isinstance(first, str) and isinstance(second, str):
        return first.strip() != second.strip()
    return bool(first != second)
