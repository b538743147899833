"""The before/after table: what alignment cost or gained on public tasks, so that forgetting
shows.
"""

from typing import NamedTuple

from prefloop.base.redact import flat_without_secrets
from prefloop.report.evaluations import BenchFile, MetricScores, Score
from prefloop.report.page import MISSING, decimal, label, metric


class Difference(NamedTuple):
    """Change against the first adapter: text, standard error, and ``better``, ``worse`` or nothing
    when within two errors.
    """

    value: str
    stderr: str
    verdict: str


class TaskRow(NamedTuple):
    """One task by its main metric, or a further metric of the one above (no name): its score for
    each adapter as value and standard error, and each change.
    """

    name: str
    metric: str
    n: str
    """Questions of each adapter; several numbers where they differ."""
    scores: list[tuple[str, str]]
    differences: list[Difference]


class BenchSection(NamedTuple):
    """The table ready to print."""

    adapters: list[str]
    changed: list[str]
    rows: list[TaskRow]
    note: str
    settings: dict[str, str]


def section(bench: BenchFile | None) -> BenchSection | None:
    """The table; ``None`` when the run was not benchmarked."""
    if bench is None or not bench.tasks:
        return None
    adapters = list(dict.fromkeys(name for task in bench.tasks.values() for name in task.adapters))
    changed = list(dict.fromkeys(name for task in bench.tasks.values() for name in task.difference))
    rows = [
        TaskRow(
            name if row is task else "", metric_name(row), _questions(row),
            [score_cell(row.adapters.get(adapter)) for adapter in adapters],
            [_difference(row, adapter) for adapter in changed],
        )
        for name, task in bench.tasks.items() for row in task.rows
    ]  # fmt: skip
    verdicts = [
        change.verdict for row in rows for change in row.differences if change.value != MISSING
    ]
    worse = verdicts.count("worse")
    note = (
        f"{worse} of {len(verdicts)} changes in this table {'is' if worse == 1 else 'are'} worse by"
        f" more than two standard errors, {verdicts.count('better')} better. The first metric of a"
        " task is its main one."
    )
    said = {name: metric(value) for name, value in flat_without_secrets(bench.settings).items()}
    return BenchSection(
        [label(name) for name in adapters],
        [label(name) for name in changed],
        rows,
        note if verdicts else "",
        said,
    )


def metric_name(row: MetricScores) -> str:
    """The metric, and which way is better where that is down."""
    return row.metric + ("" if row.higher_is_better is not False else ", lower is better")


def _questions(row: MetricScores) -> str:
    """How many questions were asked: one number, or the different ones with a stroke between."""
    counts = dict.fromkeys(score.n for score in row.adapters.values() if score.n is not None)
    return " / ".join(f"{n:,}" for n in counts) or MISSING


def score_cell(score: Score | None) -> tuple[str, str]:
    """A score and its standard error as text."""
    if score is None:
        return MISSING, ""
    return _number(score.value), (
        "" if score.stderr is None else f"± {_number(score.stderr, score.value)}"
    )


def _difference(task: MetricScores, adapter: str) -> Difference:
    found = task.difference.get(adapter)
    if found is None or found.value is None:
        return Difference(MISSING, "", "")
    sign = "+" if found.value > 0 else ""
    if found.stderr is None or abs(found.value) <= 2 * found.stderr:
        verdict = ""
    else:
        verdict = "better" if (found.value > 0) == (task.higher_is_better is not False) else "worse"
    error = "" if found.stderr is None else f"± {_number(found.stderr, found.value)}"
    return Difference(sign + _number(found.value), error, verdict)


def _number(value: float | None, scale: float | None = None) -> str:
    """Four decimals for shares, two for what is larger; an error has the decimals of its number."""
    size = abs(value or 0.0) if scale is None else abs(scale)
    return decimal(value, 2 if size >= 1.5 else 4)
