"""Whether a judge favors a place, from questions asked in both orders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from prefloop.stats.annotator_agreement import SIGNIFICANT, Position, position
from prefloop.stats.intervals import Interval, checked_verdicts, clustered_share, sign_test


@dataclass(frozen=True)
class PositionBias:
    """How exchanging the two responses changes a judge's answers. Shares are means over prompts."""

    consistency: Interval
    """Share of comparisons whose two orders agree (same winner, or both ties)."""
    disagreement: Interval
    """The other comparisons, which count as ties."""
    first_share: Interval
    """Share of answers for the response shown first, a tie as half: 0.5 without a bias, 1 for a
    judge that always takes the first.
    """
    lean: Position
    """Of the prompts that lean to one place (``decided``), those that lean to the first: exact
    interval and test of one half.
    """
    n_comparisons: int
    n_prompts: int


def position_bias(
    orders_by_prompt: Mapping[str, Sequence[tuple[float, float]]],
    *,
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
) -> PositionBias:
    """Consistency and lean from pairs (score of a when a is shown first, score of a when b is): 1 a
    wins, 0 b wins, 0.5 tie.

    In a consistent comparison one answer goes to each place, so that only the others lean. Prompts
    are the clusters; a share that is the same on all of them (always the first, never a
    disagreement) has the exact binomial interval. Raises ``ValueError`` naming a bad prompt.
    """
    checked_verdicts(
        {
            prompt_id: [x for pair in pairs for x in pair]
            for prompt_id, pairs in orders_by_prompt.items()
        }
    )
    agree = {
        prompt_id: [float(x == y) for x, y in pairs]
        for prompt_id, pairs in orders_by_prompt.items()
    }
    # The first place wins with a when a is first, and against a when b is.
    first = {
        prompt_id: [(x + 1 - y) / 2 for x, y in pairs]
        for prompt_id, pairs in orders_by_prompt.items()
    }
    sides = sign_test(first)
    lean = position(sides.wins, sides.wins + sides.losses)
    consistency = clustered_share(agree, seed=seed, resamples=resamples, level=level)
    return PositionBias(
        consistency=consistency,
        disagreement=Interval(
            1 - consistency.mean, 1 - consistency.high, 1 - consistency.low, consistency.n_clusters
        ),
        first_share=clustered_share(first, seed=seed, resamples=resamples, level=level),
        lean=replace(lean, biased=lean.p is not None and lean.p <= SIGNIFICANT),
        n_comparisons=sum(len(pairs) for pairs in orders_by_prompt.values()),
        n_prompts=len(orders_by_prompt),
    )
