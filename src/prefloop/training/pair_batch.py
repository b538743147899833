"""The pairs of a pack: every response is scored once, and pairs only index the scores.

Shape letters: B responses of a pack, P its pairs. 'first' and 'second' are the responses of a pair
as the record holds them; the label says how probably the first is better.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from prefloop.data.encode import PreferenceGroup, pair_indices
from prefloop.data.packing import Pack, on_device


@dataclasses.dataclass(frozen=True)
class Pairs:
    """What a preference loss may look at; [P] each."""

    first_sum: Tensor
    """Policy's summed log-prob of the first response."""
    second_sum: Tensor
    first_ratio: Tensor
    """Summed log(π/π_ref) of the first response; the policy's own log-prob when the loss has no
    reference.
    """
    second_ratio: Tensor
    first_length: Tensor
    """Tokens."""
    second_length: Tensor
    label: Tensor
    weight: Tensor

    @property
    def margin(self) -> Tensor:
        """Difference of summed log-ratios."""
        return self.first_ratio - self.second_ratio

    @property
    def mean_margin(self) -> Tensor:
        """Difference of per-token means of the log-ratios."""
        return self.first_ratio / self.first_length - self.second_ratio / self.second_length

    @property
    def means(self) -> tuple[Tensor, Tensor]:
        """Policy's mean log-prob a token, first and second."""
        return self.first_sum / self.first_length, self.second_sum / self.second_length


def pairs_of(
    pack: Pack, by_key: Mapping[int, PreferenceGroup], policy_B: Tensor, reference_B: Tensor | float
) -> Pairs:
    """Index the responses' sums by the pack's pairs."""
    first, second, labels, weights = zip(*pair_indices(pack, by_key), strict=True)
    device = policy_B.device
    # index_select adds the gradients of a response in several pairs in a fixed order.
    ends = on_device(torch.tensor([first, second]), device)
    ratio_B = policy_B - reference_B
    take = torch.Tensor.index_select
    return Pairs(
        first_sum=take(policy_B, 0, ends[0]),
        second_sum=take(policy_B, 0, ends[1]),
        first_ratio=take(ratio_B, 0, ends[0]),
        second_ratio=take(ratio_B, 0, ends[1]),
        first_length=pack.length_B[ends[0]],
        second_length=pack.length_B[ends[1]],
        label=on_device(torch.tensor(labels), device),
        weight=on_device(torch.tensor(weights), device),
    )


def decided(margin_P: Tensor, label_P: Tensor) -> tuple[Tensor, Tensor]:
    """How many pairs have a majority, and on how many of them the margin is on its side."""
    has = label_P != 0.5
    return has.sum(), (((margin_P > 0) == (label_P > 0.5)) & has).sum()


def accuracy(counts: list[Tensor]) -> float:
    """Share of right pairs among the decided ones, from what ``decided`` gave for each pack; NaN
    when all are ties.
    """
    pairs, right = torch.stack(counts).sum(0).tolist()
    return right / pairs if pairs else math.nan
