"""Turn records into token ids within ``backbone.max_length``, and count what was cut.

A pair is called the same everywhere: its responses are ``first`` and ``second``, as the record
holds them, and its label is P(first is better). "Chosen" and "rejected" occur in loss formulas and
in file layouts alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from prefloop.base.console import neutral, shortened
from prefloop.data.chat import ChatFormat
from prefloop.data.packing import Document, Pack, document_of
from prefloop.data.tokens import Tokens
from prefloop.errors import DataError, TooLongError
from prefloop.records import (
    Comparison,
    Demonstration,
    Message,
    Response,
    answer_turns,
    transcript,
)

REPEATED_WORDS = 4
"""An answer that begins with its prompt repeats it if the prompt has at least so many words."""


@dataclasses.dataclass
class Encoder:
    """Tokenizes records within ``max_length`` tokens and counts what the log should mention."""

    chat: ChatFormat
    max_length: int
    cut: int = 0
    """Responses that lost their end."""
    unfinished: int = 0
    """Responses whose end the sampler had cut."""
    controls: int = 0
    """Control tokens in people's texts, encoded as plain text."""
    joined: int = 0
    """Responses that open ``<think>`` where the generation prompt has opened it already."""
    opened: int = 0
    """Conversations that begin with the assistant."""
    answers: int = 0
    """Responses encoded so far. The next three fields count kinds of them."""
    with_controls: int = 0
    """Responses whose text holds a control token."""
    repeating: int = 0
    """Responses that begin with their prompt."""
    ended_twice: int = 0
    """Responses whose text ends in a control token, ahead of the one that ends the turn."""

    def prompt(self, record_id: str, prompt: Sequence[Message], room: int = 1) -> list[int]:
        """Token ids of a prompt.

        Raises ``TooLongError`` naming the record when fewer than ``room`` tokens are left for a
        response, and ``DataError`` when the chat template refuses the prompt.
        """
        with _named(record_id, prompt):
            ids = self.chat.prompt_ids(prompt)
        self.controls += self.chat.renderer.controls_in(prompt)
        self._require_room(_name(record_id, prompt), len(ids), room)
        return ids

    def _require_room(self, name: str, prompt: int, room: int) -> None:
        if prompt + room > self.max_length:
            raise TooLongError(
                f"prompt {name} has {prompt} tokens; with {room} for the response that is over"
                f" backbone.max_length = {self.max_length}: shorten the prompt, or raise max_length"
                " up to the model's context"
            )

    def _look_at(self, turns: Sequence[Message], prompt: Sequence[Message], text: str) -> None:
        """Count the signs in an answer's text that its file was read wrongly."""
        renderer = self.chat.renderer
        self.answers += 1
        controls = renderer.controls_in(turns)
        self.controls += controls
        self.with_controls += controls > 0
        asked = prompt[-1].content.strip() if prompt[-1].role == "user" else ""
        # An answer may well repeat a short greeting.
        self.repeating += len(asked.split()) >= REPEATED_WORDS and text.strip().startswith(asked)
        self.ended_twice += text.rstrip().endswith(tuple(renderer.controls))

    def response(
        self, record_id: str, prompt: Sequence[Message], answer: Response, prompt_length: int
    ) -> Tokens:
        """Tokens of an answer behind a prompt of ``prompt_length`` tokens. An answer that does not
        fit loses its end (and EOS) and is counted.

        An empty response is its end-of-turn token alone, finished or not: a sample of nothing but
        blanks decodes to ''. Raises ``DataError`` naming the record when the chat template refuses
        the answer, ``TooLongError`` when no learnt token of it fits.
        """
        with _named(record_id, prompt):
            tokens = self.chat.answer(prompt, answer)
        self.unfinished += not answer.finished
        self.joined += tokens.joined
        self._look_at(answer_turns(answer), prompt, answer.text)
        if not tokens.ids:
            tokens = Tokens([self.chat.stop_id], [True])
        return self.within(record_id, tokens, prompt_length)

    def conversation(self, demonstration: Demonstration, every: bool = True) -> list[Tokens]:
        """Token sequences of a demonstration. They teach every assistant turn that may be learnt,
        or, without ``every``, the last one.

        Raises ``DataError`` naming the record when a prompt leaves no room or the chat template
        refuses the conversation.
        """
        turns, prompt = answer_turns(demonstration), demonstration.prompt
        with _named(demonstration.id, prompt):
            sequences = self.chat.sequences(prompt, turns, every)
        self.controls += self.chat.renderer.controls_in(prompt)
        self._look_at(turns, prompt, transcript(turns))
        self.joined += any(tokens.joined for tokens in sequences)
        self.opened += prompt[0].role == "assistant"
        for tokens in sequences:
            self._require_room(_name(demonstration.id, prompt), tokens.learn.index(True), 1)
        return [self.within(demonstration.id, tokens) for tokens in sequences]

    def within(self, record_id: str, tokens: Tokens, prompt_length: int = 0) -> Tokens:
        """``tokens`` cut to the room that a prompt of ``prompt_length`` tokens leaves. Raises
        ``TooLongError`` when nothing that is learnt is left.
        """
        room = self.max_length - prompt_length
        if len(tokens.ids) <= room:
            return tokens
        self.cut += 1
        kept = Tokens(tokens.ids[:room], tokens.learn[:room], tokens.joined)
        if not any(kept.learn):
            raise TooLongError(
                f"row '{record_id}': nothing that is learnt is left within backbone.max_length ="
                f" {self.max_length}"
            )
        return kept

    def notes(self) -> list[str]:
        """What was done to texts, one line for each kind of change."""
        out = []
        if self.controls:
            out.append(
                f"{self.controls:,} control tokens in people's texts were encoded as plain text"
            )
        if self.opened:
            out.append(
                f"{self.opened:,} conversations begin with the assistant's turn, which nothing asks"
                " for: it is context and not learnt"
            )
        if self.joined:
            out.append(
                f"{self.joined:,} responses open <think>, which the generation prompt opens"
                " already: one of the two was taken"
            )
        return out


