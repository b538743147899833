"""Judgments as tables on the terminal."""

from __future__ import annotations

from rich import box
from rich.table import Table

from prefloop.base.console import console, counted, say
from prefloop.evaluation.calibrate import Calibration
from prefloop.evaluation.compare import Duel, Judged
from prefloop.evaluation.grades import MeanGrade
from prefloop.evaluation.judges.usage import Usage
from prefloop.stats.bradley_terry import Ranking
from prefloop.stats.intervals import Interval, WinRate
from prefloop.stats.judge_agreement import JudgeAgreement
from prefloop.stats.length_control import UNIT
from prefloop.stats.position_bias import PositionBias
from prefloop.stats.prediction_powered import Corrected

USELESS = 0.9
"""Share of pairs on which the two orders disagree from which a judge is useless."""
ONE_SIDED = 0.75
"""Share of answers for one place from which a warning is given, where that is beyond chance."""
FEWEST = 5
"""Pairs below which neither warning is given."""
_NAMED = 5


def show_judged(found: Judged) -> None:
    """Print every duel, the ranking of more than two models, and the judge's cost; no rates of a
    judge that may be guessing.
    """
    if found.unproven:
        say(
            f"{found.judge} {found.unproven}: its verdicts name no winner, and none is shown",
            "yellow",
        )
        say(_cost(found.usage, found.total, found.n_asked, found.n_cached, found.n_unparsable))
        return
    names = _short([name for duel in found.duels for name in (duel.a, duel.b)])
    table = Table(
        title=f"judged by {_at(found.judge, found.address)}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    columns = ["a", "b", "a wins %", "equal length %", "p", "ties %", "n"]
    corrected = any(duel.prediction_powered for duel in found.duels)
    for column in [*columns, *(["corrected %"] if corrected else [])]:
        name = column in "ab"
        table.add_column(
            column, justify="left" if name else "right", overflow="fold", no_wrap=not name
        )
    for duel in found.duels:
        table.add_row(
            names[duel.a], names[duel.b], *_row(duel), *([_votes(duel)] if corrected else [])
        )
    console.print(table)
    said = (
        "wins and ties over all comparisons, 95 % intervals clustered by prompt; equal length: as"
        f" if both responses had as many {UNIT}; p: sign test of as many prompts won as lost; n:"
        " prompts"
    )
    if corrected:
        said += "; corrected: by people's votes (prediction-powered inference)"
    say(said, "dim")
    for duel in found.duels:
        if duel.position:
            say(
                f"{names[duel.a]} against {names[duel.b]}: the two orders disagreed in"
                f" {duel.position.disagreement.mean:.1%} of {duel.n_comparisons} comparisons, which"
                f" count as ties; {duel.position.first_share.mean:.1%} of answers were for the"
                " response shown first"
            )
            _warn(duel.position)
        if why := duel.length_controlled.unknown:
            say(
                f"{names[duel.a]} against {names[duel.b]}: no rate at equal length: {why}", "yellow"
            )
        for why in duel.uncorrected:
            say(f"{names[duel.a]} against {names[duel.b]}: {why}", "yellow")
        if duel.n_failed:
            say(
                f"{counted(duel.n_failed, 'comparison')} of {names[duel.a]} against {names[duel.b]}"
                f" failed and {'is' if duel.n_failed == 1 else 'are'} left out:"
                f" {_prompts(duel.failed)}",
                "yellow",
            )
    for grade in found.grades:
        say(_grade(names[grade.name], grade))
    if found.ranking:
        console.print(_ranking(found.ranking, names))
    if found.failures:
        say(f"failed: {found.failures[0]}; the same command asks again", "yellow")
    say(_cost(found.usage, found.total, found.n_asked, found.n_cached, found.n_unparsable))


def show_agreement(found: Calibration) -> None:
    """Print by source how far the judge, always the longer response, and people agree with
    people.
    """
    table = Table(
        title=f"{_at(found.judge, found.address)} and people, % of verdicts alike without ties",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for column in ("source", "judge", "longer", "people", "kappa", "n"):
        table.add_column(column, justify="left" if column == "source" else "right", no_wrap=True)
    for source, of in found.agreement.items():
        table.add_row(
            source or "(no source)",
            _alike(of.judge),
            _alike(of.longer),
            _alike(of.people),
            "-" if of.judge.kappa is None else f"{of.judge.kappa.mean:.2f}",
            str(of.n_items),
        )
    console.print(table)
    say(
        "95 % intervals clustered by prompt; longer: always the longer response; people: one vote"
        " against the others on the same comparison; kappa: Cohen's, of judge and people, ties a"
        " verdict; n: comparisons",
        "dim",
    )
    if found.position:
        say(
            f"the two orders disagreed in {found.position.disagreement.mean:.1%};"
            f" {found.position.first_share.mean:.1%} of answers were for the response shown first"
        )
        _warn(found.position)
    if found.n_unvoted or found.n_failed:
        say(f"left out: {found.n_unvoted} without votes, {found.n_failed} failed", "yellow")
    if said := _cost(found.usage, found.total, None, None, found.n_unparsable):
        say(said)


def _at(judge: str, address: str) -> str:
    return f"{judge} at {address}" if address else judge


def _warn(position: PositionBias) -> None:
    """Warn about a judge whose answers follow the order of showing and not the responses."""
    first = position.first_share.mean
    if position.n_comparisons < FEWEST:
        return
    if position.disagreement.mean >= USELESS:
        why = "it gave another answer when the responses changed places, on nearly every pair"
    elif position.lean.biased and max(first, 1 - first) >= ONE_SIDED:
        why = (
            f"it mostly takes the response shown {'first' if first > 0.5 else 'second'}, far beyond"
            " chance"
        )
    else:
        return
    say(
        f"This judge says little about these answers: {why}. Take a stronger judge or another"
        " --mode",
        "yellow",
    )


def _prompts(ids: tuple[str, ...]) -> str:
    more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
    return f"prompt{'s' if len(ids) > 1 else ''} {', '.join(ids[:_NAMED])}{more}"


def _grade(name: str, of: MeanGrade) -> str:
    parts = [f"{part} {_mean(value)}" for part, value in of.parts.items()]
    return f"{name}: mean grade {_mean(of.grade)}{': ' if parts else ''}{', '.join(parts)}"


def _mean(found: Interval) -> str:
    return f"{found.mean:.3g} [{found.low:.3g}, {found.high:.3g}]"


def _short(names: list[str]) -> dict[str, str]:
    """The last part of every reference, where that still tells them apart."""
    last = {name: name.rstrip("/").rpartition("/")[2] for name in names}
    return last if len(set(last.values())) == len(last) else {name: name for name in names}


def _row(duel: Duel) -> list[str]:
    return [
        _percent(duel.win_rate),
        "–" if duel.length_controlled.unknown else _percent(duel.length_controlled),
        f"{duel.sign_test.p_value:.2g}",
        f"{duel.win_rate.ties:.1%}".rstrip("%"),
        str(duel.win_rate.n_prompts),
    ]


def _votes(duel: Duel) -> str:
    found = duel.prediction_powered
    if found is None:
        return "-"
    return _interval(found.rate, found)


def _ranking(ranking: Ranking, names: dict[str, str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("model", "Elo", "wins %", "games"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for model in ranking.models:
        elo = f"{model.elo:.0f} [{model.low:.0f}, {model.high:.0f}]"
        table.add_row(names[model.name], elo, f"{100 * model.win_rate:.1f}", str(model.games))
    return table


def _percent(found: WinRate | Interval) -> str:
    return _interval(found.rate if isinstance(found, WinRate) else found.mean, found)


def _alike(found: JudgeAgreement | None) -> str:
    if found is None or (rate := found.without_ties) is None:
        return "-"
    return _interval(rate.mean, rate)


def _interval(rate: float, of: WinRate | Interval | Corrected) -> str:
    return f"{100 * rate:.1f} [{100 * of.low:.0f}, {100 * of.high:.0f}]"


def _tokens(usage: Usage) -> str:
    if usage.unreported and not usage.prompt_tokens + usage.completion_tokens:
        return "tokens not reported"
    return (
        f"{_at_least(usage)}{usage.prompt_tokens:,} tokens read and {usage.completion_tokens:,}"
        " written"
    )


def _at_least(usage: Usage) -> str:
    return "at least " if usage.unreported else ""


def _cost(
    usage: Usage, total: Usage, asked: int | None, cached: int | None, unparsable: int
) -> str:
    parts = (
        []
        if asked is None
        else [f"{counted(asked, 'question')} asked, {cached:,} answered from the cache"]
    )
    if usage.requests:
        parts.append(
            f"{counted(usage.requests, 'request')} ({counted(usage.retries, 'retry', 'retries')})"
        )
        parts.append(_tokens(usage))
    if usage.cost is not None:
        parts.append(f"cost {_at_least(usage)}{usage.cost:.4f}")
    if (
        unparsable or total.prompt_tokens or total.unreported
    ):  # a function and a reward model have nothing to parse
        parts.append(counted(unparsable, "unparsable answer"))
    return "; ".join(parts)
