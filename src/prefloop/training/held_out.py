"""Early stopping of SFT: the loss on demonstrations that are not trained on, the best weights, and
how long to wait for better ones.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prefloop.base.atomic import settle
from prefloop.base.sealed import remove
from prefloop.config import SFTStageConfig
from prefloop.data.packing import Document, document_of_sequence, packs
from prefloop.data.tokens import Tokens
from prefloop.errors import DataError
from prefloop.models.backbone import Backbone
from prefloop.models.forward import hidden_N_H, response_logps_R
from prefloop.runs.work import Work
from prefloop.training.sft_trainer import EXTRA, Looks, checkpoints, step_of


@dataclasses.dataclass(frozen=True)
class SFTRow:
    """A sequence to train on; ``prompt`` is the ids ahead of the first answer of its
    conversation.
    """

    tokens: Tokens
    prompt: tuple[int, ...]

    def document(self, key: int) -> Document:
        """The sequence as packs take it."""
        return document_of_sequence(self.tokens, key)


def split(
    rows: Sequence[SFTRow], config: SFTStageConfig, seed: int
) -> tuple[list[SFTRow], list[SFTRow]]:
    """Rows to train on and rows to look at: ``config.eval_share`` of the prompts with all of their
    answers.

    Raises ``DataError`` when one side would be empty.
    """
    if not config.eval_share:
        return list(rows), []
    prompts = list(dict.fromkeys(row.prompt for row in rows))
    random.Random(seed).shuffle(prompts)
    held = set(prompts[: max(1, round(config.eval_share * len(prompts)))])
    train = [row for row in rows if row.prompt not in held]
    if not train:
        raise DataError(
            f"sft.eval_share {config.eval_share:g} leaves none of {len(prompts)} prompts to train"
            " on: lower it"
        )
    return train, [row for row in rows if row.prompt in held]


class HeldOut(TrainerCallback):
    """Looks at the held-out loss every ``sft.eval_every`` steps and after the last, keeps the
    weights of the best look, stops the training when ``sft.patience`` looks brought none better.

    A look counts once the adapter's method no longer changes the role's form (``Method.settled``),
    so that the result is what was looked at. What it saw survives a kill in the checkpoints
    (``so_far``); looks that training goes back behind are forgotten with their weights.
    """

    def __init__(
        self, work: Work, role: str, rows: Sequence[SFTRow], config: SFTStageConfig
    ) -> None:
        self.work, self.role, self.config = work, role, config
        self.documents = [row.document(i) for i, row in enumerate(rows)]
        self.weights = work.scratch / "looks"
        """A folder for each look that may be gone back to, named by its step."""
        self.losses: dict[int, float] = {}
        """Step → loss of the looks that count; those up to the checkpoint that training goes on
        from.
        """

    def best_step(self, until: int | None = None) -> int:
        """The first of the looks (up to step ``until``) with the lowest loss."""
        seen = {step: loss for step, loss in self.losses.items() if until is None or step <= until}
        return min(seen, key=lambda step: (seen[step], step))

    def so_far(self) -> Looks:
        """What a checkpoint of now holds."""
        best = self.weights / str(self.best_step()) if self.losses else None
        return Looks(
            dict(self.losses),
            tuple(path for path in best.rglob("*") if path.is_file()) if best else (),
        )

    def stops_at(self, step: int) -> bool:
        """Whether patience is at its end after ``step``."""
        if self.config.patience is None or step not in self.losses:
            return False
        return (
            sum(self.best_step(step) < look <= step for look in self.losses) >= self.config.patience
        )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.losses = {
            step: loss for step, loss in self.losses.items() if step <= state.global_step
        }
        self._forget({step for step in self._kept() if step <= state.global_step})

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        step, last = state.global_step, state.global_step == state.max_steps
        if step % self.config.eval_every and not last:
            return
        backbone = self.work.runtime.backbone
        if last:
            backbone.method.finish(self.role)  # so that the last look counts in any case
        loss = mean_loss(backbone, self.role, self.documents)
        self.work.emit("held_out", step=step, loss=loss)
        if last or backbone.method.settled(self.role):
            self.losses[step] = loss
            if self.best_step() == step:
                self._keep(backbone, step)
            control.should_training_stop |= self.stops_at(step)
        resume(backbone, self.role)

    def _keep(self, backbone: Backbone, step: int) -> None:
        """The role as it is now, whole or not there; what no checkpoint's best look was goes."""
        partial = self.weights / "partial"
        remove(partial)
        backbone.save_role(self.role, partial)
        if extra := backbone.method.extra(self.role):
            save_file({n: t.detach().cpu().contiguous() for n, t in extra.items()}, partial / EXTRA)
        remove(self.weights / str(step))
        settle(partial, self.weights / str(step))
        behind = [step_of(checkpoint) for checkpoint in checkpoints(self.work.checkpoints)]
        self._forget({step, *(self.best_step(s) for s in behind if min(self.losses) <= s)})

    def _kept(self) -> list[int]:
        return [int(folder.name) for folder in self.weights.glob("*") if folder.name.isdigit()]

    def _forget(self, but: set[int]) -> None:
        for step in set(self._kept()) - but:
            remove(self.weights / str(step))

    def save(self, folder: Path) -> dict[str, Any]:
        """Put the best weights back and into ``folder``; say of which look they are."""
        backbone, best = self.work.runtime.backbone, self.weights / str(self.best_step())
        backbone.add_role(self.role, start=best)
        if (best / EXTRA).is_file():
            backbone.method.take_extra(
                self.role, load_file(best / EXTRA, device=str(backbone.device))
            )
        backbone.save_role(self.role, folder)
        step = self.best_step()
        return {
            "held_out": len(self.documents),
            "held_out_loss": self.losses[step],
            "best_step": step,
        }


def mean_loss(backbone: Backbone, role: str, documents: Sequence[Document]) -> float:
    """Mean negative log-likelihood of the response tokens under ``role``, in nats, without
    dropout.
    """
    total = tokens = 0.0
    with backbone.role(role):
        for pack in packs(documents, backbone.scoring_tokens):
            logps_R = response_logps_R(
                backbone, hidden_N_H(backbone, pack.to(backbone.device)), pack.to(backbone.device)
            )
            total, tokens = total - float(logps_R.double().sum()), tokens + len(logps_R)
    return total / tokens


def resume(backbone: Backbone, role: str) -> None:
    """Let ``role`` learn in the forward passes of a library that runs the model itself."""
    backbone.activate(role, dropout=backbone.config.adapter.dropout > 0)
    backbone.model.train()
    for parameter in backbone.parameters(role):
        parameter.requires_grad_(True)
