"""What the run found, in one sentence and a row of figures, and what to know before quoting them."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from markupsafe import Markup

from prefloop.algorithms import ROLLOUTS, kind_of
from prefloop.judging.learnt import unmoved
from prefloop.report.page import decimal, duration, interval, label, percent, stage_label
from prefloop.report.schema import BASELINE, Estimate, PolicyResult, Summary

JUDGES = {"gold": "gold scorer", "llm": "judge", "reward": "reward model"}
"""Judges from the one to trust most to the one that learnt from the votes that trained the policies; ``judge`` is what ``evaluate.judge`` names."""
_MOST_NAMED = 3
MUCH_LONGER = 1.5
"""Ratio of mean lengths from which the rate at equal length leads: a judge's taste for length would be read as quality."""


class Tile(NamedTuple):
    """One figure: what it is, its value with unit, its interval or a remark."""

    title: str
    value: str
    note: str


class Headline(NamedTuple):
    """The run in one sentence, what a reader should know before quoting it, and the figures of the best policy."""

    sentence: Markup
    cautions: list[str]
    best: str
    tiles: list[Tile]


def judge_of(summary: Summary) -> str | None:
    """The judge whose win rates lead the report: gold where it was run, else the judge asked for, else the reward model, else none."""
    rivals = [result for name, result in summary.results.items() if name != BASELINE]
    return next((judge for judge in JUDGES if any(win_of(r, judge).value is not None for r in rivals)), None)


def name_of(results: Iterable[PolicyResult], judge: str) -> str:
    """What to call a judge: the one that ``evaluate.judge`` names by its own name, all of them where results differ in it."""
    names = dict.fromkeys(result.llm_judge for result in results if result.llm_judge) if judge == "llm" else {}
    return f"{JUDGES[judge]} {', '.join(names)}".strip()


def win_of(result: PolicyResult, judge: str) -> Estimate:
    """Win rate against SFT under a judge."""
    return {"gold": result.win, "llm": result.llm_win, "reward": result.reward_win}[judge]


class Lead(NamedTuple):
    """The win rate against SFT that a policy's headline rests on, and words to add where that is the one at equal length."""

    win: Estimate
    addition: str = ""


def lead_of(summary: Summary, policy: str, judge: str) -> Lead:
    """The judge's win rate, or the one at equal length where the policy's answers are much longer or shorter than SFT's."""
    result, base = summary.results[policy], summary.results.get(BASELINE, PolicyResult())
    plain = win_of(result, judge)
    ratio = (result.length_mean or 0.0) / base.length_mean if base.length_mean else 1.0
    if 1 / MUCH_LONGER < ratio < MUCH_LONGER or plain.value is None:
        return Lead(plain)
    said = f"its answers are {decimal(ratio, 1)} times as long as SFT's"
    controlled = result.lc_judge == (result.llm_judge if judge == "llm" else JUDGES[judge])
    if not controlled or result.lc_win.value is None:
        return Lead(
            plain, f" ({said}; no rate at equal length{f': {result.lc_unknown}' if result.lc_unknown else ' is known'})"
        )
    return Lead(result.lc_win, f" at equal length ({said}; {percent(plain.value)} % as they are)")


def control_of(summary: Summary, judge: str) -> Estimate:
    """Win rate of SFT against itself under a judge; a judge that was asked for is not asked about that."""
    control = summary.control
    return {"gold": control.gold.win, "llm": Estimate(None), "reward": control.reward.win}[judge]


def headline(summary: Summary) -> Headline | None:
    """The finding in one sentence; ``None`` when no policy was compared with SFT."""
    judge = judge_of(summary)
    if judge is None:
        return _unjudged(summary)
    found = {name: lead_of(summary, name, judge) for name in summary.results if name != BASELINE}
    wins = {name: lead for name, lead in found.items() if lead.win.value is not None}
    clauses = list(_clauses(wins, f"the {name_of(summary.results.values(), judge)}"))
    clauses += [] if judge == "llm" else [_control_clause(summary, judge)]
    best = max(wins, key=lambda name: wins[name].win.value or 0.0)
    return Headline(Markup("; ").join(clauses) + ".", cautions(summary, judge), best, tiles(summary, best))


