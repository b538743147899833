"""BitFit: only biases learn."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from prefloop.models.adapters.in_place import Native
from prefloop.models.adapters.targets import targeted


class BitFit(Native):
    """BitFit (Ben Zaken et al. 2021, arXiv 2106.10199): every bias of the model learns, and nothing
    else.

    A role owns a full bias of each module that has one (norms too, as in the paper) and of each
    targeted linear layer; where a layer has none, one of zeros is added, since most of today's
    decoders have no biases at all. Such an added bias has no place in the model's checkpoint: a
    role with one is not merged.
    """

    def find(self, model: Any) -> dict[str, Any]:
        return biased(model, self.config.target_modules)

    def fresh(self, name: str, layer: Any) -> dict[str, Tensor]:
        bias = layer.bias
        return {
            "bias": (
                torch.zeros(layer.out_features) if bias is None else bias.detach().float().clone()
            )
        }

    def attach(self, name: str, layer: Any) -> None:
        def add(layer: Any, _: Any, out: Tensor) -> Tensor:
            if self.active is None:
                return out
            learnt = self.roles[self.active][name]["bias"]
            # What it adds to the model's own: a fresh role adds exact zeros in every precision.
            change = learnt if layer.bias is None else learnt - layer.bias
            return out + change.to(out.dtype)

        layer.register_forward_hook(add)

    def unmergeable(self, model: Any) -> str | None:
        layers = self.layers or self.find(model)
        missing = [n for n, layer in layers.items() if layer.bias is None]
        if not missing:
            return None
        return (
            f"{len(missing)} layers of this model have no bias in its checkpoint (first"
            f" {missing[0]}), so the learnt ones have no place in plain weights"
        )

    def describe(self, role: str) -> dict[str, Any]:
        return super().describe(role) | {"merges": self.unmergeable(self.model) is None}

    def change(self, role: str, name: str, weight: Tensor) -> bool:
        layer = name.removesuffix(".bias")
        learns = name.endswith(".bias") and layer in self.layers
        if learns:
            weight.copy_(self.roles[role][layer]["bias"])
        return learns


def biased(model: Any, pattern: str) -> dict[str, nn.Module]:
    """Every module with a bias, and the linear layers that ``pattern`` matches."""
    linear = targeted(model, pattern)
    named = model.named_modules()
    return {
        n: m for n, m in named if n in linear or isinstance(getattr(m, "bias", None), nn.Parameter)
    }
