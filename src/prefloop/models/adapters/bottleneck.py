"""Bottleneck adapters: small networks after each attention and MLP."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from prefloop.config import AdapterConfig
from prefloop.config.adapters import Card
from prefloop.errors import ConfigError, ModelError
from prefloop.models.adapters.in_place import Native, product

NONLINEAR: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}


class Bottleneck(Native):
    """Serial adapters (Houlsby et al. 2019, arXiv 1902.00751): h → h + U f(D LayerNorm(h) + d) + u.

    They change the output of each block's attention and MLP, before the block adds it to its
    residual stream. U and u start at zero, so a fresh role gives the bare model's outputs to the
    bit. Each adapter has 2 H r + r + 3 H numbers (the paper's 2md + d + m, and 2d for the norm).
    ``options.activation`` is gelu (default), relu or silu. Because of this nonlinearity an adapter
    cannot be merged.
    """

    waits: ClassVar = dict.fromkeys(
        ("norm.weight", "norm.bias", "down.weight", "down.bias"), ("up.weight",)
    )

    def __init__(self, config: AdapterConfig, card: Card) -> None:
        super().__init__(config, card)
        activation = self.options["activation"]
        if activation not in NONLINEAR:
            raise ConfigError(
                f"backbone.adapter.options.activation: unknown '{activation}', give one of"
                f" {', '.join(NONLINEAR)}"
            )
        self.nonlinear = NONLINEAR[activation]

    def check(self, model: Any, name: str, folder: Path | None) -> None:
        width = model.config.get_text_config().hidden_size
        if self.config.r > width:
            raise ModelError(
                f"adapter bottleneck does not fit {name}: a rank of {self.config.r} is over its"
                f" hidden size, {width}: lower backbone.adapter.r"
            )
        super().check(model, name, folder)

    def find(self, model: Any) -> dict[str, Any]:
        return sublayers_of(model)

    def fresh(self, name: str, layer: Any) -> dict[str, Tensor]:
        width, rank = self.model.config.get_text_config().hidden_size, self.config.r
        down = torch.empty(rank, width)
        nn.init.kaiming_uniform_(down, a=5**0.5)
        return {
            "norm.weight": torch.ones(width),
            "norm.bias": torch.zeros(width),
            "down.weight": down,
            "down.bias": torch.zeros(rank),
            "up.weight": torch.zeros(width, rank),
            "up.bias": torch.zeros(width),
        }

    def attach(self, name: str, layer: Any) -> None:
        def adapt(_: Any, __: Any, out: Any) -> Any:
            if self.active is None:
                return out
            if isinstance(out, tuple):
                return (self.run(name, out[0]), *out[1:])
            return self.run(name, out)

        layer.register_forward_hook(adapt)

    def describe(self, role: str) -> dict[str, Any]:
        return super().describe(role) | {"activation": self.options["activation"]}

    def restore(self, role: str, saved: dict[str, Tensor], described: dict[str, Any]) -> None:
        if described.get("activation") != self.options["activation"]:
            raise ModelError(f"options.activation differs: it was {described.get('activation')}")
        super().restore(role, saved, described)

    def run(self, name: str, h: Tensor) -> Tensor:
        """Apply the active role's adapter called ``name`` to hidden states [..., H]."""
        own = self.roles[str(self.active)][name]
        x = h.to(own["norm.weight"].dtype)
        x = F.layer_norm(x, h.shape[-1:], own["norm.weight"], own["norm.bias"])
        low = self.nonlinear(product(self.dropout(x), own["down.weight"]) + own["down.bias"])
        return h + (product(low, own["up.weight"]) + own["up.bias"]).to(h.dtype)


def sublayers_of(model: Any) -> dict[str, Any]:
    """Name → attention or MLP of every block."""
    return {
        f"{name}.{part}": module
        for name, block in model.named_modules()
        if isinstance(block, GradientCheckpointingLayer)
        for part, module in block.named_children()
        if _is_sublayer(part)
    }


def _is_sublayer(name: str) -> bool:
    norm = any(part in name for part in ("norm", "ln"))
    attention = any(part in name for part in ("attn", "attention")) and not norm
    return attention or name in ("mlp", "feed_forward", "block_sparse_moe", "ffn")
