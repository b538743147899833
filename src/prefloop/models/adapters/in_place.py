"""Methods that PEFT lacks: on the plain transformers model, a role's tensors in a tree beside the
weights, hooks that run the active role.
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
    """Parameters under dotted names."""

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
    """All roles of a model, and the method that they are of."""

    def __init__(self, method: Native) -> None:
        super().__init__({})
        self.method = method


class Native(Method):
    """A role is, for each of ``layers``, a few tensors by name; the method's hooks read those of
    the active role.

    Nothing of the model is replaced, so a dropped role leaves it as it was to the bit.
    """

    adds: ClassVar = True
    """Whether a role runs beside the model's own weights; else in their places, and rounds as they
    do.
    """

    def __init__(self, config: AdapterConfig, card: Card) -> None:
        super().__init__(config, card)
        self.model: Any = None
        self.layers: dict[str, Any] = {}
        """The modules that the method works on, by their names in the model."""
        self.roles: dict[str, dict[str, dict[str, nn.Parameter]]] = {}
        """Role → layer → what learns."""
        self.active: str | None = None
        self.dropped: set[str] = set()
        """Roles whose dropout is on."""

    def find(self, model: Any) -> dict[str, Any]:
        """The layers of a model that this method works on."""
        return dict(targeted(model, self.config.target_modules))

    def attach(self, name: str, layer: Any) -> None:
        """Hook one layer, so that it runs the active role."""
        raise NotImplementedError

    def fresh(self, name: str, layer: Any) -> dict[str, Tensor]:
        """What a fresh role owns for one layer, float32."""
        raise NotImplementedError

    def change(self, role: str, name: str, weight: Tensor) -> bool:
        """Add to a float copy of the plain model's weight what the role does to it, if anything.
        Only where ``unmergeable`` says nothing.
        """
        raise NotImplementedError

    def weights(self) -> dict[str, nn.Parameter]:
        """The model's own weights by their names in its checkpoint, whatever role is active."""
        return {n: p for n, p in self.model.named_parameters() if not n.startswith(f"{TREE}.")}

    def check(self, model: Any, name: str, folder: Path | None) -> None:
        if not self.find(model):
            raise ModelError(
                f"adapter {self.card.name} finds no layer in {name} that it can work on: take"
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
        self.roles[role] = {
            name: {
                key: nn.Parameter(t.to(device))
                for key, t in sorted(self.fresh(name, layer).items())
            }
            for name, layer in self.layers.items()
        }
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
        owned = self.roles[role].items()
        return dict(
            sorted(
                (f"{name}.{key}".lstrip("."), p) for name, own in owned for key, p in own.items()
            )
        )

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
            raise ModelError(f"it is no adapter of method {self.card.name}")
        super().restore(role, saved, described)

    def owns(self, name: str, roles: Iterable[str]) -> bool:
        return name.startswith(f"{TREE}.")

    def dropout(self, x: Tensor) -> Tensor:
        """The adapter's input with the active role's dropout."""
        on = self.active in self.dropped and self.config.dropout > 0
        return nn.functional.dropout(x, self.config.dropout) if on else x


def product(x: Tensor, *weights: Tensor) -> Tensor:
    """x through matrices [out, in] one after the other, in float32 unless autocast says
    otherwise.
    """
    if not torch.is_autocast_enabled(x.device.type):  # which would undo it
        x = x.to(weights[0].dtype)
    for weight in weights:
        x = torch.nn.functional.linear(x, weight)
    return x
