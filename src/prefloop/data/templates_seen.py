"""Texts that a chat template has already been applied to → the turns they were made of.

A template applied twice trains on its own markers. What begins with a turn marker of a known template is taken apart; what
begins so and cannot be taken apart is refused. Markers without control tokens ("### Human:", "USER:", alpaca's headings)
are words that people write too: they count only where the assistant's marker follows. Control tokens in the middle of
prose are prose.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

from prefloop.data.check import BadRow
from prefloop.records import Message, Role

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "instruction": "user",
    "assistant": "assistant",
    "model": "assistant",
    "response": "assistant",
    "gpt": "assistant",
    "tool": "tool",
    "ipython": "tool",
    "observation": "tool",
}
_ENDS = (
    "<|im_end|>",
    "</s>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "<|end|>",
    "<|endoftext|>",
    "<eos>",
    "<｜end▁of▁sentence｜>",
)


@dataclass(frozen=True)
class Unwrapped:
    """The turns that a text held, whether it is open for the assistant's answer, and whose markers they were."""

    turns: list[Message]
    open: bool
    template: str
    control: bool
    """Whether the markers are control tokens rather than words."""


@dataclass(frozen=True)
class _Family:
    name: str
    start: re.Pattern[str]
    """A turn's beginning; its group is the speaker."""
    ends: tuple[str, ...]
    bos: tuple[str, ...] = ()
    must_end: bool = False
    """Every turn but the last has an end marker."""
    control: bool = True
    lead: bool = False
    """Text before the first turn is the system's."""


_FAMILIES = (
    _Family("ChatML", re.compile(r"<\|im_start\|>[ \t]*(\w+)[ \t]*(?:\n|$)"), ("<|im_end|>",), ("<s>",), must_end=True),
    _Family(
        "Llama 3",
        re.compile(r"<\|start_header_id\|>\s*(\w+)\s*<\|end_header_id\|>"),
        ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"),
        ("<|begin_of_text|>",),
        must_end=True,
    ),
    _Family(
        "Gemma",
        re.compile(r"<start_of_turn>[ \t]*(\w+)[ \t]*(?:\n|$)"),
        ("<end_of_turn>", "<eos>"),
        ("<bos>",),
        must_end=True,
    ),
    _Family(
        "Zephyr",
        re.compile(r"<\|(system|user|assistant|tool|observation)\|>"),
        ("</s>", "<|end|>", "<|endoftext|>", "<|end_of_text|>"),
        ("<s>",),
    ),
    _Family(
        "DeepSeek",
        re.compile("<｜(User|Assistant)｜>"),
        ("<｜end▁of▁sentence｜>",),
        ("<｜begin▁of▁sentence｜>",),
        lead=True,
    ),
    _Family("### Human", re.compile(r"### ?(Human|Assistant|System):"), ("</s>",), ("<s>",), control=False),
    _Family(
        "USER: ASSISTANT:",
        re.compile(r"(?:^|(?<=\s)|(?<=</s>))(USER|ASSISTANT):"),
        ("</s>",),
        ("<s>",),
        control=False,
        lead=True,
    ),
)
_WHATEVER_BEGINS = re.compile(
    r"\s*(?:<s>|<\|begin_of_text\|>|<bos>)?\s*(?:<\|im_start\|>|<\|start_header_id\|>|<start_of_turn>)"
)
_ALPACA = re.compile(r"### (Instruction|Input|Response|Output):")
_ALPACA_LEAD = re.compile(r"Below is an instruction that describes a task[^#]*\Z")
_VICUNA_LEAD = "A chat between "
_INST = re.compile(r"\s*(?:<s>)?\s*\[(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS)\]")
_INST_SYSTEM = re.compile(r"\s*(?:<s>)?\s*\[SYSTEM_PROMPT\](.*?)\[/SYSTEM_PROMPT\]", re.DOTALL)
_INST_TURN = re.compile(r"\s*(?:<s>)?\s*\[INST\](.*?)\[/INST\](.*?)(?=\s*(?:<s>)?\s*\[INST\]|\Z)", re.DOTALL)
_INST_SYS = re.compile(r"\s*<<SYS>>(.*?)<</SYS>>", re.DOTALL)
_TRAILING = re.compile(r"\s*(" + "|".join(map(re.escape, _ENDS)) + r")\s*\Z")


def end_cut(text: str) -> tuple[str, list[str]]:
    """An answer without the end-of-turn markers after it, and those markers, the last one first."""
    markers = []
    while (found := _TRAILING.search(text)) is not None:
        # '<s>so</s>' is struck-out text in HTML.
        if found.group(1) == "</s>" and text.count("<s>") >= text.count("</s>"):
            break
        text = text[: found.start()]
        markers.append(found.group(1))
    return text, markers


