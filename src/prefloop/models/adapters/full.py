"""Full fine-tuning in the words of an adapter method."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from torch import Tensor, nn

from prefloop.models.adapters.in_place import Native, Tree
from prefloop.models.adapters.method import TREE

SHARED = "weights of the model"
"""Where the model's own weights lie in the tree while a role's stand in their places."""


class Full(Native):
    """Every weight learns: a role owns a float32 copy of all of them, which takes their places
    while it is active.

    Memory is what it is: 4 bytes for each weight and role, 4 more for the gradient and 8 for
    AdamW's moments of the role that learns, so a policy and its reference alone cost 8 bytes a
    weight beside the shared ones. The weights must be float.
    """

    adds: ClassVar = False

    def find(self, model: Any) -> dict[str, Any]:
        return {"": model}

    def weights(self) -> dict[str, nn.Parameter]:
        return self.own

    def wrap(self, model: Any) -> Any:
        # Tied weights appear once here, and in all of their places below.
        self.own = dict(model.named_parameters())
        self.places = [
            (module, key, name)
            for name, parameter in self.own.items()
            for module in model.modules()
            for key, found in module._parameters.items()
            if found is parameter
        ]
        super().wrap(model)
        # First among the children, so that a role's weights are known by the role's names while
        # they stand in the model's places.
        model._modules = {TREE: model._modules.pop(TREE), **model._modules}
        return model

    def attach(self, name: str, layer: Any) -> None:
        """Nothing: a role's weights stand in the places of the model's own."""

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
