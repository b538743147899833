"""Whether a run is worth its time: one of a few steps learns nothing, one of days is better known beforehand."""

from __future__ import annotations

import math
from collections.abc import Mapping

from prefloop.algorithms import REWARD_ONLY, ROLLOUTS
from prefloop.config import RLHFConfig
from prefloop.console import duration
from prefloop.errors import ConfigError
from prefloop.judging.learnt import FEW_STEPS
from prefloop.planning.memory import Device
from prefloop.planning.shapes import Shape
from prefloop.planning.stages import Planner
from prefloop.planning.time import CARDS, UNKNOWN, Clock, Data

DAY = 86_400.0
"""Seconds."""
PROMPT, RESPONSE, ASKED = 100.0, 150.0, 200
"""Tokens of a prompt and of a response, and prompts of the evaluation, where there is no file to look at."""


def doubts(seconds: Mapping[str, float | None], steps: Mapping[str, int | None]) -> list[str]:
    """Why the run may not be worth its time; by stage, its time and its updates of the weights, ``None`` where they are not known."""
    few = [f"{stage} {count:,}" for stage, count in steps.items() if count is not None and count < FEW_STEPS]
    lines = []
    if few:
        lines.append(
            f"few steps: {', '.join(few)}. Under {FEW_STEPS} little is learnt: more data or epochs, smaller batches, or a higher learning rate"
        )
    if (whole := _whole(seconds)) > DAY:
        lines.append(
            f"the whole run takes about {duration(whole)}: lower data.limit or epochs, or take a smaller model or a faster card"
        )
    return lines


def expected(config: RLHFConfig, shape: Shape, rows: int, cpu: bool) -> str:
    """Steps and time of every stage as a line, for ``rows`` rows that are not there yet.

    Raises ``ConfigError`` where what is trained last, or what it learns from, makes too few steps, and where all of it takes more than a day.
    """
    clock = Clock(config, Device.of(shape, config.backbone), CARDS["CPU"] if cpu else UNKNOWN)
    clock.demonstrations = clock.comparisons = clock.prompts = Data(rows, PROMPT, RESPONSE)
    clock.evaluated = Data(ASKED, PROMPT)
    names = [stage.name for stage in Planner(config, shape, None, cpu).stages()]
    steps, seconds = ({n: of(n) for n in names} for of in (clock.steps, clock.seconds))
    learning = {config.algo, *([REWARD_ONLY] if config.algo in ROLLOUTS else [])}
    for stage, count in steps.items():
        if stage in learning and count is not None and count < FEW_STEPS:
            needed = math.ceil(rows * FEW_STEPS / count)
            raise ConfigError(
                f"{rows:,} rows make {count:,} steps of {stage}, and under {FEW_STEPS} it learns little: a run like this takes {needed:,} rows or more"
            )
    whole = _whole(seconds)
    where = "two CPU cores" if cpu else "such a card"
    if whole > DAY:
        raise ConfigError(
            f"{rows:,} rows would take about {duration(whole)} on {where}, and {math.floor(rows * DAY / whole):,} about a day: say so many"
            + (", or name a GPU" if cpu else ", or a faster card")
        )
    parts = [
        f"{name} {f'{steps[name]:,} steps, ' if steps[name] is not None else ''}{duration(seconds[name] or 0.0)}"
        for name in names
    ]
    return f"expected on {where}, at {PROMPT:.0f} tokens a prompt and {RESPONSE:.0f} a response: {'; '.join(parts)}"


def _whole(seconds: Mapping[str, float | None]) -> float:
    return sum(taken for taken in seconds.values() if taken is not None)
