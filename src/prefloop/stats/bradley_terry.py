"""Strengths of more than two models from games between them: Bradley-Terry by maximum likelihood,
on the Elo scale.

``P(a beats b) = sigmoid(θ_a - θ_b)`` (Bradley & Terry, Biometrika 39, 1952), a tie counting as half
a win for each. Elo is θ times 400 / ln 10: 400 points are odds of ten to one.

The prompt is the unit that was sampled. Games of the same two models on the same prompt count as
one, with their mean score, so that two models get the win rate of ``prefloop.stats.intervals``;
intervals resample prompts with all their games.

The fit is finite if and only if no group of models wins every game against the rest (Ford, Am.
Math. Monthly 64, 1957). Groups that never met cannot be compared at all: an error names them. Where
they met and one won everything, every model gets ``PRIOR`` wins and losses against a player of
strength 0, and the result says so. A resample of the bootstrap in which it happens gets them
too.

Dropped on purpose: online Elo updates, whose result depends on the order of the games, and
Davidson's model of ties, which changes strengths only by their scale.

Shapes: M models, P prompts, C pairs of models, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from scipy.special import expit

from prefloop.errors import DataError, nearest
from prefloop.stats.intervals import Array, percentile_tail
from prefloop.stats.newton import maxima

ELO = 400 / math.log(10)
MEAN_ELO = 1000.0
PRIOR = 0.5

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Game:
    """One comparison of responses of models a and b to a prompt: 1 a won, 0 b won, 0.5 tie."""

    a: str
    b: str
    score: float
    prompt_id: str


@dataclass(frozen=True)
class Rated:
    """One model's strength on the Elo scale, with its interval."""

    name: str
    elo: float
    low: float
    high: float
    games: int
    """Comparisons that it took part in."""
    win_rate: float
    """Mean score over its opponents and prompts, each pair on each prompt counting once."""


@dataclass(frozen=True)
class Ranking:
    """All models, the strongest first; matrices are in that order, row against column."""

    models: tuple[Rated, ...]
    observed: tuple[tuple[float | None, ...], ...]
    """Mean score of row against column; ``None`` where they never met."""
    fitted: tuple[tuple[float, ...], ...]
    """Expected score by the strengths: ``sigmoid(θ_row - θ_column)``."""
    anchor: str | None
    """The model whose Elo is fixed at 1000; without one the mean is."""
    prior: float
    """Imagined wins, and as many losses, of each model against one of strength 0; 0 for plain
    maximum likelihood.
    """
    n_games: int
    n_prompts: int


def rank(
    games: Iterable[Game],
    *,
    anchor: str | None = None,
    seed: int = 0,
    resamples: int = 1000,
    level: float = 0.95,
) -> Ranking:
    """Strengths, intervals and win-rate matrices of all models in ``games``.

    Raises ``ValueError`` for a score outside [0, 1] or a model that plays itself, ``DataError`` for
    no games, an unknown anchor, or models that no chain of games connects (naming the groups).
    """
    played = list(games)
    _check(played, level, resamples)
    names = sorted({name for game in played for name in (game.a, game.b)})
    if anchor is not None and anchor not in names:
        raise DataError(f"anchor '{anchor}' plays no game; {nearest(anchor, names)}")
    score_PC, met_PC, pair_C2 = _tables(played, names)
    wins_MM = _wins(score_PC.sum(0)[None], met_PC.sum(0)[None], pair_C2, len(names))
    _require_connected(wins_MM[0], names)
    finite = bool(_finite(wins_MM)[0])
    theta_M = _fit(wins_MM, np.array([0.0 if finite else PRIOR]))[0]

    n = len(score_PC)
    rng = np.random.default_rng(seed)
    copies_RP = rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)
    wins_RMM = _wins(copies_RP @ score_PC, copies_RP @ met_PC, pair_C2, len(names))
    prior_R = np.where(_finite(wins_RMM) & finite, 0.0, PRIOR)
    elo_RM = _elo(_fit(wins_RMM, prior_R), names, anchor)
    tail = percentile_tail(n, level)
    low_M, high_M = np.quantile(elo_RM, [tail, 1 - tail], axis=0)
    elo_M = _elo(theta_M[None], names, anchor)[0]

    order = np.lexsort((np.arange(len(names)), -theta_M))
    met_MM = wins_MM[0] + wins_MM[0].T
    rated = tuple(
        Rated(
            names[m],
            float(elo_M[m]),
            float(low_M[m]),
            float(high_M[m]),
            games=sum(names[m] in (game.a, game.b) for game in played),
            win_rate=float(wins_MM[0, m].sum() / met_MM[m].sum()),
        )
        for m in order
    )
    return Ranking(
        models=rated,
        observed=tuple(
            tuple(float(wins_MM[0, a, b] / met_MM[a, b]) if met_MM[a, b] else None for b in order)
            for a in order
        ),
        fitted=tuple(tuple(float(expit(theta_M[a] - theta_M[b])) for b in order) for a in order),
        anchor=anchor,
        prior=0.0 if finite else PRIOR,
        n_games=len(played),
        n_prompts=n,
    )


