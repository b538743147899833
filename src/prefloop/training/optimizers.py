"""Optimizers by name: torch's AdamW, and bitsandbytes' with moments in 8 bits (Dettmers et al.
2021, arXiv 2110.02861), in memory that is paged between GPU and host (Dettmers et al. 2023, arXiv
2305.14314, section 3), and Lion (Chen et al. 2023, arXiv 2302.06675).

Tensors under 4096 elements keep 32-bit moments, as bitsandbytes has it: their codes would cost more
than they save.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def make(
    name: str, groups: list[dict[str, Any]], weight_decay: float, device: torch.device
) -> torch.optim.Optimizer:
    """The optimizer ``name`` (of ``config.OPTIMIZERS``) over parameter groups with their learning
    rates; on a CPU nothing is paged.
    """
    if name == "adamw":
        return torch.optim.AdamW(groups, weight_decay=weight_decay, fused=device.type == "cuda")
    from bitsandbytes import optim

    kind = optim.Lion if "lion" in name else optim.AdamW
    paged = name.startswith("paged_") and device.type == "cuda"
    bits = 8 if name.endswith("8bit") else 32
    return kind(groups, weight_decay=weight_decay, optim_bits=bits, is_paged=paged)


def moments(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    """What a checkpoint keeps of one parameter, by slot; 8-bit codes with their scales, without the
    code table, which is always the same.
    """
    state = optimizer.state.get(parameter, {})
    return {
        slot: torch.as_tensor(value) for slot, value in state.items() if not slot.startswith("qmap")
    }


@torch.no_grad()
def put_moments(
    optimizer: torch.optim.Optimizer, parameter: nn.Parameter, slots: dict[str, Tensor]
) -> None:
    """Put ``moments`` back; where there are none the parameter starts afresh."""
    if not slots:
        optimizer.state.pop(parameter, None)
        return
    if isinstance(optimizer, torch.optim.AdamW):
        on_host = not optimizer.defaults["fused"]  # the count of steps lies where the step is made
        optimizer.state[parameter] = {
            slot: value if slot == "step" and on_host else value.to(parameter.device)
            for slot, value in slots.items()
        }
        return
    if not optimizer.state.get(parameter):
        for g, group in enumerate(optimizer.param_groups):
            for p, own in enumerate(group["params"]):
                if own is parameter:
                    optimizer.init_state(group, parameter, g, p)  # type: ignore[attr-defined]
    state = optimizer.state[parameter]
    for slot, value in slots.items():
        state[slot] = int(value) if slot == "step" else state[slot].copy_(value)
