"""Graded preferences: how much better the first response is, seen through annotators who differ in
ability, habit and taste for ties.

Dawid-Skene asks which response is better; many pairs are close, and then the share of people who
prefer one is the truth. Here a comparison has a difference d ~ N(0, 1) of the two responses'
quality and annotator a votes by Bradley-Terry with ties,

    P(first) : P(second) : P(tie)  =  exp((α_a d + β_a) / 2) : exp(-(α_a d + β_a) / 2) : exp(τ_a)

(Davidson, JASA 65, 1970, for ties; Davidson & Beaver, Biometrics 33, 1977, for the order effect β;
an ability α for each annotator as in GLAD, Whitehill et al., NIPS 2009: below 0 it is an
adversary's, 0 with a large β one who always takes the first). α, β and τ maximise the marginal
likelihood, d being summed out over a grid (Bock & Aitkin, Psychometrika 46, 1981); maximising over
d as well would explain single votes perfectly by ever larger α. The label is the mean under what is
known of d of P(first) + P(tie) / 2 for the median annotator without a habit: what ``share`` would
tend to with many such people, and drawn to 0.5 where votes are few.

Dropped on purpose: CrowdBT (Chen et al., WSDM 2013), whose scores of single responses need
responses that recur in several pairs.

Shape letters: I items, A annotators, C categories, G grid points, F parameters (α, β, τ).
"""

from __future__ import annotations

import numpy as np

from prefloop.stats.dawid_skene import by_cell, require_preferences, softmax
from prefloop.stats.votes import Floats, Votes

GRID_G = np.linspace(-4.0, 4.0, 41)
PRIOR_MEAN_F = np.array([2.0, 0.0, -1.0])
"""α = 2: two people agree on two pairs of three, as they do on published preference data."""
PRIOR_SD_F = np.array([1.0, 1.0, 2.0])
_ITERATIONS = 200
_NEWTON = 4
_TOLERANCE = 1e-5
_LONGEST = 1.0  # of a Newton step, in each parameter

_FEATURES_CGF = np.zeros((3, len(GRID_G), 3))
_FEATURES_CGF[0, :, 0], _FEATURES_CGF[0, :, 1] = GRID_G / 2, 0.5
_FEATURES_CGF[1] = -_FEATURES_CGF[0]
_FEATURES_CGF[2, :, 2] = 1.0


def bradley_terry(votes: Votes) -> tuple[Floats, Floats]:
    """P(a typical person prefers the response shown first) [I], ties counting half; the ability α
    of every annotator [A].

    Raises ``ValueError`` for votes that are not preferences.
    """
    require_preferences(votes)
    cells = by_cell(votes)
    parameters_AF = np.tile(PRIOR_MEAN_F, (len(votes.annotators), 1))
    posterior_IG = _posterior(votes, cells, parameters_AF)
    for _ in range(_ITERATIONS):
        counts_ACG = np.zeros((len(votes.annotators), votes.width, len(GRID_G)))
        for annotator, category, items in cells:
            counts_ACG[annotator, category] = posterior_IG[items].sum(0)
        before, parameters_AF = parameters_AF, _fit(counts_ACG, parameters_AF)
        posterior_IG = _posterior(votes, cells, parameters_AF)
        if not len(parameters_AF) or np.abs(parameters_AF - before).max() < _TOLERANCE:
            break
    typical_F = _typical(votes, parameters_AF)
    chance_CG = chances(typical_F[None])[0]
    return posterior_IG @ (chance_CG[0] + chance_CG[2] / 2), parameters_AF[:, 0]


def chances(parameters_AF: Floats) -> Floats:
    """P(category | d) of every annotator at every grid point, [A, C, G]."""
    return np.moveaxis(softmax(np.einsum("cgf,af->agc", _FEATURES_CGF, parameters_AF)), 2, 1)


def _posterior(
    votes: Votes, cells: list[tuple[int, int, np.ndarray]], parameters_AF: Floats
) -> Floats:
    log_ACG = np.log(chances(parameters_AF))
    logp_IG = np.tile(-(GRID_G**2) / 2, (len(votes.ids), 1))
    for annotator, category, items in cells:
        logp_IG[items] += log_ACG[annotator, category]
    return softmax(logp_IG)


def _fit(counts_ACG: Floats, parameters_AF: Floats) -> Floats:
    """A few Newton steps on the penalised log-likelihood of a multinomial logit, which is
    concave.
    """
    total_AG = counts_ACG.sum(1)
    for _ in range(_NEWTON):
        chance_ACG = chances(parameters_AF)
        mean_AGF = np.einsum("acg,cgf->agf", chance_ACG, _FEATURES_CGF)
        square_AGFF = np.einsum("acg,cgf,cgh->agfh", chance_ACG, _FEATURES_CGF, _FEATURES_CGF)
        spread_AGFF = square_AGFF - mean_AGF[..., :, None] * mean_AGF[..., None, :]
        slope_AF = np.einsum("acg,cgf->af", counts_ACG, _FEATURES_CGF) - np.einsum(
            "ag,agf->af", total_AG, mean_AGF
        )
        slope_AF -= (parameters_AF - PRIOR_MEAN_F) / PRIOR_SD_F**2
        curve_AFF = np.einsum("ag,agfh->afh", total_AG, spread_AGFF) + np.diag(1 / PRIOR_SD_F**2)
        step_AF = np.linalg.solve(curve_AFF, slope_AF[..., None])[..., 0]
        parameters_AF = parameters_AF + np.clip(step_AF, -_LONGEST, _LONGEST)
    return parameters_AF


def _typical(votes: Votes, parameters_AF: Floats) -> Floats:
    """Median ability (at least 0) and taste for ties, each annotator counting by votes; no
    habit.
    """
    if not len(votes.item_V):
        return PRIOR_MEAN_F * [1, 0, 1]
    ability, _, ties = np.median(parameters_AF[votes.annotator_V], axis=0)
    return np.array([max(ability, 0.0), 0.0, ties])
