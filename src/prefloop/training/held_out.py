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

from prefloop.base.atomic import settle
from prefloop.base.sealed import remove
from prefloop.config import SFTStageConfig
from prefloop.data.packing import Document, document_of_sequence, packs
from prefloop.data.tokens import Tokens
from prefloop.errors import DataError
from prefloop.models.backbone import Backbone
from prefloop.models.forward import hidden_N_H, response_logps_R
from prefloop.runs.work import Work
from prefloop.training.loop import Loop, step_of

EXTRA = "method.safetensors"
"""Beside weights that may be gone back to: what the adapter's method needs with them."""


@dataclasses.dataclass(frozen=True)
class SFTRow:
    """A sequence to train on."""

    tokens: Tokens
    prompt: tuple[int, ...]
    """The ids ahead of the first answer of its conversation."""
    id: str
    """The demonstration's."""

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


class HeldOut:
    """Looks at the held-out loss every ``sft.eval_every`` steps and after the last, keeps the
    weights of the best look, stops the training when ``sft.patience`` looks brought none better.

    A look counts once the adapter's method no longer changes the role's form (``Method.settled``),
    so that the result is what was looked at. What it saw survives a kill in the checkpoints; looks
    that training goes back behind are forgotten with their weights.
    """

    def __init__(
        self, work: Work, loop: Loop, role: str, rows: Sequence[SFTRow], config: SFTStageConfig
    ) -> None:
        self.work, self.loop, self.role, self.config = work, loop, role, config
        self.documents = [row.document(i) for i, row in enumerate(rows)]
        self.weights = work.scratch / "looks"
        """A folder for each look that may be gone back to, named by its step."""
        self.losses: dict[int, float] = {}
        """Step → loss of the looks that count."""

    def best_step(self, until: int | None = None) -> int:
        """The first of the looks (up to step ``until``) with the lowest loss."""
        seen = {step: loss for step, loss in self.losses.items() if until is None or step <= until}
        return min(seen, key=lambda step: (seen[step], step))

    def needed(self) -> list[Path]:
        """The files of the best weights, which a checkpoint of now needs."""
        best = self.weights / str(self.best_step()) if self.losses else None
        return [path for path in best.rglob("*") if path.is_file()] if best else []

    def stops_at(self, step: int) -> bool:
        """Whether patience is at its end after ``step``."""
        if self.config.patience is None or step not in self.losses:
            return False
        return (
            sum(self.best_step(step) < look <= step for look in self.losses) >= self.config.patience
        )

    def resume(self, losses: dict[int, float], step: int) -> None:
        """Go on from a checkpoint of ``step`` with the losses up to it."""
        self.losses = dict(losses)
        self._forget({kept for kept in self._kept() if kept <= step})

    def stepped(self, step: int, last: bool) -> None:
        """Look at the weights after ``step``, where a look is due."""
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

    def _keep(self, backbone: Backbone, step: int) -> None:
        """The role as it is now, whole or not there; what no checkpoint's best look was goes."""
        partial = self.weights / "partial"
        remove(partial)
        backbone.save_role(self.role, partial)
        if extra := backbone.method.extra(self.role):
            save_file({n: t.detach().cpu().contiguous() for n, t in extra.items()}, partial / EXTRA)
        remove(self.weights / str(step))
        settle(partial, self.weights / str(step))
        behind = [step_of(checkpoint) for checkpoint in self.loop.checkpoints()]
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
            pack = pack.to(backbone.device)
            logps_R = response_logps_R(backbone, hidden_N_H(backbone, pack), pack)
            total, tokens = total - float(logps_R.double().sum()), tokens + len(logps_R)
    return total / tokens
