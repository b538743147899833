"""Votes cast too fast to have been read, from the times between one annotator's consecutive votes.

A vote is fast when it came less than ``FLOOR`` seconds after the one before, or when its time is an
outlier on the fast side of that person's own: a modified z-score of log seconds under -3.5
(Iglewicz & Hoaglin, "How to Detect and Handle Outliers", 1993: median and median absolute
deviation, so that the outliers do not hide themselves). Times longer than ``BREAK`` are pauses and
count for neither.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from prefloop.stats.votes import Floats, Votes

FLOOR = 3.0
"""Seconds: two responses cannot be read in less."""
BREAK = 1800.0
"""Seconds after which a person is taken to have done something else."""
OUTLIER = 3.5
SHARE = 0.1
"""Share of a person's timed votes from which the person is flagged, and not only the votes."""
FEWEST = 5
_TO_SIGMA = 0.6745  # median absolute deviation of a standard normal
_LISTED = 20


@dataclasses.dataclass(frozen=True)
class Speed:
    """How fast one person voted."""

    timed: int
    """Votes that came a known time after the same person's previous vote, breaks left out."""
    median: float | None
    """Seconds."""
    fast: int
    fast_ids: list[str]
    """The first 20 items voted on too fast."""
    flagged: bool
    """Whether at least five votes are timed and a tenth or more of them are too fast."""


def speeds(votes: Votes, people: Sequence[str]) -> dict[str, Speed]:
    """Speed of each person that has at least two votes with times."""
    speed_of = {}
    for name in people:
        own = np.flatnonzero(
            (votes.annotator_V == votes.annotators.index(name)) & ~np.isnan(votes.at_V)
        )
        if len(own) < 2:
            continue
        own = own[np.argsort(votes.at_V[own], kind="stable")]
        gaps = np.diff(votes.at_V[own])
        timed = gaps <= BREAK
        fast = np.zeros(len(gaps), dtype=bool)
        fast[timed] = too_fast(gaps[timed])
        ids = [votes.ids[item] for item in votes.item_V[own[1:][fast]]]
        count = int(timed.sum())
        speed_of[name] = Speed(
            timed=count,
            median=float(np.median(gaps[timed])) if count else None,
            fast=len(ids),
            fast_ids=ids[:_LISTED],
            flagged=count >= FEWEST and len(ids) >= SHARE * count,
        )
    return speed_of


def too_fast(seconds: Floats) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Which of one person's times are under the floor, or far under the person's own median."""
    if not len(seconds):
        return np.zeros(0, dtype=bool)
    log = np.log(np.maximum(seconds, 1e-3))
    away = log - np.median(log)
    spread = float(np.median(np.abs(away)))
    outlier = _TO_SIGMA * away < -OUTLIER * spread if spread > 0 else np.zeros(len(log), dtype=bool)
    return (seconds < FLOOR) | outlier
