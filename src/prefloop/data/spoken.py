"""An assistant's turn as the chat template writes it: from its generation prompt to the token that
ends the turn.

Thoughts are part of the turn. Files give them as ``reasoning_content``, or between ``<think>`` tags
before the text; templates take the one form or the other, and some open ``<think>`` in the
generation prompt. In every case the thoughts occur once in what is learnt, or the turn is refused.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence

from prefloop.data.rendering import Renderer
from prefloop.errors import DataError
from prefloop.records import Message, ToolSchema

THINK, END_THINK = "<think>", "</think>"
_OPENED = re.compile(r"<think>\s*$")
_LEFT_OUT = (
    "the model's chat template leaves out the thoughts of an answer that is to be learnt: give them"
    " in another form (reasoning_content, or <think>…</think> ahead of the text), or choose another"
    " backbone.chat_template"
)


@dataclasses.dataclass(frozen=True)
class Spoken:
    """One turn: the text before it, its own text with its end, and whether its thoughts were joined
    to a generation prompt that opens them.
    """

    before: str
    body: str
    joined: bool = False


class Speech:
    """The assistant's turns under one template. ``stop`` is the text of the token that ends
    them.
    """

    def __init__(self, renderer: Renderer, stop: str) -> None:
        self.renderer, self.stop = renderer, stop

    def turn(self, turns: Sequence[Message], tools: list[ToolSchema]) -> Spoken:
        """The last of ``turns``, which is the assistant's.

        Raises ``DataError`` where the template refuses the turn, leaves a part of it out, or writes
        it otherwise than its generation prompt begins it.
        """
        *earlier, turn = turns
        before = self.renderer.prompt(earlier, tools)
        thoughts, rest = thoughts_of(turn)
        forms = [turn]
        if thoughts and not turn.reasoning_content:
            forms.append(dataclasses.replace(turn, content=rest, reasoning_content=thoughts))
        problem = DataError(_LEFT_OUT)
        for place, form in enumerate(forms):
            try:
                whole = self.renderer.render([*earlier, form], tools, generate=False)
                body, joined = self._behind(before, whole, thoughts)
                self.renderer.require_whole([form], [], body, first=len(turns))
            except DataError as error:
                problem = error if place == 0 else problem
                continue
            if self.holds(turn, before, body):
                return Spoken(before, self._ended(body), joined)
        raise problem

    def holds(self, turn: Message, before: str, body: str) -> bool:
        """Whether a turn's thoughts are in ``body``, after at most one ``<think>``."""
        thoughts, rest = thoughts_of(turn)
        opened = _OPENED.search(before)
        text = self.renderer.shown((opened.group() if opened else "") + body)
        return thoughts.strip() in text and text.count(THINK) <= 1 + (thoughts + rest).count(THINK)

    def sampled(self, before: str, text: str, finished: bool) -> Spoken:
        """A sampled answer after its generation prompt: its text, with the blanks that the template
        writes around one, and with its end unless it was cut.
        """
        joined = bool(_OPENED.search(before)) and text.startswith(THINK)
        words = text[len(THINK) :].lstrip("\n") if joined else text
        lead, tail = self.blanks
        end = tail + self.stop if finished else ""
        return Spoken(before, lead + self.renderer.guarded_text(words) + end, joined)

    @functools.cached_property
    def blanks(self) -> tuple[str, str]:
        """The blanks that the template writes before an answer's words, and between them and their
        end.
        """
        words = "prefloop probe"
        try:
            body = self.turn([Message("user", "q"), Message("assistant", words)], []).body
        except DataError:  # such a template writes no answer without thoughts
            return "", ""
        lead, _, tail = body.removesuffix(self.stop).partition(words)
        return ("" if lead.strip() else lead), ("" if tail.strip() else tail)

    def _behind(self, before: str, whole: str, thoughts: str) -> tuple[str, bool]:
        """The text of a rendered turn after its generation prompt, and whether its thoughts had to
        be joined to that prompt.
        """
        if whole.startswith(before):
            return whole[len(before) :], False
        opened = _OPENED.search(before)
        if not opened or not whole.startswith(before[: opened.start()]):
            at = next(
                (i for i, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b),
                len(whole),
            )
            raise DataError(
                "the model's chat template writes this answer as"
                f" {self.renderer.shown(whole[at : at + 30])!r} where its generation prompt says"
                f" {self.renderer.shown(before[at : at + 30])!r}: choose another"
                " backbone.chat_template"
            )
        rest = whole[opened.start() :]
        if rest.startswith(THINK):
            return rest[len(THINK) :].lstrip("\n"), True
        if END_THINK in rest:
            return rest, True
        if not thoughts:
            raise DataError(
                "the generation prompt opens <think>, and this answer holds no thoughts: give it"
                " some (reasoning_content, or <think>…</think> ahead of the text), or choose a"
                " backbone.chat_template that does not open them"
            )
        thought = self.renderer.guarded_text(thoughts.strip())
        return f"{thought}\n{END_THINK}\n\n{rest.lstrip()}", True

    def _ended(self, body: str) -> str:
        """``body`` up to the token that ends the turn, which is included."""
        at = body.find(self.stop)
        if at >= 0:
            return body[: at + len(self.stop)]
        text = body.rstrip()
        # Some templates end a tool call by another token than an answer.
        return text if text.endswith(tuple(self.renderer.controls)) else text + self.stop


def thoughts_of(turn: Message) -> tuple[str, str]:
    """A turn's thoughts, given separately or before its text, and the text without them."""
    if turn.reasoning_content:
        return turn.reasoning_content, turn.content
    ahead, end, rest = turn.content.partition(END_THINK)
    if not end:
        return "", turn.content
    return ahead.lstrip().removeprefix(THINK).strip(), rest.lstrip()
