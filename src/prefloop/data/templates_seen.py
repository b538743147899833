"""Take apart texts to which a chat template has already been applied, into the turns they were made
of.

A template applied twice would train on its own markers. A text that begins with a turn marker of a
known template is taken apart. One that begins with an unknown marker, or does not continue as it
should, is refused. ``templates_words`` has the templates whose markers are words. Control tokens in
the middle of prose are prose.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from prefloop.data.check import BadRow
from prefloop.data.markers import (
    ENDS,
    ROLES,
    Unwrapped,
    begin_cut,
    end_cut,
    made,
    marker_of,
    opened,
)
from prefloop.data.templates_words import unwrap_words
from prefloop.records import Message


@dataclass(frozen=True)
class _Family:
    name: str
    start: re.Pattern[str]
    """The beginning of a turn; its group is the speaker."""
    ends: tuple[str, ...]
    must_end: bool = False
    """Every turn except the last must have an end marker."""
    lead: str = ""
    """Text before the first turn is the system's, if this token stands before it (where it begins a
    sequence) or after it.
    """


_FAMILIES = (
    _Family(
        "ChatML",
        re.compile(r"<\|im_start\|>[ \t]*(\w+)[ \t]*(?:<\|im_sep\|>|\r?\n|$)"),
        ("<|im_end|>",),
        must_end=True,
    ),
    _Family(
        "Llama 3",
        re.compile(r"<\|start_header_id\|>\s*(\w+)\s*<\|end_header_id\|>"),
        ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"),
        must_end=True,
    ),
    _Family(
        "Llama 4",
        re.compile(r"<\|header_start\|>\s*(\w+)\s*<\|header_end\|>"),
        ("<|eot|>", "<|eom|>", "<|end_of_text|>"),
        must_end=True,
    ),
    _Family(
        "Gemma",
        re.compile(r"<start_of_turn>[ \t]*(\w+)[ \t]*(?:\r?\n|$)"),
        ("<end_of_turn>", "<eos>"),
        must_end=True,
    ),
    _Family(
        "Zephyr",
        re.compile(r"<\|(system|user|prompter|assistant|tool|observation)\|>"),
        ("</s>", "<|end|>", "<|endoftext|>", "<|end_of_text|>"),
    ),
    _Family(
        "Command R",
        re.compile(
            r"<\|START_OF_TURN_TOKEN\|><\|(SYSTEM|USER|CHATBOT)_TOKEN\|>(?:<\|START_RESPONSE\|>)?"
        ),
        ("<|END_OF_TURN_TOKEN|>", "<|END_RESPONSE|>"),
        must_end=True,
    ),
    _Family(
        "Granite",
        re.compile(r"<\|start_of_role\|>\s*(\w+)\s*<\|end_of_role\|>"),
        ("<|end_of_text|>",),
        must_end=True,
    ),
    _Family(
        "OpenChat",
        re.compile(
            r"(?:\A|(?<=<\|end_of_turn\|>))\s*(?:GPT4 Correct|GPT4|Code) (System|User|Assistant):"
        ),
        ("<|end_of_turn|>",),
        must_end=True,
        lead="<|end_of_turn|>",
    ),
    _Family(
        "DeepSeek",
        re.compile("<｜(User|Assistant)｜>"),
        ("<｜end▁of▁sentence｜>",),
        lead="<｜begin▁of▁sentence｜>",
    ),
)
_HARMONY = "gpt-oss"
_SOLVED = re.compile(
    r"\s*<\|begin_of_thought\|>(.*?)<\|end_of_thought\|>\s*<\|begin_of_solution\|>(.*?)(?:<\|end_of_solution\|>)?\s*\Z",
    re.DOTALL,
)
_CHANNEL = re.compile(r"(?:<\|start\|>)?(\w+)?(?:<\|channel\|>(\w+))?\s*(<\|message\|>)?")
_INST = re.compile(r"\s*(?:<s>)?\s*\[(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS)\]")
_INST_SYSTEM = re.compile(r"\s*(?:<s>)?\s*\[SYSTEM_PROMPT\](.*?)\[/SYSTEM_PROMPT\]", re.DOTALL)
_INST_TURN = re.compile(
    r"\s*(?:<s>)?\s*\[INST\](.*?)\[/INST\](.*?)(?=\s*(?:<s>)?\s*\[INST\]|\Z)", re.DOTALL
)
_INST_SYS = re.compile(r"\s*<<SYS>>(.*?)<</SYS>>", re.DOTALL)


def unwrap(text: str, name: str) -> Unwrapped | None:
    """The turns of a text that begins with a known template's marker; ``None`` for any other text.

    Raises ``BadRow`` for a text that begins so and does not continue so, and for one that begins
    with an unknown marker.
    """
    if not any(mark in text for mark in ("<", "[", "#", "ser:", "uman:", "rompter:", "USER:")):
        return None
    if _INST.match(text):
        return _inst(text, name)
    if (solved := _SOLVED.match(text)) is not None:
        thoughts, words = (part.strip() for part in solved.groups())
        answer = Message("assistant", f"<think>\n{thoughts}\n</think>\n\n{words}")
        return made([answer], False, "OpenThoughts", True, name)
    for family in _FAMILIES:
        if (unwrapped := _family(family, text, name)) is not None:
            return unwrapped
    body = begin_cut(text)[0].lstrip()
    if body.startswith(("<|start|>", "<|channel|>")):
        return _harmony(body, name)
    if (unwrapped := unwrap_words(text, name)) is not None:
        return unwrapped
    if (marker := marker_of(body)) is not None and end_cut(body)[0].strip():
        raise BadRow(
            name,
            f"begins with {marker}, a chat template's marker, and does not go on as a template that"
            " is known: take the markers off, or write messages",
        )
    return None


def _family(family: _Family, text: str, name: str) -> Unwrapped | None:
    body, begun = begin_cut(text)
    body = body.lstrip()
    starts = list(family.start.finditer(body))
    if not starts:
        return None
    lead = body[: starts[0].start()].strip()
    if lead:
        if not family.lead or not (family.lead in begun or lead.endswith(family.lead)):
            return None
        lead = lead.removesuffix(family.lead).strip()
    turns = [Message("system", lead)] if lead else []
    for index, start in enumerate(starts):
        last = index == len(starts) - 1
        words = body[start.end() : len(body) if last else starts[index + 1].start()]
        words, ended = _ended(words, family, f"turn {index + 1}", name)
        if family.must_end and not ended and not last:
            raise BadRow(
                name,
                f"begins with {family.name}'s markers, but turn {index + 1} has no"
                f" {family.ends[0]}",
            )
        speaker = start.group(1).casefold()
        if speaker not in ROLES:
            raise BadRow(
                name, f"holds {family.name}'s markers with an unknown role {speaker[:40]!r}"
            )
        open = thinks = False
        if last and ROLES[speaker] == "assistant" and not ended:
            open, thinks = opened(words)
        if open:
            return made(turns, True, family.name, True, name, thinks=thinks)
        turns.append(Message(ROLES[speaker], words if family.name == "ChatML" else words.strip()))
    return made(turns, False, family.name, True, name)


def _harmony(body: str, name: str) -> Unwrapped:
    """Take apart gpt-oss's turns. The channel ``analysis`` holds the thoughts of what the assistant
    says next.
    """
    turns: list[Message] = []
    thoughts: str | None = None
    pieces = [piece for piece in re.split(r"(?=<\|start\|>)", body) if piece]
    for index, piece in enumerate(pieces):
        head = _CHANNEL.match(piece)
        role = ROLES.get((head.group(1) or "assistant").casefold()) if head else None
        words, end = end_cut(piece[head.end() :]) if head else ("", [])
        nothing = not words.strip() and not end
        if (
            head is None
            or role is None
            or "<|" in words
            or not (head.group(3) or nothing)
            or head.group(2) not in (None, "analysis", "final")
        ):
            raise BadRow(
                name,
                f"holds {_HARMONY}'s markers in turn {index + 1} that are not read (a tool call?):"
                " write messages",
            )
        if nothing and index == len(pieces) - 1:
            return made(turns, True, _HARMONY, True, name)
        if head.group(2) == "analysis":
            thoughts = words.strip()
        else:
            turns.append(Message(role, words.strip(), thoughts if role == "assistant" else None))
            thoughts = None if role == "assistant" else thoughts
    if thoughts is not None:
        raise BadRow(
            name, f"holds {_HARMONY}'s thoughts without the answer after them: write messages"
        )
    return made(turns, False, _HARMONY, True, name)


def _ended(words: str, family: _Family, turn: str, name: str) -> tuple[str, bool]:
    places = [place for end in family.ends if (place := words.find(end)) >= 0]
    if not places:
        return words, False
    rest = words[min(places) :]
    for end in (*family.ends, *ENDS):
        rest = rest.replace(end, "")
    if rest.strip():
        raise BadRow(
            name,
            f"begins with {family.name}'s markers, but text follows the end of {turn}: take the"
            " markers off",
        )
    return words[: min(places)], True


def _inst(text: str, name: str) -> Unwrapped:
    turns: list[Message] = []
    at = 0
    if system := _INST_SYSTEM.match(text):
        turns.append(Message("system", system.group(1).strip()))
        at = system.end()
    answer = ""
    while turn := _INST_TURN.match(text, at):
        words, answer = turn.groups()
        if at and turns and turns[-1].role == "user":
            raise BadRow(
                name, "holds [INST] turns without an answer between them: take the markers off"
            )
        if inner := _INST_SYS.match(words):
            turns.append(Message("system", inner.group(1).strip()))
            words = words[inner.end() :]
        turns.append(Message("user", words.strip()))
        answer = end_cut(answer)[0].strip()
        if answer:
            turns.append(Message("assistant", answer))
        at = turn.end()
    if at < len(text.rstrip()) or not turns or turns[-1].role == "system":
        raise BadRow(name, "begins with [INST] markers and does not go on so: take the markers off")
    return made(turns, not answer, "[INST]", True, name)
