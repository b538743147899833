"""Votes as flat arrays, from which agreement and the aggregations over all comparisons are
computed.

Shape letters: I items (comparisons or ratings), A annotators, C categories, V votes in order of
items.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from prefloop.records import Comparison, Rating, Thumb, Vote

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

PREFERENCES = ("first shown", "second shown", "tie")
THUMBS = ("up", "down")
FILE = "file:"
"""Start of the annotator's name that stands for a file's own choice: it is no person, and its pairs
have no order of showing.
"""


@dataclasses.dataclass(frozen=True)
class Votes:
    """All votes of a set of records; choices are by position as shown, so that a habit such as
    'always the left one' is visible.
    """

    categories: tuple[str, ...]
    ids: list[str]
    """Of the items, [I]."""
    annotators: list[str]
    """Sorted names, [A]."""
    item_V: Ints
    annotator_V: Ints
    choice_V: Ints
    """Index into ``categories``."""
    at_V: Floats
    """Seconds since the epoch; NaN where a vote has no usable time."""
    turned_I: NDArray[np.bool_]
    """Where response 1 was shown first."""
    repeated: int = 0
    """Earlier votes of an annotator on an item that a later one of the same annotator replaced."""

    @property
    def counts_IC(self) -> Ints:
        """Votes of each category on each item."""
        flat = np.bincount(
            self.item_V * len(self.categories) + self.choice_V, minlength=len(self.ids) * self.width
        )
        return flat.reshape(len(self.ids), self.width)

    @property
    def width(self) -> int:
        """C, the number of categories."""
        return len(self.categories)


def turned(comparison: Comparison) -> bool:
    """Whether response 1 stood in the first place: ``meta["shown"]`` is [1, 0]; without it response
    0 counts as shown first.
    """
    return comparison.meta.get("shown") == [1, 0]


def collect(comparisons: Iterable[Comparison]) -> Votes:
    """The votes of comparisons, read once and one at a time; ``categories`` are ``PREFERENCES``."""
    return _collect(((c.id, turned(c), c.votes) for c in comparisons), PREFERENCES)


def collect_thumbs(ratings: Iterable[Rating]) -> Votes:
    """The thumbs of ratings; ``categories`` are ``THUMBS``."""
    return _collect(((r.id, False, r.votes) for r in ratings), THUMBS)


def _collect(
    rows: Iterable[tuple[str, bool, Sequence[Vote | Thumb]]], categories: tuple[str, ...]
) -> Votes:
    ids: list[str] = []
    turns: list[bool] = []
    people: dict[str, int] = {}
    item: list[int] = []
    annotator: list[int] = []
    choice: list[int] = []
    at: list[float] = []
    repeated = 0
    for row, (id, turn, votes) in enumerate(rows):
        ids.append(id)
        turns.append(turn)
        last = {vote.annotator: vote for vote in votes}
        repeated += len(votes) - len(last)
        for name, vote in last.items():
            item.append(row)
            annotator.append(people.setdefault(name, len(people)))
            choice.append(_category(vote, turn))
            at.append(seconds(vote.at))
    names = sorted(people)
    place_A = np.empty(len(people), dtype=np.int64)
    place_A[[people[name] for name in names]] = np.arange(len(names))
    return Votes(
        categories=categories,
        ids=ids,
        annotators=names,
        item_V=np.array(item, dtype=np.int64),
        annotator_V=place_A[np.array(annotator, dtype=np.int64)],
        choice_V=np.array(choice, dtype=np.int64),
        at_V=np.array(at, dtype=np.float64),
        turned_I=np.array(turns, dtype=bool),
        repeated=repeated,
    )


def _category(vote: Vote | Thumb, turn: bool) -> int:
    if isinstance(vote, Thumb):
        return THUMBS.index(vote.value)
    return 2 if vote.choice == "tie" else int(vote.choice != turn)


def seconds(at: str | None) -> float:
    """Seconds since the epoch of an ISO 8601 time (UTC unless it says otherwise); NaN for none or
    another format.
    """
    if at is None:
        return float("nan")
    try:
        time = datetime.datetime.fromisoformat(at)
    except ValueError:
        return float("nan")
    return (time if time.tzinfo else time.replace(tzinfo=datetime.UTC)).timestamp()
