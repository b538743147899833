"""DPO and its relatives: losses on pairs by the name that --algo takes.

Shape letter: P pairs of a pack.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from torch import Tensor

from prefloop.config import PreferenceConfig
from prefloop.objectives import preference as losses
from prefloop.training.pair_batch import Pairs


@dataclasses.dataclass(frozen=True)
class PairLoss:
    """A named loss: [P] from pairs and config; ``at_start`` is its value when policy = reference,
    if known.
    """

    loss: Callable[[Pairs, PreferenceConfig], Tensor]
    needs_reference: bool = True
    reward_margin: Callable[[Pairs, PreferenceConfig], Tensor] = lambda p, c: c.beta * p.margin
    """What the loss takes for the difference of the two responses' rewards: positive when it
    prefers the first.
    """
    at_start: Callable[[PreferenceConfig], float] | None = None


def _log_2(_: PreferenceConfig) -> float:
    return math.log(2)


def _ipo(p: Pairs, c: PreferenceConfig) -> Tensor:
    return losses.ipo(_ipo_margin(p, c), c.beta, p.label)


def _ipo_margin(p: Pairs, c: PreferenceConfig) -> Tensor:
    return p.mean_margin if c.ipo_reduction == "mean" else p.margin


PAIR_LOSSES: dict[str, PairLoss] = {
    "dpo": PairLoss(lambda p, c: losses.dpo(p.margin, c.beta, p.label), at_start=_log_2),
    "cdpo": PairLoss(
        lambda p, c: losses.dpo(p.margin, c.beta, p.label, c.flipped_share), at_start=_log_2
    ),
    "robust": PairLoss(
        lambda p, c: losses.robust(p.margin, c.beta, c.flipped_share, p.label), at_start=_log_2
    ),
    "ipo": PairLoss(_ipo, True, _ipo_margin, at_start=lambda c: 1 / (4 * c.beta**2)),
    "hinge": PairLoss(lambda p, c: losses.hinge(p.margin, c.beta, p.label), at_start=lambda c: 1.0),
    "apo_zero": PairLoss(
        lambda p, c: losses.apo_zero(p.first_ratio, p.second_ratio, c.beta, p.label),
        at_start=lambda c: 1.0,
    ),
    "apo_down": PairLoss(
        lambda p, c: losses.apo_down(p.first_ratio, p.second_ratio, c.beta, p.label),
        at_start=lambda c: 1.0,
    ),
    "orpo": PairLoss(
        lambda p, c: losses.orpo(*p.means, c.sft_weight, p.label),
        False,
        lambda p, c: losses.log_odds(*p.means),
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
