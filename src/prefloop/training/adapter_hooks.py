"""A role that learns, for loops: what its method wants done around the optimizer's step."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from itertools import islice

from torch import Tensor

from prefloop.data.packing import Document, packs
from prefloop.models.adapters.method import Method
from prefloop.models.backbone import Backbone
from prefloop.models.forward import hidden_N_H

SAMPLE = 64
"""Documents that an adapter which starts from data reads."""


def fit(backbone: Backbone, role: str, documents: Iterable[Document]) -> None:
    """Let a fresh role start from the first of ``documents``, where its method wants to."""
    if not backbone.method.card.reads_data:
        return
    sample = packs(islice(documents, SAMPLE), backbone.config.pack_tokens)

    def run() -> Iterator[None]:
        for pack in sample:
            with backbone.role(role):
                hidden_N_H(backbone, pack.to(backbone.device))
            yield

    if backbone.kernel is None:
        next(run())  # the first pass tries kernels on inputs of its own, which are no data
    backbone.method.fit(role, run)
    backbone.made_anew(role)


@dataclasses.dataclass(frozen=True)
class Learner:
    """A role of a backbone; ``prefix`` stands before its parameters' names in the loop."""

    backbone: Backbone
    role: str
    prefix: str = "adapter/"

    @property
    def method(self) -> Method:
        return self.backbone.method

    def rates(self, learning_rate: float) -> dict[str, float]:
        """Peak rates of parameters, by their names in the loop, that differ from
        ``learning_rate``.
        """
        return {
            f"{self.prefix}{n}": rate
            for n, rate in self.method.rates(self.role, learning_rate).items()
        }

    def has_gradient(self) -> bool:
        """Whether the backward passes of this step reached the role: one that is held still gets no
        penalty and no hooks.
        """
        return any(parameter.grad is not None for parameter in self.backbone.parameters(self.role))

    def before_step(self, step: int, total_steps: int) -> None:
        """Add the method's penalty to the gradients, then let it look at them; ahead of
        clipping.
        """
        with self._learning():
            penalty = self.method.penalty(self.role)
            if penalty is not None:
                penalty.backward()
        self.method.before_step(self.role, step, total_steps)

    def after_step(self, step: int, total_steps: int) -> None:
        """After the optimizer's step."""
        self.method.after_step(self.role, step, total_steps)

    def extra(self) -> dict[str, Tensor]:
        """What a checkpoint holds beside the parameters."""
        return self.method.extra(self.role)

    def take_extra(self, tensors: dict[str, Tensor]) -> None:
        """Go on from a checkpoint."""
        self.method.take_extra(
            self.role, {name: t.to(self.backbone.device) for name, t in tensors.items()}
        )

    @contextlib.contextmanager
    def _learning(self) -> Iterator[None]:
        """The role's parameters take gradients, whichever role the last pass has left learning."""
        parameters = self.backbone.parameters(self.role)
        flags = [p.requires_grad for p in parameters]
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield
        for parameter, flag in zip(parameters, flags, strict=True):
            parameter.requires_grad_(flag)
