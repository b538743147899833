"""The words and numbers of a report: what the run says in one sentence, and every table as rows ready to print."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from prefloop.report.inputs import BASELINE, Curve, Estimate, PolicyResult, Summary

MISSING = "\N{EN DASH}"
CONTROL = "A/A control"
_INITIALS = {"sft", "ppo", "dpo", "ipo", "kto", "orpo", "cpo", "grpo", "rloo", "simpo"}
_MOST_NAMED = 3


class Cell(NamedTuple):
    """A value and its interval, printed in two columns so that the digits of both line up."""

    value: str
    interval: str = ""


class Column(NamedTuple):
    """A column of the results table."""

    title: str
    unit: str
    intervals: bool = True


class Row(NamedTuple):
    """A row of the results table."""

    name: str
    cells: list[Cell]
    note: str = ""


class Headline(NamedTuple):
    """The run in one sentence, and what a reader should know before quoting it."""

    sentence: Markup
    cautions: list[str]


def label(name: str) -> str:
    """How a policy is written: initials in capitals, a name the user made up as it is."""
    return name.upper() if name in _INITIALS else name


def stage_label(name: str) -> str:
    """How a stage is written, with its round where that is not the first."""
    first, _, number = name.partition("-")
    if number.isdigit():
        return f"{stage_label(first)}, round {number}"
    return "Reward model" if name == "reward" else label(name)[:1].upper() + label(name)[1:]


def decimal(value: float | None, digits: int = 2) -> str:
    """A number with a true minus sign; three significant digits where fixed decimals would print 0.00 or a long row."""
    if value is None:
        return MISSING
    if value and not 10**-digits / 2 <= abs(value) < 1e5:
        return f"{value:.3g}".replace("-", "\N{MINUS SIGN}")
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if not float(text) else text.replace("-", "\N{MINUS SIGN}")


def percent(share: float | None, digits: int = 1) -> str:
    """A share as a percentage without its sign."""
    return MISSING if share is None else decimal(100 * share, digits)


def interval(estimate: Estimate, digits: int = 2, scale: float = 1.0) -> str:
    """``[low, high]``, or nothing when there is no interval."""
    if estimate.interval is None:
        return ""
    low, high = (decimal(scale * bound, digits) for bound in estimate.interval)
    return f"[{low}, {high}]"


def duration(seconds: float | None) -> str:
    """``8.3 s``, ``1 min 11 s``, ``2 h 05 min``."""
    if seconds is None:
        return MISSING
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours} h {minutes_left:02d} min" if hours else f"{minutes} min {rest:02d} s"


def metric(value: Any) -> str:
    """A scalar metric of a stage as text."""
    if isinstance(value, float):
        return f"{value:.4g}".replace("-", "\N{MINUS SIGN}") if math.isfinite(value) else MISSING
    return str(value)


def saved(summary: Summary) -> str:
    """What earlier runs spared this one, in words."""
    seconds = sum(stage.saved_seconds or 0.0 for stage in summary.stages)
    return f"Work reused or resumed from earlier runs saved {duration(seconds)}." if seconds else ""


def judge_of(summary: Summary) -> str | None:
    """The judge whose win rates lead the report: gold where it was run, else the reward model, else none."""
    rivals = [result for name, result in summary.results.items() if name != BASELINE]
    if any(result.win.value is not None for result in rivals):
        return "gold"
    return "reward" if any(result.reward_win.value is not None for result in rivals) else None


def win_of(result: PolicyResult, judge: str) -> Estimate:
    """Win rate against SFT under a judge."""
    return result.win if judge == "gold" else result.reward_win


def headline(summary: Summary) -> Headline | None:
    """The finding in one sentence; ``None`` when no policy was compared with SFT."""
    judge = judge_of(summary)
    if judge is None:
        return None
    wins = {name: win_of(result, judge) for name, result in summary.results.items() if name != BASELINE}
    wins = {name: win for name, win in wins.items() if win.value is not None}
    scorer = "the gold scorer" if judge == "gold" else "the reward model"
    clauses = list(_clauses(wins, scorer))
    return Headline(Markup("; ").join([*clauses, _control_clause(summary, judge)]) + ".", _cautions(summary, judge))


def _quote(win: Estimate) -> Markup:
    return Markup("<strong>{}</strong>").format(f"{percent(win.value)} % {interval(win, 1, 100)}".strip())


_VERDICTS: dict[int | None, tuple[str, str, str]] = {
    1: ("{} beats SFT in {}", "{} does so in {}", ""),
    -1: ("{} loses to SFT, winning only {}", "{} loses too, winning {}", ""),
    0: ("{} cannot be told apart from SFT, winning {}", "neither can {}, winning {}", ", which does not exclude 50 %"),
    None: ("{} wins {} against SFT", "{} wins {}", ", without an interval"),
}
"""By the side of 50 % that an interval lies on: how the first policy there is put, how the others, and what to add."""


def _clauses(wins: dict[str, Estimate], scorer: str) -> Iterable[Markup]:
    ranked = sorted(wins.items(), key=lambda item: -(item[1].value or 0))
    under = f" of comparisons under {scorer}"
    for side, (first, other, addition) in _VERDICTS.items():
        group = [(label(name), _quote(win)) for name, win in ranked if win.side_of_half == side]
        if not group:
            continue
        parts = [Markup(first).format(*group[0]) + under]
        parts += [Markup(other).format(*named) for named in group[1:_MOST_NAMED]]
        if len(group) > _MOST_NAMED:
            parts.append(Markup("{} more in the table").format(len(group) - _MOST_NAMED))
        yield _listed(parts) + addition
        under = ""


def _listed(parts: Sequence[Markup]) -> Markup:
    *most, last = parts
    return Markup(", ").join(most) + Markup(" and ") + last if most else last


def _control_clause(summary: Summary, judge: str) -> Markup:
    win = (summary.control.gold if judge == "gold" else summary.control.reward).win
    if win.value is None:
        return Markup("no A/A control was run")
    if win.side_of_half:
        return Markup("but the A/A control reads {}, which excludes the 50 % it should contain").format(_quote(win))
    return Markup("the A/A control reads {}").format(_quote(win))


def _cautions(summary: Summary, judge: str) -> list[str]:
    notes = []
    control = (summary.control.gold if judge == "gold" else summary.control.reward).win
    if control.side_of_half:
        notes.append(
            "SFT compared with itself should read 50 %. It does not, so the judge or the sampling is biased and "
            "the win rates share that bias. Find its cause before quoting them."
        )
    if judge == "reward":
        notes.append(
            "There is no gold scorer in this run: the judge is the reward model that training maximised, so these "
            "win rates show that optimisation worked, not that answers got better."
        )
    contested = [
        f"{label(name)} ({percent(result.reward_win.value)} %, gold {percent(result.win.value)} %)"
        for name, result in summary.results.items()
        if name != BASELINE and result.reward_win.side_of_half == 1 and result.win.side_of_half in (0, -1)
    ]
    if contested:
        notes.append(
            f"The reward model prefers {' and '.join(contested)} to SFT and the gold scorer does not confirm it: "
            "a sign of over-optimisation."
        )
    for stage in summary.stages:
        alarm = stage.metrics.get("alarm")
        raised = alarm.get("raised") if isinstance(alarm, dict) else None
        if isinstance(raised, list) and raised:
            notes.append(
                f"The alarm for reward hacking was raised in {label(stage.name)}: see Reward hacking before trusting its win rates."
            )
    return notes


def results_table(summary: Summary) -> tuple[list[Column], list[Row]]:
    """Columns that hold at least one number, and a row for every policy and the A/A control."""
    columns = [
        Column("Gold score", "mean"),
        Column("Win rate vs SFT", "%, gold scorer"),
        Column("Win rate vs SFT", "%, reward model"),
        Column("KL to reference", "nats"),
        Column("Length", "words", False),
        Column("Under 5 words", "%", False),
        Column("Finished", "%", False),
    ]
    counts = {_count(result) for result in summary.results.values()}
    rows = [
        Row(label(name), _cells(result), _count(result) if len(counts) > 1 else "")
        for name, result in summary.results.items()
    ]
    control, blank = summary.control, Cell(MISSING)
    readings = [control.gold.win, control.reward.win]
    if rows and any(reading.value is not None for reading in readings):
        rates = [Cell(percent(win.value), interval(win, 1, 100)) for win in readings]
        rows.append(Row(CONTROL, [blank, *rates, blank, blank, blank, blank], "SFT against SFT"))
    kept = [i for i in range(len(columns)) if any(row.cells[i].value != MISSING for row in rows)]
    return [columns[i] for i in kept], [row._replace(cells=[row.cells[i] for i in kept]) for row in rows]


def shared_count(summary: Summary) -> str:
    """How many prompts and responses every policy was judged on, when it was the same for all."""
    counts = {_count(result) for result in summary.results.values()}
    return counts.pop() if len(counts) == 1 else ""


def _count(result: PolicyResult) -> str:
    counts = ((result.n_prompts, "prompts"), (result.n_responses, "responses"))
    return ", ".join(f"{count:,} {noun}" for count, noun in counts if count is not None)


def _cells(result: PolicyResult) -> list[Cell]:
    return [
        Cell(decimal(result.gold.value, 3), interval(result.gold, 3)),
        Cell(percent(result.win.value), interval(result.win, 1, 100)),
        Cell(percent(result.reward_win.value), interval(result.reward_win, 1, 100)),
        Cell(decimal(result.kl_nats.value), interval(result.kl_nats)),
        Cell(decimal(result.length_mean, 1)),
        Cell(percent(result.short_share)),
        Cell(percent(result.finished_share)),
    ]


def overoptimisation_note(stage: str | None, curve: Curve | None) -> str:
    """How to read the plot, where gold peaked during training, and what became of it and of the proxy after that."""
    finals = "Large markers are the final policies on the evaluation prompts, with 95\N{NO-BREAK SPACE}% intervals."
    if stage is None or curve is None:
        return finals
    legend = f"Small points are steps of {label(stage)} training on its own rollouts. {finals}"
    steps, gold = curve.series("gold_mean")
    if len(steps) < 3:
        return legend
    peak = max(range(len(gold)), key=gold.__getitem__)
    kl, proxy = (dict(zip(*curve.series(field), strict=True)) for field in ("kl", "reward_mean"))
    at = f"step {steps[peak]:g}" + (f" (KL {decimal(kl[steps[peak]], 1)} nats)" if steps[peak] in kl else "")
    if peak == len(gold) - 1:
        return f"{legend} Gold is highest at the last measured step, {at}: no over-optimisation is visible in this run."
    note = f"{legend} Gold is highest at {at}, {decimal(gold[peak], 3)}, and ends at {decimal(gold[-1], 3)}"
    if steps[peak] in proxy and steps[-1] in proxy:
        note += f"; the proxy reads {decimal(proxy[steps[peak]])} there and {decimal(proxy[steps[-1]])} at the end"
    return note + ". A single step is noisy: read the trend."
