"""Before and after: each adapter's numbers beside those of the reference, with the error of the
paired difference.

Two adapters answer the same questions, so what counts is the spread of the differences question by
question: it is far smaller than the spread of either, and what a benchmark lost shows with fewer
questions.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from rich.table import Table

from prefloop.evaluation.benchmarks.harness import Measured, Metric

PREFERRED = "acc_norm"
"""Metric that stands for a task that has it; else the first that the task names."""


def compare(found: Mapping[str, Measured], reference: str) -> dict[str, Any]:
    """``tasks`` of bench.json from every adapter's numbers: for each task its main metric, and the
    others under ``more``.

    A metric is ``{metric, higher_is_better, adapters: {adapter: {value, stderr, n}},
    difference: {adapter: {value, stderr}}}``; the
    difference is the adapter's value less the reference's.
    """
    out: dict[str, Any] = {}
    for task in dict.fromkeys(task for measured in found.values() for task in measured):
        by_adapter = {
            adapter: {m.name: m for m in measured.get(task, [])}
            for adapter, measured in found.items()
        }
        names = list(dict.fromkeys(name for metrics in by_adapter.values() for name in metrics))
        names.sort(key=lambda name: name.partition(",")[0] != PREFERRED)
        rows = [
            _row({a: m[name] for a, m in by_adapter.items() if name in m}, reference)
            for name in names
        ]
        out[task] = {**rows[0], "more": rows[1:]}
    return out


def _row(metrics: Mapping[str, Metric], reference: str) -> dict[str, Any]:
    first, before = next(iter(metrics.values())), metrics.get(reference)
    return {
        "metric": first.name,
        "higher_is_better": first.higher_is_better,
        "adapters": {
            a: {"value": m.value, "stderr": m.stderr, "n": m.n} for a, m in metrics.items()
        },
        "difference": {
            a: difference(m, before)
            for a, m in metrics.items()
            if before is not None and a != reference
        },
    }


def difference(after: Metric, before: Metric) -> dict[str, float | None]:
    """The difference of two values and its standard error: of the mean of paired differences, or of
    paired resamples.

    The error is ``None`` for fewer than two questions and where a metric says nothing about single
    questions.
    """
    error = None
    both = after.by_question.keys() & before.by_question.keys()
    if len(both) == len(after.by_question) == len(before.by_question) > 1:
        gaps = [after.by_question[q] - before.by_question[q] for q in sorted(both)]
        error = statistics.stdev(gaps) / len(gaps) ** 0.5
    elif after.resampled and len(after.resampled) == len(before.resampled) and after.n > 1:
        error = statistics.stdev(
            a - b for a, b in zip(after.resampled, before.resampled, strict=True)
        )
    return {"value": after.value - before.value, "stderr": error}


def table(tasks: Mapping[str, Any], reference: str) -> Table:
    """The before/after table, a row for each task, metric and adapter: value ± standard error, and
    the change, colored beyond two errors.
    """
    out = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    for column in ("task", "metric", "adapter", "n", "value ± error", f"less {reference}"):
        out.add_column(
            column,
            justify="left" if column in ("task", "metric", "adapter") else "right",
            no_wrap=True,
        )
    for name, task in tasks.items():
        for row in (task, *task["more"]):
            for adapter, found in row["adapters"].items():
                first = adapter == next(iter(row["adapters"]))
                change = (
                    ""
                    if adapter == reference
                    else _change(row["difference"].get(adapter), row["higher_is_better"])
                )
                out.add_row(
                    name if first and row is task else "",
                    row["metric"] if first else "",
                    adapter,
                    str(found["n"]) if first else "",
                    _number(found["value"], found["stderr"]),
                    change,
                )
    return out


def _number(value: float, error: float | None) -> str:
    return f"{value:.4f}" + ("" if error is None else f" ± {error:.4f}")


def _change(found: Mapping[str, float | None] | None, better: bool | None) -> str:
    if found is None or found["value"] is None:
        return "-"
    value, error = found["value"], found["stderr"]
    text = f"{value:+.4f}" + ("" if error is None else f" ± {error:.4f}")
    if error is None or better is None or abs(value) <= 2 * error:
        return text
    return f"[{'green' if (value > 0) == better else 'red'}]{text}[/]"
