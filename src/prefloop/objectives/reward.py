"""Reward-model losses as pure functions of scores. Shape letter: P pairs."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def bradley_terry(margin_P: Tensor, label_P: Tensor | float = 1.0) -> Tensor:
    """Cross-entropy of σ(score(chosen) - score(rejected)) with the label (Bradley & Terry 1952; Ouyang et al. 2022, eq. 1), [P]."""
    return -(label_P * F.logsigmoid(margin_P) + (1 - label_P) * F.logsigmoid(-margin_P))
