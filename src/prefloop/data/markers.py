"""Control tokens at the beginning or the end of a text, and the parts of a text that is written in
a chat template's markers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from prefloop.data.check import BadRow
from prefloop.records import Message, Role

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "instruction": "user",
    "assistant": "assistant",
    "model": "assistant",
    "response": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "tool": "tool",
    "ipython": "tool",
    "observation": "tool",
}
ENDS = (
    "<|im_end|>",
    "</s>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|eot|>",
    "<|eom|>",
    "<|EOT|>",
    "<|end_of_text|>",
    "<|end_of_turn|>",
    "<end_of_turn>",
    "<|end|>",
    "<|return|>",
    "<|endoftext|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|END_RESPONSE|>",
    "<eos>",
    "<pad>",
    "<|pad|>",
    "<|finetune_right_pad_id|>",
    "<｜end▁of▁sentence｜>",
)
BEGINS = (
    "<s>",
    "<|begin_of_text|>",
    "<bos>",
    "<BOS_TOKEN>",
    "<|startoftext|>",
    "<｜begin▁of▁sentence｜>",
    "[gMASK]<sop>",
)
_TRAILING = re.compile(r"\s*(" + "|".join(map(re.escape, ENDS)) + r")\s*\Z")
_LEADING = re.compile(r"\s*(" + "|".join(map(re.escape, BEGINS)) + r")\s*")
_MARKER = re.compile(
    r"\s*(<\|[^|<>\s]{1,60}\|>|<｜[^｜<>\s]{1,60}｜>|<(?:start|end)_of_\w+>"
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|gMASK)\])"
)
_OPENED = re.compile(r"\s*<think>\s*(</think>\s*)?\Z")


@dataclass(frozen=True)
class Unwrapped:
    """The turns that a text held, whether it ends where the assistant should answer, and the
    template of its markers.
    """

    turns: list[Message]
    open: bool
    template: str
    control: bool
    """Whether the markers are control tokens and not words."""
    weak: bool = False
    """Whether the markers are words with which a person's text may begin as well."""
    thinks: bool = False
    """Whether it ends inside the assistant's thoughts."""


def end_cut(text: str) -> tuple[str, list[str]]:
    """An answer without the end-of-turn markers after it, and those markers, the last one first."""
    markers = []
    while (match := _TRAILING.search(text)) is not None:
        # '<s>so</s>' is struck-out text in HTML.
        if match.group(1) == "</s>" and text.count("<s>") >= text.count("</s>"):
            break
        text = text[: match.start()]
        markers.append(match.group(1))
    return text, markers


def begin_cut(text: str, html: bool = False) -> tuple[str, list[str]]:
    """A text without the tokens that begin a sequence in front of it, and those tokens. With
    ``html``, an ``<s>`` that is closed stays.
    """
    markers = []
    while (match := _LEADING.match(text)) is not None and not (
        html and match.group(1) == "<s>" and "</s>" in text
    ):
        text = text[match.end() :]
        markers.append(match.group(1))
    return text, markers


def marker_of(text: str) -> str | None:
    """The control token with which a text begins, if any."""
    match = _MARKER.match(text)
    return match.group(1) if match else None


def opened(words: str) -> tuple[bool, bool]:
    """Whether an assistant's turn without an end is still empty, and whether it has begun to
    think.
    """
    if not words.strip():
        return True, False
    match = _OPENED.match(words)
    return match is not None, match is not None and match.group(1) is None


def made(
    turns: list[Message],
    open: bool,
    template: str,
    control: bool,
    name: str,
    weak: bool = False,
    thinks: bool = False,
) -> Unwrapped:
    """The result of taking a text apart, without empty system turns. Raises ``BadRow`` for any
    other empty turn.
    """
    kept = [turn for turn in turns if turn.role != "system" or turn.content.strip()]
    if not kept or any(not turn.content.strip() for turn in kept if turn.role != "tool"):
        raise BadRow(name, f"holds {template}'s markers around nothing: an empty turn")
    return Unwrapped(kept, open, template, control, weak, thinks)
