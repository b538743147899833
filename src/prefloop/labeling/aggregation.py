"""From votes to labels: the probability that the first response of a pair is better.

Labels are named by how they are made and computed when they are used; they are never stored in
place of the votes. ``share`` and ``majority`` look at one comparison alone. ``dawid_skene`` and
``bradley_terry`` learn from all comparisons how far each annotator can be trusted.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence

from prefloop.base.console import say
from prefloop.data.groups import Labels
from prefloop.errors import ConfigError, nearest
from prefloop.records import Comparison
from prefloop.stats.dawid_skene import dawid_skene
from prefloop.stats.graded_preferences import bradley_terry
from prefloop.stats.votes import Floats, Votes, collect


def vote_share(comparison: Comparison) -> float | None:
    """Share of the votes that are for the first response; a tie counts half. ``None`` without
    votes.
    """
    if not comparison.votes:
        return None
    for_first = (0.5 if v.choice == "tie" else float(v.choice == 0) for v in comparison.votes)
    return sum(for_first) / len(comparison.votes)


def majority(comparison: Comparison) -> float | None:
    """1 or 0 by the majority of votes, 0.5 when they balance. ``None`` without votes."""
    return decided(vote_share(comparison))


def decided(probability: float | None) -> float | None:
    """1 or 0 by the side of one half on which a probability lies; 0.5 within rounding of it."""
    if probability is None or abs(probability - 0.5) < 1e-9:
        return probability
    return float(probability > 0.5)


ALONE: dict[str, Callable[[Comparison], float | None]] = {
    "share": vote_share,
    "majority": majority,
}
"""Aggregations that look at one comparison at a time."""
FITTED: dict[str, Callable[[Votes], tuple[Floats, Floats]]] = {
    "dawid_skene": dawid_skene,
    "bradley_terry": bradley_terry,
}
"""Aggregations that look at all votes. They return P(the response shown first is better) of every
item [I], and how far to trust every annotator [A].
"""


@dataclasses.dataclass(frozen=True)
class Learnt:
    """What one of ``FITTED`` learnt from the votes on a set of comparisons."""

    labels: list[float | None]
    """P(first is better) of every comparison, in order; ``None`` where it has no votes."""
    trust: dict[str, float]
    """By annotator. dawid_skene: how probably a vote that is no tie is right. bradley_terry: the
    ability (2 is typical, 0 guesses, below 0 votes against the others).
    """


def learn(name: str, votes: Votes) -> Learnt:
    """Fit the aggregation ``name`` of ``FITTED`` to ``votes``.

    The fit gives P(the response *shown* first is better); the labels are for the order in which
    the records hold the responses.
    """
    shown_first_I, trust_A = FITTED[name](votes)
    voted = set(votes.item_V.tolist())
    labels = [
        float(1 - p if turned else p) if item in voted else None
        for item, (p, turned) in enumerate(zip(shown_first_I, votes.turned_I, strict=True))
    ]
    return Learnt(labels, dict(zip(votes.annotators, map(float, trust_A), strict=True)))


def aggregation(name: str) -> Labels:
    """The aggregation of that name: a function from comparisons to their labels, in order.

    Those in ``ALONE`` read a comparison only when its label is asked for. Raises ``ConfigError``
    for an unknown name.
    """
    if name in ALONE:
        return functools.partial(map, ALONE[name])
    if name not in FITTED:
        raise ConfigError(f"aggregation '{name}' is unknown; {nearest(name, [*ALONE, *FITTED])}")
    return functools.partial(_fitted, name)


def _fitted(name: str, comparisons: Iterable[Comparison]) -> Sequence[float | None]:
    learnt = learn(name, collect(comparisons))
    people = sorted(learnt.trust.items(), key=lambda person: person[1])
    if len(people) > 1:
        least = ", ".join(f"{who} {trust:.2f}" for who, trust in people[:3])
        most, highest = people[-1]
        say(
            f"  {name}: {len(people)} annotators, least trusted {least}; most trusted {most}"
            f" {highest:.2f}"
        )
    return learnt.labels


def hardened(labels: Labels) -> Labels:
    """The same labels, each replaced by the side on which it lies: 1, 0 or 0.5."""
    return lambda comparisons: map(decided, labels(comparisons))


def _votes(comparison: Comparison) -> float:
    return float(len(comparison.votes))


def _agreement(comparison: Comparison) -> float:
    share = vote_share(comparison)
    return 0.0 if share is None else abs(2 * share - 1)


WEIGHTS: dict[str, Callable[[Comparison], float] | None] = {
    "equal": None,
    "votes": _votes,
    "agreement": _agreement,
}
"""What a pair counts for: the same as every other, its number of votes, or how far they agree."""
