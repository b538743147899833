"""Methods that PEFT lacks, on the plain transformers model.

The roles' tensors are in a tree of their own in the model, and hooks run the active role.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from prefloop.artifacts.adapter_config import KEY
from prefloop.config import AdapterConfig
from prefloop.config.adapters import Card
from prefloop.errors import ModelError
from prefloop.models.adapters.method import TREE, Method
from prefloop.models.adapters.targets import targeted


class Tree(nn.Module):
    """A module tree of parameters with dotted names."""

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        super().__init__()
        for name, parameter in parameters.items():
            self._put(name, parameter)

    def _put(self, name: str, parameter: nn.Parameter) -> None:
        first, _, rest = name.partition(".")
        if not rest:
            self.register_parameter(first, parameter)
            return
        if first not in self._modules:
            self.add_module(first, Tree({}))
        child = self._modules[first]
        assert isinstance(child, Tree)
        child._put(rest, parameter)


class Root(Tree):
    """All roles of a model, and their method."""

    def __init__(self, method: Native) -> None:
        super().__init__({})
        self.method = method


class Native(Method):
    """A method whose role has a few named tensors for each of ``layers``.

    The method's hooks read the tensors of the active role. No part of the model is replaced, so it
    is unchanged to the bit after a role is dropped.
    """

    adds: ClassVar = True
    """Whether a role's outputs are added to those of the model's own weights. Otherwise its weights
    replace the model's, and a merge rounds them to the nearest.
    """

    def __init__(self, config: AdapterConfig, card: Card) -> None:
        super().__init__(config, card)
        self.model: Any = None
        self.layers: dict[str, Any] = {}
        """Name in the model → module that the method works on."""
        self.roles: dict[str, dict[str, dict[str, nn.Parameter]]] = {}
        """Role → layer → name → learning parameter."""
        self.active: str | None = None
        self.dropped: set[str] = set()
        """Roles whose dropout is on."""

    def find(self, model: Any) -> dict[str, Any]:
        """Name → layer of the model that this method works on."""
        return dict(targeted(model, self.config.target_modules))

    def attach(self, name: str, layer: Any) -> None:
        """Add a hook to one layer that runs the active role."""
        raise NotImplementedError

    def fresh(self, name: str, layer: Any) -> dict[str, Tensor]:
        """A fresh role's float32 tensors for one layer."""
        raise NotImplementedError

    def change(self, role: str, name: str, weight: Tensor) -> bool:
        """Merge the role into ``weight``, a float copy of the plain weight ``name``, in place.

        Returns whether the role changes this weight. Called only for roles that can be merged.
        """
        raise NotImplementedError

    def weights(self) -> dict[str, nn.Parameter]:
        """Checkpoint name → the model's own weight, whichever role is active."""
        return {n: p for n, p in self.model.named_parameters() if not n.startswith(f"{TREE}.")}

    def check(self, model: Any, name: str, folder: Path | None) -> None:
        if not self.find(model):
            raise ModelError(
                f"adapter {self.card.name} finds no layer in {name} that it can work on: use"
                " another method, such as lora"
            )

    def wrap(self, model: Any) -> Any:
        self.model = model
        self.layers = self.find(model)
        model.add_module(TREE, Root(self))
        for name, layer in self.layers.items():
            self.attach(name, layer)
        return model

    def base(self) -> Any:
        return self.model

    def add(self, role: str) -> None:
        device = self.model.device
        self.roles[role] = {}
        for name, layer in self.layers.items():
            tensors = sorted(self.fresh(name, layer).items())
            self.roles[role][name] = {key: nn.Parameter(t.to(device)) for key, t in tensors}
        self.model.adapters.add_module(role, Tree(self.parameters(role)))

    def drop(self, role: str) -> None:
        if self.active == role:
            self.activate(None)
        self.dropped.discard(role)
        del self.roles[role]
        del self.model.adapters._modules[role]

    def activate(self, role: str | None) -> None:
        self.active = role

    def set_dropout(self, role: str, on: bool) -> None:
        (self.dropped.add if on else self.dropped.discard)(role)

    def parameters(self, role: str) -> dict[str, nn.Parameter]:
        named = {
            f"{layer}.{key}".lstrip("."): parameter
            for layer, own in self.roles[role].items()
            for key, parameter in own.items()
        }
        return dict(sorted(named.items()))

    def describe(self, role: str) -> dict[str, Any]:
        config = self.config
        return {
            KEY: self.card.name,
            "r": config.r,
            "lora_alpha": config.alpha,
            "target_modules": config.target_modules,
        }

    def restore(self, role: str, saved: dict[str, Tensor], described: dict[str, Any]) -> None:
        if described.get(KEY) != self.card.name:
            raise ModelError(f"it is not an adapter of method {self.card.name}")
        super().restore(role, saved, described)

    def owns(self, name: str, roles: Iterable[str]) -> bool:
        return name.startswith(f"{TREE}.")

    def dropout(self, x: Tensor) -> Tensor:
        """Apply the active role's dropout, if it is on, to the adapter's input."""
        on = self.active in self.dropped and self.config.dropout > 0
        return nn.functional.dropout(x, self.config.dropout) if on else x


def product(x: Tensor, *weights: Tensor) -> Tensor:
    """Multiply x [..., in] by matrices [out, in] in turn, in the matrices' float32.

    Under autocast the products are in autocast's dtype.
    """
    if not torch.is_autocast_enabled(x.device.type):
        x = x.to(weights[0].dtype)
    for weight in weights:
        x = torch.nn.functional.linear(x, weight)
    return x
