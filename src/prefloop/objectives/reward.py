"""Reward-model losses as pure functions of scores. Shape letter: P pairs."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def bradley_terry(
    margin_P: Tensor, label_P: Tensor | float = 1.0, target_P: Tensor | float = 0.0
) -> Tensor:
    """Cross-entropy of σ(score(chosen) - score(rejected)) with the label (Bradley & Terry 1952;
    Ouyang et al. 2022, eq. 1), [P].

    ``label_P`` is the probability that 'chosen' is better. ``target_P`` is the margin that a vote
    asks for beyond 0 (Touvron et al. 2023, eq. 2), on whichever side the vote is.
    """
    return -(
        label_P * F.logsigmoid(margin_P - target_P)
        + (1 - label_P) * F.logsigmoid(-margin_P - target_P)
    )


def centering(first_P: Tensor, second_P: Tensor) -> Tensor:
    """(score(first) + score(second))²: keeps scores around 0 without touching their difference
    (Eisenstein et al. 2023, eq. 2), [P].
    """
    return (first_P + second_P) ** 2
