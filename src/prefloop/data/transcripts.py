r"""Read whole conversations written as one text: hh-rlhf's ``\n\nHuman: … \n\nAssistant: …``, lists
of messages as strings, templated texts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from prefloop.data.check import BadRow, check_strings, check_text
from prefloop.data.messages import is_messages, messages_of
from prefloop.data.row import Row
from prefloop.data.templates_seen import unwrap
from prefloop.data.tools import spelt
from prefloop.records import Message, Role

PARSED = "messages written as a string, parsed"
_HH_TURN = re.compile(r"(?:\r?\n){2}(Human|Assistant):")
_HH_OPEN = re.compile(r"(?:\r?\n){2}Assistant:\s*\Z")
_HH_BEGIN = re.compile(r"(?:\r?\n){2}Human:|\s*Human:.*?(?:\r?\n){2}Assistant:", re.DOTALL)
_HH_ROLES: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}
# Python's repr escapes line breaks within strings, so a line break between two braces separates two
# objects, as numpy prints them.
_NUMPY = re.compile(r"\}\s*\n\s*\{")
_ONE = re.compile(r"""\s*\{\s*['"](?:role|from|content|value)['"]\s*:""")
_LISTED = re.compile(r"\s*\[\s*\{")


@dataclass(frozen=True)
class Transcript:
    """The turns of a text, and whether it ends where the assistant should answer."""

    turns: list[Message]
    open: bool = False
    weak: bool = False
    """Whether its markers are words with which a person's text, such as a dialogue, may begin as
    well.
    """


def transcript_of(text: str, name: str, row: Row, whole: bool = False) -> Transcript | None:
    """The conversation that a text holds; ``None`` for plain text. The row gets a note of what was
    done.

    In a text that must be a ``whole`` conversation, words that would be a person's elsewhere count
    as markers.
    """
    if _LISTED.match(text) and (listed := literal(text, name)) is not None:
        row.say(PARSED)
        return Transcript(messages_of(listed, name, row))
    if _ONE.match(text) and is_messages([one := spelt(text)]):
        row.say(PARSED)
        return Transcript(messages_of([one], name, row))
    if is_hh(text):
        row.say("Human/Assistant transcripts read as turns")
        open = _HH_OPEN.search(text) is not None
        row.transcript = True
        words = text.rstrip().removesuffix("Assistant:") if open else text
        return Transcript(parse_hh(words, name), open, weak=not text.startswith(("\n", "\r")))
    if (unwrapped := unwrap(text, name)) is not None and (whole or not unwrapped.weak):
        row.say(f"{unwrapped.template} markers in texts, unwrapped into messages")
        row.transcript, row.thinks = True, row.thinks or unwrapped.thinks
        row.templated = row.templated or unwrapped.control
        return Transcript(unwrapped.turns, unwrapped.open, unwrapped.weak)
    return None


def is_hh(value: Any) -> bool:
    r"""Whether a value is a text of hh-rlhf: it begins with ``\n\nHuman:``, or with ``Human:`` and
    has an ``Assistant:`` further on.
    """
    return isinstance(value, str) and _HH_BEGIN.match(value) is not None


def parse_hh(text: str, name: str) -> list[Message]:
    r"""The turns of hh-rlhf's text (``\n\nHuman: … \n\nAssistant: …``), each stripped. Raises
    ``BadRow`` for an empty turn.
    """
    before, *rest = _HH_TURN.split("\n\n" + text.lstrip())
    if before.strip() or not rest:
        raise BadRow(name, "does not begin with a 'Human:' or 'Assistant:' turn")
    turns = enumerate(zip(rest[::2], rest[1::2], strict=True))
    return [
        Message(_HH_ROLES[who], check_text(words.strip(), f"{name}.{index}"))
        for index, (who, words) in turns
    ]


def literal(text: str, name: str) -> list[Any] | None:
    """The list of messages that a text spells in JSON or in Python's repr; ``None`` where it spells
    something else.

    Raises ``BadRow`` for a text that begins so and cannot be parsed.
    """
    value = spelt(text)
    if value is None:
        value = spelt(_NUMPY.sub("}, {", text))
    if is_messages(value):
        check_strings(value, name)
        return list(value)
    if value is None and re.match(r"""\s*\[\s*\{\s*['"](role|from|content|value)['"]\s*:""", text):
        raise BadRow(
            name,
            "looks like a list of messages written as a string and cannot be parsed: write it as a"
            " list",
        )
    return None
