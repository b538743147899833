"""PiSSA and OLoRA, which initialize an adapter from the weight itself.

The papers also change the weight: they train W - s B0 A0 + s B A, starting from B = B0 and A = A0.
All roles share the weight here, so it must not change. Instead s (B A - B0 A0) is one LoRA adapter
of rank 2 r whose second half, -B0 and A0, never moves. Function and gradients are the same, a fresh
role gives the model's outputs, the files load like LoRA's, and every precision works.

Shape letters: O outputs, I inputs, r rank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from prefloop.artifacts.adapter_config import KEY
from prefloop.config import AdapterConfig
from prefloop.config.adapters import Card
from prefloop.errors import ModelError
from prefloop.models.adapters.lora import DIFFERS, LoRA
from prefloop.models.fused.lora import Weight


class Halves(LoRA):
    """LoRA of rank 2 r whose first half learns and whose second half is fixed."""

    waits: ClassVar = {}

    def __init__(self, config: AdapterConfig, card: Card) -> None:
        super().__init__(config, card)
        self._kept: dict[str, dict[str, Tensor]] = {}

    def factors(self, weight_O_I: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """A0 [r, I] and B0 [O, r] of a float32 weight [O, I]; ``scale`` is the s of s B A."""
        raise NotImplementedError

    def add(self, role: str) -> None:
        super().add(role)
        for name, parameter in self.parameters(role).items():
            learns = parameter.requires_grad
            # torch registers a hook only on a tensor with requires_grad; the hook stays without it.
            parameter.requires_grad_(True)
            parameter.register_hook(_first_half(_axis(name)))
            parameter.requires_grad_(learns)

    @torch.no_grad()
    def begin(self, role: str) -> None:
        layers: list[Any] = self.layers
        for layer in layers:
            weight_O_I = Weight(layer.get_base_layer()).O_I().float()
            a_r_I, b_O_r = self.factors(weight_O_I, layer.scaling[role])
            layer.lora_A[role].weight.copy_(torch.cat([a_r_I, a_r_I]))
            layer.lora_B[role].weight.copy_(torch.cat([b_O_r, -b_O_r], dim=1))

    def parts(self, role: str) -> dict[str, Tensor]:
        """Name → view of the fixed half of each parameter."""
        r = self.config.r
        return {
            name: parameter.detach().narrow(_axis(name), r, r)
            for name, parameter in self.parameters(role).items()
        }

    def count(self, role: str) -> int:
        return super().count(role) // 2

    def before_step(self, role: str, step: int, total_steps: int) -> None:
        self._kept[role] = {name: part.clone() for name, part in self.parts(role).items()}

    def after_step(self, role: str, step: int, total_steps: int) -> None:
        kept = self._kept.pop(role)
        for name, part in self.parts(role).items():
            part.copy_(kept[name])  # undoes weight decay

    def describe(self, role: str) -> dict[str, Any]:
        return super().describe(role) | {KEY: self.card.name}

    def restore(self, role: str, saved: dict[str, Tensor], described: dict[str, Any]) -> None:
        if described.get(KEY) != self.card.name:
            raise ModelError(DIFFERS)
        super().restore(role, saved, described)


class PiSSA(Halves):
    """PiSSA (Meng et al. 2024, arXiv 2404.02948, eq. 2-3).

    s B0 A0 is the truncated SVD of W, and A0 and B0 share its singular values equally.
    """

    def factors(self, weight_O_I: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        r = self.config.r
        u_O_K, s_K, v_K_I = torch.linalg.svd(weight_O_I, full_matrices=False)
        root_r = (s_K[:r] / scale).sqrt()
        return root_r[:, None] * v_K_I[:r], u_O_K[:, :r] * root_r


class OLoRA(Halves):
    """OLoRA (Büyükakyüz 2024, arXiv 2406.01775).

    In W = Q R, B0 holds the first r columns of Q, which are orthonormal, and A0 the first r rows of
    R.
    """

    def factors(self, weight_O_I: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        q_O_K, r_K_I = torch.linalg.qr(weight_O_I)
        return r_K_I[: self.config.r], q_O_K[:, : self.config.r]


def _axis(name: str) -> int:
    """The axis of a parameter that its two halves divide."""
    return 0 if ".lora_A." in name else 1


def _first_half(axis: int) -> Callable[[Tensor], Tensor]:
    """A gradient hook that zeroes the second half."""

    def mask(gradient: Tensor) -> Tensor:
        size = gradient.shape[axis] // 2
        masked = gradient.clone()
        masked.narrow(axis, size, size).zero_()
        return masked

    return mask