@contextlib.contextmanager
def _named(record_id: str, prompt: Sequence[Message]) -> Iterator[None]:
    """Put the record's name into errors of the chat template."""
    try:
        yield
    except DataError as error:
        raise DataError(f"row {_name(record_id, prompt)}: {error}") from None


def _name(record_id: str, prompt: Sequence[Message]) -> str:
    """A record's id and its prompt's first words, for errors: an id that prefloop made is in no
    file of the user's.
    """
    asked = next((turn.content for turn in prompt if turn.role == "user"), "")
    return f"'{record_id}' ({shortened(neutral(' '.join(asked.split())), 40)!r})"


class LabeledPair(NamedTuple):
    """Two responses of a group, or of a pack, by index, and what the votes say of them."""

    first: int
    second: int
    label: float
    """P(the first response is better)."""
    weight: float
    """What the pair counts for in a loss; the mean over a file is 1."""


@dataclasses.dataclass(frozen=True)
class PreferenceGroup:
    """All pairs of one prompt. Every distinct response is encoded once, and pairs hold its index
    in ``document.keys``.
    """

    document: Document
    pairs: list[LabeledPair]


@dataclasses.dataclass(frozen=True)
class ThumbGroup:
    """The rated responses to one prompt: ``up[i]`` says whether response i is desirable."""

    document: Document
    up: list[bool]


def preference_group(
    comparisons: Sequence[tuple[Comparison, float, float]],
    encoder: Encoder,
    first_key: int = 0,
    refuse: Callable[[str, DataError], None] | None = None,
) -> PreferenceGroup | None:
    """Tokenize the comparisons of one prompt.

    ``comparisons`` holds each with its label, P(first is better), and its weight. Responses get
    the keys from ``first_key`` on. A comparison whose response the encoder refuses is left out and
    handed to ``refuse`` by its id; without ``refuse`` the error is raised, as it always is for the
    prompt. Returns ``None`` where no pair of two different responses is left.
    """
    prompt = comparisons[0][0].prompt
    prompt_ids = encoder.prompt(comparisons[0][0].id, prompt)
    index_of: dict[str, int] = {}
    responses: list[Tokens] = []
    pairs: list[LabeledPair] = []
    for comparison, label, weight in comparisons:
        # Not into ``responses`` at once: where one of the two is refused, neither is kept.
        new: dict[str, Tokens] = {}
        keys = [response.key() for response in comparison.responses]
        try:
            for key, response in zip(keys, comparison.responses, strict=True):
                if key not in index_of:
                    new[key] = encoder.response(comparison.id, prompt, response, len(prompt_ids))
        except DataError as error:
            if refuse is None:
                raise
            refuse(comparison.id, error)
            continue
        for key, tokens in new.items():
            index_of[key] = len(responses)
            responses.append(tokens)
        first, second = (index_of[key] for key in keys)
        # Cutting to ``max_length`` can make two responses equal.
        if responses[first].ids != responses[second].ids:
            pairs.append(LabeledPair(first, second, label, weight))
    return PreferenceGroup(document_of(prompt_ids, responses, first_key), pairs) if pairs else None


def pair_indices(pack: Pack, by_key: Mapping[int, PreferenceGroup]) -> list[LabeledPair]:
    """The pairs of a pack's groups, with positions in the pack in place of indices in the group."""
    pairs: list[LabeledPair] = []
    start = 0
    while start < len(pack.keys):
        group = by_key[pack.keys[start]]
        pairs += (
            LabeledPair(start + first, start + second, label, weight)
            for first, second, label, weight in group.pairs
        )
        start += len(group.document.keys)
    return pairs
