"""Delta-LoRA: the weights move together with the product of their low-rank matrices."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from prefloop.config import AdapterConfig
from prefloop.config.adapters import Card
from prefloop.errors import ModelError
from prefloop.models.adapters.in_place import Native, product
from prefloop.models.adapters.lora import over


class DeltaLoRA(Native):
    """Delta-LoRA (Zi et al. 2023, arXiv 2309.02411).

    After every step from step K on: W ← W + λ s (B_{t+1} A_{t+1} - B_t A_t), with s = alpha / r.

    These moves add up to λ s (B_t A_t - B_K A_K). A role therefore keeps B_K and A_K instead of a
    moved copy of each weight. The numbers are the same without the rounding of many small moves,
    they take a fraction of the memory, and 4-bit weights can be used. As in the paper, the moved
    weight is a constant for the gradient, which comes from s B A alone. There is no dropout, since
    the weights would follow a wrong gradient.

    ``options.ratio`` is λ (default 2). ``options.start`` is K, the number of optimizer steps before
    the weights begin to move, or below 1 their share of the stage's steps (default 0.1; the paper
    waits for hundreds of steps in its long runs). A loaded role whose weights had begun to move
    continues at once.
    """

    waits: ClassVar = {"lora_A": ("lora_B",)}

    def __init__(self, config: AdapterConfig, card: Card) -> None:
        super().__init__(config, card)
        options = self.options
        self.ratio, self.start = float(options["ratio"]), float(options["start"])
        self.scale = config.alpha / config.r
        self.anchors: dict[str, dict[str, Tensor]] = {}
        """Role → ``<layer>.start_A`` and ``<layer>.start_B``, the A_K and B_K of each layer. A role
        has an entry once its weights move.
        """

    def misfit(self, inputs: int, outputs: int) -> str | None:
        return over(self.config.r, min(inputs, outputs))

    def fresh(self, name: str, layer: Any) -> dict[str, Tensor]:
        a = torch.empty(self.config.r, layer.in_features)
        nn.init.kaiming_uniform_(a, a=5**0.5)
        return {"lora_A": a, "lora_B": torch.zeros(layer.out_features, self.config.r)}

    def attach(self, name: str, layer: Any) -> None:
        def add(_: Any, inputs: tuple[Tensor], out: Tensor) -> Tensor:
            if self.active is None:
                return out
            own = self.roles[self.active][name]
            a, b, x = own["lora_A"], own["lora_B"], inputs[0]
            change = product(x, a, b)
            if anchor := self.anchors.get(self.active):
                moved = product(x, a.detach(), b.detach())
                change = change + self.ratio * (
                    moved - product(x, anchor[f"{name}.start_A"], anchor[f"{name}.start_B"])
                )
            return out + (self.scale * change).to(out.dtype)

        layer.register_forward_hook(add)

    def after_step(self, role: str, step: int, total_steps: int) -> None:
        start = self.start if self.start >= 1 else self.start * total_steps
        if step + 1 >= start and role not in self.anchors:
            self._anchor(role)

    def _anchor(self, role: str) -> None:
        """Let the weights move from now on."""
        self.anchors[role] = {
            f"{name}.start_{letter}": own[f"lora_{letter}"].detach().clone()
            for name, own in self.roles[role].items()
            for letter in "AB"
        }

    def drop(self, role: str) -> None:
        super().drop(role)
        self.anchors.pop(role, None)

    def state(self, role: str) -> dict[str, Tensor]:
        return super().state(role) | self.anchors.get(role, {})

    def extra(self, role: str) -> dict[str, Tensor]:
        return dict(self.anchors.get(role, {}))

    def take_extra(self, role: str, tensors: dict[str, Tensor]) -> None:
        self.anchors.pop(role, None)  # at the checkpoint the weights may not have moved yet
        if tensors:
            self.anchors[role] = {name: t.to(self.model.device) for name, t in tensors.items()}

    def describe(self, role: str) -> dict[str, Any]:
        return super().describe(role) | {"ratio": self.ratio, "moving": role in self.anchors}

    def restore(self, role: str, saved: dict[str, Tensor], described: dict[str, Any]) -> None:
        if (described.get("ratio"), described.get("lora_alpha")) != (self.ratio, self.config.alpha):
            raise ModelError("alpha or options.ratio differs")
        if described.get("moving"):
            self._anchor(role)
        super().restore(role, saved, described)

    def change(self, role: str, name: str, weight: Tensor) -> bool:
        layer = name.removesuffix(".weight")
        if layer not in self.layers:
            return False
        own = self.roles[role][layer]
        change = own["lora_B"] @ own["lora_A"]
        if anchor := self.anchors.get(role):
            change = change + self.ratio * (
                change - anchor[f"{layer}.start_B"] @ anchor[f"{layer}.start_A"]
            )
        weight.add_(self.scale * change)
        return True
