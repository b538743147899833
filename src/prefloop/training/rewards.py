"""Rewards besides the reward model: Python functions and HTTP servers of the user, each with a
weight.

A source scores a whole rollout at once. Its scores are checked before anything is learnt from them:
where a response has no finite number, the stage stops and names source and response. Left out on
purpose: a default for a response that could not be scored.

Shape letter: B responses of a rollout.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import httpx
import torch
from torch import Tensor

from prefloop.base.endpoint import Endpoint, parsed_url
from prefloop.data.replies import Reply, text_of, turns_of
from prefloop.errors import ConfigError, JudgeError, RequestError, RewardError
from prefloop.evaluation.judges.graders import FunctionGrader
from prefloop.records import Prompt, to_dict

KEY_ENV = "PREFLOOP_REWARD_KEY"
"""Environment variable with the Bearer token for reward servers; without it no token is sent."""
REWARD_MODEL = "reward_model"
"""Name of the reward model among the sources."""
_SETTING = "the URL in ppo.rewards"
_ITEMS_A_REQUEST = 64
_TIMEOUT_S = 120.0
_MAX_RETRIES = 5
_BACKOFF_S = 1.0
_SHAPE = '{"scores": [a number for each item]}'
_REFUSED = "the server does not take what is sent; docs/extending.md shows a request"
_ADVICE = {
    400: _REFUSED,
    401: f"set the environment variable {KEY_ENV} to a valid key",
    403: f"the key in {KEY_ENV} has no access; check it",
    413: f"the server takes less than a request of {_ITEMS_A_REQUEST} responses; raise its limit",
    422: _REFUSED,
    429: "the server limits requests; raise its limit",
}


class RewardSource(Protocol):
    """Scores the responses of a rollout; higher is better."""

    name: str
    """Short; also the name of the source's curve."""

    def fingerprint(self) -> str:
        """A hash of what determines the scores, as far as that can be known."""
        ...

    def scores(
        self, prompts: Sequence[Prompt], replies: Sequence[Reply], ids: Sequence[str]
    ) -> list[float]:
        """The score of each response ``replies[i]`` to ``prompts[i]``; ``ids[i]`` names it in
        messages. Raises ``RewardError`` naming a response that could not be scored.
        """
        ...


class FunctionSource:
    """A Python function ``path/to/file.py:function``: ``(prompt: Prompt, response: str) -> float``,
    called for each response.

    A function with a parameter ``turns`` also gets the response's messages.
    """

    def __init__(self, spec: str, name: str = "") -> None:
        self.grader = FunctionGrader(spec)
        self.name = name or self.grader.name

    def fingerprint(self) -> str:
        """A hash of the file's content and the function's name."""
        return self.grader.fingerprint()

    def scores(
        self, prompts: Sequence[Prompt], replies: Sequence[Reply], ids: Sequence[str]
    ) -> list[float]:
        """The function's values. Raises ``RewardError`` naming prompt and response when a call
        raises or gives no finite number.
        """
        values = []
        for prompt, reply, response_id in zip(prompts, replies, ids, strict=True):
            try:
                values.append(self.grader.grade(prompt, reply))
            except JudgeError as error:
                raise RewardError(
                    f"reward '{self.name}', response {response_id}: {error}"
                ) from error
        return values


class HTTPSource:
    """A server that gets ``{"items": [{"id", "prompt": [messages], "response"}, ...]}`` by POST and
    answers ``{"scores": [numbers]}`` in the order of the items.

    An item also has the ``meta`` and ``tools`` of its prompt, if any, and the response's messages
    as ``turns`` where they are more than one text. The key comes from ``PREFLOOP_REWARD_KEY``
    alone.
    """

    def __init__(self, url: str, name: str = "") -> None:
        self.url, self.name = url, name or _short_name(url)
        self._endpoint = Endpoint(
            _parsed(url),
            who=f"reward '{self.name}'",
            setting=_SETTING,
            key_env=KEY_ENV,
            key_required=False,
            timeout=_TIMEOUT_S,
            max_retries=_MAX_RETRIES,
            backoff=_BACKOFF_S,
            advice=_ADVICE,
        )

    def fingerprint(self) -> str:
        """A hash of the URL, because what the server runs cannot be known. A query such as ``?v=2``
        tells versions apart.
        """
        return hashlib.sha256(self.url.encode()).hexdigest()

    def scores(
        self, prompts: Sequence[Prompt], replies: Sequence[Reply], ids: Sequence[str]
    ) -> list[float]:
        """The server's scores. Raises ``RewardError`` naming the responses of the request that
        failed.
        """
        items = [_item(*each) for each in zip(prompts, replies, ids, strict=True)]
        values: list[float] = []
        for start in range(0, len(items), _ITEMS_A_REQUEST):
            values += self._ask(items[start : start + _ITEMS_A_REQUEST])
        return values

    def _ask(self, items: list[dict[str, Any]]) -> list[Any]:
        asked = f"asked about responses {items[0]['id']} to {items[-1]['id']}"
        try:
            reply = self._endpoint.post({"items": items})
        except RequestError as error:
            raise RewardError(f"{error} ({asked})") from error
        try:
            values = reply.json()["scores"]
            if not isinstance(values, list):
                raise TypeError
        except (ValueError, LookupError, TypeError):
            raise RewardError(
                f"{self._endpoint.who}: expected {_SHAPE}, found {reply.excerpt()} ({asked}); check"
                f" {_SETTING}"
            ) from None
        if len(values) != len(items):
            raise RewardError(
                f"{self._endpoint.who}: {len(values)} scores for {len(items)} items ({asked})"
            )
        # A value that is not a number ends up in an error message, which must not hold the key if
        # the server echoes it.
        return [
            value if isinstance(value, int | float) else reply.without_key(str(value))
            for value in values
        ]


