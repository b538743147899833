"""The lines on the terminal at the end of a run: the table of policies, and what to know before
quoting it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from prefloop.artifacts.references import BASE
from prefloop.artifacts.results import Estimate
from prefloop.base.console import console, duration, say
from prefloop.config.algorithms import SFT_ONLY
from prefloop.evaluation.win_rates import NO_JUDGE
from prefloop.report.cautions import cautions
from prefloop.report.headline import headline
from prefloop.report.readings import JUDGES, control_of
from prefloop.report.summary import StageRun, Summary, quoted

COLUMNS = (
    "policy",
    "gold",
    "wins %, gold",
    "wins %, judge",
    "wins %, reward",
    "KL",
    "words",
    "< 5 w",
)


def show(summary: Summary, report: Path | None) -> None:
    """Print the closing table, or the figures of SFT where a run ends after it.

    The verdicts of a reward model that is not known to be better than chance are left out.
    """
    summary = quoted(summary)
    heading = f"{summary.run}: {', '.join(filter(None, (summary.model, summary.adapter)))}"
    if summary.results:
        console.print(_table(heading, summary))
        _remarks(summary)
    if summary.algo == SFT_ONLY:
        say(heading)
        for line in sft_lines(summary.stages):
            say(line)
    if reused := [stage for stage in summary.stages if stage.status == "reused"]:
        saved = sum(stage.saved_seconds or 0.0 for stage in reused)
        names = ", ".join(stage.name for stage in reused)
        say(f"reused {names}: {duration(saved)} saved", "green")
    say(f"{duration(summary.seconds or 0.0)} in all" + (f". Report: {report}" if report else ""))


def _table(heading: str, summary: Summary) -> Table:
    """A row for each policy and the A/A control; only columns that a row fills."""
    results = summary.results.values()
    judges = sum(any(row.win(judge).value is not None for row in results) for judge in JUDGES)
    # With every judge there, 80 columns leave no room for decimals of bounds or wider gaps.
    digits = 1 if judges < len(JUDGES) else 0
    rows = [
        (
            name,
            _number(row.gold.value, ".3f"),
            *(_rate(row.win(judge), digits) for judge in JUDGES),
            _number(row.kl.value, ".2f"),
            _number(row.length_mean, ".1f"),
            _number(row.short_share, ".1%"),
        )
        for name, row in summary.results.items()
    ]
    if summary.control:
        control = (_rate(control_of(summary, judge), digits) for judge in JUDGES)
        rows.append(("A/A", "", *control, "", "", ""))
    table = Table(
        title=heading, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 0, 0, digits)
    )
    filled = [i for i, _ in enumerate(COLUMNS) if any(cells[i] not in ("", "-") for cells in rows)]
    for i in filled:
        table.add_column(COLUMNS[i], justify="right" if i else "left", no_wrap=True)
    for cells in rows:
        table.add_row(*(cells[i] for i in filled))
    return table


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _rate(win: Estimate, digits: int) -> str:
    if win.value is None:
        return "-"
    if win.low is None or win.high is None:
        return f"{win.value * 100:.1f}"
    low, high = (f"{bound * 100:.{digits}f}" for bound in (win.low, win.high))
    return f"{win.value * 100:.1f} [{low}, {high}]"


def _remarks(summary: Summary) -> None:
    """What the columns are; then the report's headline, and what to know before quoting it."""
    results = summary.results
    judged = any(row.win(judge).value is not None for row in results.values() for judge in JUDGES)
    words = (
        ["wins against SFT with 95 % intervals clustered by prompt"]
        if judged
        else [summary.unquoted.rstrip(".") or NO_JUDGE]
    )
    if any(row.kl.value is not None for row in results.values()):
        words.append("KL to SFT in nats a response")
    words += ["base: the bare model"] if BASE in results else []
    words += ["A/A: SFT against itself"] if summary.control else []
    say("; ".join(words), "dim" if judged else "yellow")
    finding = headline(summary)
    if finding and judged:
        say(finding.sentence.striptags())
    for line in finding.cautions if finding else cautions(summary, None):
        say(line, "yellow")
    for line in untrained({stage.name: stage.metrics for stage in summary.stages}):
        say(line, "yellow")


def untrained(metrics: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A sentence for each policy that an alarm took back to before its first update; ``metrics`` by
    policy.
    """
    return [
        f"{policy} is the policy of step 1, from before its first update: an alarm took it back,"
        " and nothing that it learnt is in it."
        for policy, measured in metrics.items()
        if (measured.get("alarm") or {}).get("result_step") == 1
    ]


def sft_lines(stages: Sequence[StageRun]) -> list[str]:
    """The figures of a run that ends after SFT; where nothing measured it, the settings that do."""
    metrics = {stage.name: stage.metrics for stage in stages}
    if (sft := metrics.get("sft")) is None:
        return []
    loss = f"SFT: loss {sft['loss_last']:.3f} at the last of {sft['steps']} steps"
    if "held_out_loss" in sft:
        loss += (
            f", held-out loss {sft['held_out_loss']:.3f} at step {sft['best_step']}, whose weights"
            " are kept"
        )
    if "held_out_loss" in sft or "bench" in metrics:
        return [loss]
    return [
        loss,
        (
            "nothing was measured: set sft.eval_share (such as 0.1) for a held-out loss, or"
            " bench.tasks or bench.domain"
        ),
    ]
