"""How good a reward model is on pairs that it has not seen: accuracy, log loss, calibration, and how much of it is length.

Shape letter: P pairs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from prefloop.data.encode import PreferenceGroup
from prefloop.objectives.calibration import expected_calibration_error, log_loss


@dataclasses.dataclass(frozen=True)
class Pairwise:
    """Differences of scores, labels and differences of length (first minus second, tokens), float32 [P] each."""

    margin_P: Tensor
    label_P: Tensor
    length_P: Tensor

    @property
    def right_P(self) -> Tensor:
        """1 where the higher score is on the majority's side, 0.5 for equal scores; only pairs with a majority."""
        decided = self.label_P != 0.5
        margin, label = self.margin_P[decided], self.label_P[decided]
        return torch.where(margin == 0, 0.5, ((margin > 0) == (label > 0.5)).float())

    def metrics(self, temperature: float) -> dict[str, float]:
        """Accuracy against the majority (ties left out), log loss and calibration error of σ(margin / temperature)."""
        if not len(self.margin_P):
            return {}
        probability_P = (self.margin_P / temperature).sigmoid()
        return {
            "accuracy": float(self.right_P.mean()) if len(self.right_P) else float("nan"),
            "loss": log_loss(self.margin_P, self.label_P, temperature),
            "ece": expected_calibration_error(probability_P, self.label_P),
        }

    def by_length(self) -> dict[str, Any]:
        """Accuracy where the preferred response is much shorter, shorter, longer and much longer (by tokens), and of always taking the longer one."""
        decided = self.label_P != 0.5
        sign = torch.where(self.label_P[decided] > 0.5, 1.0, -1.0)
        longer_P = self.length_P[decided] * sign
        edges = [-float("inf"), -50, 0, 50, float("inf")]
        names = ("shorter by over 50", "shorter by up to 50", "longer by up to 50", "longer by over 50")
        parts = {}
        for name, low, high in zip(names, edges, edges[1:], strict=False):
            inside = (longer_P > low) & (longer_P <= high)
            parts[name] = {
                "pairs": int(inside.sum()),
                "accuracy": float(self.right_P[inside].mean()) if inside.any() else None,
            }
        baseline = torch.where(longer_P == 0, 0.5, (longer_P > 0).float())
        return {"always the longer": float(baseline.mean()) if len(baseline) else None, "preferred response is": parts}


def pairwise(groups: Iterable[PreferenceGroup], scores: Mapping[int, Sequence[float]]) -> Pairwise:
    """Collect the pairs of groups; a response's score is the mean of its members'."""
    margins, labels, lengths = [], [], []
    for group in groups:
        mean = [sum(scores[key]) / len(scores[key]) for key in group.document.keys]
        size = [len(ids) for ids in group.document.responses_ids]
        for first, second, label, _ in group.pairs:
            margins.append(mean[first] - mean[second])
            labels.append(label)
            lengths.append(size[first] - size[second])
    return Pairwise(*(torch.tensor(values, dtype=torch.float32) for values in (margins, labels, lengths)))
