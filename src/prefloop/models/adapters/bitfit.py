"""BitFit: only the biases learn."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from prefloop.models.adapters.in_place import Native
from prefloop.models.adapters.targets import targeted


class BitFit(Native):
    """BitFit (Ben Zaken et al. 2021, arXiv 2106.10199): every bias learns, and nothing else.

    A role owns a copy of each module's bias (norms too, as in the paper) and a bias for each
    targeted linear layer. Layers without a bias get one of zeros, since most of today's decoders
    have no biases. The model's checkpoint has no place for an added bias, so a role with one cannot
    be merged.
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
            bias = self.roles[self.active][name]["bias"]
            # Adding the difference to the model's own bias makes a fresh role exact in every dtype.
            change = bias if layer.bias is None else bias - layer.bias
            return out + change.to(out.dtype)

        layer.register_forward_hook(add)

    def unmergeable(self, model: Any) -> str | None:
        layers = self.layers or self.find(model)
        missing = [n for n, layer in layers.items() if layer.bias is None]
        if not missing:
            return None
        return (
            f"{len(missing)} layers of this model have no bias in its checkpoint (first"
            f" {missing[0]}), so plain weights have no place for the learned ones"
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
    """Name → module with a bias, or linear layer that ``pattern`` matches."""
    linear = targeted(model, pattern)
    return {
        name: module
        for name, module in model.named_modules()
        if name in linear or isinstance(getattr(module, "bias", None), nn.Parameter)
    }