def _item(prompt: Prompt, reply: Reply, response_id: str) -> dict[str, Any]:
    of_prompt = {
        key: value
        for key, value in to_dict(prompt).items()
        if key in ("prompt", "tools") or (value and key == "meta")
    }
    turns = {} if isinstance(reply, str) else {"turns": [t.to_dict() for t in turns_of(reply)]}
    return {"id": response_id, **of_prompt, "response": text_of(reply), **turns}


class Rewards:
    """The sources of ``ppo.rewards``, each with its weight and a name of its own."""

    def __init__(self, weights: Mapping[str, float], setting: str = "ppo.rewards") -> None:
        """The keys are ``path/to/file.py:function`` or URLs, set under ``setting``. Raises
        ``ConfigError`` for any other key, and for a weight that is not finite.
        """
        for key, weight in weights.items():
            if not _is_url(key) and not key.rpartition(":")[2].isidentifier():
                raise ConfigError(
                    f"{setting}: '{key}' is neither path/to/file.py:function nor http://host/path"
                )
            if not math.isfinite(weight):
                raise ConfigError(
                    f"{setting}: the weight of {_short_name(key)} is {weight}, expected a finite"
                    " number"
                )
        names = _names(list(weights))
        self.sources: list[RewardSource] = [
            (HTTPSource if _is_url(key) else FunctionSource)(key, name)
            for key, name in zip(weights, names, strict=True)
        ]
        self.weights = dict(zip(names, weights.values(), strict=True))

    def parts(self) -> list[tuple[str, float]]:
        """What enters an artifact's key: fingerprints and weights."""
        return [(source.fingerprint(), self.weights[source.name]) for source in self.sources]

    def scores_B(self, prompts: Sequence[Prompt], replies: Sequence[Reply]) -> dict[str, Tensor]:
        """Each source's scores of a rollout before the source's weight, [B] float32. Raises
        ``RewardError`` when a source fails or gives no finite number.
        """
        ids = response_ids(prompts)
        try:
            return {
                source.name: _checked_B(source.name, source.scores(prompts, replies, ids), ids)
                for source in self.sources
            }
        except RewardError as error:
            raise RewardError(
                f"{error}\n       Nothing was learnt from this rollout. Once the source works"
                " again, the same command goes on from the last checkpoint (a changed function"
                " starts the stage anew)"
            ) from error


def combined_B(scores_B: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Σ weight * score over the sources, [B]."""
    return torch.stack([weights[name] * score_B for name, score_B in scores_B.items()]).sum(0)


def response_ids(prompts: Sequence[Prompt]) -> list[str]:
    """``<prompt id>/<k>`` for the k-th response to a prompt in this rollout, from 0. The count goes
    on where a prompt was drawn twice.
    """
    seen: Counter[str] = Counter()
    ids = []
    for prompt in prompts:
        ids.append(f"{prompt.id}/{seen[prompt.id]}")
        seen[prompt.id] += 1
    return ids


def _checked_B(name: str, values: Sequence[Any], ids: Sequence[str]) -> Tensor:
    """The scores as a tensor. Raises ``RewardError`` for a value that is no score."""
    if len(values) != len(ids):
        raise RewardError(f"reward '{name}': {len(values)} scores for {len(ids)} responses")
    bad = [(i, value) for i, value in zip(ids, values, strict=True) if not _is_score(value)]
    if bad:
        more = f" (and {len(bad) - 1} more of {len(ids)})" if len(bad) > 1 else ""
        raise RewardError(
            f"reward '{name}' on prompt '{bad[0][0].rpartition('/')[0]}', response {bad[0][0]}:"
            f" found {bad[0][1]!r:.80}, expected a finite number{more}"
        )
    return torch.tensor([float(value) for value in values])


def _is_score(value: Any) -> bool:
    """Whether float32 holds the value as a finite number. Python's JSON reads NaN and Infinity, and
    a bool is an int.
    """
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) <= torch.finfo(torch.float32).max
    )


def _is_url(key: str) -> bool:
    return "://" in key


def _parsed(url: str) -> httpx.URL:
    return parsed_url(
        url, _SETTING, key=f"put the key into the environment variable {KEY_ENV}", query=True
    )


def _short_name(key: str) -> str:
    """The function's name, or host and path of the URL without its query, which may hold
    secrets.
    """
    if not _is_url(key):
        return key.rpartition(":")[2]
    url = _parsed(key)
    return url.netloc.decode() + url.path.rstrip("/")


def _names(keys: Sequence[str]) -> list[str]:
    """Short names. Where functions share a name, the file's name stands before it; names that are
    still equal get numbers.
    """
    short = [_short_name(key) for key in keys]
    often = Counter([REWARD_MODEL, *short])
    names = [
        (
            f"{Path(key.rpartition(':')[0]).stem}:{name}"
            if often[name] > 1 and not _is_url(key)
            else name
        )
        for key, name in zip(keys, short, strict=True)
    ]
    return [
        name if names.count(name) == 1 else f"{name} #{names[: i + 1].count(name)}"
        for i, name in enumerate(names)
    ]
