"""Length-controlled win rates: an estimate of the win rate if all responses were equally long.

The model is that of AlpacaEval 2 (Dubois et al., arXiv 2404.04475), for model m against one
baseline on prompt x:

    logit P(m wins) = θ_m + φ_m tanh(lead / sd(lead)) + ψ_m γ_x

with θ the difference in quality, lead the length of m's response minus the baseline's, and γ_x how
much prompt x favors models in general (its "instruction difficulty"). The controlled rate is the
mean over prompts of ``sigmoid(θ + ψ γ_x)``: the length term is left out.

γ_x is identified only by several models that answer the same prompts. With one model against the
baseline the term is left out, and the rate is ``sigmoid(θ)``. ``length_controlled_leaderboard``
estimates γ as the paper does, in one fit of several models with ψ = 1 and an L2 penalty on γ, then
fits each model by itself with γ given.

One difference: the γ that a model is fitted with come from the other models alone. With the hundred
models of AlpacaEval that is the same. With four, γ fitted to the model's own verdicts too explain
their noise, and simulated 95 % intervals cover the truth in 88 %. Dropped on purpose: choosing
penalties by cross-validation, as AlpacaEval does. Here they are fixed, weak and stated, so that the
same verdicts always give the same rate; the one on γ is that of a standard normal prior.

Under ``FEWEST`` prompts, and where one side is longer and one side wins on nearly every pair, no
fit can tell length from quality: ``LengthControlled.unknown`` then says why there is no rate.

Shapes: P prompts, M models, K comparisons, F terms of the model, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import expit

from prefloop.errors import DataError
from prefloop.stats.intervals import (
    Array,
    WinRate,
    checked_values,
    checked_verdicts,
    exact_bounds,
    percentile_tail,
    require_same_prompts,
)
from prefloop.stats.newton import maxima

RIDGE = 0.05
"""L2 penalty on θ, φ and ψ, worth a twentieth of a comparison: it keeps the fit finite when one
side wins everything.
"""
DIFFICULTY_RIDGE = 1.0
"""L2 penalty on each γ_x."""
FEWEST = 10
"""Prompts below which there is no rate at equal length."""
SEPARATED = 0.95
"""Share of all pairs: where one side wins that many, and one side is longer on as many, the reason
for winning is unknown.
"""
UNIT = "characters"
"""Unit of lengths wherever two responses are compared at equal length, as in AlpacaEval 2."""
_CHUNK_CELLS = 2_000_000

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class LengthControlled(WinRate):
    """A win rate at equal length, and the fit behind it, in logits."""

    quality: float
    """θ: for a prompt of mean difficulty."""
    length: float
    """φ: the gain of a much longer response; above 0 the judge prefers longer ones."""
    difficulty: float | None
    """ψ of the standardized difficulty; ``None`` where no difficulties are known."""
    unknown: str = ""
    """Why the rate is not to be quoted; empty where it is."""


def length_controlled_win_rate(
    verdicts_by_prompt: Mapping[str, Sequence[float]],
    length_leads_by_prompt: Mapping[str, Sequence[float]],
    *,
    seed: int = 0,
    resamples: int = 1000,
    level: float = 0.95,
) -> LengthControlled:
    """Win rate of a over b at equal length; a lead is the length of a minus that of b, in any unit.

    The difficulty term is left out, since verdicts on two models cannot tell a prompt that favors a
    from a prompt on which a is better. Every prompt weighs the same, however many
    comparisons it has. The interval is a percentile bootstrap over prompts; where all verdicts are
    alike it is the exact binomial one. Raises ``ValueError`` naming a prompt whose entries are
    missing, bad or of unequal number.
    """
    verdicts, leads = _checked(verdicts_by_prompt, length_leads_by_prompt)
    return _controlled(verdicts, leads, None, seed=seed, resamples=resamples, level=level)


def length_controlled_leaderboard(
    verdicts_by_model: Mapping[str, Mapping[str, Sequence[float]]],
    length_leads_by_model: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    seed: int = 0,
    resamples: int = 1000,
    level: float = 0.95,
) -> dict[str, LengthControlled]:
    """Length-controlled win rates of two or more models against one baseline, each with the
    difficulties that the other models give.

    Intervals resample prompts, each with its difficulty. Raises ``DataError`` for fewer than two
    models, ``ValueError`` naming model and prompt where prompts or numbers of entries differ.
    """
    names = sorted(verdicts_by_model)
    if len(names) < 2:
        raise DataError(
            "difficulties are estimated from two or more models against one baseline, found"
            f" {len(names)}; use length_controlled_win_rate for one"
        )
    require_same_prompts(
        verdicts_by_model, length_leads_by_model, "the models' verdicts", "the models' lengths"
    )
    tables = []
    for name in names:
        require_same_prompts(verdicts_by_model[names[0]], verdicts_by_model[name], names[0], name)
        tables.append(_checked(verdicts_by_model[name], length_leads_by_model[name]))
    models = {}
    for m, (name, (verdicts, leads)) in enumerate(zip(names, tables, strict=True)):
        gamma_P = _difficulties(tables[:m] + tables[m + 1 :])
        models[name] = _controlled(
            verdicts, leads, gamma_P, seed=seed, resamples=resamples, level=level
        )
    return models


def _checked(
    verdicts_by_prompt: Mapping[str, Sequence[float]],
    leads_by_prompt: Mapping[str, Sequence[float]],
) -> tuple[list[Array], list[Array]]:
    require_same_prompts(verdicts_by_prompt, leads_by_prompt, "the verdicts", "the lengths")
    verdicts, leads = (
        checked_verdicts(verdicts_by_prompt),
        checked_values(leads_by_prompt, "length leads"),
    )
    for prompt_id, won, lead in zip(sorted(verdicts_by_prompt), verdicts, leads, strict=True):
        if len(won) != len(lead):
            raise ValueError(
                f"prompt '{prompt_id}' has {len(won)} verdicts but {len(lead)} length leads"
            )
    return verdicts, leads


def _flat(verdicts: list[Array], leads: list[Array]) -> tuple[Array, Array, Ints, Array]:
    """Verdict, length feature, prompt and weight of each of the K comparisons."""
    lead_K = np.concatenate(leads)
    spread = float(lead_K.std())
    # No difference in length anywhere leaves nothing to control for: φ stays at 0.
    feature_K = np.tanh(lead_K / spread) if spread > 0 else np.zeros_like(lead_K)
    prompt_K = np.repeat(np.arange(len(verdicts)), [len(x) for x in verdicts])
    return np.concatenate(verdicts), feature_K, prompt_K, 1 / np.bincount(prompt_K)[prompt_K]


def _controlled(
    verdicts: list[Array],
    leads: list[Array],
    difficulty_P: Array | None,
    *,
    seed: int,
    resamples: int,
    level: float,
) -> LengthControlled:
    n = len(verdicts)
    won_K, feature_K, prompt_K, share_K = _flat(verdicts, leads)
    columns = [np.ones(len(won_K)), feature_K]
    offset_P = np.zeros(n)
    if difficulty_P is not None:
        offset_P = (difficulty_P - difficulty_P.mean()) / (difficulty_P.std() or 1.0)
        columns.append(offset_P[prompt_K])
    terms_KF = np.stack(columns, axis=1)
    fit_F = _fit(won_K, terms_KF, share_K[None], np.zeros(terms_KF.shape[1]))[0]

    rng = np.random.default_rng(seed)
    rates = []
    step = max(1, _CHUNK_CELLS // len(won_K))
    for start in range(0, resamples, step):
        copies_RP = rng.multinomial(n, np.full(n, 1 / n), size=min(step, resamples - start)).astype(
            np.float64
        )
        fits_RF = _fit(won_K, terms_KF, copies_RP[:, prompt_K] * share_K, fit_F)
        rates.append((_rates(fits_RF, offset_P) * copies_RP).sum(1) / n)
    tail = percentile_tail(n, level)
    low, high = np.quantile(np.concatenate(rates), [tail, 1 - tail])
    rate = float(_rates(fit_F[None], offset_P).mean())
    if np.ptp(won_K) == 0:
        exact_low, exact_high = exact_bounds(float(won_K[0]), n, level)
        low, high = min(exact_low, rate), max(exact_high, rate)
    ties = float(np.mean([(x == 0.5).mean() for x in verdicts]))
    psi = None if difficulty_P is None else float(fit_F[2])
    return LengthControlled(
        rate,
        float(low),
        float(high),
        ties,
        n,
        len(won_K),
        quality=float(fit_F[0]),
        length=float(fit_F[1]),
        difficulty=psi,
        unknown=_unknown(n, won_K, np.concatenate(leads)),
    )


def _unknown(n_prompts: int, won_K: Array, lead_K: Array) -> str:
    """Why quality cannot be told from length; empty where it can."""
    if n_prompts < FEWEST:
        return f"{n_prompts} prompts are too few for a rate at equal length, which takes {FEWEST}"
    wins, losses = float((won_K > 0.5).mean()), float((won_K < 0.5).mean())
    longer, shorter = float((lead_K > 0).mean()), float((lead_K < 0).mean())
    if min(max(wins, losses), max(longer, shorter)) < SEPARATED:
        return ""
    side = "winner" if (wins > losses) == (longer > shorter) else "loser"
    return (
        f"one side wins on nearly every pair, and the {side} is nearly always longer: length and"
        " quality cannot be told apart"
    )


def _rates(fits_RF: Array, offset_P: Array) -> Array:
    """P(win) on each prompt at equal length, [R, P]."""
    psi_R = fits_RF[:, 2] if fits_RF.shape[1] == 3 else np.zeros(len(fits_RF))
    return expit(fits_RF[:, :1] + psi_R[:, None] * offset_P)


def _fit(won_K: Array, terms_KF: Array, weights_RK: Array, start_F: Array) -> Array:
    """R weighted logistic regressions with an L2 penalty, [R, F]."""
    n_terms = terms_KF.shape[1]
    squares_KG = (terms_KF[:, :, None] * terms_KF[:, None, :]).reshape(len(terms_KF), -1)

    def derivatives(fits_RF: Array) -> tuple[Array, Array]:
        win_RK = expit(fits_RF @ terms_KF.T)
        slope_RF = (weights_RK * (won_K - win_RK)) @ terms_KF - RIDGE * fits_RF
        curve_RG = (weights_RK * win_RK * (1 - win_RK)) @ squares_KG
        return slope_RF, curve_RG.reshape(-1, n_terms, n_terms) + RIDGE * np.eye(n_terms)

    return maxima(derivatives, np.tile(start_F, (len(weights_RK), 1)))


def _difficulties(tables: list[tuple[list[Array], list[Array]]]) -> Array:
    """γ [P] of one fit of all models with ψ = 1."""
    from sklearn.linear_model import LogisticRegression  # takes a second to import

    flat = [_flat(*table) for table in tables]
    won_K, feature_K, prompt_K, share_K = (np.concatenate(part) for part in zip(*flat, strict=True))
    model_K = np.repeat(np.arange(len(tables)), [len(won) for won, *_ in flat])
    one_K = np.ones(len(won_K))
    # Three terms each: θ and φ of the model, γ of the prompt. sklearn penalizes all coefficients
    # alike, so columns are scaled in place of the penalty.
    scale_3 = 1 / np.sqrt([RIDGE, RIDGE, DIFFICULTY_RIDGE])
    values_K3 = np.stack([one_K, feature_K, one_K], axis=1) * scale_3
    columns_K3 = np.stack([2 * model_K, 2 * model_K + 1, 2 * len(tables) + prompt_K], axis=1)
    starts = np.arange(0, values_K3.size + 1, 3)
    terms_KF = sparse.csr_matrix((values_K3.ravel(), columns_K3.ravel(), starts))
    fit = LogisticRegression(fit_intercept=False, solver="newton-cg", tol=1e-10, max_iter=1000)
    # Every verdict enters twice, with the share that was won and with the share that was lost.
    fit.fit(
        sparse.vstack([terms_KF, terms_KF]),
        np.repeat([1, 0], len(won_K)),
        np.concatenate([share_K * won_K, share_K * (1 - won_K)]),
    )
    return np.asarray(fit.coef_[0, 2 * len(tables) :] * scale_3[2])
