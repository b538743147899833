"""What every adapter method does for the backbone: put its structure on a model, make roles, run,
learn, save and merge them.

A role is one adapter: policy, reference, a member of the reward ensemble. All roles of a backbone
are of one method and one shape, lie on one set of frozen weights that no role changes, and cost
nothing while another is active.
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
"""PEFT wants a first adapter; this one is never trained nor saved and only carries the layer
structure.
"""
TREE = "adapters"
"""The model's child that holds all roles of a method that is not PEFT's layers:
``adapters.<role>.<tensor>``.
"""
Inputs = Callable[[], Iterator[None]]
"""Runs the model over a sample of the stage's data, a batch for each item."""


class Method:
    """An adapter method on one model. Subclasses fill in what differs; the order of calls is that
    of the methods below.
    """

    waits: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Parts of names of parameters that get no gradient while all the other ones, named by the
    values in their place, are 0.
    """

    def __init__(self, config: AdapterConfig, card: Card) -> None:
        self.config, self.card = config, card
        self.options = options_of(config)

    @property
    def targets(self) -> str:
        """Which layers: "all-linear" or a regular expression for full names."""
        return self.config.target_modules

    def misfit(self, inputs: int, outputs: int) -> str | None:
        """What keeps the settings from a linear layer of this size, if anything does; asked before
        weights are loaded.
        """
        return None

    def check(self, model: Any, name: str, folder: Path | None) -> None:
        """Raise ``ModelError`` when the method cannot work on the model ``name``; ``model`` is its
        shape, without weights.

        Asked before any weight is loaded; ``folder`` is where they lie, if they are here already.
        """

    def wrap(self, model: Any) -> Any:
        """Put the structure that roles live in on a frozen transformers model; returns what
        ``Backbone.model`` is from now on.
        """
        raise NotImplementedError

    def base(self) -> Any:
        """The transformers model."""
        raise NotImplementedError

    def add(self, role: str) -> None:
        """Make a fresh role; torch's generator is seeded. A fresh role's outputs are the bare
        model's, as far as the method's paper has it so.
        """
        raise NotImplementedError

    def begin(self, role: str) -> None:
        """Give a role that ``add`` has just made the first values that come from the weights, where
        there are such. Not called for a role that is loaded.
        """

    def fit(self, role: str, run: Inputs) -> None:
        """Let a fresh role start from data, where ``card.reads_data``; ``run`` may be called again.
        Not called for a role that was loaded.
        """

    def drop(self, role: str) -> None:
        """Forget a role and free its memory."""
        raise NotImplementedError

    def activate(self, role: str | None) -> None:
        """Run ``role`` (``None``: the bare model) in every forward from now on. Called often: where
        nothing changes it must cost nothing.
        """
        raise NotImplementedError

    def set_dropout(self, role: str, on: bool) -> None:
        """Turn the role's dropout on its inputs on or off."""

    def parameters(self, role: str) -> dict[str, nn.Parameter]:
        """What learns, by the names in the role's file, sorted; the very objects that the optimizer
        steps.
        """
        raise NotImplementedError

    def count(self, role: str) -> int:
        """Numbers that learn."""
        return sum(parameter.numel() for parameter in self.parameters(role).values())

    def state(self, role: str) -> dict[str, Tensor]:
        """Everything that ``restore`` needs, by name: the content of
        ``adapter_model.safetensors``.
        """
        return {name: parameter.detach() for name, parameter in self.parameters(role).items()}

    def restore(self, role: str, saved: dict[str, Tensor], described: dict[str, Any]) -> None:
        """Put the content of a file into a fresh role. Raises ``ModelError`` when it does not
        fit.
        """
        own = self.state(role)
        if saved.keys() != own.keys() or any(saved[n].shape != own[n].shape for n in own):
            raise ModelError("rank, alpha, method or target modules differ")
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(saved[name])

    def unmergeable(self, model: Any) -> str | None:
        """Why no plain weights of this model (with its weights or without) do what a role does,
        where there are none.
        """
        return (
            None
            if self.card.merges
            else "no plain weights do what it does, so nothing can be merged"
        )

    def describe(self, role: str) -> dict[str, Any]:
        """The content of ``adapter_config.json``: PEFT's where PEFT loads the files."""
        raise NotImplementedError

    def owns(self, name: str, roles: Iterable[str]) -> bool:
        """Whether a parameter of the wrapped model belongs to an adapter and not to the frozen
        weights.
        """
        parts = name.split(".")
        return any(role in parts for role in roles)

    # Learning: what a step needs beside the optimizer.

    def rates(self, role: str, learning_rate: float) -> dict[str, float]:
        """Learning rates of parameters (by name) that differ from the stage's."""
        return {}

    def penalty(self, role: str) -> Tensor | None:
        """A term of the loss of every step that depends on the parameters alone; called under
        gradient.
        """
        return None

    def before_step(self, role: str, step: int, total_steps: int) -> None:
        """After the backward pass of 0-based ``step``, ahead of the optimizer; only where the role
        got a gradient, as ``after_step``.
        """

    def after_step(self, role: str, step: int, total_steps: int) -> None:
        """After the optimizer has stepped."""

    def settled(self, role: str) -> bool:
        """Whether the role has the form that it ends in, which ``finish`` would leave as it is."""
        return True

    def finish(self, role: str) -> None:
        """Training is over, maybe early: bring the role into the form that it is to end in."""

    def extra(self, role: str) -> dict[str, Tensor]:
        """What a checkpoint needs beside ``parameters`` to go on in the same weights."""
        return {}

    def take_extra(self, role: str, tensors: dict[str, Tensor]) -> None:
        """Put ``extra`` back."""
