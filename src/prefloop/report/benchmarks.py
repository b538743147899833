"""The before/after table: what alignment cost or gained on public tasks, so that forgetting shows."""

from typing import NamedTuple

from prefloop.report.evaluations import Bench, Score, Task
from prefloop.report.page import MISSING, decimal, label, metric
from prefloop.trackers import settings


class Difference(NamedTuple):
    """Change against the first adapter: text, standard error, and ``better``, ``worse`` or nothing when within two errors."""

    value: str
    stderr: str
    verdict: str


class TaskRow(NamedTuple):
    """One task: its score for each adapter as value and standard error, and each change."""

    name: str
    metric: str
    scores: list[tuple[str, str]]
    differences: list[Difference]


class Section(NamedTuple):
    """The table ready to print."""

    adapters: list[str]
    changed: list[str]
    rows: list[TaskRow]
    note: str
    settings: dict[str, str]


def section(bench: Bench | None) -> Section | None:
    """The table; ``None`` when the run was not benchmarked."""
    if bench is None or not bench.tasks:
        return None
    adapters = list(dict.fromkeys(name for task in bench.tasks.values() for name in task.adapters))
    changed = list(dict.fromkeys(name for task in bench.tasks.values() for name in task.difference))
    rows = [
        TaskRow(
            name, task.metric + ("" if task.higher_is_better is not False else ", lower is better"),
            [_score(task.adapters.get(adapter)) for adapter in adapters],
            [_difference(task, adapter) for adapter in changed],
        )
        for name, task in bench.tasks.items()
    ]  # fmt: skip
    verdicts = [change.verdict for row in rows for change in row.differences if change.value != MISSING]
    worse = verdicts.count("worse")
    note = (
        f"{worse} of {len(verdicts)} changes {'is' if worse == 1 else 'are'} worse by more than two standard errors, "
        f"{verdicts.count('better')} better."
    )
    said = {name: metric(value) for name, value in settings(bench.settings).items()}
    return Section([label(name) for name in adapters], [label(name) for name in changed], rows, note if verdicts else "", said)


def _score(score: Score | None) -> tuple[str, str]:
    if score is None:
        return MISSING, ""
    return decimal(score.value, 4), "" if score.stderr is None else f"± {decimal(score.stderr, 4)}"


def _difference(task: Task, adapter: str) -> Difference:
    found = task.difference.get(adapter)
    if found is None or found.value is None:
        return Difference(MISSING, "", "")
    sign = "+" if found.value > 0 else ""
    if found.stderr is None or abs(found.value) <= 2 * found.stderr:
        verdict = ""
    else:
        verdict = "better" if (found.value > 0) == (task.higher_is_better is not False) else "worse"
    error = "" if found.stderr is None else f"± {decimal(found.stderr, 4)}"
    return Difference(sign + decimal(found.value, 4), error, verdict)
