"""How far annotators agree, and which votes look wrong.

Krippendorff's alpha, Cohen's kappa for every two annotators, position bias, votes cast too fast,
the most disputed items. Ties are a category of their own: two people who both see no difference
agree. No person is judged by few votes: every flag is a test that allows for the number of tests
(Holm 1979).

Dropped on purpose: Fleiss' kappa (it needs the same number of votes on every item) and one score of
a person's quality, which is what the aggregations estimate (``labeling.aggregation``).

Shape letters: I items, A annotators, C categories, V votes, R resamples, U distinct rows of counts.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from scipy import sparse, stats

from prefloop.stats.vote_speed import Speed, speeds
from prefloop.stats.votes import FILE, PREFERENCES, Floats, Ints, Votes

SIGNIFICANT = 0.05
MOST_DISPUTED = 10
_RESAMPLES = 2000


@dataclasses.dataclass(frozen=True)
class Alpha:
    """Krippendorff's alpha with its 95 % interval; 1 is full agreement, 0 what chance gives."""

    value: float | None
    """``None`` when no item has two votes or all votes are the same: chance alone would agree."""
    low: float | None
    high: float | None
    items: int
    """Items with two votes or more; the others have no part in it."""


@dataclasses.dataclass(frozen=True)
class Kappa:
    """Cohen's kappa of two annotators on the items that both voted on; ``None`` when both gave one
    and the same answer throughout.
    """

    a: str
    b: str
    items: int
    agree: float
    """Share of the items with the same vote."""
    value: float | None


@dataclasses.dataclass(frozen=True)
class Position:
    """How often the response shown first won, ties left out, and the exact binomial test of one
    half.
    """

    first: int
    decided: int
    share: float | None
    low: float | None
    high: float | None
    p: float | None
    biased: bool = False
    """Significant at 5 % after Holm's correction for the number of annotators tested."""


@dataclasses.dataclass(frozen=True)
class Person:
    """One annotator's votes."""

    name: str
    votes: int
    shares: dict[str, float]
    """Share of each category among the votes."""
    agree: float | None
    """Share of the other people's votes on the same items that were the same; ``None`` without a
    shared item.
    """
    position: Position | None
    speed: Speed | None


@dataclasses.dataclass(frozen=True)
class Disputed:
    """An item that people disagree on: the share of pairs of its votes that differ."""

    id: str
    counts: dict[str, int]
    disagreement: float


@dataclasses.dataclass(frozen=True)
class AnnotatorAgreement:
    """The results of ``measure``."""

    items: int
    votes: int
    repeated: int
    alpha: Alpha
    position: Position | None
    """Over items: how often the one shown first was ahead. ``None`` for thumbs."""
    people: list[Person]
    pairs: list[Kappa]
    disputed: list[Disputed]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return dataclasses.asdict(self)


def measure(votes: Votes, *, resamples: int = _RESAMPLES, seed: int = 0) -> AnnotatorAgreement:
    """Agreement, kappas, position bias, speed and disputed items of ``votes``. Position and speed
    leave out annotators ``file:…``, which stand for a file's own choices.

    Position bias can be told from content only where the order of showing was drawn at random.
    """
    counts_IC = votes.counts_IC
    pairs = kappas(votes)
    preferences = votes.categories == PREFERENCES
    people = [name for name in votes.annotators if not name.startswith(FILE)]
    positions = _positions(votes, people) if preferences else {}
    fast = speeds(votes, people)
    by_person_AC = np.zeros((len(votes.annotators), votes.width), dtype=np.int64)
    np.add.at(by_person_AC, (votes.annotator_V, votes.choice_V), 1)
    shared = {name: np.zeros(2) for name in votes.annotators}
    for pair in pairs:
        for name in (pair.a, pair.b):
            shared[name] += (pair.items, pair.items * pair.agree)
    listed = [
        Person(
            name=name,
            votes=int(row_C.sum()),
            shares={
                category: float(n) / int(row_C.sum())
                for category, n in zip(votes.categories, row_C, strict=True)
            },
            agree=float(shared[name][1] / shared[name][0]) if shared[name][0] else None,
            position=positions.get(name),
            speed=fast.get(name),
        )
        for name, row_C in zip(votes.annotators, by_person_AC, strict=True)
    ]
    return AnnotatorAgreement(
        items=len(votes.ids),
        votes=len(votes.item_V),
        repeated=votes.repeated,
        alpha=alpha(counts_IC, resamples=resamples, seed=seed),
        position=_position_over_items(votes, people) if preferences and people else None,
        people=listed,
        pairs=pairs,
        disputed=_disputed(votes, counts_IC),
    )


