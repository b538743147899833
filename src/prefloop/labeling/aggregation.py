"""Votes → the probability that the first response is better. Named, derived on use, never stored in
place of the votes.

``share`` and ``majority`` look at one comparison. ``dawid_skene`` and ``bradley_terry`` learn from
all comparisons how far each annotator can be trusted: one pass collects the votes as numbers, and
what is kept afterwards is a probability for each id.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path

from prefloop.base.console import say
from prefloop.base.jsonl import read_rows
from prefloop.errors import ConfigError, DataError, nearest
from prefloop.records import Comparison, from_dict
from prefloop.stats.dawid_skene import dawid_skene
from prefloop.stats.graded_preferences import bradley_terry
from prefloop.stats.votes import Floats, Votes, collect

Label = Callable[[Comparison], float | None]


def vote_share(comparison: Comparison) -> float | None:
    """Share of votes for response 0; a tie counts half. ``None`` without votes."""
    if not comparison.votes:
        return None
    return sum(0.5 if v.choice == "tie" else float(v.choice == 0) for v in comparison.votes) / len(
        comparison.votes
    )


def majority(comparison: Comparison) -> float | None:
    """1 or 0 by majority of votes; 0.5 when they balance. ``None`` without votes."""
    return decided(vote_share(comparison))


def decided(probability: float | None) -> float | None:
    """1 or 0 by the side of one half that a probability lies on; 0.5 within rounding of it."""
    if probability is None or abs(probability - 0.5) < 1e-9:
        return probability
    return float(probability > 0.5)


ALONE: dict[str, Label] = {"share": vote_share, "majority": majority}
"""Aggregations that need one comparison."""
FITTED: dict[str, Callable[[Votes], tuple[Floats, Floats]]] = {
    "dawid_skene": dawid_skene,
    "bradley_terry": bradley_terry,
}
"""Aggregations that need all: votes → P(first shown is better) of every item [I], and how far to
trust every annotator [A].
"""


@dataclasses.dataclass(frozen=True)
class Learnt:
    """The label of every comparison that had votes, and what was learnt about the annotators."""

    name: str
    by_id: dict[str, float]
    trust: dict[str, float]
    """By annotator: dawid_skene, how probably a vote that is no tie is right; bradley_terry, the
    ability (2 is typical, 0 guesses, below 0 votes against the others).
    """

    def __call__(self, comparison: Comparison) -> float | None:
        """P(response 0 is better); ``None`` without votes. Raises ``DataError`` for a comparison
        that was not among those learnt from.
        """
        if not comparison.votes:
            return None
        if comparison.id not in self.by_id:
            raise DataError(
                f"comparison '{comparison.id}' was not among those that {self.name} learnt from:"
                " aggregate the file that it is in"
            )
        return self.by_id[comparison.id]


def aggregation(name: str, comparisons: Iterable[Comparison]) -> Label:
    """The label function of a named aggregation over ``comparisons``, which are read once, and only
    by those that learn.

    Raises ``ConfigError`` for an unknown name.
    """
    if name in ALONE:
        return ALONE[name]
    if name not in FITTED:
        raise ConfigError(f"aggregation '{name}' is unknown; {nearest(name, [*ALONE, *FITTED])}")
    found = learn(name, collect(comparisons))
    worst = sorted(found.trust.items(), key=lambda person: person[1])
    if len(worst) > 1:
        shown = ", ".join(f"{who} {value:.2f}" for who, value in worst[:3])
        say(
            f"  {name}: {len(worst)} annotators, least trusted {shown}; most {worst[-1][0]}"
            f" {worst[-1][1]:.2f}"
        )
    return found


def aggregation_of_file(name: str, path: Path) -> Label:
    """``aggregation`` over an artifact's ``comparisons.jsonl``, a row at a time."""
    return aggregation(name, (from_dict(Comparison, row) for row in read_rows(path)))


def hardened(label: Label) -> Label:
    """The side that a label lies on, 1, 0 or 0.5, instead of the probability."""
    return lambda comparison: decided(label(comparison))


def learn(name: str, votes: Votes) -> Learnt:
    """Fit one of ``FITTED``; its probabilities are turned from the order shown to the order of the
    record.
    """
    first_I, trust_A = FITTED[name](votes)
    voted = set(votes.item_V.tolist())
    by_id = {
        id: float(1 - p if turned else p)
        for row, (id, p, turned) in enumerate(zip(votes.ids, first_I, votes.turned_I, strict=True))
        if row in voted
    }
    return Learnt(name, by_id, dict(zip(votes.annotators, map(float, trust_A), strict=True)))


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
"""What a pair counts for: the same, its number of votes, or how far its votes agree."""
