"""Convert the records of a file into the kind that a stage asks for: pairs, thumbs, answers or
prompts.

- any → prompt: the prompt. Each distinct conversation is taken once, from its first row.
- pair → answer: the response that most votes chose. Tie votes count for neither, and strengths are
  not weighed. A pair whose votes are even or absent is skipped. Assistant turns of its prompt are
  context, since the file says that they are the prompt.
- answer → answer: an answer whose last turns are masked ends with the last turn that is learnt.
  Without such a turn it is skipped.
- thumbs → answer: the response, if more thumbs are up than down; otherwise it is skipped.
- pair → thumbs: two ratings, ``<id>/0`` and ``<id>/1``. Every vote is a thumb up for its choice and
  a thumb down for the other response, by the same annotator. A tie vote is no thumb. A pair without
  a decided vote is skipped.
- best of n → pair: every good response against every other one, ``<id>/<i>-<j>``, with one vote for
  the good one.
- thumbs → pair: within one prompt, the k-th up-voted response (more up than down) meets the k-th
  down-voted one, and the shorter list starts over, so that every response is used and the number of
  pairs grows linearly. The first response is the up-voted one. Every annotator of either casts one
  vote, for the response that the thumbs favor (a tie if equal). Undecided responses, prompts with
  thumbs of one kind only, and equal texts are skipped.

Pair → thumbs → pair returns the same choices, with the preferred response first. A thumb has no
``strength``, so it is lost. A prompt holds no answer and an answer no preference: asking for them
is an error.
"""

from __future__ import annotations

import json
import tempfile
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import numpy as np

from prefloop.data.prompts import context, last_answer
from prefloop.data.seen import Seen, hash64
from prefloop.records import (
    BestOf,
    Comparison,
    Conversation,
    Demonstration,
    Prompt,
    Rating,
    Record,
    Response,
    Thumb,
    Vote,
    answer_turns,
    from_dict,
    prompt_key,
    to_dict,
)

SOURCES: dict[type, tuple[type, ...]] = {
    Prompt: (Prompt, Demonstration, Comparison, Rating, BestOf),
    Demonstration: (Demonstration, Comparison, Rating),
    Comparison: (Comparison, Rating, BestOf),
    Rating: (Rating, Comparison),
    BestOf: (BestOf,),
}
"""For every kind of record, the kinds from which it can be made."""

Skipped = Counter[str]


def convert(records: Iterable[Record], kind: type, skipped: Skipped) -> Iterator[Record]:
    """Records of ``kind`` from records of the kinds in ``SOURCES[kind]``. Lazy, except for thumbs,
    which wait on disk for a partner.

    ``skipped`` counts, by reason, what gave no record. Records that are already of ``kind`` pass
    unchanged, except that prompts are made distinct.
    """
    seen = Seen()
    ratings = _Ratings()
    for record in records:
        if kind is Prompt:
            key = prompt_key(record.prompt)
            if seen.get(key) is not None:
                skipped["prompt seen before"] += 1
            else:
                seen.add(key, 1)
                yield Prompt(record.id, record.prompt, record.meta)
        elif kind is Demonstration and isinstance(record, Demonstration):
            yield from _learnt(record, skipped)
        elif isinstance(record, kind):
            yield record
        elif kind is Demonstration and isinstance(record, Comparison | Rating):
            yield from _demonstration(record, skipped)
        elif kind is Rating and isinstance(record, Comparison):
            yield from comparison_to_ratings(record, skipped)
        elif kind is Comparison and isinstance(record, BestOf):
            yield from best_of_to_comparisons(record)
        elif kind is Comparison and isinstance(record, Rating):
            ratings.add(record, skipped)
        else:
            raise TypeError(f"no {kind.__name__} can be made of a {type(record).__name__}")
    yield from ratings.pairs(skipped)


def _demonstration(record: Comparison | Rating, skipped: Skipped) -> Iterator[Demonstration]:
    if isinstance(record, Rating):
        if net_thumbs(record.votes) > 0:
            yield _imitated(record, record.response)
        else:
            skipped["not up-voted"] += 1
        return
    votes = Counter(vote.choice for vote in record.votes)
    if votes[0] == votes[1]:
        skipped["tied or without votes"] += 1
        return
    yield _imitated(record, record.first if votes[0] > votes[1] else record.second)


def _imitated(record: Comparison | Rating, response: Response) -> Demonstration:
    return Demonstration.of(record.id, context(record.prompt), answer_turns(response), record.meta)


def _learnt(record: Demonstration, skipped: Skipped) -> Iterator[Demonstration]:
    answer = answer_turns(record)
    if answer[-1].learn:
        yield record
        return
    turns = [*record.prompt, *answer]
    while turns and not (turns[-1].role == "assistant" and turns[-1].learn):
        turns.pop()
    before, last = last_answer(turns)
    if not before:
        skipped["every assistant turn is masked out (weight 0)"] += 1
        return
    yield Demonstration.of(record.id, Conversation(before, record.prompt.tools), last, record.meta)


