"""Every policy in numbers: the table of results, win rates by judge, the matrix of all against all,
what judging took.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

from prefloop.artifacts.results import (
    GOLD,
    JUDGE,
    REWARD,
    UNKNOWN,
    Estimate,
    PolicyResult,
    Used,
    rivals,
)
from prefloop.report import plots
from prefloop.report.page import (
    MISSING,
    Cell,
    ResultColumn,
    TableRow,
    decimal,
    interval,
    label,
    percent,
)
from prefloop.report.plots import Plot
from prefloop.report.readings import JUDGES, control_of, name_of
from prefloop.report.summary import Summary
from prefloop.stats.length_control import UNIT

CONTROL = "A/A control"


def columns(results: Iterable[PolicyResult]) -> list[ResultColumn]:
    """All columns there can be; a win rate's unit names who judged."""
    found = list(results)
    controlled = dict.fromkeys(filter(None, (result.at_equal_length.judge for result in found)))
    return [
        ResultColumn("Gold score", "mean"),
        ResultColumn("Win rate vs SFT", f"%, {name_of(found, GOLD)}"),
        ResultColumn("Win rate vs SFT", f"%, {name_of(found, JUDGE)}"),
        ResultColumn("At equal length", ", ".join([f"% ({UNIT})", *controlled])),
        ResultColumn("Win rate vs SFT", f"%, {name_of(found, REWARD)}"),
        ResultColumn("KL to reference", "nats"),
        ResultColumn("Length", "words", False),
        ResultColumn("Under 5 words", "%", False),
        ResultColumn("Finished", "%", False),
    ]


def results_table(summary: Summary) -> tuple[list[ResultColumn], list[TableRow]]:
    """Columns that hold at least one number, and a row for every policy and the A/A control."""
    counts = {_count(result) for result in summary.results.values()}
    rows = [
        TableRow(label(name), cells(result), _count(result) if len(counts) > 1 else "")
        for name, result in summary.results.items()
    ]
    if rows and any(win.value is not None for win in summary.control.values()):
        control = [Cell(MISSING)] * len(rows[0].cells)
        control[1], control[4] = (_rate(control_of(summary, judge)) for judge in (GOLD, REWARD))
        rows.append(TableRow(CONTROL, control, "SFT against SFT"))
    return filled(rows, columns(summary.results.values()))


def filled(
    rows: list[TableRow], named: list[ResultColumn]
) -> tuple[list[ResultColumn], list[TableRow]]:
    """The columns that hold at least one number, and the rows without the others."""
    kept = [i for i in range(len(named)) if any(row.cells[i].value != MISSING for row in rows)]
    return [named[i] for i in kept], [
        row._replace(cells=[row.cells[i] for i in kept]) for row in rows
    ]


def shared_count(summary: Summary) -> str:
    """How many prompts and responses every policy was judged on, when it was the same for all."""
    counts = {_count(result) for result in summary.results.values()}
    return counts.pop() if len(counts) == 1 else ""


def _count(result: PolicyResult) -> str:
    counts = ((result.n_prompts, "prompts"), (result.n_responses, "responses"))
    return ", ".join(f"{count:,} {noun}" for count, noun in counts if count is not None)


def cells(result: PolicyResult) -> list[Cell]:
    """A cell for each of ``columns``."""
    return [
        Cell(decimal(result.gold.value, 3), interval(result.gold, 3)),
        _rate(result.win(GOLD)),
        _rate(result.win(JUDGE)),
        _rate(result.at_equal_length.win),
        _rate(result.win(REWARD)),
        Cell(decimal(result.kl.value), interval(result.kl)),
        Cell(decimal(result.length_mean, 1)),
        Cell(percent(result.short_share)),
        Cell(percent(result.finished_share)),
    ]


def _rate(win: Estimate) -> Cell:
    return Cell(percent(win.value), interval(win, 1, 100))


def forests(summary: Summary) -> list[Plot]:
    """Win rates against SFT with the A/A control under them, a plot for each judge."""
    series, drawn = plots.colors(list(summary.results)), []
    for judge in JUDGES:
        text = name_of(summary.results.values(), judge)
        rows = [
            (label(name), summary.results[name].win(judge), series[name])
            for name in rivals(summary.results)
        ]
        if any(win.value is not None for _, win, _ in rows):
            drawn.append(
                plots.forest(
                    f"forest-{judge}", text, [*rows, (CONTROL, control_of(summary, judge), 0)]
                )
            )
    return [plot for plot in drawn if plot]


