"""The stages of a run: the pipeline as a picture, the time of each stage, its metrics and its
audit.
"""

from typing import NamedTuple

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


class Bar(NamedTuple):
    """A stage in the time line: where its bar starts and how long it is, in percent of the time
    that all stages took.
    """

    stage: StageRun
    status: str
    left: str
    width: str


def timeline(summary: Summary) -> list[Bar]:
    """A bar for every stage, one after another."""
    total = sum(stage.seconds or 0.0 for stage in summary.stages)
    rows, start = [], 0.0
    for stage in summary.stages:
        seconds = max(0.0, stage.seconds or 0.0)
        status = stage.status if stage.status in _STATUSES else "other"
        left, width = (f"{100 * part / total:.2f}" if total else "0" for part in (start, seconds))
        rows.append(Bar(stage, status, left, width))
        start += seconds
    return rows


class StageAudit(NamedTuple):
    """A stage's scalar metrics and the lines that its first-step audit printed."""

    name: str
    lines: list[str]
    scalars: dict[str, int | float | str]


def audits(summary: Summary) -> list[StageAudit]:
    """The metrics and audit of every stage that has any."""
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
            found.append(StageAudit(stage.name, lines, scalars))
    return found
