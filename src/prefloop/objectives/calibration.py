"""How well predicted probabilities match outcomes, as pure functions. Shape letter: P pairs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def log_loss(margin_P: Tensor, label_P: Tensor, temperature: float = 1.0) -> float:
    """Mean cross-entropy of σ(margin / temperature) with the labels, in nats."""
    return float(F.binary_cross_entropy_with_logits(margin_P / temperature, label_P))


def fit_temperature(margin_P: Tensor, label_P: Tensor) -> float | None:
    """The temperature in [0.05, 100] with the smallest log loss (Guo et al. 2017, arXiv 1706.04599,
    applied to a difference of scores).

    ``None`` at either end of the range: the pairs, all right or no better than chance, do not
    determine it. The loss is convex in 1 / temperature, so a golden-section search over the
    logarithm of the temperature comes within 0.1 % of the minimum.
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
    temperature = float(torch.tensor((low + high) / 2).exp())
    return temperature if 0.051 < temperature < 99 else None


def calibration_bins(
    probability_P: Tensor, label_P: Tensor, bins: int = 10
) -> list[tuple[float, float, int]]:
    """The points of a calibration curve: (mean probability, mean label, pairs) of bins with equally
    many pairs.

    Each pair counts from its likelier side, with a probability in [0.5, 1], so that the order of a
    pair does not matter.
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
    """Mean of |mean probability - mean label| over the points of ``calibration_bins`` (Naeini et
    al. 2015), weighted by the pairs of a point; NaN without pairs.
    """
    points = calibration_bins(probability_P, label_P, bins)
    if not points:
        return float("nan")
    return sum(n * abs(p - share) for p, share, n in points) / len(probability_P)
