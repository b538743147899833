"""Render conversations by a chat template into text in which only the template itself writes
control tokens.

People's texts may hold the characters of a control token (``<|im_end|>`` in a question about
templates). Before the template runs, each is replaced by a mark of two noncharacters, and it is
encoded as plain text afterwards. So no text can end a turn or begin another.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Iterator, Sequence
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from prefloop.data import template_limits
from prefloop.errors import DataError
from prefloop.records import Message, ToolSchema

template_limits.limit()

# Noncharacters of Unicode: valid in UTF-8, and never part of texts that are exchanged.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_STASHED = re.compile(f"{_OPEN}([0-9]+){_CLOSE}")
_MARKERS = re.compile(r"\{%-?\s*generation\s*-?%\}")

_SPOKEN = ("<think>", "</think>")
"""What an assistant writes itself, even where a tokenizer calls it special."""

Span = tuple[int, int]


class Renderer:
    """One tokenizer's chat template. ``controls`` are the texts of its control tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        # Some tokenizers (Phi-3) mark the token that ends a turn as special in the table of added
        # tokens only.
        added = {
            token.content for token in tokenizer.added_tokens_decoder.values() if token.special
        }
        controls = {*tokenizer.all_special_tokens, *added} - {"", *_SPOKEN}
        self.controls = sorted(controls, key=lambda token: (-len(token), token))
        self.control_ids = frozenset(tokenizer.convert_tokens_to_ids(self.controls))
        self._stash = [*self.controls, _OPEN, _CLOSE]
        self._places = {text: f"{_OPEN}{place}{_CLOSE}" for place, text in enumerate(self._stash)}
        self._found = re.compile("|".join(map(re.escape, self._stash)))
        self._last: tuple[list[Any], str] = ([], "")
        alone, line, both = (self._tokens(text) for text in ("x", "\n", "\nx"))
        # SentencePiece and its relatives put a blank before what they take for the start of a text.
        self._puts_blank = both[: len(line)] == line and both[len(line) :] != alone

    @property
    def marks_turns(self) -> bool:
        """Whether the template marks the assistant's words by ``{% generation %}``."""
        template = self.tokenizer.chat_template
        return isinstance(template, str) and bool(_MARKERS.search(template))

    def controls_in(self, turns: Sequence[Message]) -> int:
        """Number of control tokens in people's texts."""
        return sum(len(self._found.findall(text)) for turn in turns for text in _texts(turn))

    def render(self, turns: Sequence[Message], tools: Sequence[ToolSchema], generate: bool) -> str:
        """The template's text of ``turns``; with ``generate``, up to where the assistant answers.

        Raises ``DataError`` with the template's own message where it refuses the turns.
        """
        try:
            return self.tokenizer.apply_chat_template(
                [self._message(turn) for turn in turns],
                tools=[self._guarded(tool) for tool in tools] or None,
                add_generation_prompt=generate,
                tokenize=False,
            )
        except MemoryError:
            raise
        except Exception as error:  # a template is a program of others and may raise anything
            raise DataError(f"the model's chat template refuses it: {_reason(error)}") from None

    def prompt(self, turns: Sequence[Message], tools: Sequence[ToolSchema]) -> str:
        """The whole text up to where the assistant answers. Raises ``DataError`` as ``render``
        does, and where the template leaves a part out.
        """
        # Several answers to one prompt come one after another, so the last prompt's text is kept.
        known, text = self._last
        if (
            len(known) != len(turns) + 1
            or known[0] is not tools
            or any(map(operator.is_not, known[1:], turns))
        ):
            text = self.render(turns, tools, generate=True)
            self.require_whole(turns, tools, text)
            self._last = ([tools, *turns], text)
        return text

    def render_marked(
        self, turns: Sequence[Message], tools: Sequence[ToolSchema]
    ) -> tuple[str, list[Span]]:
        """The text of a whole conversation, and the spans that the template marks as the
        assistant's. Raises ``DataError`` as ``render`` does.
        """
        try:
            texts, spans = render_jinja_template(
                conversations=[[self._message(turn) for turn in turns]],
                tools=[self._guarded(tool) for tool in tools] or None,
                chat_template=self.tokenizer.get_chat_template(None, tools or None),
                return_assistant_tokens_mask=True,
                **self.tokenizer.special_tokens_map,
            )
        except MemoryError:
            raise
        except Exception as error:  # as in ``render``
            raise DataError(f"the model's chat template refuses it: {_reason(error)}") from None
        return texts[0], [(start, end) for start, end in spans[0]]

    def ids(self, text: str, after: str = "") -> list[int]:
        """Token ids of rendered text. The template's control tokens are encoded as such, those of
        people's texts as plain text.

        ``after`` is the text that ``text`` continues: no blank is put between the two where a
        tokenizer would put one before a new text.
        """
        if _OPEN not in text:
            return self._encode(text, after)
        out: list[int] = []
        for place, part in enumerate(_STASHED.split(text)):
            if place % 2:
                out += self.plain_ids(self._stash[int(part)], after)
            elif part:
                out += self._encode(part, after)
            after = after + part or _CLOSE
        return out

    def plain_ids(self, text: str, after: str = "") -> list[int]:
        """Token ids of ``text`` without any control token among them."""
        ids = self._encode(text, after and "\n", plain=True)
        # The tokenizer still matches an added token as a whole where it does not know it as
        # special. Cut in two it does not.
        if self.control_ids & set(ids):
            ids = [*self._encode(text[:1], after and "\n"), *self._encode(text[1:], "\n")]
        return ids

    def as_text(self, text: str) -> str:
        """``text`` with the characters of control tokens in other brackets, so that people can tell
        them from the tokens.
        """
        return self._found.sub(lambda match: f"‹{match.group()[1:-1]}›", text)

    def shown(self, text: str) -> str:
        """Rendered text with people's control tokens restored."""
        return _STASHED.sub(lambda match: self._stash[int(match.group(1))], text)

    def _encode(self, text: str, after: str, plain: bool = False) -> list[int]:
        if not after or not self._puts_blank:
            return self._tokens(text, plain)
        # After a control token, or within a line: the tokenization depends on nothing further back.
        probe = next(
            (token for token in self.controls if after.endswith(token) and not plain), "\n"
        )
        head, whole = self._tokens(probe, plain), self._tokens(probe + text, plain)
        return whole[len(head) :] if whole[: len(head)] == head else self._tokens(text, plain)

    def _tokens(self, text: str, plain: bool = False) -> list[int]:
        options = {"add_special_tokens": False, "split_special_tokens": plain}
        try:
            return self.tokenizer(text, **options)["input_ids"]
        except MemoryError:
            raise
        except Exception as error:  # tokenizers written in Rust raise bare Exceptions
            raise DataError(f"the model's tokenizer refuses it: {_reason(error)}") from error

    def _message(self, turn: Message) -> dict[str, Any]:
        row = turn.to_dict()
        row.pop("learn", None)
        return self._guarded(row)

    def guarded_text(self, text: str) -> str:
        """``text`` with its control tokens replaced by marks."""
        return self._found.sub(lambda match: self._places[match.group()], text)

    def _guarded(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.guarded_text(value)
        if isinstance(value, dict):
            return {self._guarded(key): self._guarded(item) for key, item in value.items()}
        return [self._guarded(item) for item in value] if isinstance(value, list) else value

    def require_whole(
        self,
        turns: Sequence[Message],
        tools: Sequence[ToolSchema],
        rendered: str,
        first: int = 1,
    ) -> None:
        """Raise ``DataError`` naming what the template left out of the turns, numbered from
        ``first`` on, and of the tools.
        """
        text = self.shown(rendered)
        for number, turn in enumerate(turns, start=first):
            if missing := _missing(turn, text):
                raise DataError(
                    f"the model's chat template leaves out {missing} of turn {number} (the"
                    f" {turn.role}'s)"
                )
        for tool in tools:
            name = str(tool.get("function", tool).get("name", ""))
            if name not in text:
                raise DataError(
                    f"the model's chat template does not show tools: it leaves out '{name[:40]}';"
                    " take a model whose template does, or name a Jinja file that does as"
                    " backbone.chat_template"
                )


def _texts(turn: Message) -> Iterator[str]:
    yield turn.content
    if turn.reasoning_content:
        yield turn.reasoning_content
    for call in turn.tool_calls:
        yield str(call)


def _missing(turn: Message, text: str) -> str | None:
    # Templates drop the thoughts of earlier turns on purpose. What follows the thoughts must be
    # there.
    content = turn.content.rpartition("</think>")[2] if turn.role == "assistant" else turn.content
    if not _stands(content, text):
        return "the text"
    for call in turn.tool_calls:
        if call.name not in text:
            return f"the call of '{call.name[:40]}'"
        for leaf in _leaves(call.arguments):
            if not _stands(leaf, text):
                return f"arguments of the call of '{call.name[:40]}'"
    return None


def _stands(part: str, text: str) -> bool:
    part = part.strip()
    if part in text:
        return True
    # Templates may write a value as JSON, or change the blanks of a text.
    as_json = (json.dumps(part, ensure_ascii=ascii)[1:-1] for ascii in (False, True))
    return any(form in text for form in as_json) or "".join(part.split()) in "".join(text.split())


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, str):
        yield value


def _reason(error: Exception) -> str:
    words = " ".join(str(error).split())[:200]
    return words or type(error).__name__
