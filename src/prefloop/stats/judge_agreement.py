"""How far a judge agrees with people, and two yardsticks: people with each other, and a judge that
always takes the longer response.

All three are measured alike, as the chance that a verdict equals one person's vote on the same
comparison (the agreement of MT-bench, Zheng et al., arXiv 2306.05685): "people" compares
each vote with the other votes on that comparison. A judge is therefore as good as a person when it
reaches the people's figure, not 1. Prompts are the sampled unit and weigh the same;
comparisons of one prompt are its cluster.

Dropped on purpose: agreement with the majority, on which a judge beats every single person because
the majority is less noisy than a vote.

Shapes: N comparisons, P prompts, T the table of 3 verdicts by 3 votes (a, b, tie), R resamples.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from prefloop.errors import DataError
from prefloop.stats.intervals import Array, Interval, clustered_share, percentile_tail

EVERYTHING = "all"
"""The entry over all sources."""
_A, _B, _TIE = np.eye(3)
_OF_SCORE = {1.0: _A, 0.0: _B, 0.5: _TIE}
_EYE_T = np.eye(3).ravel().astype(bool)


@dataclass(frozen=True)
class HumanItem:
    """One comparison that people and the judge saw; scores are of response a: 1 a, 0 b, 0.5 tie."""

    prompt_id: str
    votes: tuple[float, ...]
    verdict: float
    length_lead: float
    """Length of a minus length of b, in any unit."""
    source: str = ""


@dataclass(frozen=True)
class JudgeAgreement:
    """How often two verdicts are the same."""

    with_ties: Interval
    """A tie is a verdict like the others: chance gives about a third."""
    without_ties: Interval | None
    """Where neither is a tie: chance gives a half. ``None`` where there is no such comparison."""
    kappa: Interval | None
    """Cohen's kappa (1960) over the three verdicts; ``None`` when all are one and the same, which
    leaves no room for chance.
    """
    n_items: int


@dataclass(frozen=True)
class HumanAgreement:
    """The judge and its yardsticks on one source."""

    judge: JudgeAgreement
    longer: JudgeAgreement
    """Of a judge that always takes the longer response; equal lengths are ties."""
    people: JudgeAgreement | None
    """Of people with each other, on the comparisons with two votes or more; ``None`` without
    one.
    """
    judge_on_shared: JudgeAgreement | None
    """Of the judge on the comparisons behind ``people``."""
    n_items: int
    n_prompts: int
    n_votes: int


def human_agreement(
    items: Iterable[HumanItem], *, seed: int = 0, resamples: int = 2000, level: float = 0.95
) -> dict[str, HumanAgreement]:
    """Agreement per source, sorted by name, and over ``"all"`` first. Intervals resample prompts.

    Raises ``DataError`` for no items, ``ValueError`` naming the prompt of an item without votes or
    with a score that is not 1, 0.5 or 0.
    """
    given = list(items)
    if not given:
        raise DataError("no comparisons with human votes given")
    for item in given:
        if not item.votes:
            raise ValueError(f"prompt '{item.prompt_id}': a comparison without human votes")
        bad = [score for score in (item.verdict, *item.votes) if score not in _OF_SCORE]
        if bad:
            raise ValueError(
                f"prompt '{item.prompt_id}': expected scores of 1, 0.5 or 0, found {bad[0]}"
            )
        if not np.isfinite(item.length_lead):
            raise ValueError(
                f"prompt '{item.prompt_id}': length lead {item.length_lead} is not a finite number"
            )
    groups = {EVERYTHING: given}
    for source in sorted({item.source for item in given} - {"", EVERYTHING}):
        groups[source] = [item for item in given if item.source == source]
    return {name: _measure(group, seed, resamples, level) for name, group in groups.items()}


def _measure(items: Sequence[HumanItem], seed: int, resamples: int, level: float) -> HumanAgreement:
    prompts = [item.prompt_id for item in items]
    votes_N3 = np.array(
        [np.mean([_OF_SCORE[vote] for vote in item.votes], axis=0) for item in items]
    )
    verdict_N3 = np.array([_OF_SCORE[item.verdict] for item in items])
    longer_N3 = np.array([_OF_SCORE[(np.sign(item.length_lead) + 1) / 2] for item in items])

    def agreement(table_NT: Array, rows: Sequence[int]) -> JudgeAgreement:
        return _agreement(table_NT, [prompts[row] for row in rows], seed, resamples, level)

    everywhere = range(len(items))
    judge_NT = _tables(verdict_N3, votes_N3)
    shared = [row for row in everywhere if len(items[row].votes) > 1]
    between = [_between([_OF_SCORE[vote] for vote in items[row].votes]) for row in shared]
    return HumanAgreement(
        judge=agreement(judge_NT, everywhere),
        longer=agreement(_tables(longer_N3, votes_N3), everywhere),
        people=agreement(np.array(between), shared) if shared else None,
        judge_on_shared=agreement(judge_NT[shared], shared) if shared else None,
        n_items=len(items),
        n_prompts=len(set(prompts)),
        n_votes=sum(len(item.votes) for item in items),
    )


def _tables(one_N3: Array, other_N3: Array) -> Array:
    """Joint shares of the verdicts of two judges on each comparison, [N, T]."""
    return np.einsum("na,nb->nab", one_N3, other_N3).reshape(len(one_N3), 9)


def _between(votes: list[Array]) -> Array:
    """Joint shares of one vote and another on a comparison, [T]: each vote against the mean of the
    others.
    """
    total_3 = np.sum(votes, axis=0)
    tables = [np.outer(vote, (total_3 - vote) / (len(votes) - 1)) for vote in votes]
    return np.mean(tables, axis=0).ravel()


def _agreement(
    table_NT: Array, prompts: Sequence[str], seed: int, resamples: int, level: float
) -> JudgeAgreement:
    alike_N = table_NT[:, _EYE_T].sum(1)
    decided_N = table_NT[:, [0, 1, 3, 4]].sum(1)
    decided_alike_N = table_NT[:, [0, 4]].sum(1)
    with_ties = clustered_share(
        _group(prompts, alike_N), seed=seed, resamples=resamples, level=level
    )
    some = np.flatnonzero(decided_N > 0)
    without_ties = None
    if len(some):
        shares = _group([prompts[row] for row in some], decided_alike_N[some] / decided_N[some])
        without_ties = clustered_share(shares, seed=seed, resamples=resamples, level=level)
    return JudgeAgreement(
        with_ties,
        without_ties,
        _kappa(table_NT, prompts, with_ties, seed, resamples, level),
        len(prompts),
    )


def _group(prompts: Sequence[str], value_N: Array) -> dict[str, list[float]]:
    by_prompt: dict[str, list[float]] = {}
    for prompt_id, value in zip(prompts, value_N.tolist(), strict=True):
        by_prompt.setdefault(prompt_id, []).append(min(1.0, max(0.0, value)))
    return by_prompt


def _kappa(
    table_NT: Array,
    prompts: Sequence[str],
    alike: Interval,
    seed: int,
    resamples: int,
    level: float,
) -> Interval | None:
    _, prompt_N = np.unique(np.array(prompts), return_inverse=True)
    n = int(prompt_N.max()) + 1
    table_PT = np.zeros((n, 9))
    np.add.at(table_PT, prompt_N, table_NT)
    table_PT /= np.bincount(prompt_N)[:, None]
    value, chance = (float(x[0]) for x in _kappas(table_PT.mean(0)[None]))
    if np.isnan(value):
        return None
    copies_RP = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    kappa_R, _ = _kappas(copies_RP @ table_PT / n)
    tail = percentile_tail(n, level)
    low, high = np.nanquantile(kappa_R, [tail, 1 - tail])
    if alike.mean in (0.0, 1.0):
        # Nothing varies that could be resampled: the exact bound on agreement, with the observed
        # chance.
        low, high = ((bound - chance) / (1 - chance) for bound in (alike.low, alike.high))
    return Interval(value, float(low), float(high), n)


def _kappas(table_RT: Array) -> tuple[Array, Array]:
    """Kappa and the agreement by chance of R tables; NaN where chance alone agrees always."""
    table_R33 = table_RT.reshape(-1, 3, 3)
    alike_R = np.trace(table_R33, axis1=1, axis2=2)
    chance_R = (table_R33.sum(1) * table_R33.sum(2)).sum(1)
    room_R = 1 - chance_R
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(room_R > 1e-12, (alike_R - chance_R) / room_R, np.nan), chance_R
