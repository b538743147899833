"""Votes → the probability that the first response is better. Named, derived on use, never stored in place of the votes."""

from __future__ import annotations

from collections.abc import Callable

from prefloop.records import Comparison


def vote_share(comparison: Comparison) -> float | None:
    """Share of votes for response 0; a tie counts half. ``None`` without votes."""
    if not comparison.votes:
        return None
    return sum(0.5 if v.choice == "tie" else float(v.choice == 0) for v in comparison.votes) / len(comparison.votes)


def majority(comparison: Comparison) -> float | None:
    """1 or 0 by majority of votes; 0.5 when they balance. ``None`` without votes."""
    share = vote_share(comparison)
    return None if share is None else float(share > 0.5) + 0.5 * float(share == 0.5)


AGGREGATIONS: dict[str, Callable[[Comparison], float | None]] = {"share": vote_share, "majority": majority}


def _votes(comparison: Comparison) -> float:
    return float(len(comparison.votes))


def _agreement(comparison: Comparison) -> float:
    share = vote_share(comparison)
    return 0.0 if share is None else abs(2 * share - 1)


WEIGHTS: dict[str, Callable[[Comparison], float] | None] = {"equal": None, "votes": _votes, "agreement": _agreement}
"""What a pair counts for: the same, its number of votes, or how far its votes agree."""
