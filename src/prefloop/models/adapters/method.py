"""The interface of an adapter method: prepare a model, then make, run, train, save and merge roles.

A role is one adapter: the policy, the reference, or a member of the reward ensemble. All roles of a
backbone have one method and one shape. They share one set of frozen weights that no role changes,
and an inactive role costs no time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from prefloop.config import AdapterConfig
from prefloop.config.adapters import Card, options_of
from prefloop.errors import ModelError

BLANK = "blank"
"""The first adapter, which PEFT requires. It only creates the layers and is never trained or saved.
"""
TREE = "adapters"
"""The model's child module with all roles of a method without PEFT layers, as
``adapters.<role>.<tensor>``.
"""
Inputs = Callable[[], Iterator[None]]
"""A function that runs the model over a sample of the stage's data and yields after each batch."""


class Method:
    """An adapter method on one model. Its functions are called in the order below."""

    waits: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Parameters whose first-step gradient is zero by construction (LoRA's A while B is 0), mapped
    to the parameters that they wait for. Both are parts of parameter names. The audit skips the
    waiting parameters at step 1.
    """

    def __init__(self, config: AdapterConfig, card: Card) -> None:
        self.config, self.card = config, card
        self.options = options_of(config)

    @property
    def targets(self) -> str:
        """The adapted layers: "all-linear" or a regular expression for full names."""
        return self.config.target_modules

    def misfit(self, inputs: int, outputs: int) -> str | None:
        """The reason why the settings do not fit a linear layer of this size; ``None`` if they do.

        Called before weights are loaded.
        """
        return None

    def check(self, model: Any, name: str, folder: Path | None) -> None:
        """Raise ``ModelError`` if the method does not work on the model.

        Called before weights are loaded.

        Args:
            model: the model on the meta device.
            name: the model's name.
            folder: the model's folder, if it exists already.
        """

    def wrap(self, model: Any) -> Any:
        """Add the layers or hooks for roles to a frozen transformers model.

        Returns the model that becomes ``Backbone.model``.
        """
        raise NotImplementedError

    def base(self) -> Any:
        """The transformers model."""
        raise NotImplementedError

    def add(self, role: str) -> None:
        """Create a fresh role. The caller has seeded torch's generator.

        A fresh role gives the bare model's outputs, if the method's paper starts there.
        """
        raise NotImplementedError

    def begin(self, role: str) -> None:
        """Set a fresh role's initial values that depend on the weights, if there are any.

        Called after ``add``, but not for a role that is loaded from a file.
        """

    def fit(self, role: str, run: Inputs) -> None:
        """Set a fresh role's initial values from data, for methods with ``card.reads_data``.

        ``run`` may be called several times. Not called for a role that is loaded from a file.
        """

    def drop(self, role: str) -> None:
        """Remove a role and free its memory."""
        raise NotImplementedError

    def activate(self, role: str | None) -> None:
        """Run ``role`` (``None``: the bare model) in all later forward passes.

        Called often, so activating the active role again must cost nothing.
        """
        raise NotImplementedError

    def set_dropout(self, role: str, on: bool) -> None:
        """Turn the dropout on the role's inputs on or off."""

    def parameters(self, role: str) -> dict[str, nn.Parameter]:
        """The learning parameters by their names in the role's file, sorted.

        These are the same objects that the optimizer steps.
        """
        raise NotImplementedError

    def count(self, role: str) -> int:
        """How many numbers learn."""
        return sum(parameter.numel() for parameter in self.parameters(role).values())

    def state(self, role: str) -> dict[str, Tensor]:
        """All tensors that ``restore`` needs, by name: the content of
        ``adapter_model.safetensors``.
        """
        return {name: parameter.detach() for name, parameter in self.parameters(role).items()}

    def restore(self, role: str, saved: dict[str, Tensor], described: dict[str, Any]) -> None:
        """Load a file's content into a fresh role.

        Args:
            role: the fresh role.
            saved: the content of ``adapter_model.safetensors``.
            described: the content of ``adapter_config.json``.

        Raises ``ModelError`` if the content does not fit the role.
        """
        own = self.state(role)
        if saved.keys() != own.keys() or any(saved[n].shape != own[n].shape for n in own):
            raise ModelError("rank, alpha, method or target modules differ")
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(saved[name])

    def unmergeable(self, model: Any) -> str | None:
        """The reason why a role cannot be merged into plain weights; ``None`` if it can.

        ``model`` may be on the meta device.
        """
        return (
            None if self.card.merges else "no plain weights can replace it, so it cannot be merged"
        )

    def describe(self, role: str) -> dict[str, Any]:
        """The content of ``adapter_config.json``, in PEFT's fields if PEFT knows the method."""
        raise NotImplementedError

    def owns(self, name: str, roles: Iterable[str]) -> bool:
        """Whether a parameter of the wrapped model belongs to an adapter, by its name."""
        parts = name.split(".")
        return any(role in parts for role in roles)

    # Called during training, around the optimizer's steps.

    def rates(self, role: str, learning_rate: float) -> dict[str, float]:
        """Parameter name → learning rate, where it differs from the stage's."""
        return {}

    def penalty(self, role: str) -> Tensor | None:
        """A term of every step's loss that depends only on the parameters, with its gradient."""
        return None

    def before_step(self, role: str, step: int, total_steps: int) -> None:
        """Called between the backward pass of ``step`` (from 0) and the optimizer's step.

        This and ``after_step`` are called only if the role got a gradient.
        """

    def after_step(self, role: str, step: int, total_steps: int) -> None:
        """Called after the optimizer's step."""

    def settled(self, role: str) -> bool:
        """Whether the role has its final form, so that ``finish`` would not change it."""
        return True

    def finish(self, role: str) -> None:
        """Bring the role into its final form at the end of training, which may come early."""

    def extra(self, role: str) -> dict[str, Tensor]:
        """The tensors that a checkpoint needs in addition to ``parameters`` to resume exactly."""
        return {}

    def take_extra(self, role: str, tensors: dict[str, Tensor]) -> None:
        """Restore the tensors of ``extra``."""
