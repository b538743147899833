"""How good a reward model is on pairs that it has not seen: accuracy, log loss, calibration, and
accuracy by length.

Intervals are 95 %, of the mean over prompts of their pairs' mean, resampling prompts. Shape letter:
P pairs.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from prefloop.data.encode import PreferenceGroup
from prefloop.objectives.calibration import calibration_bins, expected_calibration_error, log_loss
from prefloop.objectives.reward import bradley_terry
from prefloop.stats.intervals import clustered_mean, clustered_share


@dataclasses.dataclass(frozen=True)
class PairMetrics:
    """Differences of scores, labels and differences of length (first minus second, tokens), float32
    [P] each.
    """

    margin_P: Tensor
    label_P: Tensor
    length_P: Tensor
    prompts: list[str] = dataclasses.field(default_factory=list)
    """A key of each pair's prompt."""

    @classmethod
    def join(cls, parts: Sequence[PairMetrics]) -> PairMetrics:
        """The pairs of several sets."""
        margin_P, label_P, length_P = (
            torch.cat([getattr(p, name) for p in parts])
            for name in ("margin_P", "label_P", "length_P")
        )
        return cls(
            margin_P, label_P, length_P, [prompt for part in parts for prompt in part.prompts]
        )

    @property
    def right_P(self) -> Tensor:
        """1 where the higher score is on the majority's side, 0.5 for equal scores; only pairs with
        a majority.
        """
        decided = self.label_P != 0.5
        margin, label = self.margin_P[decided], self.label_P[decided]
        return torch.where(margin == 0, 0.5, ((margin > 0) == (label > 0.5)).float())

    def metrics(self, temperature: float) -> dict[str, float]:
        """Accuracy against the majority (ties left out), log loss and calibration error of σ(margin
        / temperature).
        """
        if not len(self.margin_P):
            return {}
        probability_P = (self.margin_P / temperature).sigmoid()
        return {
            "accuracy": float(self.right_P.mean()) if len(self.right_P) else float("nan"),
            "loss": log_loss(self.margin_P, self.label_P, temperature),
            "ece": expected_calibration_error(probability_P, self.label_P),
        }

    def bounds(self) -> dict[str, float]:
        """``accuracy_low`` and ``accuracy_high``: the accuracy's 95 % interval over prompts;
        nothing without a pair that has a majority.
        """
        low, high = interval("accuracy", self.right_P.tolist(), self._decided)["accuracy_ci"]
        return {} if low is None else {"accuracy_low": low, "accuracy_high": high}

    @property
    def _decided(self) -> list[str]:
        return [
            p for p, label in zip(self.prompts, self.label_P.tolist(), strict=True) if label != 0.5
        ]

    def measured(self, temperature: float, raw: float) -> dict[str, Any]:
        """Everything, as JSON: ``metrics`` with intervals, the calibration error at temperature
        ``raw`` (before fitting) and the points of the calibration curve after it, and
        ``by_length``.
        """
        probability_P = (self.margin_P / temperature).sigmoid()
        losses = bradley_terry(self.margin_P / temperature, self.label_P).tolist()
        before_P = (self.margin_P / raw).sigmoid()
        return {
            "pairs": len(self.margin_P),
            **self.metrics(temperature),
            **interval("accuracy", self.right_P.tolist(), self._decided),
            **interval("loss", losses, self.prompts, highest=float("inf")),
            "ece_raw": expected_calibration_error(before_P, self.label_P),
            "bins": [
                {"p": p, "share": share, "n": n}
                for p, share, n in calibration_bins(probability_P, self.label_P)
            ],
            "length": self.by_length(),
        }

    def by_length(self) -> dict[str, Any]:
        """Accuracy where the preferred response is much shorter, shorter, longer and much longer
        (by tokens), and of always taking the longer one.
        """
        decided = self.label_P != 0.5
        sign = torch.where(self.label_P[decided] > 0.5, 1.0, -1.0)
        longer_P = self.length_P[decided] * sign
        edges = [-float("inf"), -50, 0, 50, float("inf")]
        names = (
            "shorter by over 50",
            "shorter by up to 50",
            "longer by up to 50",
            "longer by over 50",
        )
        parts = {}
        for name, low, high in zip(names, edges, edges[1:], strict=False):
            inside = (longer_P > low) & (longer_P <= high)
            parts[name] = {
                "pairs": int(inside.sum()),
                "accuracy": float(self.right_P[inside].mean()) if inside.any() else None,
            }
        baseline = torch.where(longer_P == 0, 0.5, (longer_P > 0).float())
        return {
            "always the longer": float(baseline.mean()) if len(baseline) else None,
            "preferred response is": parts,
        }


def interval(
    name: str, values: Sequence[float], prompts: Sequence[str], highest: float = 1.0
) -> dict[str, Any]:
    """``{name: mean, name_ci: [low, high]}`` of values between 0 and ``highest``; ``None`` where
    there is none.
    """
    if not values:
        return {name: None, f"{name}_ci": [None, None]}
    grouped: dict[str, list[float]] = {}
    for value, prompt in zip(values, prompts, strict=True):
        grouped.setdefault(prompt, []).append(value)
    mean = (clustered_share if highest == 1.0 else clustered_mean)(grouped)
    return {
        name: mean.mean,
        f"{name}_ci": [min(highest, max(0.0, bound)) for bound in (mean.low, mean.high)],
    }


def pairwise(
    groups: Iterable[PreferenceGroup], scores: Mapping[int, Sequence[float]]
) -> PairMetrics:
    """Collect the pairs of groups; a response's score is the mean of its members'."""
    margins, labels, lengths, prompts = [], [], [], []
    for group in groups:
        mean = [sum(scores[key]) / len(scores[key]) for key in group.document.keys]
        size = [len(ids) for ids in group.document.responses_ids]
        prompt = hashlib.blake2b(
            repr(list(group.document.prompt_ids)).encode(), digest_size=8
        ).hexdigest()
        for first, second, label, _ in group.pairs:
            margins.append(mean[first] - mean[second])
            labels.append(label)
            lengths.append(size[first] - size[second])
            prompts.append(prompt)
    margin_P, label_P, length_P = (
        torch.tensor(v, dtype=torch.float32) for v in (margins, labels, lengths)
    )
    return PairMetrics(margin_P, label_P, length_P, prompts)
