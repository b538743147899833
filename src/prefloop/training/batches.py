"""Which groups go into which optimizer step, fixed by the seed, so a resumed run continues in the
same order; the next step's packs ahead of time.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from prefloop.base.console import counted, say
from prefloop.config.algorithms import FEW_STEPS
from prefloop.errors import ConfigError

Item = TypeVar("Item")
Made = TypeVar("Made")


def ahead(make: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    """``make(item)`` for each item in order, each made in a thread while the caller works on the
    one before.

    A device has nothing to do while its host reads rows and lays out packs.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="packs") as pool:
        waiting: Future[Made] | None = None
        for item in items:
            following = pool.submit(make, item)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()


def require_any(setting: str, epochs: float, count: int, what: str) -> None:
    """Raise ``ConfigError`` where ``epochs`` passes over ``count`` of something are less than one
    of them.
    """
    if epochs * count < 1:
        raise ConfigError(
            f"{setting} is {epochs:g}: of {counted(count, what)} that is less than one, and nothing"
            f" would be trained; give {1 / max(1, count):.2g} or more"
        )


def warn_of_few(stage: str, steps: int, section: str) -> None:
    """Say before the first step that ``steps`` are too few to learn much; ``section`` holds the
    stage's settings.
    """
    if steps < FEW_STEPS:
        say(
            f"  {stage}: {counted(steps, 'step')} in all, and under {FEW_STEPS} little is learnt:"
            f" lower {section}.batch_pairs, raise {section}.epochs or"
            f" {section}.optim.learning_rate, or give more data",
            "yellow",
        )


def epochs_of_groups(
    count: int,
    size: Callable[[int], int],
    batch: int,
    epochs: float,
    seed: int,
    setting: str = "epochs",
    what: str = "prompt",
) -> list[list[int]]:
    """Optimizer steps of about ``batch`` items over shuffled groups 0 … count - 1, ``size(i)``
    items each; a group stays in one step.

    A last step of less than half a batch joins the one before it, so that no step is noise. Raises
    ``ConfigError`` that names ``setting`` where ``epochs`` of them are less than one group, which
    is called ``what``.
    """
    require_any(setting, epochs, count, what)
    steps: list[list[int]] = []
    left = epochs
    epoch = 0
    while (part := max(round(min(1.0, left) * count), int(epoch == 0))) > 0:
        order = list(range(count))
        random.Random(f"{seed}:{epoch}").shuffle(order)
        order = order[:part]
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
