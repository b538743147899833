"""What watches a trainer of TRL: log and progress, the audit of its first step, and the end that a
signal asks for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prefloop.base.console import progress
from prefloop.base.interrupt import waiting
from prefloop.errors import ConfigError
from prefloop.runs.work import Work
from prefloop.training.audit import Audit
from prefloop.training.trl_seat import POLICY, Seat

_CURVES = {
    "learning_rate": "lr",
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
    "reward": "reward_mean",
    "completions/mean_length": "length_mean",
}
"""TRL's names of what it logs, by those that prefloop's report and trackers know."""
_AT_START = ("rewards/chosen", "rewards/rejected", "kl")
"""What TRL logs of trainers with a reference that is 0 while the policy equals it."""


class TrlLog(TrainerCallback):
    """What a trainer logs, into prefloop's log and progress; a loss that is no number ends it."""

    def __init__(self, work: Work, audit: Audit, reference: bool) -> None:
        self.work, self.audit, self.reference = work, audit, reference
        self.last: dict[str, Any] = {}
        self._bar: Any = None
        self._advance: Callable[..., None] | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._bar = progress(self.work.stage, state.max_steps, "step", done=state.global_step)
        self._advance = self._bar.__enter__()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if not logs or "loss" not in logs:
            return
        numbers = {k: float(v) for k, v in logs.items() if isinstance(v, int | float)}
        if not math.isfinite(numbers["loss"]):
            raise ConfigError(
                f"{self.work.stage}: the loss of step {state.global_step} is {numbers['loss']}:"
                " lower trl.args.learning_rate"
            )
        if self.reference and state.global_step == 1:
            exact = not args.bf16
            for key in _AT_START:
                if key in numbers:
                    self.audit.equal(
                        f"TRL's {key} before the first update",
                        numbers[key],
                        0.0,
                        1e-3 if exact else 5e-2,
                        "TRL's reference is not the SFT adapter that the policy starts from.",
                    )
        self.last = {_CURVES.get(k, k): v for k, v in numbers.items() if math.isfinite(v)}
        self.work.emit("step", step=state.global_step, **self.last)
        if self._advance:
            self._advance(note=f"loss {numbers['loss']:.3f}")

    def close(self) -> None:
        """End the progress display, however training ended."""
        if self._bar is not None:
            self._bar.__exit__(None, None, None)


class Moving(TrainerCallback):
    """Checks the first step that has a gradient and a learning rate: the policy moved, the backbone
    did not.
    """

    def __init__(self, seat: Seat, audit: Audit) -> None:
        self.seat, self.audit = seat, audit
        self.pending, self.checked = False, False
        named = seat.backbone.named_parameters(POLICY)
        self.before = {n: p.detach().clone() for n, p in named.items()}
        self.frozen = seat.backbone.frozen_digest()

    def resume(self, learnt: Mapping[str, Tensor]) -> None:
        """Go on from a checkpoint of these parameters: if they have moved, that was checked."""
        self.checked = any(
            not torch.equal(learnt[name], start.cpu()) for name, start in self.before.items()
        )

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        if self.checked:
            return
        gradients = (p.grad for p in self.seat.backbone.parameters(POLICY))
        self.pending = any(group["lr"] > 0 for group in optimizer.param_groups) and any(
            gradient is not None and bool(gradient.any()) for gradient in gradients
        )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if not self.pending or self.checked:
            return
        backbone = self.seat.backbone
        after = {n: p.detach() for n, p in backbone.named_parameters(POLICY).items()}
        self.audit.moved(
            self.before, after, self.frozen, backbone.frozen_digest(), backbone.method.waits
        )
        self.checked, self.before = True, {}

    def require(self) -> None:
        """Raise ``AuditError`` where no step could learn: in one that samples, every answer to a
        prompt may have had the same reward.
        """
        if not self.checked:
            self.audit.check(
                "weights move",
                False,
                "no step had both a gradient and a learning rate",
                "The loss does not depend on the policy: are all rewards of a prompt equal?",
            )


class TrlEnding(TrainerCallback):
    """A checkpoint after the step in which the run is asked to end."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        control.should_save |= waiting()
