"""Rewards for TRL's trainers that sample: the run's reward model, functions of ``trl.rewards``, and
the sources of ``ppo.rewards``, as functions that TRL calls.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from prefloop.config.trl import REWARD_MODEL
from prefloop.data.packing import Document, packs
from prefloop.errors import ConfigError, RewardError, among
from prefloop.models.reward_model import Reward
from prefloop.records import Prompt
from prefloop.training.rewards import Rewards

RewardFunction = Callable[..., Sequence[float | None]]


class RewardFunctions:
    """What ``trl.rewards`` names, each with its weight."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        """Raises ``ConfigError`` for a file, function or address that cannot be one."""
        self.weights = dict(weights)
        self.sources = {
            name: Rewards({name: weight}, "trl.rewards")
            for name, weight in weights.items()
            if ":" in name
        }
        self.of_trl = [n for n in weights if n not in self.sources and n != REWARD_MODEL]

    def parts(self) -> list[Any]:
        """What of them determines an artifact."""
        return [
            self.sources[name].parts() if name in self.sources else (name, weight)
            for name, weight in self.weights.items()
        ]

    def preflight(self) -> None:
        """Raise ``ConfigError`` for a name that is no reward function of TRL."""
        if self.of_trl:
            import trl.rewards

            known = [n for n in dir(trl.rewards) if n.endswith("_reward") and n[:4] != "get_"]
            for name in self.of_trl:
                if name not in known:
                    raise ConfigError(
                        f"trl.rewards: '{name}' is neither {REWARD_MODEL}, a reward function of TRL"
                        " that needs no arguments, path/to/file.py:function nor http://host/path"
                        f" ({among(name, [REWARD_MODEL, *known])})"
                    )

    def functions(
        self,
        prompts: Mapping[str, Prompt],
        ids: Mapping[str, Sequence[int]],
        reward: Reward | None,
        lent: Callable[[], AbstractContextManager[None]],
        decode: Callable[[Sequence[int]], str],
    ) -> list[RewardFunction]:
        """The functions in the order of ``weights``.

        ``prompts`` and their token ``ids`` are by the id that a row of the data set has; ``lent``
        is a block in which the backbone may run other roles.
        """
        found: list[RewardFunction] = []
        for name in self.weights:
            if name == REWARD_MODEL:
                assert reward is not None
                found.append(_of_model(reward, ids, lent))
            elif name in self.sources:
                found.append(_of_source(self.sources[name], prompts, decode))
            else:
                found.append(_of_trl(name))
        return found


def _of_trl(name: str) -> RewardFunction:
    import trl.rewards

    function = getattr(trl.rewards, name)

    @functools.wraps(function)
    def scored(**columns: Any) -> list[float | None]:
        try:
            return list(function(**columns))
        except (TypeError, ImportError) as error:
            raise ConfigError(
                f"trl.rewards {name}: {error}. Its arguments come from what 'meta' holds of every"
                " prompt"
            ) from error

    return scored


def _of_model(
    reward: Reward,
    ids: Mapping[str, Sequence[int]],
    lent: Callable[[], AbstractContextManager[None]],
) -> RewardFunction:
    """The mean of the members' normalized scores, of the very tokens that were sampled.

    Raises ``RewardError`` for a score that is not finite, which TRL would treat as missing.
    """

    def reward_model(
        completion_ids: Sequence[Sequence[int]], id: Sequence[str], **_: Any
    ) -> list[float]:
        backbone, scores = reward.backbone, [0.0] * len(id)
        documents = [
            Document(ids[prompt], [answer], [place])
            for place, (prompt, answer) in enumerate(zip(id, completion_ids, strict=True))
        ]
        with lent():
            for pack in packs(documents, backbone.scoring_tokens):
                score_B = reward.scores_K_B(pack.to(backbone.device)).mean(0)
                for place, score in zip(pack.keys, score_B.tolist(), strict=True):
                    scores[place] = score
        if bad := [
            prompt for prompt, score in zip(id, scores, strict=True) if not math.isfinite(score)
        ]:
            raise RewardError(
                f"trl.rewards {REWARD_MODEL}: the score is not finite for {len(bad)} responses, to"
                f" prompts {', '.join(dict.fromkeys(bad))[:200]}"
            )
        return scores

    return reward_model


def _of_source(
    source: Rewards, prompts: Mapping[str, Prompt], decode: Callable[[Sequence[int]], str]
) -> RewardFunction:
    [one] = source.sources

    def scored(completion_ids: Sequence[Sequence[int]], id: Sequence[str], **_: Any) -> list[float]:
        asked = [prompts[prompt] for prompt in id]
        return source.scores_B(asked, list(map(decode, completion_ids)))[one.name].tolist()

    scored.__name__ = one.name
    return scored
