"""Does the sampler run the policy that it was given? Log-probs of the sampled tokens by both, in nats a token.

A mean gap alone does not tell: half of a young adapter's effect can be missing within what bfloat16 does to any log-prob. So the change
that the policy is of the model before it is looked at too: how much of it the sampler shows.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from prefloop.models.backbone import Backbone

CARRIED = 0.7
"""The share of a policy's change that a sampler must show in bfloat16; in float32 ``EXACT``."""
EXACT = 0.95


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Of the sampler's log-probs with the trainer's."""

    gap: float
    """Mean absolute difference."""
    bound: float
    """The largest ``gap`` that is tolerated."""
    share: float = math.nan
    """Of the change from the model before to the policy, as the trainer computes it, what the sampler shows; 1 is all of it, nan not asked."""
    least: float = -math.inf
    """The smallest ``share`` that is tolerated, -inf where the change is not above what rounding does."""

    @property
    def holds(self) -> bool:
        return self.gap <= self.bound and not self.share < self.least

    def __str__(self) -> str:
        line = f"mean |log-prob gap| {self.gap:.6f} nats a token, at most {self.bound:g}"
        if self.least == -math.inf:
            return line
        return f"{line}; the sampler shows {self.share:.0%} of the policy's change, at least {self.least:.0%}"


def gap_bound(backbone: Backbone, engine: str) -> float:
    """The mean |log-prob gap| that is tolerated; a server's precision is not known."""
    return 0.005 if _exact(backbone, engine) else 0.1


def _exact(backbone: Backbone, engine: str) -> bool:
    return backbone.compute_dtype == torch.float32 and engine != "server"


def agreement(
    backbone: Backbone,
    engine: str,
    sampler_R: Tensor,
    trainer_R: Tensor,
    before_R: Tensor | None = None,
    bound: float | None = None,
) -> Agreement:
    """Compare log-probs of the same sampled tokens; ``before_R`` are the trainer's under the model that the policy was changed from.

    The share is the slope of (sampler - before) on (trainer - before). Rounding of trainer and before alone makes it smaller than 1, by
    its variance over that of the change, so the smallest one tolerated falls with it, by four standard errors more.
    """
    bound = gap_bound(backbone, engine) if bound is None else bound
    gap = float((sampler_R - trainer_R).abs().mean()) if len(trainer_R) else 0.0
    if before_R is None or not len(trainer_R):
        return Agreement(gap, bound)
    shown_R, wanted_R = (sampler_R - before_R).double(), (trainer_R - before_R).double()
    size = float(wanted_R.square().sum())
    if not size > 0:
        return Agreement(gap, bound)
    share = float((shown_R * wanted_R).sum()) / size
    noise = float((shown_R - share * wanted_R).square().sum()) / size
    least = (EXACT if _exact(backbone, engine) else CARRIED) * (1 - noise) - 4 * math.sqrt(noise / len(wanted_R))
    return Agreement(gap, bound, share, least if least > 0 else -math.inf)
