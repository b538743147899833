"""Dawid & Skene, "Maximum Likelihood Estimation of Observer Error-Rates Using the EM Algorithm",
JRSS C 28(1), 1979.

Every comparison has a truth: the first or the second response is better. Every annotator has a
table of how often they vote first, second or tie under either truth. EM estimates both. By these
tables the votes of a person who always takes the first response count for nothing, and those of a
person who votes against the truth count as much as those of one who votes for it.

Tables carry a weak Dirichlet prior that leans to being right (its mode with no votes is 60 % right,
20 % wrong, 20 % tie, with the weight of two votes), so that few votes are not taken for certainty
and 'everybody is always wrong' is no equal answer. Own code: crowd-kit, the library at hand, would
bring nltk and a table for each vote.

Shape letters: I items, A annotators, T truths (0: first shown is better, 1: second), C categories.
"""

from __future__ import annotations

import numpy as np
from scipy.special import softmax

from prefloop.stats.votes import PREFERENCES, Floats, Votes

PRIOR_TC = np.array([[1.2, 0.4, 0.4], [0.4, 1.2, 0.4]])
"""Votes that every annotator is taken to have cast before the first one."""
_ITERATIONS = 500
_TOLERANCE = 1e-7


def dawid_skene(votes: Votes) -> tuple[Floats, Floats]:
    """P(the response shown first is better) [I], 0.5 without votes; P(a decided vote is right) [A],
    averaged over both truths.

    Raises ``ValueError`` for votes that are not preferences.
    """
    require_preferences(votes)
    cells = by_cell(votes)
    p_IT = _shares(votes)
    tables_ATC = np.empty((len(votes.annotators), *PRIOR_TC.shape))
    for _ in range(_ITERATIONS):
        tables_ATC[:] = PRIOR_TC
        for annotator, category, items in cells:
            tables_ATC[annotator, :, category] += p_IT[items].sum(0)
        tables_ATC /= tables_ATC.sum(2, keepdims=True)
        prior_T = p_IT.sum(0) + 1
        logp_IT = np.tile(np.log(prior_T / prior_T.sum()), (len(votes.ids), 1))
        for annotator, category, items in cells:
            logp_IT[items] += np.log(tables_ATC[annotator, :, category])
        before, p_IT = p_IT, softmax(logp_IT, axis=-1)
        if not len(p_IT) or np.abs(p_IT - before).max() < _TOLERANCE:
            break
    right_A = (tables_ATC[:, 0, 0] + tables_ATC[:, 1, 1]) / tables_ATC[:, :, :2].sum((1, 2))
    voted_I = np.bincount(votes.item_V, minlength=len(votes.ids)) > 0
    return np.where(voted_I, p_IT[:, 0], 0.5), right_A


def require_preferences(votes: Votes) -> None:
    """Raise ``ValueError`` for thumbs."""
    if votes.categories != PREFERENCES:
        raise ValueError(
            f"expected votes on pairs, found the categories {', '.join(votes.categories)}"
        )


def by_cell(votes: Votes) -> list[tuple[int, int, np.ndarray[tuple[int, ...], np.dtype[np.int64]]]]:
    """(annotator, category, items). A person has one vote on an item, so no item stands twice."""
    cell_V = votes.annotator_V * votes.width + votes.choice_V
    order = np.argsort(cell_V, kind="stable")
    cells, starts = np.unique(cell_V[order], return_index=True)
    ends = [*starts[1:], len(order)]
    return [
        (int(cell) // votes.width, int(cell) % votes.width, votes.item_V[order[start:end]])
        for cell, start, end in zip(cells, starts, ends, strict=False)
    ]


def _shares(votes: Votes) -> Floats:
    counts_IC = votes.counts_IC
    total_I = np.maximum(counts_IC.sum(1), 1)
    first_I = (counts_IC[:, 0] + counts_IC[:, 2] / 2) / total_I
    first_I = np.where(counts_IC.sum(1) > 0, first_I, 0.5)
    return np.stack([first_I, 1 - first_I], axis=1)
