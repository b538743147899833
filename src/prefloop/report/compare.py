"""Several runs on one page: results beside each other, the settings that differ, curves over one
another.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from prefloop.artifacts.results import JUDGE, Estimate, PolicyResult, aligned
from prefloop.errors import ConfigError
from prefloop.report import plots, results
from prefloop.report.benchmarks import metric_name, score_cell
from prefloop.report.current import bench_of, reward_tests_of
from prefloop.report.evaluations import BenchFile, PairTest
from prefloop.report.html import fill, write_page
from prefloop.report.inputs import Curve, curves_of, read_summary
from prefloop.report.page import (
    MISSING,
    Cell,
    TableRow,
    duration,
    interval,
    label,
    percent,
    stage_label,
)
from prefloop.report.plots import Plot
from prefloop.report.readings import JUDGES, name_of
from prefloop.report.reward_model import stem, tests_of
from prefloop.report.settings import differences
from prefloop.report.summary import Summary

_FIELDS = (
    ("reward_mean", "proxy reward (reward-model score)", 1.0),
    ("gold_mean", "gold score (never trained on)", 1.0),
    ("kl", "KL to reference (nats per response)", 1.0),
    ("length_mean", "response length (tokens)", 1.0),
    ("entropy", "entropy (nats per token)", 1.0),
    ("loss", "loss (nats)", 1.0),
    ("accuracy", "pair accuracy (%)", 100.0),
    ("margin", "reward margin (nats)", 1.0),
)


class Found(NamedTuple):
    """What one run left."""

    folder: Path
    summary: Summary
    curves: dict[str, Curve]
    bench: BenchFile | None
    tests: dict[str, PairTest]
    notes: list[str]
    """What it left that is not of its adapters now."""


def write_comparison(folders: Sequence[Path], target: Path | None = None) -> Path:
    """Write a page that compares runs, by default ``compare.html`` beside the first run's folder,
    and return its path.

    Raises ``ConfigError`` for fewer than two different runs and ``DataError`` for a run without a
    readable summary.
    """
    folders = list(dict.fromkeys(folder.resolve() for folder in folders))
    if len(folders) < 2:
        raise ConfigError(
            f"a comparison needs two runs, found '{folders[0]}' alone: name another run's folder"
        )
    runs = {name: _read(folder) for name, folder in zip(_names(folders), folders, strict=True)}
    return write_page(target or folders[0].parent / "compare.html", render(runs))


def _read(folder: Path) -> Found:
    summary = read_summary(folder / "summary.json")
    damaged: list[str] = []
    curves, _ = curves_of(folder, summary, damaged)
    listed = {stage.name for stage in summary.stages}
    bench, left_out = bench_of(folder, summary)
    tests, also = reward_tests_of(folder, summary)
    kept = {stage: curve for stage, curve in curves.items() if stage in listed}
    return Found(
        folder, summary, kept, bench, tests_of(summary) | tests, [*damaged, *left_out, *also]
    )


def _names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell the runs apart."""
    for depth in itertools.count(1):
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    raise AssertionError


def render(runs: Mapping[str, Found]) -> str:
    """The page as text."""
    summaries = {name: run.summary for name, run in runs.items()}
    rows = [
        TableRow(name, results.cells(result), label(policy))
        for name, summary in summaries.items()
        for policy, result in summary.results.items()
    ]
    columns, rows = results.filled(rows, results.columns(_policies(summaries)))
    parts = {
        "settings": differences({name: (run.folder, run.summary) for name, run in runs.items()}),
        "curves": list(_curves(runs)),
        "bench": _bench(runs),
        "tests": _tests(runs),
        "times": _times(summaries),
    }
    sections = {
        "results": ("Results", rows),
        "settings": ("Settings", runs),
        "curves-1": ("Curves", parts["curves"]),
        "benchmarks": ("Benchmarks", parts["bench"]),
        "reward-model": ("Reward model", parts["tests"]),
        "times": ("Times", parts["times"]),
    }
    return fill(
        "compare.html.j2",
        title=" and ".join(runs) if len(runs) == 2 else f"{len(runs)} runs",
        nav=[(id, text, bool(there)) for id, (text, there) in sections.items()],
        names=list(runs),
        said={name: _said(summary) for name, summary in summaries.items()},
        series={name: 1 + i % 6 for i, name in enumerate(runs)},
        sentence=_sentence(summaries),
        cautions=[
            *_cautions(summaries),
            *(f"{name}: {note}" for name, run in runs.items() for note in run.notes),
        ],
        columns=columns,
        rows=rows,
        forests=_forests(summaries),
        **parts,
    )