def _unjudged(summary: Summary) -> Headline | None:
    """What can be said without win rates: how far each policy moved and how long its answers are."""
    rivals = [name for name in summary.results if name != BASELINE]
    if not rivals:
        return None
    said = _listed([_moved(name, summary.results[name]) for name in rivals])
    why = summary.unquoted or "There is no judge in this run."
    sentence = Markup("{} Nothing says which policy is better; {}.").format(why, said)
    return Headline(sentence, cautions(summary, None), rivals[-1], tiles(summary, rivals[-1]))


def _moved(name: str, result: PolicyResult) -> Markup:
    kl = Markup(" is <strong>{}</strong> of KL from SFT").format(f"{decimal(result.kl)} nats")
    words = Markup(" writes {} words an answer").format(decimal(result.length_mean, 1))
    there = [part for part, value in ((kl, result.kl), (words, result.length_mean)) if value is not None]
    return Markup("{}{}").format(label(name), Markup(" and").join(there) or " was not measured")


def _quote(win: Estimate) -> Markup:
    return Markup("<strong>{}</strong>").format(f"{percent(win.value)} % {interval(win, 1, 100)}".strip())


_VERDICTS: dict[int | None, tuple[str, str, str]] = {
    1: ("{} beats SFT in {}", "{} does so in {}", ""),
    -1: ("{} loses to SFT, winning only {}", "{} loses too, winning {}", ""),
    0: ("{} cannot be told apart from SFT, winning {}", "neither can {}, winning {}", ", which does not exclude 50 %"),
    None: ("{} wins {} against SFT", "{} wins {}", ", without an interval"),
}
"""By the side of 50 % that an interval lies on: how the first policy there is put, how the others, and what to add."""


def _clauses(wins: dict[str, Lead], scorer: str) -> Iterable[Markup]:
    ranked = sorted(wins.items(), key=lambda item: -(item[1].win.value or 0))
    under = f" of comparisons under {scorer}"
    for side, (first, other, addition) in _VERDICTS.items():
        group = [(name, lead) for name, lead in ranked if lead.win.side_of_half == side]
        if not group:
            continue
        said = [
            Markup(other if n else first).format(label(name), _quote(lead.win)) for n, (name, lead) in enumerate(group)
        ]
        said[0] += under
        parts = [text + lead.addition for text, (_, lead) in zip(said, group, strict=True)][:_MOST_NAMED]
        if len(group) > _MOST_NAMED:
            parts.append(Markup("{} more in the table").format(len(group) - _MOST_NAMED))
        yield _listed(parts) + addition
        under = ""


def _listed(parts: Sequence[Markup]) -> Markup:
    *most, last = parts
    return Markup(", ").join(most) + Markup(" and ") + last if most else last


def _control_clause(summary: Summary, judge: str) -> Markup:
    win = control_of(summary, judge)
    if win.value is None:
        return Markup("no A/A control was run")
    if win.side_of_half:
        return Markup("but the A/A control reads {}, which excludes the 50 % it should contain").format(_quote(win))
    return Markup("the A/A control reads {}").format(_quote(win))


