"""What the terminal says when a run has ended: the table of policies, and what to know before
believing it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from prefloop.artifacts.references import BASE
from prefloop.base.console import console, duration, say
from prefloop.config.algorithms import SFT_ONLY
from prefloop.evaluation.standing import quotable
from prefloop.evaluation.win_rates import NO_JUDGE, READINGS
from prefloop.report.cautions import cautions
from prefloop.report.headline import headline
from prefloop.report.schema import Summary

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


def show(summary: dict[str, Any], report: Path | None) -> None:
    """The closing table, or what SFT alone came to; without the verdicts of a reward model that is
    not known to be better than chance.
    """
    summary, unquoted = quotable(summary, summary["reward_model"])
    heading = f"{summary['run']}: {summary['model']}" + (
        f", {summary['adapter']}" if summary["adapter"] else ""
    )
    if summary["results"]:
        console.print(_table(heading, summary))
        _remarks(summary, unquoted)
    if summary["algo"] == SFT_ONLY:
        say(heading)
        for line in sft_lines(summary["stages"]):
            say(line)
    reused = [s for s in summary["stages"] if s["status"] == "reused"]
    if reused:
        saved = sum(s["saved_seconds"] for s in reused)
        say(f"reused {', '.join(s['name'] for s in reused)}: {duration(saved)} saved", "green")
    say(f"{duration(summary['seconds'])} in all" + (f". Report: {report}" if report else ""))


def _table(heading: str, summary: Mapping[str, Any]) -> Table:
    """A row for each policy and the A/A control; only columns that a row fills."""
    results = summary["results"].values()
    judges = sum(any(row.get(name) is not None for row in results) for name, *_ in READINGS)
    # Of a bound, and spaces beside a column: 80 columns hold no more where every judge is there.
    digits = 1 if judges < len(READINGS) else 0
    rows = [
        (
            name,
            "-" if row.get("gold_mean") is None else f"{row['gold_mean']:.3f}",
            *(_rate(row, *reading, digits) for reading in READINGS),
            "-" if row.get("kl") is None else f"{row['kl']:.2f}",
            f"{row['length_mean']:.1f}",
            f"{row['short_share']:.1%}",
        )
        for name, row in summary["results"].items()
    ]
    read = "win_rate", "ci_low", "ci_high"
    control = {judge: _rate(row, *read, digits) for judge, row in summary["control"].items()}
    if control:
        rows.append(
            ("A/A", "", control.get("gold", "-"), "-", control.get("reward", "-"), "", "", "")
        )
    table = Table(
        title=heading, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 0, 0, digits)
    )
    filled = [i for i, _ in enumerate(COLUMNS) if any(cells[i] not in ("", "-") for cells in rows)]
    for i in filled:
        table.add_column(COLUMNS[i], justify="right" if i else "left", no_wrap=True)
    for cells in rows:
        table.add_row(*(cells[i] for i in filled))
    return table


def _rate(row: Mapping[str, Any], name: str, low: str, high: str, digits: int = 1) -> str:
    if row.get(name) is None:
        return "-"
    interval = (
        f" [{row[low] * 100:.{digits}f}, {row[high] * 100:.{digits}f}]"
        if row.get(low) is not None
        else ""
    )
    return f"{row[name] * 100:.1f}{interval}"


def _remarks(summary: Mapping[str, Any], unquoted: str) -> None:
    """What the columns are; then the report's headline, and what it says to know before quoting
    it.
    """
    results = summary["results"]
    judged = any(row.get(name) is not None for row in results.values() for name, *_ in READINGS)
    words = [
        (
            "wins against SFT with 95 % intervals clustered by prompt"
            if judged
            else unquoted.rstrip(".") or NO_JUDGE
        )
    ]
    words += (
        ["KL to SFT in nats a response"]
        if any(row.get("kl") is not None for row in results.values())
        else []
    )
    words += ["base: the bare model"] if BASE in results else []
    words += ["A/A: SFT against itself"] if summary["control"] else []
    say("; ".join(words), "dim" if judged else "yellow")
    read = Summary.model_validate({**summary, "unquoted": unquoted})
    found = headline(read)
    if found and judged:
        say(found.sentence.striptags())
    for line in found.cautions if found else cautions(read, None):
        say(line, "yellow")
    for line in untrained({stage["name"]: stage["metrics"] for stage in summary["stages"]}):
        say(line, "yellow")


def untrained(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A sentence for each policy that an alarm took back to before its first update; ``found`` are
    the metrics by slot.
    """
    return [
        f"{slot} is the policy of step 1, from before its first update: an alarm took it back, and"
        " nothing that it learnt is in it."
        for slot, metrics in found.items()
        if (metrics.get("alarm") or {}).get("result_step") == 1
    ]


def sft_lines(stages: Sequence[dict[str, Any]]) -> list[str]:
    """What a run that ends after SFT came to; what to set where nothing measured it."""
    metrics = {stage["name"]: stage["metrics"] for stage in stages}
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
