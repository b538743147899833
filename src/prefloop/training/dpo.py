"""One packed step on pairs: log-probs of every response once, pairs only index them; losses by the name that --algo takes.

Shape letters: B responses of a pack, P its pairs, R response tokens. 'first' and 'second' are the responses of a pair as the record
holds them; the label says how probably the first is better.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from prefloop.config import PreferenceConfig
from prefloop.data.encode import PreferenceGroup, pair_indices
from prefloop.data.packing import Pack, on_device
from prefloop.models.backbone import Backbone
from prefloop.models.forward import hidden_N_H, response_logps_R, sum_by_branch_B
from prefloop.objectives import preference as losses
from prefloop.training.policy import POLICY, REFERENCE, logps_R


@dataclasses.dataclass(frozen=True)
class Pairs:
    """What a preference loss may look at; [P] each."""

    first_sum: Tensor
    """Policy's summed log-prob of the first response."""
    second_sum: Tensor
    first_ratio: Tensor
    """Summed log(π/π_ref) of the first response; the policy's own log-prob when the loss has no reference."""
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


@dataclasses.dataclass(frozen=True)
class PairLoss:
    """A named loss: [P] from pairs and config; ``at_start`` is its value when policy = reference, if known."""

    loss: Callable[[Pairs, PreferenceConfig], Tensor]
    needs_reference: bool = True
    reward_margin: Callable[[Pairs, PreferenceConfig], Tensor] = lambda p, c: c.beta * p.margin
    """What the loss takes for the difference of the two responses' rewards: positive when it prefers the first."""
    at_start: Callable[[PreferenceConfig], float] | None = None


def _log_2(_: PreferenceConfig) -> float:
    return math.log(2)


def _ipo(p: Pairs, c: PreferenceConfig) -> Tensor:
    return losses.ipo(_ipo_margin(p, c), c.beta, p.label)


def _ipo_margin(p: Pairs, c: PreferenceConfig) -> Tensor:
    return p.mean_margin if c.ipo_reduction == "mean" else p.margin


PAIR_LOSSES: dict[str, PairLoss] = {
    "dpo": PairLoss(lambda p, c: losses.dpo(p.margin, c.beta, p.label), at_start=_log_2),
    "cdpo": PairLoss(lambda p, c: losses.dpo(p.margin, c.beta, p.label, c.flipped_share), at_start=_log_2),
    "robust": PairLoss(lambda p, c: losses.robust(p.margin, c.beta, c.flipped_share, p.label), at_start=_log_2),
    "ipo": PairLoss(_ipo, True, _ipo_margin, at_start=lambda c: 1 / (4 * c.beta**2)),
    "hinge": PairLoss(lambda p, c: losses.hinge(p.margin, c.beta, p.label), at_start=lambda c: 1.0),
    "apo_zero": PairLoss(
        lambda p, c: losses.apo_zero(p.first_ratio, p.second_ratio, c.beta, p.label), at_start=lambda c: 1.0
    ),
    "apo_down": PairLoss(
        lambda p, c: losses.apo_down(p.first_ratio, p.second_ratio, c.beta, p.label), at_start=lambda c: 1.0
    ),
    "orpo": PairLoss(
        lambda p, c: losses.orpo(*p.means, c.sft_weight, p.label), False, lambda p, c: losses.log_odds(*p.means)
    ),
    "simpo": PairLoss(
        lambda p, c: losses.simpo(*p.means, c.simpo_beta, c.margin, p.label),
        False,
        lambda p, c: c.simpo_beta * (p.means[0] - p.means[1]),
    ),
    "cpo": PairLoss(
        lambda p, c: losses.cpo(p.first_sum, p.second_sum, *p.means, c.beta, c.nll_weight, p.label),
        needs_reference=False,
    ),
}
"""Losses on pairs by the name that --algo takes."""


def decided(margin_P: Tensor, label_P: Tensor) -> tuple[Tensor, Tensor]:
    """How many pairs have a majority, and on how many of them the margin is on its side."""
    has = label_P != 0.5
    return has.sum(), (((margin_P > 0) == (label_P > 0.5)) & has).sum()


def accuracy(counts: list[Tensor]) -> float:
    """Share of right pairs among the decided ones, from what ``decided`` gave for each pack; NaN when all are ties."""
    pairs, right = torch.stack(counts).sum(0).tolist()
    return right / pairs if pairs else math.nan


def reference_B(backbone: Backbone, pack: Pack, temperature: float, cached: Tensor | None = None) -> Tensor:
    """Summed reference log-prob of each response: from the cache (indexed by key), or computed now under the reference adapter."""
    if cached is not None:
        return on_device(cached[list(pack.keys)], pack.tokens_N.device)
    return sum_by_branch_B(logps_R(backbone, pack, REFERENCE, temperature), pack)


def policy_B(backbone: Backbone, pack: Pack, temperature: float) -> Tensor:
    """Summed policy log-prob of each response, with gradient."""
    with backbone.role(POLICY, train=True):
        return sum_by_branch_B(response_logps_R(backbone, hidden_N_H(backbone, pack), pack, temperature), pack)


def pairs_of(pack: Pack, by_key: Mapping[int, PreferenceGroup], policy_B: Tensor, reference_B: Tensor | float) -> Pairs:
    """Index the responses' sums by the pack's pairs."""
    first, second, labels, weights = pair_indices(pack, by_key)
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
