"""The steps of PPO and its relatives as they happen: a table that grows by a row a step on a
terminal, a line a step in a log.

``columns``, ``row``, ``phases`` and ``plain`` are pure functions from a step's metrics to what is
printed; ``StepTable`` prints it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from prefloop.base.console import console, duration

Metrics = Mapping[str, Any]
MARGIN = 2
"""Spaces before a row and between its columns."""
HEADER_EVERY = 20
"""Rows after which the header is printed again."""
SHORT = 0.01
"""Phases with less than this share of a step's seconds are left out."""


@dataclasses.dataclass(frozen=True)
class Bounds:
    """What values of a step are judged by; ``None`` or ``inf`` where there is no bound."""

    logprob_gap: float = float("inf")
    kl_stop: float | None = None


@dataclasses.dataclass(frozen=True)
class StepColumn:
    """A column of the table: where its value comes from, how it is written, which columns give way
    to it.
    """

    head: str
    value: Callable[[Metrics], Any]
    spec: str
    width: int
    rank: int
    """The highest number is dropped first where the terminal is narrow."""
    style: Callable[[float, Bounds], str] = lambda value, bounds: ""

    def text(self, metrics: Metrics) -> str:
        """The value as it is printed; shortened to three digits where it would not fit."""
        value = self.value(metrics)
        if value is None:
            return "-"
        if isinstance(value, str):
            return value
        text = format(value, self.spec)
        return text if len(text) <= self.width else format(value, ".3g")


def _key(name: str) -> Callable[[Metrics], Any]:
    return lambda metrics: metrics.get(name)


def _seconds(metrics: Metrics) -> float:
    return float(sum(metrics.get("seconds", {}).values()))


def _tokens_a_second(metrics: Metrics) -> float | None:
    """Response tokens of the rollout by the seconds of the whole step."""
    seconds, rates = metrics.get("seconds", {}), metrics.get("tokens_per_second", {})
    longest = max(rates, key=lambda phase: seconds.get(phase, 0.0), default=None)
    return rates[longest] * seconds[longest] / _seconds(metrics) if longest is not None else None


def _gap_style(gap: float, bounds: Bounds) -> str:
    return (
        "bold red" if gap > bounds.logprob_gap else "yellow" if gap > bounds.logprob_gap / 2 else ""
    )


def _kl_style(kl: float, bounds: Bounds) -> str:
    return "yellow" if bounds.kl_stop is not None and kl > bounds.kl_stop else ""


COLUMNS = (
    StepColumn("reward", _key("reward_mean"), "+.3f", 7, 0),
    StepColumn("gold", _key("gold_mean"), ".3f", 6, 8),
    StepColumn("score", _key("score_mean"), "+.3f", 7, 12),
    StepColumn("std", _key("reward_std"), ".3f", 6, 11),
    StepColumn("spread", _key("reward_spread"), ".3f", 6, 14),
    StepColumn("KL", _key("kl"), ".2f", 6, 1, _kl_style),
    StepColumn("coef", _key("kl_coef"), ".4f", 6, 15),
    StepColumn("length", _key("length_mean"), ".1f", 6, 2),
    StepColumn("finished", _key("finished_share"), ".1%", 8, 10),
    StepColumn("entropy", _key("entropy"), ".3f", 7, 4),
    StepColumn("clipped", _key("clip_fraction"), ".1%", 7, 5),
    StepColumn("ratio", _key("ratio"), ".3f", 6, 17),
    StepColumn("expl.var", _key("explained_variance"), "+.2f", 8, 6),
    StepColumn("gap", _key("logprob_gap"), ".2g", 7, 3, _gap_style),
    StepColumn("p.loss", _key("policy_loss"), "+.3f", 7, 16),
    StepColumn("v.loss", _key("value_loss"), ".3f", 6, 13),
    StepColumn("grad", _key("grad_norm"), ".2g", 7, 18),
    StepColumn(
        "time",
        lambda metrics: duration(_seconds(metrics)) if metrics.get("seconds") else None,
        "",
        6,
        7,
    ),
    StepColumn("tok/s", _tokens_a_second, ",.0f", 6, 9),
)


def columns(metrics: Metrics, width: int, step_width: int) -> list[StepColumn]:
    """The columns that this step has values for and ``width`` has room for, beside a first one of
    ``step_width``.
    """
    room = width - MARGIN - step_width
    kept = set()
    for column in sorted(COLUMNS, key=lambda c: c.rank):
        needed = MARGIN + max(len(column.head), column.width)
        if column.value(metrics) is not None and needed <= room:
            kept.add(column.head)
            room -= needed
    return [column for column in COLUMNS if column.head in kept]


