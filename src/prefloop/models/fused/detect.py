"""Which decoder layers run as one step: those that hold what ``FusedLayer`` computes, found by
running both.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from prefloop.models.fused.layer import FusedLayer
from prefloop.models.fused.lora import Active, FusedLoRA
from prefloop.models.fused.projections import RoleCopies


def fuse_layers(model: nn.Module, active: Active, recompute: bool) -> list[FusedLayer]:
    """Give every decoder layer that holds what ``FusedLayer`` computes its forward; none, when one
    of them computes something else.
    """
    copies: dict[str, RoleCopies] = {}
    found: list[FusedLayer] = []
    for module in list(model.modules()):
        if not _looks_like_one(module):
            continue
        layer = FusedLayer(module, active, recompute)
        layer.copies = copies
        if not _same(layer):
            return []
        found.append(layer)
    for layer in found:
        layer.module.forward = layer
        # The layer keeps and recomputes what it wants; transformers' checkpoint around it would do
        # all of it again.
        kind = type(layer.module)
        layer.module.__class__ = type(kind.__name__, (kind,), {"__call__": nn.Module.__call__})
    return found


def _looks_like_one(module: Any) -> bool:
    attention, mlp = getattr(module, "self_attn", None), getattr(module, "mlp", None)
    projections = [getattr(attention, f"{n}_proj", None) for n in "qkvo"]
    projections += [getattr(mlp, f"{n}_proj", None) for n in ("gate", "up", "down")]
    norms = [getattr(module, n, None) for n in ("input_layernorm", "post_attention_layernorm")]
    return (
        all(isinstance(getattr(p, "forward", None), FusedLoRA) for p in projections)
        and _nothing_else(
            module, [*projections, *norms, *(getattr(attention, f"{n}_norm", None) for n in "qk")]
        )
        and all(
            "RMSNorm" in type(n).__name__ and isinstance(getattr(n, "weight", None), Tensor)
            for n in norms
        )
        and isinstance(getattr(attention, "head_dim", None), int)
        and not getattr(attention, "attention_dropout", 0.0)
    )


def _nothing_else(module: nn.Module, known: list[nn.Module | None]) -> bool:
    """Whether all parameters of a layer belong to the modules that ``FusedLayer`` computes."""
    ours = {id(p) for part in known if part is not None for p in part.parameters()}
    return all(id(p) in ours for p in module.parameters())


@torch.no_grad()
def _same(layer: FusedLayer) -> bool:
    """Whether the layer's own code gives what ours does, on random numbers without adapters."""
    device: Any = layer.qkv.weights[0].layer.weight.device
    dtype, size = layer.qkv.weights[0].dtype, layer.attention.head_dim
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 6, layer.qkv.inputs, generator=generator).to(device, dtype)
    angle = torch.randn(1, 6, size // 2, generator=generator).repeat(1, 1, 2).to(device)
    angles = (angle.cos().to(dtype), angle.sin().to(dtype))
    mask = torch.ones(6, 6, dtype=torch.bool, device=device).tril()[None, None]
    if layer.attention.config._attn_implementation == "eager":
        mask = torch.zeros(mask.shape, dtype=dtype, device=device).masked_fill(
            ~mask, torch.finfo(dtype).min
        )
    far = 100_000 * torch.arange(6, device=device)[None]  # layers that scale with the position show
    arguments: dict[str, Any] = dict(
        attention_mask=mask, position_embeddings=angles, position_ids=far
    )
    tolerance = (
        6e-2 if dtype != torch.float32 else 1e-4
    )  # bfloat16 rounds to 2 % on wide random weights
    role, layer.active.role = layer.active.role, None
    try:
        # The second time what the layer adds outweighs what goes around it, which would hide it and
        # round it.
        for scale in (1.0, 0.02):
            expected, ours = layer.original(scale * x, **arguments), layer(scale * x, **arguments)
            around = scale * x if scale < 1 else 0.0
            if not (ours - expected).norm() <= tolerance * (expected - around).norm():
                return False
    except (
        Exception
    ):  # other arguments, a kernel that does not compile: the layer's own code is always right
        return False
    finally:
        layer.active.role = role
    return True
