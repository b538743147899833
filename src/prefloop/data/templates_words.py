"""Chat templates whose markers are words: ``### Human:``, ``USER:``, alpaca's headings, ``User:``
at the beginning of a line.

People write such words too, so they count only where the assistant's marker follows the user's in
turn. The most common ones, and those after a text of any kind, count in a prompt only where it ends
with the assistant's marker. A text that must be a whole conversation does not need that.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

from prefloop.data.markers import ROLES, Unwrapped, begin_cut, end_cut, made, opened
from prefloop.records import Message


@dataclass(frozen=True)
class _Family:
    name: str
    start: re.Pattern[str]
    """The beginning of a turn; its group is the speaker."""
    weak: bool = False
    lead: str = "\0"
    """How the template's own text before the first turn begins, which is the system's. Another
    beginning makes the text weak.
    """


_FAMILIES = (
    _Family("### Human", re.compile(r"### ?(Human|User|Assistant|System):")),
    _Family(
        "USER: ASSISTANT:",
        re.compile(r"(?:^|(?<=\s)|(?<=</s>))(USER|ASSISTANT):"),
        lead="A chat between ",
    ),
    _Family("<human>: <bot>:", re.compile(r"^<(human|bot)>:", re.MULTILINE)),
    _Family("prompter: assistant:", re.compile(r"^(prompter|assistant):", re.MULTILINE)),
    _Family(
        "User: Assistant:", re.compile(r"^(User|Human|Assistant|System):", re.MULTILINE), weak=True
    ),
)
_TELLS = ("###", "USER:", "<human>:", "prompter:", "User:", "Human:")
_ALPACA = re.compile(r"### (Instruction|Input|Response|Output):")
_ALPACA_LEAD = re.compile(r"Below is an instruction that describes a task[^#]*\Z")


def unwrap_words(text: str, name: str) -> Unwrapped | None:
    """The turns of a text with word markers; ``None`` for any other text."""
    if not any(mark in text for mark in _TELLS):
        return None
    if "### Instruction:" in text and (unwrapped := _alpaca(text)) is not None:
        return unwrapped
    tries = (_family(family, text, name) for family in _FAMILIES)
    return next((unwrapped for unwrapped in tries if unwrapped is not None), None)


def _family(family: _Family, text: str, name: str) -> Unwrapped | None:
    body = begin_cut(text)[0].lstrip()
    starts = list(family.start.finditer(body))
    if not starts or not _in_turn([start.group(1) for start in starts]):
        return None
    lead = body[: starts[0].start()].strip()
    turns = [Message("system", lead)] if lead else []
    open = thinks = False
    for index, start in enumerate(starts):
        last = index == len(starts) - 1
        words = end_cut(body[start.end() : len(body) if last else starts[index + 1].start()])[0]
        role = ROLES[start.group(1).casefold()]
        if last and role == "assistant":
            open, thinks = opened(words)
        if not open:
            turns.append(Message(role, words.strip()))
    weak = not open and (family.weak or (bool(lead) and not lead.startswith(family.lead)))
    if any(not turn.content for turn in turns):
        return None
    return made(turns, open, family.name, False, name, weak, thinks)


def _in_turn(speakers: list[str]) -> bool:
    """Whether the user begins, after at most a system text, and user and assistant alternate."""
    roles = [ROLES[speaker.casefold()] for speaker in speakers]
    talk = [role for role in roles if role != "system"]
    turned = all(a != b for a, b in itertools.pairwise(talk))
    return "assistant" in talk and talk[0] == "user" and turned and "system" not in roles[1:]


def _alpaca(text: str) -> Unwrapped | None:
    body = begin_cut(text)[0].strip()
    heads = list(_ALPACA.finditer(body))
    kinds = [head.group(1).replace("Output", "Response") for head in heads]
    lead = body[: heads[0].start()].strip()
    if not re.fullmatch("(?:Instruction (?:Input )?Response ?)+", " ".join(kinds)):
        return None
    turns: list[Message] = []
    for index, head in enumerate(heads):
        end = heads[index + 1].start() if index + 1 < len(heads) else len(body)
        words = end_cut(body[head.end() : end])[0].strip()
        if head.group(1) == "Input":
            if words:
                turns[-1] = Message("user", f"{turns[-1].content}\n{words}")
        elif head.group(1) == "Instruction":
            turns.append(Message("user", words))
        elif words or index + 1 < len(heads):
            turns.append(Message("assistant", words))
    if any(not turn.content for turn in turns):
        return None
    open = turns[-1].role == "user"
    if lead and not _ALPACA_LEAD.match(lead):
        if not open:
            return None
        turns.insert(0, Message("system", lead))
    return Unwrapped(turns, open, "alpaca", False)
