"""Score the pairs of a pool with a reward model: margins by member, and a feature vector for each
pair.

Shape letters: P pairs, K members, H hidden size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prefloop.artifacts.manifest import MANIFEST
from prefloop.artifacts.references import ABOUT, locate, meant, origin_of
from prefloop.data.encode import Encoder
from prefloop.data.packing import Document, document_of
from prefloop.data.tokens import Tokens
from prefloop.errors import DataError, ModelError
from prefloop.models.reward_model import Reward
from prefloop.records import Comparison, prompt_key
from prefloop.runs.open import config_of, require_model
from prefloop.runs.runtime import Runtime
from prefloop.stats.votes import Floats


@dataclasses.dataclass(frozen=True)
class PoolScores:
    """Scores of the pairs at ``positions`` in the pool. Pairs that do not fit into the model are
    not among them.
    """

    positions: list[int]
    margin_PK: Floats
    """Normalized score of the first response less that of the second, under each member."""
    feature_PH: NDArray[np.float32]
    """Difference of the two responses' last hidden states under the first member."""
    temperature: float
    too_long: int


def score_pool(reward: Reward, pool: Sequence[Comparison], max_length: int) -> PoolScores:
    """Score every response of the pool once, packed with the others to its prompt. Raises
    ``DataError`` when no pair fits.
    """
    encoder = Encoder(reward.backbone.chat, max_length)
    by_prompt: dict[str, list[int]] = {}
    for position, pair in enumerate(pool):
        by_prompt.setdefault(prompt_key(pair.prompt), []).append(position)
    documents: list[Document] = []
    ends: dict[int, tuple[int, int]] = {}
    key = too_long = 0
    for positions in by_prompt.values():
        first = pool[positions[0]]
        try:
            prompt_ids = encoder.prompt(first.id, first.prompt)
        except DataError:
            too_long += len(positions)
            continue
        keys: dict[str, int] = {}
        responses: list[Tokens] = []
        for position in positions:
            pair = pool[position]
            for response in pair.responses:
                if response.key() not in keys:
                    keys[response.key()] = key + len(responses)
                    responses.append(
                        encoder.response(pair.id, first.prompt, response, len(prompt_ids))
                    )
            ends[position] = keys[pair.first.key()], keys[pair.second.key()]
        documents.append(document_of(prompt_ids, responses, key))
        key += len(responses)
    if not documents:
        raise DataError(
            f"none of {len(pool)} pairs fits into {max_length} tokens: raise backbone.max_length of"
            " the reward model"
        )
    scores, hidden = reward.score_and_embed(documents, "score the pool", key)
    kept = sorted(ends)
    score_RK = np.array([scores[k] for k in range(key)])
    hidden_RH = np.stack([hidden[k] for k in range(key)])
    first_P, second_P = (np.array([ends[position][side] for position in kept]) for side in (0, 1))
    return PoolScores(
        positions=kept,
        margin_PK=score_RK[first_P] - score_RK[second_P],
        feature_PH=hidden_RH[first_P].astype(np.float32) - hidden_RH[second_P].astype(np.float32),
        temperature=reward.temperature,
        too_long=too_long,
    )


def reward_folder(place: Path) -> Path:
    """The reward artifact of a run folder or of a ``run:reward``, or ``place`` itself if it is one.
    Raises ``ModelError`` when there is none.
    """
    if ":" in place.name and not place.exists():
        place = locate(place).folder or place
    folder = next(
        (f for f in (place, place / "artifacts" / "reward") if (f / "reward.json").is_file()), None
    )
    if folder is None or not any((folder / name).is_file() for name in (MANIFEST, ABOUT)):
        raise ModelError(
            f"'{place}'{'' if place.exists() else meant(place)} is neither a run with a reward"
            f" model (artifacts/reward) nor a reward artifact (reward.json and {MANIFEST}): give"
            " the folder of a run that got through its reward stage"
        )
    return folder.resolve()


def open_reward(place: Path, model: str | None = None, pack_tokens: int = 4096) -> Reward:
    """Load the reward model of a run folder, a reward artifact or an exported one onto the backbone
    that it was trained on.

    ``model`` is the path or name of the backbone, if it has moved since training. Raises
    ``ModelError`` when ``place`` holds no reward model, or when the backbone is another one.
    """
    folder = reward_folder(place)
    origin = origin_of(folder)
    output = folder.parent.parent if folder.parent.name == ".store" else Path("runs")
    runtime = Runtime(config_of(origin, str(place), model, pack_tokens=pack_tokens), output=output)
    require_model(runtime, {str(place): origin})
    return Reward.load(runtime.backbone, folder)
