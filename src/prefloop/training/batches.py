"""Which groups of pairs go into which optimizer step; fixed by the seed, so a resumed run continues in the same order."""

from __future__ import annotations

import random
from collections.abc import Sequence

from prefloop.data.encode import PreferenceGroup


def epochs_of_groups(
    groups: Sequence[PreferenceGroup], batch_pairs: int, epochs: float, seed: int
) -> list[list[PreferenceGroup]]:
    """Optimizer steps of about ``batch_pairs`` pairs over shuffled groups; a group's pairs stay in one step.

    A last step of less than half a batch joins the one before it, so that no step is noise.
    """
    steps: list[list[PreferenceGroup]] = []
    left = epochs
    epoch = 0
    while left > 0:
        order = list(groups)
        random.Random(f"{seed}:{epoch}").shuffle(order)
        order = order[: max(1, round(min(1.0, left) * len(order)))]
        batch: list[PreferenceGroup] = []
        for group in order:
            batch.append(group)
            if _pairs(batch) >= batch_pairs:
                steps.append(batch)
                batch = []
        if batch and (_pairs(batch) * 2 >= batch_pairs or not steps):
            steps.append(batch)
        elif batch:
            steps[-1] = steps[-1] + batch
        left -= 1
        epoch += 1
    return steps


def _pairs(batch: Sequence[PreferenceGroup]) -> int:
    return sum(len(g.pairs) for g in batch)
