"""Whether a run is worth its time: a few steps learn little, and days should be no surprise."""

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
"""Assumed tokens of a prompt and of a response, and evaluation prompts, if there is no file yet."""


def doubts(seconds: Mapping[str, float | None], steps: Mapping[str, int | None]) -> list[str]:
    """Reasons why the run may not be worth its time.

    Args:
        seconds: stage → its time; ``None`` if unknown.
        steps: stage → its optimizer steps; ``None`` if unknown.
    """
    few = [f"{stage} {n:,}" for stage, n in steps.items() if n is not None and n < FEW_STEPS]
    lines = []
    if few:
        lines.append(
            f"few steps: {', '.join(few)}. Under {FEW_STEPS} steps little is learned: use more data"
            " or epochs, smaller batches, or a higher learning rate"
        )
    if (total := total_seconds(seconds)) > DAY:
        lines.append(
            f"the whole run takes about {duration(total)}: lower data.limit or epochs, or use a"
            " smaller model or a faster card"
        )
    return lines


def total_seconds(seconds: Mapping[str, float | None]) -> float:
    """The time of all stages whose time is known."""
    return sum(taken for taken in seconds.values() if taken is not None)


@dataclasses.dataclass(frozen=True)
class Expectation:
    """Steps and seconds of each stage of a run on rows that do not exist yet."""

    steps: Mapping[str, int | None]
    seconds: Mapping[str, float | None]
    learning: frozenset[str]
    """The stage whose result counts, and the reward model if that stage learns from one."""

    @property
    def few(self) -> dict[str, int]:
        """Stage → steps, for the stages of ``learning`` with too few steps to learn from."""
        known = {s: n for s, n in self.steps.items() if s in self.learning and n is not None}
        return {stage: count for stage, count in known.items() if count < FEW_STEPS}

    @property
    def whole(self) -> float:
        """The time of all stages whose time is known."""
        return total_seconds(self.seconds)

    def describe(self) -> str:
        """All stages in one line."""
        steps = {s: f"{n:,} steps, " if n is not None else "" for s, n in self.steps.items()}
        parts = [
            f"{stage} {steps[stage]}{duration(taken)}"
            for stage, taken in self.seconds.items()
            if taken is not None
        ]
        unknown = [stage for stage, taken in self.seconds.items() if taken is None]
        return "; ".join([*parts, *(f"{stage} depends on its data" for stage in unknown)])


def expect(
    config: RLHFConfig, shape: Shape, demonstrations: float | None, rows: float, cpu: bool
) -> Expectation:
    """The expectation for ``rows`` prompts with their votes; two thumbs count as one row.

    ``demonstrations`` is their number of rows, ``None`` if unknown.
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
