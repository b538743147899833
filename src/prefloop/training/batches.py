"""Which groups go into which optimizer step; fixed by the seed, so a resumed run continues in the same order."""

from __future__ import annotations

import random
from collections.abc import Callable


def epochs_of_groups(count: int, size: Callable[[int], int], batch: int, epochs: float, seed: int) -> list[list[int]]:
    """Optimizer steps of about ``batch`` items over shuffled groups 0 … count - 1, ``size(i)`` items each; a group stays in one step.

    A last step of less than half a batch joins the one before it, so that no step is noise.
    """
    steps: list[list[int]] = []
    left = epochs
    epoch = 0
    while left > 0:
        order = list(range(count))
        random.Random(f"{seed}:{epoch}").shuffle(order)
        order = order[: max(1, round(min(1.0, left) * len(order)))]
        step: list[int] = []
        items, first = 0, len(steps)
        for group in order:
            step.append(group)
            items += size(group)
            if items >= batch:
                steps.append(step)
                step, items = [], 0
        if step and (items * 2 >= batch or len(steps) == first):
            steps.append(step)
        elif step:
            steps[-1] = steps[-1] + step
        left -= 1
        epoch += 1
    return steps
