"""The stages of a run: the pipeline as a picture, where its time went, and what every stage
measured and checked.
"""

from typing import Any, NamedTuple

from prefloop.config.algorithms import POLICIES
from prefloop.report.inputs import number
from prefloop.report.page import decimal, duration, percent, stage_label
from prefloop.report.summary import StageRun, Summary

_STATUSES = ("ran", "reused", "resumed")


class StageBox(NamedTuple):
    """One stage in the picture."""

    name: str
    status: str
    said: str
    time: str
    figure: str


def picture(summary: Summary) -> list[list[StageBox]]:
    """Boxes in the order of the pipeline; what does not wait for one another stands in one
    column.
    """
    columns: list[tuple[str, list[StageBox]]] = []
    for stage in summary.stages:
        kind = _kind(stage.name)
        if not columns or columns[-1][0] != kind:
            columns.append((kind, []))
        columns[-1][1].append(_box(stage))
    return [boxes for _, boxes in columns]


def _kind(name: str) -> str:
    """Policies of one round are trained side by side, and so are their answers; any other stage is
    a kind of its own.
    """
    first, _, rest = name.partition("-")
    if first in POLICIES:
        return f"policy-{rest}"
    return "respond" if first == "respond" else name


def _box(stage: StageRun) -> StageBox:
    status = stage.status if stage.status in _STATUSES else "other"
    spared = (
        f"saved\N{NO-BREAK SPACE}{duration(stage.saved_seconds)}" if stage.saved_seconds else ""
    )
    times = [duration(stage.seconds) if status != "reused" or not spared else "", spared]
    time = ", ".join(filter(None, times))
    return StageBox(stage_label(stage.name), status, stage.status, time, _figure(stage))


def _figure(stage: StageRun) -> str:
    """The one number that says what came out of a stage."""
    first = stage.name.partition("-")[0]
    for name, text in (
        ("comparisons", "comparisons"),
        ("responses", "responses"),
        ("kl", "nats KL"),
        ("accuracy", "% accuracy"),
        ("accuracy_last", "% accuracy"),
        ("held_out_loss", "nats held-out loss"),
        ("loss_last", "nats loss"),
    ):
        value = number(stage.metrics, name)
        if value is None or (first == "respond" and name == "kl"):
            continue
        if name in ("comparisons", "responses"):
            return f"{value:,.0f} {text}"
        return f"{percent(value) if '%' in text else decimal(value)} {text}"
    return ""


def timeline(summary: Summary) -> list[dict[str, Any]]:
    """A bar a stage: where it starts and how long it is, in percent of the time that all stages
    took.
    """
    total = sum(stage.seconds or 0.0 for stage in summary.stages)
    rows, start = [], 0.0
    for stage in summary.stages:
        seconds = max(0.0, stage.seconds or 0.0)
        rows.append(
            {
                "stage": stage,
                "status": stage.status if stage.status in _STATUSES else "other",
                "left": f"{100 * start / total:.2f}" if total else "0",
                "width": f"{100 * seconds / total:.2f}" if total else "0",
            }
        )
        start += seconds
    return rows


def audits(summary: Summary) -> list[dict[str, Any]]:
    """Per stage its scalar metrics and the lines its step-0 audit printed."""
    found = []
    for stage in summary.stages:
        audit = stage.metrics.get("audit")
        lines = [str(line) for line in audit] if isinstance(audit, list) else []
        scalars = {
            name: value
            for name, value in stage.metrics.items()
            if isinstance(value, int | float | str)
        }
        if lines or scalars:
            found.append({"name": stage.name, "lines": lines, "scalars": scalars})
    return found