def unwrap(text: str, name: str) -> Unwrapped | None:
    """The turns of a text that begins with a known template's marker, ``None`` for any other text.

    Raises ``BadRow`` for a text that begins so and does not go on so.
    """
    if not any(mark in text for mark in ("<", "[", "#", "USER:")):
        return None
    if _INST.match(text):
        return _inst(text, name)
    if "### Instruction:" in text and (found := _alpaca(text)) is not None:
        return found
    for family in _FAMILIES:
        if (unwrapped := _family(family, text, name)) is not None:
            return unwrapped
    if _WHATEVER_BEGINS.match(text):
        raise BadRow(name, "begins with a chat template's marker and does not go on as one: take the markers off")
    return None


def _family(family: _Family, text: str, name: str) -> Unwrapped | None:
    body = text.lstrip()
    for bos in family.bos:
        while body.startswith(bos):
            body = body.removeprefix(bos).lstrip()
    starts = list(family.start.finditer(body))
    if not starts:
        return None
    lead = body[: starts[0].start()].strip()
    if not family.control and not _certain(family, [start.group(1) for start in starts], lead):
        return None
    if lead and not (family.lead and (family.control or lead.startswith(_VICUNA_LEAD)) and _begins(family, text)):
        return None
    turns = [Message("system", lead)] if lead else []
    for index, start in enumerate(starts):
        last = index == len(starts) - 1
        words = body[start.end() : len(body) if last else starts[index + 1].start()]
        words, ended = _ended(words, family, f"turn {index + 1}", name)
        if family.must_end and not ended and not last:
            raise BadRow(name, f"begins with {family.name}'s markers, but turn {index + 1} has no {family.ends[0]}")
        speaker = start.group(1).casefold()
        if speaker not in _ROLES:
            raise BadRow(name, f"holds {family.name}'s markers with an unknown role {speaker[:40]!r}")
        if last and _ROLES[speaker] == "assistant" and not ended and not words.strip():
            return _made(turns, True, family.name, family.control, name)
        turns.append(Message(_ROLES[speaker], words if family.name == "ChatML" else words.strip()))
    return _made(turns, False, family.name, family.control, name)


def _begins(family: _Family, text: str) -> bool:
    """Whether a text with words before its first marker still begins as its template does."""
    return not family.control or text.lstrip().startswith(family.bos)


def _certain(family: _Family, speakers: list[str], lead: str) -> bool:
    roles = [_ROLES[speaker.casefold()] for speaker in speakers]
    talk = [role for role in roles if role != "system"]
    turned = all(a != b for a, b in itertools.pairwise(talk))
    return "assistant" in talk and talk[0] == "user" and turned and (not lead or family.lead)


def _ended(words: str, family: _Family, turn: str, name: str) -> tuple[str, bool]:
    places = [place for end in family.ends if (place := words.find(end)) >= 0]
    if not places:
        return words, False
    rest = words[min(places) :]
    for end in (*family.ends, *_ENDS):
        rest = rest.replace(end, "")
    if rest.strip():
        raise BadRow(
            name, f"begins with {family.name}'s markers, but text follows the end of {turn}: take the markers off"
        )
    return words[: min(places)], True


def _made(turns: list[Message], open: bool, template: str, control: bool, name: str) -> Unwrapped:
    kept = [turn for turn in turns if turn.role != "system" or turn.content.strip()]
    if not kept or any(not turn.content.strip() for turn in kept if turn.role != "tool"):
        raise BadRow(name, f"holds {template}'s markers around nothing: an empty turn")
    return Unwrapped(kept, open, template, control)


def _inst(text: str, name: str) -> Unwrapped:
    turns: list[Message] = []
    at = 0
    if system := _INST_SYSTEM.match(text):
        turns.append(Message("system", system.group(1).strip()))
        at = system.end()
    answer = ""
    while found := _INST_TURN.match(text, at):
        words, answer = found.groups()
        if at and turns and turns[-1].role == "user":
            raise BadRow(name, "holds [INST] turns without an answer between them: take the markers off")
        if inner := _INST_SYS.match(words):
            turns.append(Message("system", inner.group(1).strip()))
            words = words[inner.end() :]
        turns.append(Message("user", words.strip()))
        answer = end_cut(answer)[0].strip()
        if answer:
            turns.append(Message("assistant", answer))
        at = found.end()
    if at < len(text.rstrip()) or not turns or turns[-1].role == "system":
        raise BadRow(name, "begins with [INST] markers and does not go on so: take the markers off")
    return _made(turns, not answer, "[INST]", True, name)


def _alpaca(text: str) -> Unwrapped | None:
    body = text.strip()
    heads = list(_ALPACA.finditer(body))
    kinds = [head.group(1).replace("Output", "Response") for head in heads]
    lead = body[: heads[0].start()].strip()
    pattern = re.fullmatch("(?:Instruction (?:Input )?Response ?)+", " ".join(kinds))
    if not pattern or (lead and not _ALPACA_LEAD.match(lead)):
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
    return Unwrapped(turns, turns[-1].role == "user", "alpaca", False)
