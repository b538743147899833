"""Graded preferences: how much better the first response is, seen through annotators who differ in
ability, habit and taste for ties.

Dawid-Skene asks which response is better. Many pairs are close, and then the share of people who
prefer one is the truth. Here a comparison has a difference d ~ N(0, 1) of the two responses'
quality and annotator a votes by Bradley-Terry with ties,

    P(first) : P(second) : P(tie)  =  exp((α_a d + β_a) / 2) : exp(-(α_a d + β_a) / 2) : exp(τ_a)

(Davidson, JASA 65, 1970, for ties; Davidson & Beaver, Biometrics 33, 1977, for the order effect β;
an ability α for each annotator as in GLAD, Whitehill et al., NIPS 2009: below 0 it is an
adversary's, and 0 with a large β is that of one who always takes the first). α, β and τ maximize
the marginal likelihood, with d summed out over a grid (Bock & Aitkin, Psychometrika 46, 1981) and a
normal prior on each. Maximizing over d as well would explain single votes perfectly by ever larger
α. The label is the posterior mean of P(first) + P(tie) / 2 for the median annotator without a
habit: the limit of ``share`` with many such people, drawn to 0.5 where votes are few.

Dropped on purpose: CrowdBT (Chen et al., WSDM 2013), whose scores of single responses need
responses that recur in several pairs.

Shape letters: I items, A annotators, C categories, G grid points, F parameters (α, β, τ).
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax, logsumexp

from prefloop.stats.dawid_skene import by_cell, require_preferences
from prefloop.stats.votes import Floats, Votes

GRID_G = np.linspace(-4.0, 4.0, 41)
PRIOR_MEAN_F = np.array([2.0, 0.0, -1.0])
"""α = 2: two people agree on two pairs of three, as they do on published preference data."""
PRIOR_SD_F = np.array([1.0, 1.0, 2.0])
_CONVERGED = {"ftol": 1e-15, "gtol": 1e-9, "maxiter": 2000, "maxfun": 5000}

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
    shape = (len(votes.annotators), len(PRIOR_MEAN_F))

    def posterior(logp_ACG: Floats) -> tuple[Floats, float]:
        """P(d | votes) [I, G] and the log marginal likelihood."""
        logp_IG = np.tile(-(GRID_G**2) / 2, (len(votes.ids), 1))
        for annotator, category, items in cells:
            logp_IG[items] += logp_ACG[annotator, category]
        evidence_I = logsumexp(logp_IG, axis=1)
        return np.exp(logp_IG - evidence_I[:, None]), float(evidence_I.sum())

    def loss(flat: Floats) -> tuple[float, Floats]:
        """Minus the penalized log-likelihood, and its gradient."""
        parameters_AF = flat.reshape(shape)
        logp_ACG = _log_chances(parameters_AF)
        posterior_IG, evidence = posterior(logp_ACG)
        counts_ACG = np.zeros((shape[0], votes.width, len(GRID_G)))
        for annotator, category, items in cells:
            counts_ACG[annotator, category] = posterior_IG[items].sum(0)
        away_AF = (parameters_AF - PRIOR_MEAN_F) / PRIOR_SD_F
        # Fisher's identity: the gradient is the posterior mean of that of the complete data.
        rest_ACG = counts_ACG - counts_ACG.sum(1, keepdims=True) * np.exp(logp_ACG)
        slope_AF = np.einsum("acg,cgf->af", rest_ACG, _FEATURES_CGF) - away_AF / PRIOR_SD_F
        return float((away_AF**2).sum()) / 2 - evidence, -slope_AF.ravel()

    parameters_AF = np.tile(PRIOR_MEAN_F, (shape[0], 1))
    if parameters_AF.size:
        best = minimize(
            loss, parameters_AF.ravel(), jac=True, method="L-BFGS-B", options=_CONVERGED
        )
        parameters_AF = best.x.reshape(shape)
    chance_CG = np.exp(_log_chances(_typical(votes, parameters_AF)[None])[0])
    posterior_IG, _ = posterior(_log_chances(parameters_AF))
    return posterior_IG @ (chance_CG[0] + chance_CG[2] / 2), parameters_AF[:, 0]


def _log_chances(parameters_AF: Floats) -> Floats:
    """log P(category | d) of every annotator at every grid point, [A, C, G]."""
    logits_ACG = np.einsum("cgf,af->acg", _FEATURES_CGF, parameters_AF)
    return np.asarray(log_softmax(logits_ACG, axis=1))


def _typical(votes: Votes, parameters_AF: Floats) -> Floats:
    """Median ability (at least 0) and taste for ties, each annotator counting by votes; no
    habit.
    """
    if not len(votes.item_V):
        return PRIOR_MEAN_F * [1, 0, 1]
    ability, _, ties = np.median(parameters_AF[votes.annotator_V], axis=0)
    return np.array([max(ability, 0.0), 0.0, ties])
