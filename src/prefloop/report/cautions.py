"""What a reader should know before quoting a run's headline."""

from collections.abc import Sequence

from prefloop.artifacts.references import BASE
from prefloop.artifacts.results import BASELINE, GOLD, JUDGE, REWARD, aligned, rivals
from prefloop.config.algorithms import IMITATING, SAMPLING, kind_of
from prefloop.evaluation.learnt import unmoved
from prefloop.evaluation.standing import programs
from prefloop.report.hacking import alarm_of
from prefloop.report.page import interval, label, percent, spoken, stage_label
from prefloop.report.readings import control_of, lead_of, name_of
from prefloop.report.summary import Summary
from prefloop.stats.undecided import undecided

APART = 0.3
"""Difference of the shares of finished answers above which a comparison is one of cut texts with
whole ones.
"""


def cautions(summary: Summary, judge: str | None) -> list[str]:
    """What a reader should know before quoting the headline."""
    notes = []
    if summary.contamination.count:
        one = summary.contamination.count == 1
        notes.append(
            f"{summary.contamination.count:,} evaluation prompt{' was' if one else 's were'} seen"
            " in training: the win rates are too good by what was memorized. See Judging for"
            " examples."
        )
    if alike := summary.contamination.alike:
        notes.append(
            f"{alike:,} evaluation prompt{' shares' if alike == 1 else 's share'} a turn or most of"
            " the wording with a training prompt and may still ask for something else. Judging"
            " shows both texts."
        )
    if judge and control_of(summary, judge).side_of_half:
        notes.append(
            "SFT compared with itself should read 50 %. It does not, so the judge or the sampling"
            " is biased and the win rates share that bias. Find its cause before quoting them."
        )
    if judge and summary.unquoted:
        notes.append(summary.unquoted)
    if judge and BASE in summary.results and lead_of(summary, BASE, judge).win.side_of_half == 1:
        notes.append(_bare_model_ahead(summary))
    simulated = sum(bool(one.simulated) for one in summary.annotators)
    scorer = str(summary.config.get("gold") or "named in Python") if judge == GOLD else ""
    notes += programs(scorer, simulated, people=len(summary.annotators) - simulated)
    if judge:
        notes += _undecided(summary, judge)
        notes += _cut(summary)
    if judge == REWARD:
        notes += _of_reward_model(aligned(summary.results))
    scorers = [r.judge for r in summary.results.values() if r.judge.startswith("reward:")]
    if judge == JUDGE and scorers:
        notes.append(
            f"There is no gold scorer in this run, and the judge, {scorers[0]}, is a reward model:"
            " unless it is independent of the one that training maximized, these win rates show"
            " that optimization worked, not that answers got better."
        )
    contested = [
        f"{label(name)} ({percent(result.win(REWARD).value)} %, gold"
        f" {percent(result.win(GOLD).value)} %)"
        for name, result in ((name, summary.results[name]) for name in aligned(summary.results))
        if result.win(REWARD).side_of_half == 1 and result.win(GOLD).side_of_half in (0, -1)
    ]
    if contested:
        notes.append(
            f"The reward model prefers {' and '.join(contested)} to SFT and the gold scorer does"
            " not confirm it: a sign of over-optimization."
        )
    for name, result in summary.results.items():
        gold, asked = result.win(GOLD), result.win(JUDGE)
        if (gold.side_of_half or 0) * (asked.side_of_half or 0) < 0:
            notes.append(
                f"The judges disagree about {spoken(name)}: it wins {percent(gold.value)} %"
                f" under the gold scorer and {percent(asked.value)} % under the"
                f" {name_of([result], JUDGE)}, each on its own side of 50 %."
            )
    notes += unmoved({kind_of(s.name): s.metrics for s in summary.stages}, summary.results)
    for stage in summary.stages:
        equal, read = stage.metrics.get("equal_rows"), stage.metrics.get("read_rows")
        if isinstance(equal, int) and isinstance(read, int) and equal:
            notes.append(
                f"{stage_label(stage.name)} left out {equal:,} of {read:,} rows, which are equal"
                " once cut to max_length: raise backbone.max_length to learn from them."
            )
        if isinstance(warning := stage.metrics.get("warning"), str):
            notes.append(f"{stage_label(stage.name)}: {warning}.")
        alarm = alarm_of(stage)
        if alarm is not None and alarm.raised:
            notes.append(
                f"The alarm for reward hacking was raised in {stage_label(stage.name)}: see Reward"
                " hacking before trusting its win rates."
            )
    return notes


def _bare_model_ahead(summary: Summary) -> str:
    """A caution that SFT is worse than the bare model, with each policy's win rate against it."""
    against = {name: summary.matrix.against_bare(name) for name in aligned(summary.results)}
    wins = [
        f"{label(n)} wins {percent(w.value)} % {interval(w, 1, 100)}".strip()
        for n, w in against.items()
        if w.value is not None
    ]
    text = (
        "The bare model beats SFT, so a win against SFT need not be one against the model that you"
        " began with."
    )
    judge = f" by the {summary.matrix.judge}" if summary.matrix.judge else ""
    return f"{text} Against the bare model{judge} {' and '.join(wins)}." if wins else text


def _cut(summary: Summary) -> list[str]:
    """A caution for each policy whose answers are mostly cut at the length limit while SFT's are
    not, or the other way round.
    """
    finished = {
        n: r.finished_share for n, r in summary.results.items() if r.finished_share is not None
    }
    sft = finished.get(BASELINE)
    if sft is None:
        return []
    return [
        f"{percent(share)} % of the answers of {spoken(name)} end by themselves, {percent(sft)} %"
        " of SFT's: the others are cut at generation.max_new_tokens, so texts that are cut off are"
        " compared with whole ones. Raise it to compare whole answers."
        for name, share in finished.items()
        if name != BASELINE and abs(share - sft) >= APART and min(share, sft) < 0.5
    ]


def _undecided(summary: Summary, judge: str) -> list[str]:
    """How many prompts would tell each undecided policy from SFT."""
    out = []
    for name in rivals(summary.results):
        win, prompts = lead_of(summary, name, judge).win, summary.results[name].n_prompts
        if win.value is not None and win.interval and prompts:
            out.append(undecided(spoken(name), win.value, *win.interval, prompts))
    return [line for line in out if line]


def _of_reward_model(policies: Sequence[str]) -> list[str]:
    """What win rates by the run's own reward model can show: little for policies trained on its
    scores, more for others.
    """
    against = [label(name) for name in policies if kind_of(name) in SAMPLING]
    others = [label(name) for name in policies if kind_of(name) not in (*SAMPLING, *IMITATING)]
    notes = []
    if against:
        notes.append(
            f"The judge is the reward model that {' and '.join(against)}"
            f" {'was' if len(against) == 1 else 'were'} trained to please: such win rates show that"
            " optimization worked, not that answers got better."
        )
    if others:
        notes.append(
            "The judge is a reward model that learnt from the same votes as"
            f" {' and '.join(others)}: it shares their errors and their taste in length, and no"
            f" person read the answers. {'It' if len(others) == 1 else 'They'} never saw its"
            " scores."
        )
    return notes