def comparison_to_ratings(record: Comparison, skipped: Skipped) -> Iterator[Rating]:
    """Both responses of a pair with the thumbs that its votes give."""
    decided = [vote for vote in record.votes if vote.choice != "tie"]
    if not decided:
        skipped["tied or without votes"] += 1
        return
    for index, response in enumerate(record.responses):
        thumbs = [
            Thumb(vote.annotator, "up" if vote.choice == index else "down", vote.why, vote.at)
            for vote in decided
        ]
        yield Rating(f"{record.id}/{index}", record.prompt, response, thumbs, record.meta)


def unrated(records: Iterable[Comparison]) -> Iterator[Rating]:
    """Both responses of every pair as ratings without thumbs, to put to the vote. Ids are those of
    ``comparison_to_ratings``.
    """
    for record in records:
        for index, response in enumerate(record.responses):
            yield Rating(f"{record.id}/{index}", record.prompt, response, [], record.meta)


def best_of_to_comparisons(record: BestOf) -> Iterator[Comparison]:
    """Every good response against every other one."""
    for i in record.best:
        for j, other in enumerate(record.responses):
            if j not in record.best and record.responses[i].text.strip() != other.text.strip():
                id, pair = f"{record.id}/{i}-{j}", [record.responses[i], other]
                vote = Vote(record.responses[i].source, 0)
                yield Comparison(id, record.prompt, pair, [vote], record.meta)


class _Ratings:
    """Thumbs that wait on disk for a partner. In memory each takes 17 bytes: a hash of its prompt,
    the position of its record, and whether it is up.
    """

    def __init__(self) -> None:
        self._file: Any = None
        self._prompts, self._places, self._up = array("Q"), array("Q"), array("b")

    def add(self, rating: Rating, skipped: Skipped) -> None:
        """Keep a decided rating. One with as many thumbs up as down is counted and left out."""
        net = net_thumbs(rating.votes)
        if net == 0:
            skipped["as many thumbs up as down"] += 1
            return
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="prefloop-")  # noqa: SIM115 (closed with the last reference to it)
        self._prompts.append(hash64(prompt_key(rating.prompt)))
        self._places.append(self._file.tell())
        self._up.append(net > 0)
        self._file.write(json.dumps(to_dict(rating)).encode("ascii") + b"\n")

    def pairs(self, skipped: Skipped) -> Iterator[Comparison]:
        """Pairs of an up-voted and a down-voted response to the same prompt; prompts are in the
        order of their first rating.
        """
        if self._file is None:
            return
        prompts = np.frombuffer(self._prompts, dtype=np.uint64)
        _, first, group = np.unique(prompts, return_index=True, return_inverse=True)
        # By the prompt's first rating, then in the order of the file.
        order = np.lexsort((np.arange(len(prompts)), first[group]))
        ends = [*(np.flatnonzero(np.diff(first[group][order])) + 1).tolist(), len(order)]
        start = 0
        for end in ends:
            members = order[start:end].tolist()
            start = end
            ups = [i for i in members if self._up[i]]
            downs = [i for i in members if not self._up[i]]
            if not ups or not downs:
                skipped["no opposite thumb for the same prompt"] += len(members)
                continue
            for index in range(max(len(ups), len(downs))):
                up, down = self._at(ups[index % len(ups)]), self._at(downs[index % len(downs)])
                if up.response.text.strip() == down.response.text.strip():
                    skipped["same text up-voted and down-voted"] += 1
                else:
                    yield _pair(up, down)

    def _at(self, index: int) -> Rating:
        self._file.seek(self._places[index])
        return from_dict(Rating, json.loads(self._file.readline()))


def _pair(up: Rating, down: Rating) -> Comparison:
    favors: Counter[str] = Counter()
    thumbs: dict[str, Thumb] = {}
    for rating, sign in ((up, 1), (down, -1)):
        for thumb in rating.votes:
            favors[thumb.annotator] += sign if thumb.value == "up" else -sign
            thumbs.setdefault(thumb.annotator, thumb)
    votes = []
    for name, net in favors.items():
        choice: Literal[0, 1, "tie"] = "tie" if net == 0 else 0 if net > 0 else 1
        votes.append(Vote(name, choice, why=thumbs[name].why, at=thumbs[name].at))
    meta = {**down.meta, **up.meta}
    return Comparison(f"{up.id}+{down.id}", up.prompt, [up.response, down.response], votes, meta)


def net_thumbs(votes: Iterable[Thumb]) -> int:
    """Thumbs up minus thumbs down."""
    return sum(1 if vote.value == "up" else -1 for vote in votes)
