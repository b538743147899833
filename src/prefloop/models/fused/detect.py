"""Find the decoder layers that ``FusedLayer`` can replace, by comparing the outputs of both."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from prefloop.models.fused.layer import FusedLayer
from prefloop.models.fused.lora import Active, FusedLoRA
from prefloop.models.fused.projections import RoleCopies


def fuse_layers(model: nn.Module, active: Active, recompute: bool) -> list[FusedLayer]:
    """Replace the forward of every decoder layer that computes what ``FusedLayer`` does.

    Returns the new layers; none are replaced if one layer of this form computes something else.
    """
    copies: dict[str, RoleCopies] = {}
    fused: list[FusedLayer] = []
    for module in list(model.modules()):
        if not _looks_like_one(module):
            continue
        layer = FusedLayer(module, active, recompute)
        layer.copies = copies
        if not _same(layer):
            return []
        fused.append(layer)
    for layer in fused:
        layer.module.forward = layer
        # The layer decides itself what it recomputes. transformers' checkpoint around the layer
        # would recompute everything again, so the module's __call__ is replaced.
        kind = type(layer.module)
        layer.module.__class__ = type(kind.__name__, (kind,), {"__call__": nn.Module.__call__})
    return fused


def _looks_like_one(module: Any) -> bool:
    attention, mlp = getattr(module, "self_attn", None), getattr(module, "mlp", None)
    projections = [getattr(attention, f"{n}_proj", None) for n in "qkvo"]
    projections += [getattr(mlp, f"{n}_proj", None) for n in ("gate", "up", "down")]
    norms = [getattr(module, n, None) for n in ("input_layernorm", "post_attention_layernorm")]
    head_norms = [getattr(attention, f"{n}_norm", None) for n in "qk"]
    return (
        all(isinstance(getattr(p, "forward", None), FusedLoRA) for p in projections)
        and all("RMSNorm" in type(n).__name__ for n in norms)
        and all(isinstance(getattr(n, "weight", None), Tensor) for n in norms)
        and _nothing_else(module, [*projections, *norms, *head_norms])
        and isinstance(getattr(attention, "head_dim", None), int)
        and not getattr(attention, "attention_dropout", 0.0)
    )


def _nothing_else(module: nn.Module, known: list[nn.Module | None]) -> bool:
    """Whether all parameters of a layer belong to the modules that ``FusedLayer`` computes."""
    ours = {id(p) for part in known if part is not None for p in part.parameters()}
    return all(id(p) in ours for p in module.parameters())


@torch.no_grad()
def _same(layer: FusedLayer) -> bool:
    """Whether the layer's own code and ours agree on random numbers, without adapters."""
    device: Any = layer.qkv.weights[0].layer.weight.device
    dtype, size = layer.qkv.weights[0].dtype, layer.attention.head_dim
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 6, layer.qkv.inputs, generator=generator).to(device, dtype)
    angle = torch.randn(1, 6, size // 2, generator=generator).repeat(1, 1, 2).to(device)
    angles = (angle.cos().to(dtype), angle.sin().to(dtype))
    mask = torch.ones(6, 6, dtype=torch.bool, device=device).tril()[None, None]
    if layer.attention.config._attn_implementation == "eager":
        lowest = torch.finfo(dtype).min
        mask = torch.zeros(mask.shape, dtype=dtype, device=device).masked_fill(~mask, lowest)
    # Far positions show layers that scale with the position.
    far = 100_000 * torch.arange(6, device=device)[None]
    arguments: dict[str, Any] = dict(
        attention_mask=mask, position_embeddings=angles, position_ids=far
    )
    # bfloat16 rounds to 2 % on wide random weights.
    tolerance = 6e-2 if dtype != torch.float32 else 1e-4
    role, layer.active.role = layer.active.role, None
    try:
        # With the small scale the layer's own output outweighs its residual, which would otherwise
        # hide and round it.
        for scale in (1.0, 0.02):
            expected, ours = layer.original(scale * x, **arguments), layer(scale * x, **arguments)
            residual = scale * x if scale < 1 else 0.0
            if not (ours - expected).norm() <= tolerance * (expected - residual).norm():
                return False
    except Exception:  # other arguments, a kernel that does not compile: keep the layer's own code
        return False
    finally:
        layer.active.role = role
    return True
