"""Whether a run is worth its time: one of a few steps learns nothing, one of days is better known
beforehand.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from prefloop.base.console import duration
from prefloop.config import RLHFConfig
from prefloop.config.algorithms import FEW_STEPS, REWARD_ONLY, ROLLOUTS
from prefloop.planning.memory import Device
from prefloop.planning.shapes import Shape
from prefloop.planning.stages import Planner
from prefloop.planning.time import CARDS, UNKNOWN, Clock, Data

DAY = 86_400.0
"""Seconds."""
PROMPT, RESPONSE, ASKED = 100.0, 150.0, 200
"""Tokens of a prompt and of a response, and prompts of the evaluation, where there is no file to
look at.
"""


def doubts(seconds: Mapping[str, float | None], steps: Mapping[str, int | None]) -> list[str]:
    """Why the run may not be worth its time; by stage, its time and its updates of the weights,
    ``None`` where they are not known.
    """
    few = [
        f"{stage} {count:,}"
        for stage, count in steps.items()
        if count is not None and count < FEW_STEPS
    ]
    lines = []
    if few:
        lines.append(
            f"few steps: {', '.join(few)}. Under {FEW_STEPS} little is learnt: more data or epochs,"
            " smaller batches, or a higher learning rate"
        )
    if (whole := _whole(seconds)) > DAY:
        lines.append(
            f"the whole run takes about {duration(whole)}: lower data.limit or epochs, or take a"
            " smaller model or a faster card"
        )
    return lines


@dataclasses.dataclass(frozen=True)
class Expectation:
    """What a run on rows that are not there yet comes to, by stage."""

    steps: Mapping[str, int | None]
    seconds: Mapping[str, float | None]
    learning: frozenset[str]
    """The stage whose result counts, and the reward model where that learns from one."""

    @property
    def few(self) -> dict[str, int]:
        """The steps of what makes too few to learn from."""
        return {
            s: n
            for s, n in self.steps.items()
            if s in self.learning and n is not None and n < FEW_STEPS
        }

    @property
    def whole(self) -> float:
        """Seconds of all stages that are known."""
        return _whole(self.seconds)

    def describe(self) -> str:
        """Every stage in a line."""
        steps = {s: f"{n:,} steps, " if n is not None else "" for s, n in self.steps.items()}
        parts = [
            f"{stage} {steps[stage]}{duration(taken)}"
            for stage, taken in self.seconds.items()
            if taken is not None
        ]
        unknown = [stage for stage, taken in self.seconds.items() if taken is None]
        return "; ".join([*parts, *(f"{stage} as its data is" for stage in unknown)])


def expect(
    config: RLHFConfig, shape: Shape, demonstrations: float | None, rows: float, cpu: bool
) -> Expectation:
    """Of ``rows`` prompts with their votes; two thumbs are one. ``demonstrations`` are rows too,
    ``None`` where nobody said how many.
    """
    clock = Clock(config, Device.of(shape, config.backbone), CARDS["CPU"] if cpu else UNKNOWN)
    clock.demonstrations = (
        None if demonstrations is None else Data(demonstrations, PROMPT, RESPONSE)
    )
    clock.comparisons = clock.prompts = Data(rows, PROMPT, RESPONSE)
    clock.evaluated = Data(ASKED, PROMPT)
    names = [stage.name for stage in Planner(config, shape, None, cpu).stages()]
    learning = {config.algo, *([REWARD_ONLY] if config.algo in ROLLOUTS else [])}
    return Expectation(
        {name: clock.steps(name) for name in names},
        {name: clock.seconds(name) for name in names},
        frozenset(learning),
    )


def _whole(seconds: Mapping[str, float | None]) -> float:
    return sum(taken for taken in seconds.values() if taken is not None)
