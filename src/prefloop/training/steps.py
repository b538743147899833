"""Training on packs from the first step to the last: what SFT, the reward model, DPO and its kin
and KTO share.

A stage says what its steps are (``TrainingStep``). Here are the order within a step (update,
audit, event, held-out loss, checkpoint) and the way back from a checkpoint. PPO has phases of its
own around ``Loop.update``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from prefloop.base.console import progress, say
from prefloop.base.interrupt import deferred
from prefloop.data.packing import Pack
from prefloop.runs.work import Work
from prefloop.training.audit import Audit
from prefloop.training.batches import ahead
from prefloop.training.loop import Loop


class TrainingStep(Protocol):
    """What one optimizer step learns from; made in a thread while the step before it runs."""

    packs: list[Pack]
    items: int
    """What the loss is the mean over: pairs, responses or tokens."""

    def loss(self, pack: Pack) -> Tensor:
        """The sum of the losses of a pack's items."""

    def metrics(self) -> dict[str, float]:
        """What is logged beside loss, gradient norm and learning rate, once all packs are done."""

    def at_start(self) -> float | None:
        """The loss where policy and reference agree, if it is known."""


class Observer(Protocol):
    """What looks at the weights after each step, and may end the training."""

    losses: dict[int, float]

    def resume(self, losses: dict[int, float], step: int) -> None:
        """Go on from a checkpoint of ``step`` with what had been seen by then."""

    def stepped(self, step: int, last: bool) -> None:
        """Look at the weights after ``step``."""

    def stops_at(self, step: int) -> bool:
        """Whether training ends after ``step``."""

    def needed(self) -> list[Path]:
        """The files that a checkpoint of now needs beside it."""


@dataclasses.dataclass(frozen=True)
class Trained:
    """What training has come to; every checkpoint keeps it."""

    first: dict[str, float] = dataclasses.field(default_factory=dict)
    """Metrics of the first step."""
    last: dict[str, float] = dataclasses.field(default_factory=dict)
    """Metrics of the newest step."""
    losses: dict[int, float] = dataclasses.field(default_factory=dict)
    """Held-out losses by step."""

    @classmethod
    def read(cls, state: dict[str, Any]) -> Trained:
        """From a checkpoint, whose JSON has text for keys."""
        losses = {int(step): loss for step, loss in state["losses"].items()}
        return cls(state["first"], state["last"], losses)


def train_steps(
    loop: Loop,
    work: Work,
    audit: Audit,
    steps: Sequence[list[int]],
    prepare: Callable[[list[int]], TrainingStep],
    observer: Observer | None = None,
    title: str = "",
    **event: Any,
) -> Trained:
    """Train on ``steps``, each the indices that ``prepare`` makes a step of, from the newest
    checkpoint on.

    ``title`` names the progress bar where it is not the stage; ``event`` goes into each event. The
    first step of all is audited: the loss where policy and reference agree, what moved, what did
    not.
    """
    backbone, restored = work.runtime.backbone, loop.restore()
    done = Trained.read(restored[0]) if restored else Trained()
    if observer:
        observer.resume(done.losses, loop.step)
    if restored:
        say(f"  {title or audit.stage}: goes on from step {loop.step}", "dim")
    before = {} if restored else {n: p.detach().clone() for n, p in loop.parameters.items()}
    frozen = "" if restored else backbone.frozen_digest()
    left = [] if observer and observer.stops_at(loop.step) else steps[loop.step :]
    bar = progress(title or audit.stage, len(steps), "step", done=loop.step)
    with deferred(), bar as advance:
        for step in ahead(prepare, left):
            metrics = loop.update(step.packs, step.loss, step.items) | step.metrics()
            done = Trained(done.first or metrics, metrics)
            if before:
                if (expected := step.at_start()) is not None:
                    exact = backbone.compute_dtype == torch.float32
                    audit.equal(
                        f"{audit.stage} loss at the reference",
                        metrics["loss"],
                        expected,
                        1e-3 if exact else 2e-2 * max(1.0, expected),
                        "Policy and reference differ before training: the reference is not the SFT"
                        " adapter.",
                    )
                after = {n: p.detach() for n, p in loop.parameters.items()}
                audit.moved(before, after, frozen, backbone.frozen_digest(), backbone.method.waits)
                before = {}
            work.emit("step", step=loop.step, **event, **metrics)
            advance(note=f"loss {metrics['loss']:.3f}")
            if observer:
                observer.stepped(loop.step, loop.step == len(steps))
            if loop.due():
                done = dataclasses.replace(done, losses=observer.losses if observer else {})
                loop.save(dataclasses.asdict(done), needed=observer.needed() if observer else ())
            if observer and observer.stops_at(loop.step):
                break
    audit.stepped(loop.step)
    return done