def _policies(summaries: Mapping[str, Summary]) -> list[PolicyResult]:
    return [result for summary in summaries.values() for result in summary.results.values()]


def _said(summary: Summary) -> list[str]:
    took = duration(summary.seconds) if summary.seconds is not None else ""
    return [part for part in (label(summary.algo), summary.model, summary.started, took) if part]


def _wins(summaries: Mapping[str, Summary], judge: str) -> list[tuple[str, str, Estimate]]:
    """Run, policy and win rate against SFT for every policy that the judge compared; the bare model
    is none.
    """
    return [
        (name, policy, result.win(judge))
        for name, summary in summaries.items()
        for policy, result in summary.results.items()
        if policy in aligned(summary.results) and result.win(judge).value is not None
    ]


def _asked(summaries: Mapping[str, Summary]) -> set[str]:
    """The judges that ``evaluate.judge`` of the runs named."""
    return {r.judge for r in _policies(summaries) if r.win(JUDGE).value is not None}


def _sentence(summaries: Mapping[str, Summary]) -> Markup:
    """The best policies of the two best runs under the best judge that all runs have, and whether
    the order is settled.
    """
    shared = (j for j in JUDGES if {name for name, _, _ in _wins(summaries, j)} == set(summaries))
    judge = next((j for j in shared if j != JUDGE or len(_asked(summaries)) == 1), None)
    if judge is None:
        return Markup("{} runs side by side. No judge compared policies in all of them.").format(
            len(summaries)
        )
    best = {
        row[0]: row for row in sorted(_wins(summaries, judge), key=lambda row: row[2].value or 0.0)
    }
    ranked = sorted(best.values(), key=lambda row: -(row[2].value or 0.0))
    (name, policy, win), (other, other_policy, next_win) = ranked[:2]
    place = "level with" if win.value == next_win.value else "before"
    text = Markup(
        "{} of {} wins most against its SFT under the {}: <strong>{}</strong>, {} {} of {} with"
        " <strong>{}</strong>"
    )
    text = text.format(
        label(policy),
        name,
        name_of(_policies(summaries), judge),
        _quote(win),
        place,
        label(other_policy),
        other,
        _quote(next_win),
    )
    if place == "level with" or not win.interval or not next_win.interval:
        return text + "."
    apart = win.interval[0] > next_win.interval[1]
    return text + (
        "; the intervals do not overlap."
        if apart
        else "; the intervals overlap, so the order is not settled."
    )


def _quote(win: Estimate) -> str:
    return f"{percent(win.value)} % {interval(win, 1, 100)}".strip()


def _cautions(summaries: Mapping[str, Summary]) -> list[str]:
    """What makes numbers of different runs hard to compare."""
    notes = []
    starts = {
        stage.key
        for summary in summaries.values()
        for stage in summary.stages
        if stage.name == "sft"
    }
    if len(starts) > 1:
        notes.append(
            "The runs start from different SFT adapters: each win rate is against the SFT of its"
            " own run."
        )
    counts = {
        result.n_prompts for summary in summaries.values() for result in summary.results.values()
    }
    if len(counts) > 1:
        notes.append(
            "The runs were judged on different numbers of prompts, so not on the same ones."
        )
    if len(asked := _asked(summaries)) > 1:
        notes.append(f"The runs were judged by different judges: {', '.join(sorted(asked))}.")
    models = {summary.model for summary in summaries.values()}
    if len(models) > 1:
        notes.append(
            f"The runs train different models: {', '.join(sorted(models))}. KL and reward are not"
            " comparable."
        )
    return notes


