"""TRL's SFTTrainer with prefloop's schedule, what adapter methods do around a step, and checkpoints
that are whole or not there.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from trl import SFTTrainer

from prefloop.base.console import progress
from prefloop.base.interrupt import waiting
from prefloop.base.sealed import check_files, hashes_of, read_folder, remove, seal_folder
from prefloop.config import OptimConfig
from prefloop.runs.work import Work
from prefloop.training.adapter_hooks import Learner
from prefloop.training.loop import KEPT, end_where_asked, factor

LEARNT = "learnt.safetensors"
"""In a checkpoint: the adapter's parameters."""
EXTRA = "method.safetensors"
"""Beside weights that may be gone back to: what the adapter's method needs with them."""
PROBE = 1 << 20
"""Bytes that a disk which is not full takes."""


_NAME = re.compile(r"checkpoint-(\d+)", re.ASCII)


def step_of(checkpoint: Path) -> int:
    """The optimizer steps behind a checkpoint."""
    return int(checkpoint.name.rpartition("-")[2])


def checkpoints(folder: Path) -> list[Path]:
    """What goes by the name of a checkpoint in a folder, oldest first."""
    return sorted(
        (place for place in folder.glob("checkpoint-*") if _NAME.fullmatch(place.name)), key=step_of
    )


@dataclasses.dataclass(frozen=True)
class Looks:
    """What was seen of the held-out loss up to a checkpoint: losses by step, and the files of the
    best weights.
    """

    losses: dict[int, float] = dataclasses.field(default_factory=dict)
    best: tuple[Path, ...] = ()


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files are whole."""

    path: Path
    losses: dict[int, float]
    """Of the looks up to it."""
    last: bool
    """Whether it is of the last step of all."""

    @classmethod
    def read(cls, path: Path) -> Checkpoint:
        """Raises ``StoreError`` where a file of it, or of the best weights up to it, is not what
        was written.
        """
        content = read_folder(path)
        check_files(path.parent, content["needed"])
        state = TrainerState.load_from_json(str(path / TRAINER_STATE_NAME))
        losses = {int(step): loss for step, loss in content["losses"].items()}
        return cls(path, losses, state.global_step >= state.max_steps)


class Trainer(SFTTrainer):
    """TRL's trainer with the learning-rate schedule of the other stages, whose first step already
    learns.
    """

    def __init__(
        self, optim: OptimConfig, learner: Learner, looks: Callable[[], Looks], **arguments: Any
    ) -> None:
        self.optim_config, self.learner, self.looks = optim, learner, looks
        super().__init__(**arguments)

    def create_optimizer(self, model: Any = None) -> Any:
        """TRL's, with the parameters for which the adapter's method has another learning rate in
        groups of their own.
        """
        optimizer = super().create_optimizer(model)
        named = self.learner.backbone.named_parameters(self.learner.role)
        rates = {
            id(named[n]): r for n, r in self.learner.rates(self.optim_config.learning_rate).items()
        }
        for group in list(optimizer.param_groups) if rates else ():
            for rate in sorted({rates[id(p)] for p in group["params"] if id(p) in rates}):
                moved = [p for p in group["params"] if rates.get(id(p)) == rate]
                group["params"] = [p for p in group["params"] if rates.get(id(p)) != rate]
                optimizer.add_param_group({**group, "params": moved, "lr": rate})
        return optimizer

    def _clip_grad_norm(self, model: Any) -> Any:
        """Clip after the method has added its penalty, as ``training.loop`` does."""
        self.learner.before_step(self.state.global_step, self.state.max_steps)
        return super()._clip_grad_norm(model)

    def _get_output_dir(self, trial: Any) -> str:
        """Where a checkpoint is written before it gets its name."""
        return str(Path(str(self.args.output_dir)) / "partial")

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """A checkpoint of this step, whole or not at all; older ones go. A run that is asked to end
        then ends. Raises ``OSError`` when the disk is full.
        """
        folder, partial = Path(str(self.args.output_dir)), Path(self._get_output_dir(trial))
        shutil.rmtree(partial, ignore_errors=True)
        try:
            super()._save_checkpoint(model, trial)
        except RuntimeError:
            _probe(
                folder / "probe"
            )  # torch.save says of a full disk only that something about its file went wrong
            raise
        made = partial / f"checkpoint-{self.state.global_step}"
        looks = self.looks()
        content = {"losses": looks.losses, "needed": hashes_of(folder, looks.best)}
        seal_folder(made, folder / made.name, content)
        for old in checkpoints(folder)[:-KEPT]:
            remove(old)
        end_where_asked(self.state.global_step, self.state.max_steps)

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        """Keep what learns and nothing else, whatever the method: of a model that is no PEFT model
        transformers would keep every weight.
        """
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        learnt = self.learner.backbone.named_parameters(self.learner.role)
        save_file({n: p.detach().cpu().contiguous() for n, p in learnt.items()}, folder / LEARNT)
        if extra := self.learner.extra():
            save_file({n: t.cpu().contiguous() for n, t in extra.items()}, folder / EXTRA)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        saved = load_file(Path(resume_from_checkpoint) / LEARNT)
        with torch.no_grad():
            for name, parameter in self.learner.backbone.named_parameters(
                self.learner.role
            ).items():
                parameter.copy_(saved[name])
        kept = Path(resume_from_checkpoint) / EXTRA
        if kept.is_file():
            self.learner.take_extra(load_file(kept))

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Warm-up and decay of ``training.loop.factor``."""
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer or self.optimizer,
            lambda step: factor(self.optim_config, step, num_training_steps),
        )
        return self.lr_scheduler

    def after_first_step(self, check: Callable[[], None]) -> None:
        """Call ``check`` once step 1 is done (never in a run that goes on from a checkpoint)."""
        self.add_callback(_AfterFirstStep(check))


class Hooks(TrainerCallback):
    """What the adapter's method does around a step."""

    def __init__(self, learner: Learner) -> None:
        self.learner = learner

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if args.max_grad_norm <= 0:  # else done ahead of clipping
            self.learner.before_step(state.global_step, state.max_steps)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.learner.after_step(state.global_step, state.max_steps)


class _AfterFirstStep(TrainerCallback):
    def __init__(self, check: Callable[[], None]) -> None:
        self.check = check

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.global_step == 1:
            self.check()


class Ending(TrainerCallback):
    """A checkpoint after the step in which the run is asked to end. It belongs behind callbacks
    that take their time after a step.
    """

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        # None of the step that patience ended at: training does not go on from that one.
        if not control.should_training_stop:
            control.should_save |= waiting()


class Log(TrainerCallback):
    """Trainer events → prefloop's log and progress."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.advance: Callable[..., None] | None = None
        self._bar: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._bar = progress("sft", state.max_steps, "step", done=state.global_step)
        self.advance = self._bar.__enter__()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if logs and "loss" in logs:
            self.work.emit(
                "step",
                step=state.global_step,
                loss=float(logs["loss"]),
                lr=logs.get("learning_rate"),
            )
            if self.advance:
                self.advance(note=f"loss {float(logs['loss']):.3f}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._bar.__exit__(None, None, None)


def _probe(path: Path) -> None:
    """Raise the ``OSError`` of a full disk where ``path`` would lie on one."""
    try:
        with path.open("wb") as file:
            file.write(bytes(PROBE))
            file.flush()
            os.fsync(file.fileno())
    finally:
        path.unlink(missing_ok=True)
