"""How a report writes names, numbers and intervals, and what it says under the plot of
over-optimization.
"""

import math
from typing import Any, NamedTuple

from prefloop.artifacts.references import BASE
from prefloop.artifacts.results import Estimate
from prefloop.report.inputs import Curve
from prefloop.report.summary import Summary

MISSING = "\N{EN DASH}"
_GLUE = "\N{NO-BREAK SPACE}"
_INITIALS = {"sft", "ppo", "dpo", "ipo", "kto", "orpo", "cpo", "grpo", "rloo", "simpo"}


class Cell(NamedTuple):
    """A value and its interval, printed in two columns so that the digits of both line up."""

    value: str
    interval: str = ""


class ResultColumn(NamedTuple):
    """A column of a table of results."""

    title: str
    unit: str
    intervals: bool = True


class TableRow(NamedTuple):
    """A row of a table of results."""

    name: str
    cells: list[Cell]
    note: str = ""


def label(name: str) -> str:
    """How a policy is written: initials in capitals, the bare model as such, a name the user made
    up as it is.
    """
    return "bare model" if name == BASE else name.upper() if name in _INITIALS else name


def spoken(name: str) -> str:
    """How a policy is called in a sentence."""
    return "the bare model" if name == BASE else label(name)


def stage_label(name: str) -> str:
    """How a stage is written, with its round where that is not the first."""
    first, _, number = name.partition("-")
    if number.isdigit():
        return f"{stage_label(first)}, round {number}"
    if first == "respond":
        return (
            f"{label(number.removesuffix('-again'))}"
            f" answers{', again' if number.endswith('-again') else ''}"
        )
    text = {"reward": "Reward model", "reward-test": "Reward test"}.get(name, label(name))
    return text[:1].upper() + text[1:]


def decimal(value: float | None, digits: int = 2) -> str:
    """A number with a true minus sign; three significant digits where fixed decimals would print
    0.00 or a long row.
    """
    if value is None:
        return MISSING
    if value and not 10**-digits / 2 <= abs(value) < 1e5:
        return f"{value:.3g}".replace("-", "\N{MINUS SIGN}")
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if not float(text) else text.replace("-", "\N{MINUS SIGN}")


def percent(share: float | None, digits: int = 1) -> str:
    """A share as a percentage without its sign."""
    return MISSING if share is None else decimal(100 * share, digits)


def interval(estimate: Estimate, digits: int = 2, scale: float = 1.0) -> str:
    """``[low, high]``, or nothing when there is no interval."""
    if estimate.interval is None:
        return ""
    low, high = (decimal(scale * bound, digits) for bound in estimate.interval)
    return f"[{low}, {high}]"


def duration(seconds: float | None) -> str:
    """``8.3 s``, ``1 min 11 s``, ``2 h 05 min``; the parts do not break over lines."""
    if seconds is None:
        return MISSING
    if seconds < 59.95:
        return f"{seconds:.1f}{_GLUE}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    parts = (
        (hours, "h", f"{minutes_left:02d}", "min")
        if hours
        else (minutes, "min", f"{rest:02d}", "s")
    )
    return _GLUE.join(map(str, parts))


def metric(value: Any) -> str:
    """A scalar metric of a stage as text."""
    if isinstance(value, float):
        return f"{value:.4g}".replace("-", "\N{MINUS SIGN}") if math.isfinite(value) else MISSING
    return str(value)


def saved(summary: Summary) -> str:
    """What earlier runs spared this one, in words."""
    seconds = sum(stage.saved_seconds or 0.0 for stage in summary.stages)
    return f"Work reused or resumed from earlier runs saved {duration(seconds)}." if seconds else ""


def overoptimization_note(stage: str | None, curve: Curve | None) -> str:
    """How to read the plot, where gold peaked during training, and what became of it and of the
    proxy after that.
    """
    finals = (
        "Large markers are the final policies on the evaluation prompts, with 95\N{NO-BREAK SPACE}%"
        " intervals."
    )
    if stage is None or curve is None:
        return finals
    legend = f"Small points are steps of {label(stage)} training on its own rollouts. {finals}"
    steps, gold = curve.series("gold_mean")
    if len(steps) < 3:
        return legend
    peak = max(range(len(gold)), key=gold.__getitem__)
    kl, proxy = (dict(zip(*curve.series(field), strict=True)) for field in ("kl", "reward_mean"))
    at = f"step {steps[peak]:g}" + (
        f" (KL {decimal(kl[steps[peak]], 1)} nats)" if steps[peak] in kl else ""
    )
    if peak == len(gold) - 1:
        return (
            f"{legend} Gold is highest at the last measured step, {at}: no over-optimization is"
            " visible in this run."
        )
    note = (
        f"{legend} Gold is highest at {at}, {decimal(gold[peak], 3)}, and ends at"
        f" {decimal(gold[-1], 3)}"
    )
    if steps[peak] in proxy and steps[-1] in proxy:
        note += (
            f"; the proxy reads {decimal(proxy[steps[peak]])} there and {decimal(proxy[steps[-1]])}"
            " at the end"
        )
    return note + ". A single step is noisy: read the trend."
