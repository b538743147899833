"""Records → token ids, with the length rules of the run and a count of what was cut."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

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
    prompt_key,
    transcript,
)

REPEATED_WORDS = 4
"""Words of a prompt from which on an answer that begins with it repeats it."""


@dataclasses.dataclass
class Encoder:
    """Tokenizes within ``max_length`` and counts what a reader of the log should know."""

    chat: ChatFormat
    max_length: int
    cut: int = 0
    """Responses that lost their end."""
    unfinished: int = 0
    """Responses that came without an ending: the sampler cut them."""
    controls: int = 0
    """Control tokens in people's texts, encoded as plain text."""
    joined: int = 0
    """Responses whose thoughts met a generation prompt that opens ``<think>``."""
    opened: int = 0
    """Conversations that begin with the assistant."""
    answers: int = 0
    """Responses looked at; of them:"""
    with_controls: int = 0
    """hold a control token in their text,"""
    repeating: int = 0
    """begin with their prompt,"""
    ended_twice: int = 0
    """end in a control token ahead of the one that ends the turn."""

    def prompt(self, record_id: str, prompt: Sequence[Message], room: int = 1) -> list[int]:
        """Prompt ids. Raises ``TooLongError`` naming the record when fewer than ``room`` tokens are
        left for a response, ``DataError`` when the chat template refuses the prompt.
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
        """Count what in an answer's text speaks of a file that was read wrongly."""
        renderer = self.chat.renderer
        self.answers += 1
        self.controls += (found := renderer.controls_in(turns))
        self.with_controls += found > 0
        asked = prompt[-1].content.strip() if prompt[-1].role == "user" else ""
        # A short question may well be greeted back.
        self.repeating += len(asked.split()) >= REPEATED_WORDS and text.strip().startswith(asked)
        self.ended_twice += text.rstrip().endswith(tuple(renderer.controls))

    def response(
        self, record_id: str, prompt: Sequence[Message], answer: Response, prompt_length: int
    ) -> Tokens:
        """An answer's tokens within what its prompt leaves; one that does not fit loses its end
        (and EOS) and is counted.

        An empty response is its end-of-turn token alone, finished or not: a sample of nothing but
        blanks decodes to ''. Raises ``DataError`` naming the record when the chat template refuses
        the answer.
        """
        with _named(record_id, prompt):
            found = self.chat.answer(prompt, answer)
        self.unfinished += not answer.finished
        self.joined += found.joined
        self._look_at(answer_turns(answer), prompt, answer.text)
        if not found.ids:
            found = Tokens([self.chat.stop_id], [True])
        return self.within(record_id, found, prompt_length)

    def conversation(self, demonstration: Demonstration, every: bool = True) -> list[Tokens]:
        """The sequences of a demonstration: every assistant turn that may be learnt, or the last
        alone.

        Raises ``DataError`` naming the record when a prompt leaves no room or the chat template
        refuses the conversation.
        """
        turns = answer_turns(demonstration)
        with _named(demonstration.id, demonstration.prompt):
            found = self.chat.sequences(demonstration.prompt, turns, every)
        self.controls += self.chat.renderer.controls_in(demonstration.prompt)
        self._look_at(turns, demonstration.prompt, transcript(turns))
        self.joined += any(tokens.joined for tokens in found)
        self.opened += demonstration.prompt[0].role == "assistant"
        for tokens in found:
            self._require_room(
                _name(demonstration.id, demonstration.prompt), tokens.learn.index(True), 1
            )
        return [self.within(demonstration.id, tokens) for tokens in found]

    def within(self, record_id: str, found: Tokens, prompt_length: int = 0) -> Tokens:
        """``found`` within what ``prompt_length`` tokens leave of ``max_length``. Raises
        ``TooLongError`` when nothing learnt is left.
        """
        room = self.max_length - prompt_length
        if len(found.ids) <= room:
            return found
        self.cut += 1
        kept = Tokens(found.ids[:room], found.learn[:room], found.joined)
        if not any(kept.learn):
            raise TooLongError(
                f"row '{record_id}': nothing that is learnt is left within backbone.max_length ="
                f" {self.max_length}"
            )
        return kept

    def notes(self) -> list[str]:
        """What else was done to texts, a line each."""
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
    """Errors of the chat template with the record that they are about."""
    try:
        yield
    except DataError as error:
        raise DataError(f"row {_name(record_id, prompt)}: {error}") from None


def _name(record_id: str, prompt: Sequence[Message]) -> str:
    """A record by its id and its prompt's first words: an id that was made from a row stands in no
    file.
    """
    asked = next((turn.content for turn in prompt if turn.role == "user"), "")
    return f"'{record_id}' ({shortened(neutral(' '.join(asked.split())), 40)!r})"


@dataclasses.dataclass(frozen=True)
class PreferenceGroup:
    """All pairs of one prompt: every distinct response is encoded once, pairs point at them.

    ``pairs`` holds (first, second, label, weight): indices into ``document.keys``, the probability
    that the first is better, and what the pair counts for beside others.
    """

    document: Document
    pairs: list[tuple[int, int, float, float]]


@dataclasses.dataclass(frozen=True)
class ThumbGroup:
    """The rated responses to one prompt: ``up[i]`` says whether response i is desirable."""

    document: Document
    up: list[bool]


def preference_groups(
    comparisons: Sequence[Comparison],
    labels: Sequence[float],
    encoder: Encoder,
    weights: Sequence[float] | None = None,
    refuse: Callable[[str, DataError], None] | None = None,
) -> list[PreferenceGroup]:
    """Group comparisons by prompt. ``labels[i]`` is the probability that response 0 of comparison i
    is better.

    A comparison of which the encoder refuses a response goes to ``refuse`` by its id, and is left
    out; without it the error is raised, as it is for a prompt.
    """
    order: dict[str, list[int]] = {}
    for i, comparison in enumerate(comparisons):
        order.setdefault(prompt_key(comparison.prompt), []).append(i)
    groups: list[PreferenceGroup] = []
    key = 0
    for members in order.values():
        first = comparisons[members[0]]
        prompt_ids = encoder.prompt(first.id, first.prompt)
        known: dict[str, int] = {}
        responses: list[Tokens] = []
        pairs = []
        for i in members:
            try:
                found = {
                    response.key(): encoder.response(
                        comparisons[i].id, first.prompt, response, len(prompt_ids)
                    )
                    for response in comparisons[i].responses
                    if response.key() not in known
                }
            except DataError as error:
                if refuse is None:
                    raise
                refuse(comparisons[i].id, error)
                continue
            for key_of, tokens in found.items():
                known[key_of] = len(responses)
                responses.append(tokens)
            ends = [known[response.key()] for response in comparisons[i].responses]
            if (
                responses[ends[0]].ids != responses[ends[1]].ids
            ):  # cutting can make two responses equal
                pairs.append((ends[0], ends[1], labels[i], weights[i] if weights else 1.0))
        if not pairs:
            continue
        groups.append(PreferenceGroup(document_of(prompt_ids, responses, key), pairs))
        key += len(responses)
    return groups


def pair_indices(
    pack: Pack, by_key: Mapping[int, PreferenceGroup]
) -> tuple[list[int], list[int], list[float], list[float]]:
    """Positions in the pack of the two responses of each of its pairs, the pairs' labels and
    weights.
    """
    first, second, labels, weights = [], [], [], []
    start = 0
    while start < len(pack.keys):
        group = by_key[pack.keys[start]]
        for a, b, label, weight in group.pairs:
            first.append(start + a)
            second.append(start + b)
            labels.append(label)
            weights.append(weight)
        start += len(group.document.keys)
    return first, second, labels, weights
