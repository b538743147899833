"""A scored rollout in flat tensors, the prompts of a step, the seconds of its phases.

Shape letters: B responses of a rollout, R their tokens in a row (response after response).
"""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from prefloop.data.packing import Document, Pack
from prefloop.records import Prompt
from prefloop.rollouts.engine import Rollout


@dataclasses.dataclass
class Scored:
    """A rollout with everything the estimate needs; R tokens, response after response in rollout
    order.
    """

    rollouts: list[Rollout]
    documents: list[Document]
    sampler_logp_R: Tensor
    old_logp_R: Tensor
    reference_logp_R: Tensor
    value_R: Tensor
    reward_B: Tensor
    spread_B: Tensor
    """Standard deviation over the members of a reward ensemble; 0 with one member."""
    length_B: Tensor
    source_B: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    """What each source of the reward gave, before its weight."""

    def rows(self, pack: Pack) -> Tensor:
        """Where the pack's response tokens stand in the flat tensors, [tokens of the pack]."""
        ends = self.length_B.cumsum(0)
        return torch.cat(
            [torch.arange(int(ends[k] - self.length_B[k]), int(ends[k])) for k in pack.keys]
        )

    def sequence_sum_B(self, values_R: Tensor) -> Tensor:
        return torch.stack([part.sum() for part in values_R.split(self.length_B.tolist())])


class PhaseClock:
    """Seconds of each phase."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        """End a phase."""
        now = time.monotonic()
        self.laps[name] = round(now - self._last, 3)
        self._last = now


def draw(prompts: Sequence[Prompt], count: int, step: int, seed: int) -> list[Prompt]:
    """The prompts of a step: consecutive slices of an endless series of seeded shuffles."""
    count = min(count, len(prompts))
    out: list[Prompt] = []
    position = step * count
    while len(out) < count:
        epoch, offset = divmod(position + len(out), len(prompts))
        order = list(prompts)
        random.Random(f"{seed}:ppo:{epoch}").shuffle(order)
        out += order[offset : offset + count - len(out)]
    return out
