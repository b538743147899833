"""What the run found, in one sentence and a row of figures, and what to know before quoting
them.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from markupsafe import Markup

from prefloop.artifacts.references import BASE
from prefloop.artifacts.results import JUDGE, Estimate, PolicyResult, aligned, rivals
from prefloop.report.cautions import cautions
from prefloop.report.page import decimal, duration, interval, label, percent
from prefloop.report.readings import JUDGES, Lead, control_of, judge_of, lead_of, name_of
from prefloop.report.summary import Summary

_MOST_NAMED = 3


class Tile(NamedTuple):
    """One figure: what it is, its value with unit, its interval or a remark."""

    title: str
    value: str
    note: str


class Headline(NamedTuple):
    """The run in one sentence, what a reader should know before quoting it, and the figures of the
    best policy.
    """

    sentence: Markup
    cautions: list[str]
    best: str
    tiles: list[Tile]


def headline(summary: Summary) -> Headline | None:
    """The finding in one sentence; ``None`` when no policy was compared with SFT."""
    judge = judge_of(summary)
    if judge is None:
        return _unjudged(summary)
    found = {name: lead_of(summary, name, judge) for name in rivals(summary.results)}
    wins = {name: lead for name, lead in found.items() if lead.win.value is not None}
    policies = {name: wins[name] for name in aligned(wins)}
    scorer = f"the {name_of(summary.results.values(), judge)}"
    clauses = list(_clauses(policies, scorer))
    clauses += [_bare_clause(wins[BASE], "" if policies else scorer)] if BASE in wins else []
    clauses += [] if judge == JUDGE else [_control_clause(summary, judge)]
    best = max(policies or wins, key=lambda name: wins[name].win.value or 0.0)
    return Headline(
        Markup("; ").join(clauses) + ".", cautions(summary, judge), best, tiles(summary, best)
    )


def _unjudged(summary: Summary) -> Headline | None:
    """What can be said without win rates: how far each policy moved and how long its answers
    are.
    """
    policies = aligned(summary.results)
    if not policies:
        return None
    said = _listed([_moved(name, summary.results[name]) for name in policies])
    why = summary.unquoted or "There is no judge in this run."
    sentence = Markup("{} Nothing says which policy is better; {}.").format(why, said)
    return Headline(sentence, cautions(summary, None), policies[-1], tiles(summary, policies[-1]))


def _moved(name: str, result: PolicyResult) -> Markup:
    kl = Markup(" is <strong>{}</strong> of KL from SFT").format(f"{decimal(result.kl.value)} nats")
    words = Markup(" writes {} words an answer").format(decimal(result.length_mean, 1))
    measured = ((kl, result.kl.value), (words, result.length_mean))
    there = [part for part, value in measured if value is not None]
    return Markup("{}{}").format(label(name), Markup(" and").join(there) or " was not measured")


def _quote(win: Estimate) -> Markup:
    return Markup("<strong>{}</strong>").format(
        f"{percent(win.value)} % {interval(win, 1, 100)}".strip()
    )


_VERDICTS: dict[int | None, tuple[str, str, str]] = {
    1: ("{} beats SFT in {}", "{} does so in {}", ""),
    -1: ("{} loses to SFT, winning only {}", "{} loses too, winning {}", ""),
    0: (
        "{} cannot be told apart from SFT, winning {}",
        "neither can {}, winning {}",
        ", which does not exclude 50 %",
    ),
    None: ("{} wins {} against SFT", "{} wins {}", ", without an interval"),
}
"""By the side of 50 % that an interval lies on: how the first policy there is put, how the others,
and what to add.
"""


def _clauses(wins: dict[str, Lead], scorer: str) -> Iterable[Markup]:
    ranked = sorted(wins.items(), key=lambda item: -(item[1].win.value or 0))
    under = f" of comparisons under {scorer}"
    for side, (first, other, addition) in _VERDICTS.items():
        group = [(name, lead) for name, lead in ranked if lead.win.side_of_half == side]
        if not group:
            continue
        said = [
            Markup(other if n else first).format(label(name), _quote(lead.win))
            for n, (name, lead) in enumerate(group)
        ]
        said[0] += under
        parts = [text + lead.addition for text, (_, lead) in zip(said, group, strict=True)][
            :_MOST_NAMED
        ]
        if len(group) > _MOST_NAMED:
            parts.append(Markup("{} more in the table").format(len(group) - _MOST_NAMED))
        yield _listed(parts) + addition
        under = ""


_BARE: dict[int | None, str] = {
    1: "SFT loses to the bare model, which wins {}",
    -1: "SFT beats the bare model, which wins {}",
    0: "SFT cannot be told apart from the bare model, which wins {}",
    None: "the bare model wins {} against SFT",
}
"""By the side of 50 % that the interval of the bare model's wins lies on: what SFT itself has
changed.
"""


def _bare_clause(lead: Lead, scorer: str) -> Markup:
    """``scorer``: who judged, where no clause before says it."""
    under = f" of comparisons under {scorer}" if scorer else ""
    return Markup(_BARE[lead.win.side_of_half]).format(_quote(lead.win)) + under + lead.addition


def _listed(parts: Sequence[Markup]) -> Markup:
    *most, last = parts
    return Markup(", ").join(most) + Markup(" and ") + last if most else last


def _control_clause(summary: Summary, judge: str) -> Markup:
    win = control_of(summary, judge)
    if win.value is None:
        return Markup("no A/A control was run")
    if win.side_of_half:
        return Markup(
            "but the A/A control reads {}, which excludes the 50 % it should contain"
        ).format(_quote(win))
    return Markup("the A/A control reads {}").format(_quote(win))


def tiles(summary: Summary, policy: str) -> list[Tile]:
    """The numbers of one policy that a reader looks for first: every judge, distance from SFT,
    time.
    """
    result = summary.results[policy]
    named = [(f"win rate, {name_of([result], which)}", result.win(which)) for which in JUDGES]
    level = result.at_equal_length
    named.insert(2, (f"at equal length, {level.judge}".removesuffix(", "), level.win))
    found = [
        Tile(text, f"{percent(win.value)} %", interval(win, 1, 100))
        for text, win in named
        if win.value is not None
    ]
    against = summary.matrix.against_bare(policy)
    if against.value is not None:
        named_judge = f", {summary.matrix.judge}" if summary.matrix.judge else ""
        found.append(
            Tile(
                f"against the bare model{named_judge}",
                f"{percent(against.value)} %",
                interval(against, 1, 100),
            )
        )
    if result.kl.value is not None:
        found.append(Tile("KL to SFT", f"{decimal(result.kl.value)} nats", interval(result.kl)))
    trained = sum(
        (stage.seconds or 0.0) + (stage.saved_seconds or 0.0)
        for stage in summary.stages
        if stage.name.partition("-")[0] == policy
    )
    if trained:
        found.append(Tile("training", duration(trained), ""))
    if summary.seconds is not None:
        spared = sum(stage.saved_seconds or 0.0 for stage in summary.stages)
        found.append(
            Tile(
                "whole run",
                duration(summary.seconds),
                f"{duration(spared)} saved" if spared else "",
            )
        )
    return found