def _check(played: Sequence[Game], level: float, resamples: int) -> None:
    if not played:
        raise DataError("no games given; a ranking needs comparisons between at least two models")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, found {level}")
    if resamples < 1:
        raise ValueError(f"resamples must be 1 or more, found {resamples}")
    for game in played:
        if game.a == game.b:
            raise ValueError(f"prompt '{game.prompt_id}': model '{game.a}' plays against itself")
        if not 0 <= game.score <= 1:
            raise ValueError(
                f"prompt '{game.prompt_id}', '{game.a}' against '{game.b}': expected a score of 1,"
                f" 0.5 or 0, found {game.score}"
            )


def _tables(played: Sequence[Game], names: Sequence[str]) -> tuple[Array, Array, NDArray[np.int64]]:
    """Mean score of the first model of each pair on each prompt [P, C], whether it met there [P,
    C], and the pairs [C, 2].
    """
    of = {name: m for m, name in enumerate(names)}
    prompts = {
        prompt_id: row for row, prompt_id in enumerate(sorted({game.prompt_id for game in played}))
    }
    ends = [(of[game.a], of[game.b]) for game in played]
    pairs = {
        pair: column for column, pair in enumerate(sorted({(min(end), max(end)) for end in ends}))
    }
    total_PC, count_PC = np.zeros((len(prompts), len(pairs))), np.zeros((len(prompts), len(pairs)))
    for game, (a, b) in zip(played, ends, strict=True):
        cell = prompts[game.prompt_id], pairs[min(a, b), max(a, b)]
        total_PC[cell] += game.score if a < b else 1 - game.score
        count_PC[cell] += 1
    return (
        total_PC / np.maximum(count_PC, 1),
        (count_PC > 0).astype(np.float64),
        np.array(list(pairs)),
    )


def _wins(score_RC: Array, met_RC: Array, pair_C2: NDArray[np.int64], n_models: int) -> Array:
    """Wins of row over column, [R, M, M]."""
    wins_RMM = np.zeros((len(score_RC), n_models, n_models))
    wins_RMM[:, pair_C2[:, 0], pair_C2[:, 1]] = score_RC
    wins_RMM[:, pair_C2[:, 1], pair_C2[:, 0]] = met_RC - score_RC
    return wins_RMM


def _require_connected(wins_MM: Array, names: Sequence[str]) -> None:
    count, group_M = connected_components(csr_array(wins_MM + wins_MM.T > 0), directed=False)
    if count > 1:
        groups = [
            ", ".join(name for name, of in zip(names, group_M, strict=True) if of == group)
            for group in range(count)
        ]
        raise DataError(
            f"the games fall into {count} groups of models that never met, so their strengths"
            " cannot be compared: "
            + "; ".join(f"({group})" for group in groups)
            + "; add games between them, or rank each group by itself"
        )


def _finite(wins_RMM: Array) -> Bools:
    """Whether a chain of wins or ties leads from every model to every other, [R]."""
    won_RMM = wins_RMM > 1e-12
    return np.array(
        [connected_components(won_MM, connection="strong")[0] == 1 for won_MM in won_RMM]
    )


def _fit(wins_RMM: Array, prior_R: Array) -> Array:
    """θ of mean 0 that maximize R likelihoods, [R, M]."""
    n_models = wins_RMM.shape[1]
    met_RMM = wins_RMM + wins_RMM.transpose(0, 2, 1)
    prior_R1 = prior_R[:, None]

    def derivatives(theta_RM: Array) -> tuple[Array, Array]:
        chance_RMM = expit(theta_RM[:, :, None] - theta_RM[:, None, :])
        alone_RM = expit(theta_RM)  # against the imagined player of strength 0
        slope_RM = (wins_RMM - met_RMM * chance_RMM).sum(2) + prior_R1 * (1 - 2 * alone_RM)
        bend_RMM = met_RMM * chance_RMM * (1 - chance_RMM)
        bend_RM = bend_RMM.sum(2) + 2 * prior_R1 * alone_RM * (1 - alone_RM)
        # A constant added to all θ changes no game: 1 / M everywhere makes the Hessian invertible
        # without touching differences.
        return slope_RM, bend_RM[:, :, None] * np.eye(n_models) - bend_RMM + 1 / n_models

    theta_RM = maxima(derivatives, np.zeros(wins_RMM.shape[:2]))
    return theta_RM - theta_RM.mean(1, keepdims=True)


def _elo(theta_RM: Array, names: Sequence[str], anchor: str | None) -> Array:
    fixed_R = theta_RM.mean(1) if anchor is None else theta_RM[:, names.index(anchor)]
    return MEAN_ELO + ELO * (theta_RM - fixed_R[:, None])
