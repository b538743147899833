"""The steps of PPO and its relatives as they happen: on a terminal a table that grows by a row a
step, in a log a line a step.

``columns``, ``row``, ``phases`` and ``plain`` are pure functions from a step's metrics to text;
``StepTable`` prints the text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.text import Text

from prefloop.base.console import console, duration
from prefloop.training.step_metrics import StepMetrics

MARGIN = 2
"""Spaces before a row and between its columns."""
HEADER_EVERY = 20
"""Rows after which the header is printed again."""
SHORT = 0.01
"""Phases with less than this share of a step's seconds are left out."""


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Values above a bound are colored; ``inf`` and ``None`` are no bound."""

    logprob_gap: float = float("inf")
    kl_stop: float | None = None


@dataclasses.dataclass(frozen=True)
class StepColumn:
    """A column of the table."""

    head: str
    value: Callable[[StepMetrics], float | str | None]
    """``None`` where a step has no such value."""
    spec: str
    """How ``format`` writes the value."""
    width: int
    rank: int
    """On a narrow terminal the column with the highest number is dropped first."""
    style: Callable[[float, Bounds], str] = lambda value, bounds: ""

    def text(self, metrics: StepMetrics) -> str:
        """The value as it is printed, with three digits where it would not fit."""
        value = self.value(metrics)
        if value is None:
            return "-"
        if isinstance(value, str):
            return value
        text = format(value, self.spec)
        return text if len(text) <= self.width else format(value, ".3g")


def _seconds(metrics: StepMetrics) -> float:
    return float(sum(metrics.seconds.values()))


def _tokens_a_second(metrics: StepMetrics) -> float | None:
    """Response tokens of the rollout by the seconds of the whole step."""
    seconds, rates = metrics.seconds, metrics.tokens_per_second
    longest = max(rates, key=lambda phase: seconds[phase], default=None)
    return None if longest is None else rates[longest] * seconds[longest] / _seconds(metrics)


def _gap_style(gap: float, bounds: Bounds) -> str:
    return (
        "bold red" if gap > bounds.logprob_gap else "yellow" if gap > bounds.logprob_gap / 2 else ""
    )


def _kl_style(kl: float, bounds: Bounds) -> str:
    return "yellow" if bounds.kl_stop is not None and kl > bounds.kl_stop else ""


COLUMNS = (
    StepColumn("reward", lambda m: m.reward_mean, "+.3f", 7, 0),
    StepColumn("gold", lambda m: m.gold_mean, ".3f", 6, 8),
    StepColumn("score", lambda m: m.score_mean, "+.3f", 7, 12),
    StepColumn("std", lambda m: m.reward_std, ".3f", 6, 11),
    StepColumn("spread", lambda m: m.reward_spread, ".3f", 6, 14),
    StepColumn("KL", lambda m: m.kl, ".2f", 6, 1, _kl_style),
    StepColumn("coef", lambda m: m.kl_coef, ".4f", 6, 15),
    StepColumn("length", lambda m: m.length_mean, ".1f", 6, 2),
    StepColumn("finished", lambda m: m.finished_share, ".1%", 8, 10),
    StepColumn("entropy", lambda m: m.entropy, ".3f", 7, 4),
    StepColumn("clipped", lambda m: m.update.clip_fraction, ".1%", 7, 5),
    StepColumn("ratio", lambda m: m.update.ratio, ".3f", 6, 17),
    StepColumn("expl.var", lambda m: m.explained_variance, "+.2f", 8, 6),
    StepColumn("gap", lambda m: m.logprob_gap, ".2g", 7, 3, _gap_style),
    StepColumn("p.loss", lambda m: m.update.policy_loss, "+.3f", 7, 16),
    StepColumn("v.loss", lambda m: m.update.value_loss, ".3f", 6, 13),
    StepColumn("grad", lambda m: m.update.grad_norm, ".2g", 7, 18),
    StepColumn("time", lambda m: duration(_seconds(m)) if m.seconds else None, "", 6, 7),
    StepColumn("tok/s", _tokens_a_second, ",.0f", 6, 9),
)


def columns(metrics: StepMetrics, width: int, step_width: int) -> list[StepColumn]:
    """The columns that this step has values for and ``width`` has room for, after a first column of
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
    metrics: StepMetrics, shown: Sequence[StepColumn], step: str, step_width: int, bounds: Bounds
) -> Text:
    """One step under ``header``; a value past its bound is colored."""
    line = Text(" " * MARGIN + step.rjust(step_width))
    for column in shown:
        text, value = column.text(metrics), column.value(metrics)
        style = column.style(value, bounds) if isinstance(value, float | int) else ""
        line.append(" " * (MARGIN + max(len(column.head), column.width) - len(text)))
        line.append(text, style=style)
    return line


def phases(metrics: StepMetrics, width: int | None = None) -> str:
    """'generate 5.1s 210 tok/s · score 2.0s 530 tok/s'. Where ``width`` has no room for that, the
    unit is shortened, then the shortest phases are left out.
    """
    seconds, rates = metrics.seconds, metrics.tokens_per_second
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


def sources(metrics: StepMetrics) -> str:
    """'reward of: reward_model +0.298, polite +0.021', each before its weight; empty where there is
    one source.
    """
    if len(metrics.rewards) < 2:
        return ""
    return "reward of: " + ", ".join(f"{name} {x:+.3f}" for name, x in metrics.rewards.items())


def plain(metrics: StepMetrics, name: str, step: str) -> str:
    """A step as one line of a log: the most important columns of the table, then the seconds and
    the tokens a second of each phase.
    """
    parts = [
        f"{c.head} {c.text(metrics)}"
        for c in COLUMNS
        if c.head in PLAIN and c.value(metrics) is not None
    ]
    parts += [reward] if (reward := sources(metrics)) else []
    spent = phases(metrics).replace(" · ", ", ")
    line = f"  {name} {step}  {'  '.join(parts)}  {duration(_seconds(metrics))}"
    return f"{line} ({spent})" if spent else line


class StepTable:
    """Prints the steps of one stage."""

    def __init__(
        self, stage: str, total: int, bounds: Bounds | None = None, to: Console = console
    ) -> None:
        self.stage, self.total, self.bounds, self.to = stage, total, bounds or Bounds(), to
        self._shown: list[StepColumn] = []
        self._rows = 0
        self._spent = 0.0

    def show(self, step: int, metrics: StepMetrics) -> None:
        """Print a step, counted from 1."""
        self._spent += _seconds(metrics)
        self._rows += 1
        if self.to.is_terminal:
            self._terminal(metrics, f"{step}/{self.total}")
            return
        left = self._spent / self._rows * (self.total - step)
        rest = f"  {duration(left)} left" if left else ""
        line = plain(metrics, self.stage, f"{step}/{self.total}")
        self.to.print(line + rest, markup=False)

    def _terminal(self, metrics: StepMetrics, step: str) -> None:
        step_width = max(len("step"), len(f"{self.total}/{self.total}"))
        shown = columns(metrics, self.to.width, step_width)
        if shown != self._shown or self._rows % HEADER_EVERY == 1:
            self._shown = shown
            self.to.print(header(shown, step_width))
        self.to.print(row(metrics, shown, step, step_width, self.bounds))
        indent = 2 * MARGIN
        for line in (phases(metrics, self.to.width - indent), sources(metrics)):
            if line:
                self.to.print(Text(" " * indent + line, style="dim"))
