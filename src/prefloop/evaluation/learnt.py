"""Whether a policy has moved away from the model that it began as. The figures of one that has not
say nothing about the method that trained it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefloop.artifacts.references import BASE
from prefloop.artifacts.results import BASELINE, PolicyResult
from prefloop.config.algorithms import FEW_STEPS

STILL, NEAR = 0.1, 1.0
"""Nats of KL to SFT per response. Below the first a policy still is the SFT model. Below the
second, after few steps, it is near the SFT model.
"""


def unmoved(
    metrics: Mapping[str, Mapping[str, Any]], results: Mapping[str, PolicyResult]
) -> list[str]:
    """A sentence for each policy that is still the SFT model, or near it after a few steps, and one
    for SFT where it is still the bare model.

    ``metrics``: what the stage that trained each policy measured (``updates`` or ``steps`` are
    read).
    """
    out = []
    for policy, row in results.items():
        measured, kl = metrics.get(policy, {}), row.kl.value
        steps = measured.get("updates", measured.get("steps"))
        if policy == BASE and kl is not None and abs(kl) < STILL:
            out.append(
                f"SFT is still the bare model that it began as: {abs(kl):.2f} nats of KL between"
                " them. It has learned nothing from its demonstrations: give it more data, epochs"
                " or a higher learning rate."
            )
        if policy in (BASELINE, BASE) or kl is None or abs(kl) >= NEAR:
            continue
        few = isinstance(steps, int) and steps < FEW_STEPS
        made = f" after {steps:,} step{'' if steps == 1 else 's'}" if isinstance(steps, int) else ""
        low, high = row.kl.low, row.kl.high
        interval, around_zero = "", False
        if low is not None and high is not None:
            interval, around_zero = f" [{low:.2f}, {high:.2f}]", low <= 0 <= high
        if abs(kl) < STILL or (few and around_zero):
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
