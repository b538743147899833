"""How well stated probabilities match outcomes, as pure functions. Shape letter: P pairs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def log_loss(margin_P: Tensor, label_P: Tensor, temperature: float = 1.0) -> float:
    """Mean cross-entropy of σ(margin / temperature) with the labels."""
    return float(F.binary_cross_entropy_with_logits(margin_P / temperature, label_P))


def fit_temperature(margin_P: Tensor, label_P: Tensor) -> float | None:
    """The temperature with the smallest log loss (Guo et al. 2017, arXiv 1706.04599, on a
    difference of scores), in [0.05, 100]; None at either end, where the pairs (all right, or none
    better than chance) do not determine it.

    The loss is convex in 1 / temperature, so a golden-section search over its logarithm ends within
    0.1 %.
    """
    golden = (5**0.5 - 1) / 2
    low, high = torch.tensor(0.05).log().item(), torch.tensor(100.0).log().item()

    def loss(log_temperature: float) -> float:
        return log_loss(
            margin_P.double(), label_P.double(), float(torch.tensor(log_temperature).exp())
        )

    while high - low > 1e-3:
        a, b = high - golden * (high - low), low + golden * (high - low)
        if loss(a) < loss(b):
            high = b
        else:
            low = a
    found = float(torch.tensor((low + high) / 2).exp())
    return found if 0.051 < found < 99 else None


def calibration_bins(
    probability_P: Tensor, label_P: Tensor, bins: int = 10
) -> list[tuple[float, float, int]]:
    """(mean probability, mean label, pairs) of equally full bins: the points of a calibration
    curve.

    Each pair is looked at from its likelier side: probabilities lie in [0.5, 1], so that the order
    of a pair does not matter.
    """
    turned_P = probability_P < 0.5
    confidence_P = torch.where(turned_P, 1 - probability_P, probability_P)
    right_P = torch.where(turned_P, 1 - label_P, label_P)
    order = confidence_P.argsort()
    parts = order.tensor_split(min(bins, len(order))) if len(order) else ()
    return [
        (float(confidence_P[part].mean()), float(right_P[part].mean()), len(part)) for part in parts
    ]


def expected_calibration_error(probability_P: Tensor, label_P: Tensor, bins: int = 10) -> float:
    """Mean over the points of ``calibration_bins`` of |mean probability - mean label| (Naeini et
    al. 2015), weighted by their size.
    """
    found = calibration_bins(probability_P, label_P, bins)
    return (
        sum(n * abs(p - share) for p, share, n in found) / len(probability_P)
        if found
        else float("nan")
    )
