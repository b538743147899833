"""Whether a policy has moved away from the model that it began as. The figures of one that has not
say nothing of the method that trained it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from prefloop.artifacts.references import BASE
from prefloop.config.algorithms import FEW_STEPS, kind_of

STILL, NEAR = 0.1, 1.0
"""Nats of KL to SFT per response. Below the first a policy still is the SFT model. Below the
second, after few steps, it is near the SFT model.
"""


def unmoved(stages: Iterable[Mapping[str, Any]], results: Mapping[str, Any]) -> list[str]:
    """A sentence for each policy that is still the SFT model, or near it after a few steps, and one
    for SFT where it is still the bare model.

    ``stages`` and ``results`` are those of a summary: ``updates`` or ``steps`` among a stage's
    metrics, ``kl`` with ``kl_low`` and ``kl_high`` in the policy's row.
    """
    metrics = {kind_of(str(stage.get("name"))): stage.get("metrics") or {} for stage in stages}
    out = []
    for policy, row in results.items():
        trained, kl = metrics.get(policy, {}), (row or {}).get("kl")
        steps = trained.get("updates", trained.get("steps"))
        if policy == BASE and isinstance(kl, int | float) and abs(kl) < STILL:
            out.append(
                f"SFT is still the bare model that it began as: {abs(kl):.2f} nats of KL between"
                " them. It has learned nothing from its demonstrations: give it more data, epochs"
                " or a higher learning rate."
            )
        if policy in ("sft", BASE) or not isinstance(kl, int | float) or abs(kl) >= NEAR:
            continue
        few = isinstance(steps, int) and steps < FEW_STEPS
        made = f" after {steps:,} step{'' if steps == 1 else 's'}" if isinstance(steps, int) else ""
        low, high = row.get("kl_low"), row.get("kl_high")
        interval = f" [{low:.2f}, {high:.2f}]" if low is not None and high is not None else ""
        if abs(kl) < STILL or (few and interval and low <= 0 <= high):
            out.append(
                f"{policy} is still the SFT model that it began as: {kl:.2f}{interval} nats of"
                f" KL{made}. Its figures say nothing of {policy}: give it more data, epochs,"
                " smaller batches or a higher learning rate."
            )
        elif few:
            out.append(
                f"{policy} is near the SFT model that it began as: {kl:.2f}{interval} nats of"
                f" KL{made}. That is too few to judge {policy} by: give it more data, epochs,"
                " smaller batches or a higher learning rate."
            )
    return out