class MatrixCell(NamedTuple):
    """A win rate of row against column: text, interval, and how far from 50 % (-100 to 100) for its
    tint.
    """

    value: str
    interval: str
    tint: int


class MatrixRow(NamedTuple):
    """A policy, its cells against every other, its Elo."""

    name: str
    cells: list[MatrixCell | None]
    elo: Cell


class MatrixTable(NamedTuple):
    """The win-rate matrix ready to print."""

    judge: str
    names: list[str]
    rows: list[MatrixRow]
    rated: bool


def matrix(summary: Summary) -> MatrixTable | None:
    """Every policy against every other, best first where Elo says so; ``None`` when fewer than two
    were compared.
    """
    found = summary.matrix
    if len(found.policies) < 2:
        return None
    order = sorted(
        range(len(found.policies)),
        key=lambda i: -(found.elo.get(found.policies[i], UNKNOWN).value or -math.inf),
    )
    rows = []
    for i in order:
        elo = found.elo.get(found.policies[i], UNKNOWN)
        cells = [None if i == j else _matrix_cell(found.at(i, j)) for j in order]
        rows.append(
            MatrixRow(
                label(found.policies[i]), cells, Cell(decimal(elo.value, 0), interval(elo, 0))
            )
        )
    return MatrixTable(
        found.judge, [label(found.policies[i]) for i in order], rows, bool(found.elo)
    )


def _matrix_cell(win: Estimate) -> MatrixCell:
    return MatrixCell(
        percent(win.value), interval(win, 1, 100), round(200 * ((win.value or 0.5) - 0.5))
    )


def judging(summary: Summary) -> list[tuple[str, str]]:
    """What asking the judge took and how it behaved, as names and values."""
    return _asked(summary) + [
        (f"{label(name)}: {text}", value)
        for name, result in summary.results.items()
        for text, value in (
            (
                f"sign test against SFT, {result.at_equal_length.judge}".removesuffix(", "),
                "" if result.sign_test_p is None else f"p = {result.sign_test_p:.2g}",
            ),
            ("no rate at equal length", result.at_equal_length.unknown),
            (
                "the two orders disagree",
                "" if result.disagreement is None else f"{percent(result.disagreement)} %",
            ),
        )
        if value
    ]


def _asked(summary: Summary) -> list[tuple[str, str]]:
    found = summary.judging
    total = found.total if found.total.prompt_tokens is not None else found.used
    named = [
        ("judge", found.judge),
        ("mode", found.mode),
        ("requests", _whole(found.used.requests)),
        ("tokens", _of_which(_tokens(total), _tokens(found.used))),
        ("cost", _of_which(_cost(total), _cost(found.used))),
        ("failed pairs", _whole(found.failed)),
        ("unparsable answers", _whole(found.unparsable)),
        ("first shown wins", _share(found.position_bias)),
    ]
    return [(name, value) for name, value in named if value]


def _of_which(total: str, now: str) -> str:
    """What all answers took, and of that what those took which this process asked for."""
    return total if now in (total, "") or not total else f"{total}; of which now {now}"


def _tokens(used: Used) -> str:
    if used.unreported and not (used.prompt_tokens or used.completion_tokens):
        return "not reported"
    counts = (used.prompt_tokens, "read"), (used.completion_tokens, "written")
    return _at_least(
        used, ", ".join(f"{count:,} {kind}" for count, kind in counts if count is not None)
    )


def _cost(used: Used) -> str:
    return _at_least(used, "" if used.cost is None else f"{used.cost:,.4g}")


def _at_least(used: Used, text: str) -> str:
    return f"at least {text}" if text and used.unreported else text


def _whole(count: int | None) -> str:
    return "" if count is None else f"{count:,}"


def _share(share: Estimate) -> str:
    if share.value is None:
        return ""
    return f"{percent(share.value)} % {interval(share, 1, 100)}".strip()
