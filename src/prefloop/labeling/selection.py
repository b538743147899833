"""Choose which pairs to label next.

``disagreement`` takes the pairs on which the members of a reward ensemble contradict each other:
the mutual information of the vote and the member (BALD: Houlsby et al., "Bayesian Active Learning
for Classification and Preference Learning", 2011, eq. 2). A pair that every member calls even is
not worth a vote; a pair on which each member is sure in its own way is. ``margin`` takes the pairs
whose mean probability is nearest to one half (uncertainty sampling, Lewis & Gale 1994). ``random``
and ``length`` (the largest difference in words) are the baselines.

A batch of the highest values is full of near copies, so the first two methods choose greedily:
value times the distance to the nearest pair chosen so far (farthest-first traversal, Gonzalez 1985,
weighted). The position of a pair is the direction of the difference of its responses' last hidden
states, which is, except for its length, the gradient of the Bradley-Terry loss by the reward head
(BADGE, Ash et al., ICLR 2020). Without a model it is the direction of the pair's TF-IDF vector.

Shape letters: P pairs of the pool, K members, H hidden size or words.
"""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from prefloop.data.readable import prompt_text
from prefloop.errors import ConfigError
from prefloop.records import Comparison, prompt_key
from prefloop.stats.votes import Floats

Method = Literal["disagreement", "margin", "random", "length"]
SCORED = ("disagreement", "margin")
"""Methods that need a reward model's scores."""


def disagreement(probability_PK: Floats) -> Floats:
    """The information of a vote about the members, in nats: the entropy of their mean less their
    mean entropy. 0 where all agree, at most ln 2.
    """
    return np.maximum(entropy(probability_PK.mean(1)) - entropy(probability_PK).mean(1), 0.0)


def entropy(probability: Floats) -> Floats:
    """Entropy of a coin with this probability, in nats."""
    p = np.clip(probability, 1e-12, 1 - 1e-12)
    return -p * np.log(p) - (1 - p) * np.log(1 - p)


def require_members(method: str, members: int) -> None:
    """Raise ``ConfigError`` when a method cannot work with a reward model of ``members`` members; 0
    means no reward model.
    """
    if method in SCORED and not members:
        raise ConfigError(
            f"method '{method}' needs a reward model's scores: name a run or a reward artifact with"
            " --rewards"
        )
    if method == "disagreement" and members < 2:
        raise ConfigError(
            "method 'disagreement' needs an ensemble, and this reward model has one member: train"
            " it with reward.members: 4, or use --method margin"
        )


def values(
    pool: Sequence[Comparison], method: str, margin_PK: Floats | None, temperature: float, seed: int
) -> Floats:
    """The value of a label on each pair, [P], 0 or more. Raises ``ConfigError`` where scores are
    missing or unsuitable.
    """
    if method == "random":
        return np.random.default_rng(seed).random(len(pool))
    if method == "length":
        words = [[len(response.text.split()) for response in pair.responses] for pair in pool]
        return np.array([abs(first - second) for first, second in words], dtype=np.float64)
    if method not in SCORED:
        raise ConfigError(
            f"method '{method}' is unknown; known: disagreement, margin, random, length"
        )
    require_members(method, 0 if margin_PK is None else margin_PK.shape[1])
    assert margin_PK is not None
    probability_PK = 1 / (1 + np.exp(-np.clip(margin_PK / temperature, -60, 60)))
    if method == "margin":
        return entropy(probability_PK.mean(1))
    return disagreement(probability_PK)


def choose(
    pool: Sequence[Comparison],
    count: int,
    method: str,
    *,
    margin_PK: Floats | None = None,
    feature_PH: Any = None,
    temperature: float = 1.0,
    per_prompt: int = 2,
    seed: int = 0,
) -> tuple[list[int], Floats]:
    """Positions in ``pool`` of the pairs to label, best first, and every pair's value [P].

    ``margin_PK`` is the score of the first response less that of the second, under each member;
    divided by ``temperature`` it gives the log-odds. ``feature_PH`` is the position of each pair,
    as dense or scipy sparse rows; without it only values decide. No prompt gets more than
    ``per_prompt`` pairs, so fewer than ``count`` may be returned. The same seed gives the same
    choice, whatever the order of pairs with equal values in the pool. Raises ``ConfigError`` as
    ``values`` does.
    """
    if count < 1 or per_prompt < 1:
        raise ConfigError(f"count and per_prompt must be 1 or more, found {count} and {per_prompt}")
    value_P = values(pool, method, margin_PK, temperature, seed)
    prompts = [prompt_key(pair.prompt) for pair in pool]
    rank = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    prompt_P = np.array([rank[prompt] for prompt in prompts], dtype=np.int64)
    # Equal values are in a seeded order of ids, not in the order of the file.
    order = sorted(range(len(pool)), key=lambda i: pool[i].id)
    random.Random(seed).shuffle(order)
    if method not in SCORED:
        feature_PH = None
    picked = _greedy(
        value_P[order],
        prompt_P[order],
        None if feature_PH is None else feature_PH[order],
        count,
        per_prompt,
    )
    return [order[i] for i in picked], value_P


def _greedy(
    value_P: Floats, prompt_P: NDArray[np.int64], feature_PH: Any, count: int, per_prompt: int
) -> list[int]:
    used: Counter[int] = Counter()
    picked: list[int] = []
    if feature_PH is None:
        for i in np.argsort(-value_P, kind="stable").tolist():
            if len(picked) < count and used[int(prompt_P[i])] < per_prompt:
                used[int(prompt_P[i])] += 1
                picked.append(i)
        return picked
    unit_PH = _unit(feature_PH)
    apart_P, open_P = np.ones(len(value_P)), np.ones(len(value_P), dtype=bool)
    while len(picked) < count and open_P.any():
        best = int(np.argmax(np.where(open_P, value_P * apart_P, -1.0)))
        picked.append(best)
        open_P[best] = False
        used[int(prompt_P[best])] += 1
        if used[int(prompt_P[best])] >= per_prompt:
            open_P[prompt_P == prompt_P[best]] = False
        # A pair and its mirror image carry the same information, so the angle has no sign.
        near_P = np.abs(_products(unit_PH, best))
        apart_P = np.minimum(apart_P, np.maximum(1 - near_P, 0.0))
    return picked


def _unit(feature_PH: Any) -> Any:
    """Rows scaled to length 1. Rows of zeros stay as they are."""
    if isinstance(feature_PH, np.ndarray):
        rows = feature_PH.astype(np.float32)
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    from sklearn.preprocessing import normalize

    return normalize(feature_PH)


def _products(unit_PH: Any, row: int) -> Floats:
    if isinstance(unit_PH, np.ndarray):
        return np.asarray(unit_PH @ unit_PH[row], dtype=np.float64)
    return np.asarray((unit_PH @ unit_PH[[row]].T).todense(), dtype=np.float64).ravel()


def marked(pair: Comparison, method: str, value: float) -> Comparison:
    """The pair with the method that chose it and its value in ``meta["selected"]``."""
    return dataclasses.replace(
        pair, meta=pair.meta | {"selected": {"method": method, "value": value}}
    )


def text_features(pool: Sequence[Comparison]) -> Any:
    """TF-IDF of words and pairs of words in prompt and responses, sparse [P, H]. The order of the
    responses does not matter.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = [
        "\n".join([prompt_text(pair.prompt), *sorted(response.text for response in pair.responses)])
        for pair in pool
    ]
    return TfidfVectorizer(
        ngram_range=(1, 2), sublinear_tf=True, max_features=50_000, token_pattern=r"\S+"
    ).fit_transform(texts)
