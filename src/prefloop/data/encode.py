"""Records → token ids, with the length rules of the run and a count of what was cut."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from prefloop.data.chat import ChatFormat
from prefloop.data.packing import Document, Pack
from prefloop.errors import TooLongError
from prefloop.records import Comparison, Message, Response


@dataclasses.dataclass
class Encoder:
    """Tokenises within ``max_length``; ``cut`` counts the responses that lost their end."""

    chat: ChatFormat
    max_length: int
    cut: int = 0
    unfinished: int = 0
    """Responses that came without an ending: the sampler cut them."""

    def prompt(self, record_id: str, prompt: Sequence[Message], room: int = 1) -> list[int]:
        """Prompt ids. Raises ``TooLongError`` naming the record when fewer than ``room`` tokens are left for a response."""
        ids = self.chat.prompt_ids(prompt)
        if len(ids) + room > self.max_length:
            raise TooLongError(
                f"prompt '{record_id}' has {len(ids)} tokens; with {room} for the response that is over backbone.max_length = {self.max_length}: "
                "shorten the prompt, or raise max_length up to the model's context"
            )
        return ids

    def response(self, text: str, prompt_length: int, finished: bool = True) -> list[int]:
        """Response ids within what the prompt leaves; a response that does not fit loses its end (and EOS) and is counted.

        An empty response is its end-of-turn token alone, finished or not: a sample of nothing but blanks decodes to ''.
        """
        self.unfinished += not finished
        ids = self.chat.response_ids(text, finished) or [self.chat.stop_id]
        room = self.max_length - prompt_length
        if len(ids) > room:
            self.cut += 1
            return ids[:room]
        return ids


@dataclasses.dataclass(frozen=True)
class PreferenceGroup:
    """All pairs of one prompt: every distinct response is encoded once, pairs point at them.

    ``pairs`` holds (first, second, label, weight): indices into ``document.keys``, the probability that the first is better, and what
    the pair counts for beside others.
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
) -> list[PreferenceGroup]:
    """Group comparisons by prompt. ``labels[i]`` is the probability that response 0 of comparison i is better."""
    order: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for i, comparison in enumerate(comparisons):
        order.setdefault(tuple((m.role, m.content) for m in comparison.prompt), []).append(i)
    groups: list[PreferenceGroup] = []
    key = 0
    for members in order.values():
        first = comparisons[members[0]]
        prompt_ids = encoder.prompt(first.id, first.prompt)
        known: dict[tuple[str, bool], int] = {}
        responses: list[list[int]] = []
        pairs = []
        for i in members:
            ends = [_index(r, known, responses, encoder, len(prompt_ids)) for r in comparisons[i].responses]
            if responses[ends[0]] != responses[ends[1]]:  # cutting can make two responses equal
                pairs.append((ends[0], ends[1], labels[i], weights[i] if weights else 1.0))
        if not pairs:
            continue
        document = Document(prompt_ids, responses, list(range(key, key + len(responses))))
        key += len(responses)
        groups.append(PreferenceGroup(document, pairs))
    return groups


def _index(
    response: Response,
    known: dict[tuple[str, bool], int],
    responses: list[list[int]],
    encoder: Encoder,
    prompt_length: int,
) -> int:
    identity = (response.text, bool(response.meta.get("finished", True)))
    if identity not in known:
        known[identity] = len(responses)
        responses.append(encoder.response(identity[0], prompt_length, identity[1]))
    return known[identity]


def pair_indices(
    pack: Pack, by_key: Mapping[int, PreferenceGroup]
) -> tuple[list[int], list[int], list[float], list[float]]:
    """Positions in the pack of the two responses of each of its pairs, the pairs' labels and weights."""
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