def _forests(summaries: Mapping[str, Summary]) -> list[Plot]:
    series = {name: 1 + i % 6 for i, name in enumerate(summaries)}
    drawn = (
        plots.forest(
            f"forest-{judge}",
            name_of(_policies(summaries), judge),
            [
                (f"{name} {label(policy)}", win, series[name])
                for name, policy, win in _wins(summaries, judge)
            ],
        )
        for judge in JUDGES
    )
    return [plot for plot in drawn if plot]


def _curves(runs: Mapping[str, Found]) -> Iterable[tuple[str, list[Plot]]]:
    """By stage, every field that at least one run logged, all runs in one plot."""
    for number, stage in enumerate(
        dict.fromkeys(stage for run in runs.values() for stage in run.curves)
    ):
        curves = {name: run.curves.get(stage, Curve([])) for name, run in runs.items()}
        drawn = [
            plots.overlay(f"stage-{number}-{field}", curves, (field,), text, scale=scale)
            for field, text, scale in _FIELDS
        ]
        if any(drawn):
            yield stage_label(stage), [plot for plot in drawn if plot]


def _bench(runs: Mapping[str, Found]) -> list[tuple[str, str, str, str, list[Cell]]]:
    """A row for every task, metric and adapter: how many questions, and its score in each run with
    one standard error.
    """
    rows: dict[tuple[str, str, str], dict[str, Cell]] = {}
    counts: dict[tuple[str, str, str], dict[str, None]] = {}
    for name, run in runs.items():
        for task, found in (run.bench.tasks if run.bench else {}).items():
            for measured in found.rows:
                for adapter, score in measured.adapters.items():
                    row = (task, metric_name(measured), adapter)
                    rows.setdefault(row, {})[name] = Cell(*score_cell(score))
                    counts.setdefault(row, {})[MISSING if score.n is None else f"{score.n:,}"] = (
                        None
                    )
    return [
        (
            task,
            metric,
            label(adapter),
            " / ".join(counts[task, metric, adapter]),
            [cells.get(n, Cell(MISSING)) for n in runs],
        )
        for (task, metric, adapter), cells in rows.items()
    ]


def _tests(runs: Mapping[str, Found]) -> list[tuple[str, list[Cell]]]:
    """A row for every file of labeled pairs: the accuracy of each run's reward model."""
    held_out = [Cell(percent(run.summary.reward_model.accuracy)) for run in runs.values()]
    rows = (
        [("pairs held out of its own training", held_out)]
        if any(c.value != MISSING for c in held_out)
        else []
    )
    for file in dict.fromkeys(file for run in runs.values() for file in run.tests):
        found = [run.tests.get(file) for run in runs.values()]
        cells = [
            Cell(percent(t.accuracy), interval(t.right, 1, 100)) if t else Cell(MISSING)
            for t in found
        ]
        rows.append((stem(file), cells))
    return rows


def _times(summaries: Mapping[str, Summary]) -> list[tuple[str, list[Cell]]]:
    """A row for every stage: what it takes in each run, whenever it was built."""
    rows = []
    for stage in dict.fromkeys(
        stage.name for summary in summaries.values() for stage in summary.stages
    ):
        found = [
            next((s for s in summary.stages if s.name == stage), None)
            for summary in summaries.values()
        ]
        rows.append(
            (
                stage_label(stage),
                [
                    (
                        Cell(duration((s.seconds or 0.0) + (s.saved_seconds or 0.0)), s.status)
                        if s
                        else Cell(MISSING)
                    )
                    for s in found
                ],
            )
        )
    return rows
