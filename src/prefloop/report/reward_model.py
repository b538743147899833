"""How far the reward model can be trusted: accuracy on files it never saw, calibration, and how
much of it is length.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import matplotlib
from matplotlib.ticker import MultipleLocator

from prefloop.artifacts.codec import read
from prefloop.data.overlap import among
from prefloop.report import plots
from prefloop.report.evaluations import LengthPart, PairTest
from prefloop.report.inputs import number
from prefloop.report.page import MISSING, Cell, decimal, interval, percent
from prefloop.report.plots import INK, MUTED, PAPER, SERIES, Plot
from prefloop.report.summary import StageRun, Summary

ENOUGH = 1000
"""Pairs from which on a bin of ten holds 100, so that its share is known to 5 points."""


class TestRow(NamedTuple):
    """The reward model on one file or subset."""

    name: str
    subset: bool
    pairs: str
    accuracy: Cell
    loss: str
    ece: str
    ece_raw: str
    longer: str


class RewardModelSection(NamedTuple):
    """The part of the report."""

    figures: list[tuple[str, str]]
    note: str
    """Where the fitted temperature did not help; else empty."""
    rows: list[TestRow]
    lengths: list[str]
    by_length: list[tuple[str, list[Cell]]]
    calibration: list[Plot]
    overlaps: list[str]
    """A line for each file whose prompts were looked for in the training set."""


def section(summary: Summary, measured: Mapping[str, PairTest]) -> RewardModelSection | None:
    """Held-out figures of the run, its reward tests, and what ``prefloop reward eval`` measured;
    ``None`` without any.
    """
    tests = tests_of(summary) | dict(measured)
    figures = _figures(summary)
    if not figures and not tests:
        return None
    rows = [row for name, test in tests.items() for row in _rows(name, test)]
    parts = list(dict.fromkeys(part for test in tests.values() for part in test.length.parts))
    by_length = [
        (stem(name), [_part(test.length.parts.get(part)) for part in parts])
        for name, test in tests.items()
        if test.length.parts
    ]
    drawn = [
        _calibration(f"calibration-{i}", name, test) for i, (name, test) in enumerate(tests.items())
    ]
    overlaps = [f"{stem(name)}: {line}" for name, test in tests.items() if (line := _overlap(test))]
    return RewardModelSection(
        figures,
        _no_help(summary),
        rows,
        parts,
        by_length,
        [plot for plot in drawn if plot],
        overlaps,
    )


def stem(file: str) -> str:
    """The name of a file of rows without its endings."""
    return file.removesuffix(".gz").removesuffix(".jsonl")


def _figures(summary: Summary) -> list[tuple[str, str]]:
    """The reward model on the pairs held out of its own training; the last round's."""
    metrics = _trained(summary)
    model = summary.reward_model
    pairs = "" if model.held_out_pairs is None else f" ({model.held_out_pairs:,} pairs)"
    found: list[tuple[str, str]] = []
    if model.accuracy is not None:
        found.append((f"accuracy on held-out pairs{pairs}", f"{percent(model.accuracy)} %"))
    if model.loss is not None:
        found.append(
            ("log loss on held-out pairs (chance: 0.693)", f"{decimal(model.loss, 3)} nats")
        )
    for name, text in (
        ("ece", "calibration error"),
        ("calibrated_ece", "calibration error after temperature"),
    ):
        if (value := number(metrics, name)) is not None:
            found.append((text, f"{percent(value)} %"))
    if (value := number(metrics, "temperature")) is not None:
        found.append(("temperature", decimal(value)))
    if model.pearson_gold is not None:
        found.append(("Pearson correlation with gold", decimal(model.pearson_gold)))
    return found


def _trained(summary: Summary) -> dict[str, Any]:
    """What the last round's reward stage measured."""
    trained = [
        stage
        for stage in summary.stages
        if stage.name.partition("-")[0] == "reward" and not _is_test(stage)
    ]
    return trained[-1].metrics if trained else {}


def _no_help(summary: Summary) -> str:
    """That the temperature did not lower the calibration error, and on how few pairs that rests."""
    metrics, pairs = _trained(summary), summary.reward_model.held_out_pairs
    before, after = number(metrics, "ece"), number(metrics, "calibrated_ece")
    if before is None or after is None or after < before:
        return ""
    on = f" on {pairs:,} held-out pairs" if pairs is not None else " on the held-out pairs"
    few = (
        f": under {ENOUGH:,} pairs are few to fit it and to measure its effect"
        if (pairs or 0) < ENOUGH
        else ""
    )
    return (
        f"The fitted temperature does not lower the calibration error{on}{few}. Each half is"
        " measured with the temperature of the other."
    )


def _is_test(stage: StageRun) -> bool:
    return stage.name.startswith("reward-test")