def header(shown: Sequence[StepColumn], step_width: int) -> Text:
    """The line of names above the rows."""
    names = [" " * MARGIN + "step".rjust(step_width)]
    names += [" " * MARGIN + c.head.rjust(max(len(c.head), c.width)) for c in shown]
    return Text("".join(names), style="bold")


def row(
    metrics: Metrics, shown: Sequence[StepColumn], step: str, step_width: int, bounds: Bounds
) -> Text:
    """One step under ``header``; a value past its bound is coloured."""
    line = Text(" " * MARGIN + step.rjust(step_width))
    for column in shown:
        text, value = column.text(metrics), column.value(metrics)
        style = column.style(value, bounds) if isinstance(value, float | int) else ""
        line.append(" " * (MARGIN + max(len(column.head), column.width) - len(text)))
        line.append(text, style=style)
    return line


def phases(metrics: Metrics, width: int | None = None) -> str:
    """'generate 5.1s 210 tok/s · score 2.0s 530 tok/s'; where ``width`` has no room for that, with
    a shorter unit, then without the shortest phases.
    """
    seconds, rates = metrics.get("seconds", {}), metrics.get("tokens_per_second", {})
    shown = [phase for phase, s in seconds.items() if s >= SHORT * _seconds(metrics)]

    def line(unit: str) -> str:
        parts = [
            f"{phase} {duration(seconds[phase])}"
            + (f" {rates[phase]:,.0f}{unit}" if phase in rates else "")
            for phase in shown
        ]
        return " · ".join(parts)

    if width is None or len(line(" tok/s")) <= width:
        return line(" tok/s")
    while len(shown) > 1 and len(line("/s")) > width:
        shown.remove(min(shown, key=lambda phase: seconds[phase]))
    return line("/s")


PLAIN = ("reward", "gold", "KL", "length", "entropy", "clipped", "expl.var", "gap")


def sources(metrics: Metrics) -> str:
    """'reward of: reward_model +0.298, polite +0.021', each before its weight; nothing where there
    is one source.
    """
    given = metrics.get("rewards", {})
    return (
        "reward of: " + ", ".join(f"{name} {value:+.3f}" for name, value in given.items())
        if len(given) > 1
        else ""
    )


def plain(metrics: Metrics, name: str, step: str) -> str:
    """A step as one line of a log: what the table shows first, then the seconds and tokens a second
    of each phase.
    """
    told = [
        f"{c.head} {c.text(metrics)}"
        for c in COLUMNS
        if c.head in PLAIN and c.value(metrics) is not None
    ]
    told += [given] if (given := sources(metrics)) else []
    spent = phases(metrics).replace(" · ", ", ")
    return f"  {name} {step}  {'  '.join(told)}  {duration(_seconds(metrics))}" + (
        f" ({spent})" if spent else ""
    )


class StepTable:
    """Prints the steps of one stage from its events:
    ``with runtime.watched(StepTable("ppo", 200)): …``.
    """

    def __init__(
        self, stage: str, total: int, bounds: Bounds | None = None, to: Console = console
    ) -> None:
        self.stage = stage
        self.total = total
        self.bounds = bounds or Bounds()
        self.to = to
        self._shown: list[StepColumn] = []
        self._rows = 0
        self._spent = 0.0

    def __call__(self, event: Metrics) -> None:
        """Print the event if it is a step of the stage."""
        if event.get("stage") != self.stage or event.get("event") != "step":
            return
        step = f"{event['step']}/{self.total}"
        self._spent += _seconds(event)
        self._rows += 1
        if self.to.is_terminal:
            self._terminal(event, step)
            return
        left = self._spent / self._rows * (self.total - event["step"])
        rest = f"  {duration(left)} left" if left else ""
        self.to.print(plain(event, self.stage, step) + rest, markup=False)

    def _terminal(self, event: Metrics, step: str) -> None:
        step_width = max(len("step"), len(f"{self.total}/{self.total}"))
        shown = columns(event, self.to.width, step_width)
        if shown != self._shown or self._rows % HEADER_EVERY == 1:
            self._shown = shown
            self.to.print(header(shown, step_width))
        self.to.print(row(event, shown, step, step_width, self.bounds))
        indent = 2 * MARGIN
        for line in (phases(event, self.to.width - indent), sources(event)):
            if line:
                self.to.print(Text(" " * indent + line, style="dim"))
