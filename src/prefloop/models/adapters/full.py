"""Full fine-tuning as an adapter method."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from torch import Tensor, nn

from prefloop.models.adapters.in_place import Native, Tree
from prefloop.models.adapters.method import TREE

SHARED = "weights of the model"
"""The name in the tree of the model's own weights, while a role's weights replace them."""


class Full(Native):
    """Every weight learns. A role owns a float32 copy of all weights, which replaces them while the
    role is active.

    Each role takes 4 bytes per weight. The learning role takes 4 more for the gradient and 8 for
    AdamW's moments. A policy and its reference therefore take 8 bytes per weight in addition to the
    shared weights. The shared weights must be float.
    """

    adds: ClassVar = False

    def find(self, model: Any) -> dict[str, Any]:
        return {"": model}

    def weights(self) -> dict[str, nn.Parameter]:
        return self.own

    def wrap(self, model: Any) -> Any:
        # Tied weights appear once in ``own``, and with all of their modules in ``places``.
        self.own = dict(model.named_parameters())
        self.places = [
            (module, key, name)
            for name, parameter in self.own.items()
            for module in model.modules()
            for key, own in module._parameters.items()
            if own is parameter
        ]
        super().wrap(model)
        # The tree comes first among the children, so that named_parameters lists a role's weights
        # by the role's names even while they replace the model's.
        model._modules = {TREE: model._modules.pop(TREE), **model._modules}
        return model

    def attach(self, name: str, layer: Any) -> None:
        """No hook is needed: a role's weights replace the model's own."""

    def fresh(self, name: str, layer: Any) -> dict[str, Tensor]:
        return {n: p.detach().float().clone() for n, p in self.own.items()}

    def activate(self, role: str | None) -> None:
        if role == self.active:
            return
        if role is None:
            del self.model.adapters._modules[SHARED]
        elif self.active is None:
            self.model.adapters.add_module(SHARED, Tree(self.own))
        weights = self.own if role is None else self.roles[role][""]
        for module, key, name in self.places:
            module._parameters[key] = weights[name]
        self.active = role

    def owns(self, name: str, roles: Iterable[str]) -> bool:
        shared = name.startswith(f"{TREE}.{SHARED}.")
        return not shared and (name.startswith(f"{TREE}.") or self.active is not None)

    def change(self, role: str, name: str, weight: Tensor) -> bool:
        weight.copy_(self.roles[role][""][name])
        return True
