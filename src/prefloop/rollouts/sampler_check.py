"""Checks that the sampler runs the policy that it was given, by the log-probs of sampled tokens
under both, in nats a token.

In bfloat16 the mean gap alone is not enough: half of a young adapter's effect can be missing, and
the gap is no larger than rounding makes it for any log-prob. So a second figure is the share of the
policy's change to the bare model's log-probs that the sampler shows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from prefloop.data.packing import Document, packs
from prefloop.models.backbone import Backbone
from prefloop.models.forward import hidden_N_H, response_logps_R
from prefloop.rollouts.engine import Rollout

COMPARED = 16
"""Responses whose log-probs are compared."""
FEWEST = 8
"""With fewer responses the share is not computed: it would have no useful error bars."""
FLOOR, FLOOR_FP32 = 0.2, 1e-3
"""Smaller changes (root mean square, nats a token) are not used: rounding would be a good part of
the share, in bfloat16 and in float32.
"""
MISSING = 0.3
"""A share below this by four standard errors means that the adapter did not arrive."""
ODD = 0.1
"""A share further from 1 than this by two standard errors is reported."""


@dataclasses.dataclass(frozen=True)
class SamplerAgreement:
    """How well the sampler's log-probs agree with the trainer's."""

    gap: float
    """Mean absolute difference."""
    bound: float
    """The largest ``gap`` that is tolerated."""
    responses: int
    share: float = math.nan
    """Share of the policy's change to the bare model's log-probs that the sampler shows; NaN where
    it is not known.
    """
    error: float = math.nan
    """Standard error of ``share``."""

    @property
    def holds(self) -> bool:
        """Whether the sampler runs the policy, as far as the figures tell."""
        return self.gap <= self.bound and not self.share + 4 * self.error < MISSING

    @property
    def odd(self) -> bool:
        """Whether the sampler shows notably less or more of the policy than it should."""
        return abs(self.share - 1) > ODD + 2 * self.error

    def __str__(self) -> str:
        line = f"mean |log-prob gap| {self.gap:.6f} nats a token, at most {self.bound:g}"
        if math.isnan(self.share):
            return line
        line += (
            f"; it shows {100 * self.share:.0f} ± {200 * self.error:.0f} % of what the policy"
            " changed"
        )
        return (
            f"{line}: a {'weaker' if self.share < 1 else 'stronger'} policy than the one that is"
            " trained"
            if self.odd
            else line
        )


def gap_bound(backbone: Backbone, engine: str) -> float:
    """The mean |log-prob gap| that is tolerated, nats a token."""
    return 0.005 if _exact(backbone, engine) else 0.1


def _exact(backbone: Backbone, engine: str) -> bool:
    """Whether both compute in float32; a server's precision is not known."""
    return backbone.compute_dtype == torch.float32 and engine != "server"


def agreement(
    backbone: Backbone,
    engine: str,
    prompts_ids: Sequence[Sequence[int]],
    rollouts: Sequence[Rollout],
    temperature: float,
    role: str | None,
) -> SamplerAgreement:
    """Compare the sampler's log-probs of at most ``COMPARED`` responses with those under the role
    that it was given (``None``: the bare base).

    ``temperature`` is what the sampler divided logits by.
    """
    some = rollouts[:: max(1, len(rollouts) // COMPARED)][:COMPARED]
    documents = [
        Document(list(prompts_ids[r.prompt]), [r.token_ids], [k])
        for k, r in enumerate(some)
        if r.token_ids
    ]
    logps_of: dict[str | None, list[Tensor]] = {role: [], None: []}
    order: list[int] = []
    for pack in packs(documents, backbone.scoring_tokens):
        pack = pack.to(backbone.device)
        for name, logps in logps_of.items():
            with backbone.role(name):
                hidden = hidden_N_H(backbone, pack)
                logps.append(response_logps_R(backbone, hidden, pack, temperature).cpu())
        order += pack.keys
    bound = gap_bound(backbone, engine)
    if not documents:
        return SamplerAgreement(0.0, bound, 0)
    sampler_R = torch.tensor([logp for k in order for logp in some[k].logps])
    trainer_R, base_R = torch.cat(logps_of[role]), torch.cat(logps_of[None])
    share = error = math.nan
    if role is not None:
        of_R = torch.tensor([k for k in order for _ in some[k].logps])
        floor = FLOOR_FP32 if _exact(backbone, engine) else FLOOR
        share, error = share_shown(sampler_R - base_R, trainer_R - base_R, of_R, floor)
    return SamplerAgreement(
        float((sampler_R - trainer_R).abs().mean()), bound, len(documents), share, error
    )


def share_shown(
    shown_R: Tensor, wanted_R: Tensor, of_R: Tensor, floor: float
) -> tuple[float, float]:
    """The slope of the change that a sampler shows on the change that it should show, and the
    slope's jackknife standard error over responses.

    Args:
        shown_R: sampler's log-prob minus the bare model's, at each token.
        wanted_R: trainer's log-prob minus the bare model's.
        of_R: the response of each token.
        floor: both results are NaN where the root mean square of ``wanted_R`` is smaller, or where
            there are fewer than ``FEWEST`` responses.
    """
    keys, place_R = of_R.unique(return_inverse=True)
    both_B, size_B = (
        torch.zeros(len(keys), dtype=torch.float64).index_add_(
            0, place_R, (x_R * wanted_R).double()
        )
        for x_R in (shown_R, wanted_R)
    )
    both, size = both_B.sum(), size_B.sum()
    if len(keys) < FEWEST or not size >= floor**2 * len(wanted_R):
        return math.nan, math.nan
    without_B = (both - both_B) / (size - size_B)
    count = len(keys)
    error = ((count - 1) / count * (without_B - without_B.mean()).square().sum()).sqrt()
    return float(both / size), float(error)