def cautions(summary: Summary, judge: str | None) -> list[str]:
    """What a reader should know before quoting the headline."""
    notes = []
    if summary.contamination.count:
        one = summary.contamination.count == 1
        notes.append(
            f"{summary.contamination.count:,} evaluation prompt{' was' if one else 's were'} seen in training: the win rates are "
            "too good by what was memorised. See Judging for examples."
        )
    if alike := summary.contamination.alike:
        notes.append(
            f"{alike:,} evaluation prompt{' shares' if alike == 1 else 's share'} a turn or most of the wording with a training prompt and may still ask for "
            "something else. Judging shows both texts."
        )
    if judge and control_of(summary, judge).side_of_half:
        notes.append(
            "SFT compared with itself should read 50 %. It does not, so the judge or the sampling is biased and "
            "the win rates share that bias. Find its cause before quoting them."
        )
    if judge and summary.unquoted:
        notes.append(summary.unquoted)
    if judge == "reward":
        notes += _of_reward_model([name for name in summary.results if name != BASELINE])
    scorers = [r.llm_judge for r in summary.results.values() if r.llm_judge.startswith("reward:")]
    if judge == "llm" and scorers:
        notes.append(
            f"There is no gold scorer in this run, and the judge, {scorers[0]}, is a reward model: unless it is independent of the one that "
            "training maximised, these win rates show that optimisation worked, not that answers got better."
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
    for name, result in summary.results.items():
        if (result.win.side_of_half or 0) * (result.llm_win.side_of_half or 0) < 0:
            notes.append(
                f"The judges disagree about {label(name)}: it wins {percent(result.win.value)} % under the gold scorer and "
                f"{percent(result.llm_win.value)} % under the {name_of([result], 'llm')}, each on its own side of 50 %."
            )
    rows = {name: {"kl": result.kl} for name, result in summary.results.items()}
    notes += unmoved(({"name": stage.name, "metrics": stage.metrics} for stage in summary.stages), rows)
    for stage in summary.stages:
        equal, read = stage.metrics.get("equal_rows"), stage.metrics.get("read_rows")
        if isinstance(equal, int) and isinstance(read, int) and equal:
            notes.append(
                f"{stage_label(stage.name)} left out {equal:,} of {read:,} rows, which are equal once cut to max_length: raise backbone.max_length to "
                "learn from them."
            )
        if isinstance(warning := stage.metrics.get("warning"), str):
            notes.append(f"{stage_label(stage.name)}: {warning}.")
        alarm = stage.metrics.get("alarm")
        raised = alarm.get("raised") if isinstance(alarm, dict) else None
        if isinstance(raised, list) and raised:
            notes.append(
                f"The alarm for reward hacking was raised in {stage_label(stage.name)}: see Reward hacking before trusting its win rates."
            )
    return notes


def _of_reward_model(policies: Sequence[str]) -> list[str]:
    """What win rates by the run's own reward model can show, by what each policy had to do with it."""
    against = [label(name) for name in policies if kind_of(name) in ROLLOUTS]
    beside = [label(name) for name in policies if kind_of(name) not in ROLLOUTS]
    notes = []
    if against:
        notes.append(
            f"The judge is the reward model that {' and '.join(against)} {'was' if len(against) == 1 else 'were'} trained to please: such win rates "
            "show that optimisation worked, not that answers got better."
        )
    if beside:
        notes.append(
            f"The judge is a reward model that learnt from the same votes as {' and '.join(beside)}: it shares their errors and their taste in length, "
            f"and no person read the answers. {'It' if len(beside) == 1 else 'They'} never saw its scores."
        )
    return notes


def tiles(summary: Summary, policy: str) -> list[Tile]:
    """The numbers of one policy that a reader looks for first: every judge, distance from SFT, time."""
    result = summary.results[policy]
    named = [(f"win rate, {name_of([result], which)}", win_of(result, which)) for which in JUDGES]
    named.insert(2, (f"at equal length, {result.lc_judge}".removesuffix(", "), result.lc_win))
    found = [
        Tile(text, f"{percent(win.value)} %", interval(win, 1, 100)) for text, win in named if win.value is not None
    ]
    if result.kl is not None:
        found.append(Tile("KL to SFT", f"{decimal(result.kl)} nats", interval(result.kl_nats)))
    trained = sum(
        (stage.seconds or 0.0) + (stage.saved_seconds or 0.0)
        for stage in summary.stages
        if stage.name.partition("-")[0] == policy
    )
    if trained:
        found.append(Tile("training", duration(trained), ""))
    if summary.seconds is not None:
        spared = sum(stage.saved_seconds or 0.0 for stage in summary.stages)
        found.append(Tile("whole run", duration(summary.seconds), f"{duration(spared)} saved" if spared else ""))
    return found