def tests_of(summary: Summary) -> dict[str, PairTest]:
    """What the stage reward-test measured; the last round's."""
    stages = [
        stage
        for stage in summary.stages
        if _is_test(stage) and isinstance(stage.metrics.get("tests"), dict)
    ]
    return (
        {name: read(PairTest, test) for name, test in stages[-1].metrics["tests"].items()}
        if stages
        else {}
    )


def _rows(name: str, test: PairTest) -> list[TestRow]:
    return [
        _row(name, test, False),
        *(_row(part, subset, True) for part, subset in test.subsets.items()),
    ]


def _row(name: str, test: PairTest, subset: bool) -> TestRow:
    return TestRow(
        stem(name),
        subset,
        MISSING if test.pairs is None else f"{test.pairs:,}",
        Cell(percent(test.accuracy), interval(test.right, 1, 100)),
        decimal(test.loss, 3),
        percent(test.ece),
        percent(test.ece_raw),
        percent(test.length.always_longer),
    )


def _part(part: LengthPart | None) -> Cell:
    """Accuracy on pairs of one length difference, and how many there are."""
    if part is None:
        return Cell(MISSING)
    return Cell(percent(part.accuracy), "" if part.pairs is None else f"of {part.pairs:,}")


def _overlap(test: PairTest, shown: int = 5) -> str:
    """How many of a file's prompts the training set holds, the first by id, and what was done about
    it.
    """
    seen = test.overlap
    if seen.overlapping is None or seen.prompts is None:
        return ""
    rows = among(seen.prompts, seen.distinct or seen.prompts)
    if not seen.overlapping:
        return f"none of {rows} is in the training set"
    named = ", ".join(f"{m.id} (as {m.train_id}, {m.kind})" for m in seen.matches[:shown])
    more = f" and {len(seen.matches) - shown:,} more" if len(seen.matches) > shown else ""
    done = "left out" if seen.left_out else "counted in all the same"
    return f"{seen.overlapping:,} of {rows} are in the training set and {done}: {named}{more}"


def _calibration(name: str, test_name: str, test: PairTest) -> Plot | None:
    """Share of pairs on which the model is right over the probability it gave; the area of a point
    is its number of pairs.
    """
    points = [
        (part.p, part.share, part.n or 1)
        for part in test.bins
        if part.p is not None and part.share is not None
    ]
    if not points:
        return None
    start = 0.5 if min(p for p, _, _ in points) >= 0.5 else 0.0
    most = max(n for _, _, n in points)
    with matplotlib.rc_context(plots.STYLE):
        figure, [axes] = plots.blank(3.6, 3.1)
        axes.plot(
            [100 * start, 100],
            [100 * start, 100],
            color=MUTED,
            linewidth=0.9,
            linestyle=(0, (4, 3)),
        )
        axes.annotate(
            "calibrated",
            (75, 75),
            xytext=(-5, 5),
            textcoords="offset points",
            ha="right",
            color=MUTED,
            fontsize=8,
        )
        axes.plot(
            [100 * p for p, _, _ in points],
            [100 * share for _, share, _ in points],
            color=SERIES[1],
            linewidth=1,
        )
        axes.scatter(
            [100 * p for p, _, _ in points],
            [100 * share for _, share, _ in points],
            s=[16 + 60 * n / most for _, _, n in points],
            color=SERIES[1],
            edgecolor=PAPER,
            linewidth=1,
            zorder=3,
            clip_on=False,
        )
        axes.set_xlim(100 * start - 2, 102)
        axes.set_ylim(min(100 * start, 100 * min(share for _, share, _ in points)) - 2, 102)
        axes.xaxis.set_major_locator(MultipleLocator(10 if start else 20))
        axes.yaxis.set_major_locator(MultipleLocator(20))
        plots.axis_labels(
            axes,
            "stated probability of the preferred response (%)",
            "pairs on which the model is right (%)",
        )
        axes.tick_params(colors=INK, labelcolor=MUTED)
        read = "; ".join(f"{100 * p:.0f} %: {100 * share:.0f} %" for p, share, _ in points)
        errors = [
            f"{text} {percent(value)} %"
            for text, value in (("before temperature", test.ece_raw), ("after", test.ece))
            if value is not None
        ]
        caption = f"{stem(test_name)}. Larger points stand for more pairs." + (
            f" Calibration error: {', '.join(errors)}." if errors else ""
        )
        if test.ece is not None and test.ece_raw is not None and test.ece >= test.ece_raw:
            on = "these" if test.pairs is None else f"these {test.pairs:,}"
            caption += f" The temperature, fitted on other pairs, does not help on {on}."
        return Plot(
            plots.to_svg(
                figure,
                name,
                f"Calibration on {stem(test_name)}, right by stated probability: {read}",
            ),
            caption,
        )