def alpha(
    counts_IC: Ints, *, resamples: int = _RESAMPLES, seed: int = 0, level: float = 0.95
) -> Alpha:
    """Nominal alpha from the number of votes of each category on each item, with a bootstrap over
    items.

    Krippendorff, "Computing Krippendorff's Alpha-Reliability", 2011, section C, in closed form.
    Over the items with two votes or more, of which item i has m_i, n_ic of them in category c, n in
    all and n_c of category c:

        alpha = 1 - (1 - sum_ic n_ic (n_ic - 1) / (m_i - 1) / n) / (1 - sum_c n_c (n_c - 1) / (n (n
        - 1)))

    Resamples in which all votes are alike are left out. Raises ``ValueError`` for negative counts.
    """
    if counts_IC.size and counts_IC.min() < 0:
        raise ValueError(f"counts must be 0 or more, found {counts_IC.min()}")
    paired_IC = counts_IC[counts_IC.sum(1) >= 2]
    if not len(paired_IC):
        return Alpha(None, None, None, 0)
    rows_UC, times_U = np.unique(paired_IC, axis=0, return_counts=True)
    value = float(_alphas(rows_UC, times_U[None])[0])
    if math.isnan(value):
        return Alpha(None, None, None, len(paired_IC))
    drawn_RU = np.random.default_rng(seed).multinomial(
        len(paired_IC), times_U / len(paired_IC), size=resamples
    )
    low, high = np.nanquantile(_alphas(rows_UC, drawn_RU), [(1 - level) / 2, (1 + level) / 2])
    return Alpha(value, float(low), float(high), len(paired_IC))


def _alphas(rows_UC: Ints, times_RU: Ints) -> Floats:
    """Alpha where row u of counts stands ``times_RU[r, u]`` times; NaN where all votes are
    alike.
    """
    votes_U = rows_UC.sum(1)
    alike_U = (rows_UC * (rows_UC - 1)).sum(1) / (votes_U - 1)
    n_R = times_RU @ votes_U.astype(np.float64)
    n_RC = times_RU @ rows_UC.astype(np.float64)
    observed_R = 1 - (times_RU @ alike_U) / n_R
    expected_R = 1 - (n_RC * (n_RC - 1)).sum(1) / (n_R * (n_R - 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(expected_R > 0, 1 - observed_R / expected_R, np.nan)


def kappas(votes: Votes) -> list[Kappa]:
    """Cohen's kappa (1960) of every two annotators that share an item, most shared items first."""
    shape = (len(votes.annotators), len(votes.ids))
    cast_C = [
        sparse.csr_array(
            (np.ones(int(of.sum())), (votes.annotator_V[of], votes.item_V[of])),
            shape=shape,
            dtype=np.float64,
        )
        for of in (votes.choice_V == c for c in range(votes.width))
    ]
    table_CCAA = np.array([[(one @ other.T).toarray() for other in cast_C] for one in cast_C])
    pairs = []
    for a, b in np.argwhere(np.triu(table_CCAA.sum((0, 1)), 1)):
        table_CC = table_CCAA[:, :, a, b]
        n = table_CC.sum()
        agree = float(np.trace(table_CC) / n)
        chance = float(table_CC.sum(0) @ table_CC.sum(1) / n**2)
        value = None if chance >= 1 else (agree - chance) / (1 - chance)
        pairs.append(Kappa(votes.annotators[a], votes.annotators[b], int(n), agree, value))
    return sorted(pairs, key=lambda pair: (-pair.items, pair.a, pair.b))


def _positions(votes: Votes, people: list[str]) -> dict[str, Position]:
    position_of = {}
    for name in people:
        choices_V = votes.choice_V[votes.annotator_V == votes.annotators.index(name)]
        position_of[name] = position(int((choices_V == 0).sum()), int((choices_V != 2).sum()))
    # Holm: the k-th smallest of m p-values, from k = 0, is compared with 5 % / (m - k). After the
    # first that fails, none is significant.
    p_of = {name: of.p for name, of in position_of.items() if of.p is not None}
    for rank, name in enumerate(sorted(p_of, key=p_of.__getitem__)):
        if p_of[name] > SIGNIFICANT / (len(p_of) - rank):
            break
        position_of[name] = dataclasses.replace(position_of[name], biased=True)
    return position_of


def _position_over_items(votes: Votes, people: list[str]) -> Position:
    """Items, not votes, are the independent trials: two people who agree on an item are not two
    observations of its order.
    """
    of_person_A = np.array([name in set(people) for name in votes.annotators])
    lead_V = np.array([1, -1, 0])[votes.choice_V] * of_person_A[votes.annotator_V]
    lead_I = np.bincount(votes.item_V, weights=lead_V, minlength=len(votes.ids))
    lean = position(int((lead_I > 0).sum()), int((lead_I != 0).sum()))
    return dataclasses.replace(lean, biased=lean.p is not None and lean.p <= SIGNIFICANT)


def position(first: int, decided: int) -> Position:
    """``first`` wins of ``decided`` for the response shown first: Clopper-Pearson 95 % interval,
    two-sided exact p for one half.
    """
    if not decided:
        return Position(first, decided, None, None, None, None)
    test = stats.binomtest(first, decided)
    low, high = test.proportion_ci(method="exact")
    return Position(first, decided, first / decided, float(low), float(high), float(test.pvalue))


def _disputed(votes: Votes, counts_IC: Ints) -> list[Disputed]:
    """Most divided first, more votes first among equals, then the file's order."""
    votes_I = counts_IC.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        split_I = 1 - (counts_IC * (counts_IC - 1)).sum(1) / (votes_I * (votes_I - 1))
    split_I = np.where(votes_I >= 2, split_I, 0.0)
    order = np.lexsort((np.arange(len(split_I)), -votes_I, -split_I))[:MOST_DISPUTED]
    return [
        Disputed(
            votes.ids[i],
            dict(zip(votes.categories, map(int, counts_IC[i]), strict=True)),
            float(split_I[i]),
        )
        for i in order
        if split_I[i] > 0
    ]
