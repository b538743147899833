"""Two corrections of a judge's win rate: for its taste for length, and for its errors against people.

Both treat the prompt as the unit that was sampled, like ``prefloop.judging.statistics``, and return the same
``WinRate``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from prefloop.judging.statistics import (
    Array,
    WinRate,
    checked_values,
    checked_verdicts,
    percentile_tail,
    require_same_prompts,
    student_t_quantile,
)

_RIDGE = 0.05  # keeps the fit finite when one side wins everything; worth a twentieth of a comparison
_NEWTON_STEPS = 25


def length_controlled_win_rate(
    verdicts_by_prompt: Mapping[str, Sequence[float]],
    length_leads_by_prompt: Mapping[str, Sequence[float]],
    *,
    seed: int = 0,
    resamples: int = 1000,
    level: float = 0.95,
) -> WinRate:
    """The win rate the judge would give if the two responses were equally long.

    Fits ``logit P(a wins) = theta + phi * tanh(lead / sd(lead))`` and returns ``sigmoid(theta)``, where ``lead`` is
    the length of a minus the length of b in any unit (AlpacaEval 2, arXiv 2404.04475). Its instruction-difficulty
    term is left out: that one is estimated across many models, and here there are two. The interval is a percentile
    bootstrap over prompts.
    """
    require_same_prompts(verdicts_by_prompt, length_leads_by_prompt, "the verdicts", "the lengths")
    verdicts, leads = checked_verdicts(verdicts_by_prompt), checked_values(length_leads_by_prompt, "length leads")
    for prompt_id, won, lead in zip(sorted(verdicts_by_prompt), verdicts, leads, strict=True):
        if len(won) != len(lead):
            raise ValueError(f"prompt '{prompt_id}' has {len(won)} verdicts but {len(lead)} length leads")
    n = len(verdicts)
    lead_K = np.concatenate(leads)
    spread = float(lead_K.std())
    # No difference in length anywhere leaves nothing to control for: phi stays at 0.
    feature_K = np.tanh(lead_K / spread) if spread > 0 else np.zeros_like(lead_K)
    won_K = np.concatenate(verdicts)
    prompt_K = np.repeat(np.arange(n), [len(x) for x in verdicts])
    # Every prompt weighs the same, however many pairs it has.
    share_K = 1 / np.bincount(prompt_K)[prompt_K]

    rng = np.random.default_rng(seed)
    copies_RP = np.vstack([np.ones(n), rng.multinomial(n, np.full(n, 1 / n), size=resamples)])
    rates_R = _equal_length_rates(won_K, feature_K, copies_RP[:, prompt_K] * share_K)
    tail = percentile_tail(n, level)
    low, high = np.quantile(rates_R[1:], [tail, 1 - tail])
    ties = float(np.mean([(x == 0.5).mean() for x in verdicts]))
    return WinRate(float(rates_R[0]), float(low), float(high), ties, n_prompts=n, n_pairs=len(won_K))


def human_corrected_win_rate(
    judge_by_prompt: Mapping[str, Sequence[float]],
    human_by_prompt: Mapping[str, Sequence[float]],
    *,
    level: float = 0.95,
) -> WinRate:
    """Win rate by people's standard, from a judge's verdicts on every prompt and people's on some of them.

    Prediction-powered inference with a tuned weight (PPI++, arXiv 2311.01453), in survey sampling the regression
    estimator: ``mean(human) + weight * (mean(judge, all) - mean(judge, prompts with votes))``. A judge that tracks
    people narrows the interval; one that does not gets weight near 0 and cannot bias the result. The prompts with
    votes must be a random sample of all prompts. Raises ``ValueError`` for voted prompts the judge has not seen and
    for fewer than 5 of them.
    """
    judge_P = np.array([x.mean() for x in checked_verdicts(judge_by_prompt)])
    human_V = np.array([x.mean() for x in checked_verdicts(human_by_prompt)])
    unseen = sorted(human_by_prompt.keys() - judge_by_prompt.keys())
    if unseen:
        raise ValueError(f"prompt '{unseen[0]}' has human votes but no judge verdict ({len(unseen)} such prompts)")
    n, n_all = len(human_V), len(judge_P)
    if n < 5:
        raise ValueError(f"a correction needs human votes on at least 5 prompts, found {n}")
    voted_P = np.array([prompt_id in human_by_prompt for prompt_id in sorted(judge_by_prompt)])
    judge_V = judge_P[voted_P]
    spread = float(judge_V.var(ddof=1))
    weight = float(np.cov(human_V, judge_V)[0, 1]) / spread if spread > 0 else 0.0
    rate = float(human_V.mean() + weight * (judge_P.mean() - judge_V.mean()))
    rest_V = human_V - weight * judge_V
    # Residuals of a regression do not correlate with its predictor, so the two variances add.
    variance = float(((rest_V - rest_V.mean()) ** 2).sum()) / (n - 2) / n
    variance += weight**2 * float(judge_P.var(ddof=1)) / n_all
    reach = student_t_quantile((1 + level) / 2, n - 2) * math.sqrt(variance)
    ties = float(np.mean([np.mean(np.asarray(x) == 0.5) for x in human_by_prompt.values()]))
    n_pairs = sum(len(x) for x in judge_by_prompt.values())
    rate = min(max(rate, 0.0), 1.0)
    return WinRate(rate, max(rate - reach, 0.0), min(rate + reach, 1.0), ties, n_prompts=n_all, n_pairs=n_pairs)


def _equal_length_rates(won_K: Array, feature_K: Array, weights_RK: Array) -> Array:
    """sigmoid(theta) of R weighted logistic fits of K comparisons, by Newton's method on all R at once, [R]."""
    theta_R, phi_R = np.zeros(len(weights_RK)), np.zeros(len(weights_RK))
    for _ in range(_NEWTON_STEPS):
        win_RK = 1 / (1 + np.exp(-np.clip(theta_R[:, None] + phi_R[:, None] * feature_K, -30, 30)))
        error_RK = weights_RK * (won_K - win_RK)
        curve_RK = weights_RK * win_RK * (1 - win_RK)
        pull_theta, pull_phi = error_RK.sum(1) - _RIDGE * theta_R, error_RK @ feature_K - _RIDGE * phi_R
        h_tt, h_tp, h_pp = curve_RK.sum(1) + _RIDGE, curve_RK @ feature_K, curve_RK @ feature_K**2 + _RIDGE
        determinant = h_tt * h_pp - h_tp**2
        # A step of more than 2 logits overshoots where the curve is flat.
        theta_R += np.clip((h_pp * pull_theta - h_tp * pull_phi) / determinant, -2, 2)
        phi_R += np.clip((h_tt * pull_phi - h_tp * pull_theta) / determinant, -2, 2)
    return 1 / (1 + np.exp(-theta_R))
