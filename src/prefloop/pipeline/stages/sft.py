"""Supervised fine-tuning: TRL's SFTTrainer on token ids that prefloop made.

Left to TRL: loop, packing (best-fit decreasing), completion-only loss, checkpoints. Kept here:
tokenisation (one BOS, EOS inside the loss even when the pad token is the EOS) and the adapter's
float32 precision, which TRL casts to bfloat16 on quantised models.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig

from prefloop.artifacts.store import Artifact
from prefloop.base.console import counted, say
from prefloop.base.interrupt import deferred
from prefloop.base.sealed import remove
from prefloop.config import DataConfig, SFTStageConfig
from prefloop.data.encode import Encoder
from prefloop.data.files import count_rows
from prefloop.data.packing import document_of_sequence
from prefloop.data.quarantine import TOO_LONG, Unusable, encoded
from prefloop.data.sources import load_demonstrations
from prefloop.errors import ConfigError
from prefloop.pipeline.stage import Stage
from prefloop.records import Demonstration
from prefloop.runs.work import Work
from prefloop.training.adapter_hooks import Learner, fit
from prefloop.training.audit import Audit
from prefloop.training.batches import require_any
from prefloop.training.held_out import HeldOut, SFTRow, split
from prefloop.training.loop import newest_whole
from prefloop.training.optimizers import TRANSFORMERS
from prefloop.training.sft_trainer import (
    Checkpoint,
    Ending,
    Hooks,
    Log,
    Looks,
    Trainer,
    checkpoints,
    step_of,
)

ROLE = "sft"


class SFT(Stage):
    """Demonstrations → an adapter that answers like them. Produces ``sft``."""

    name = "sft"
    produces = "sft"
    uses = frozenset({"backbone"})

    def __init__(
        self, config: SFTStageConfig | None = None, data: DataConfig | None = None
    ) -> None:
        self.config = config or SFTStageConfig()
        self.config.require()
        self.data = data or DataConfig()

    def parts(self) -> dict[str, Any]:
        data = self.data
        return {
            "config": self.config,
            "demonstrations": data.demonstrations,
            "layout": data.layout,
            "bad_rows": data.bad_rows,
            "limit": data.limit,
        }

    def preflight(self) -> None:
        super().preflight()
        if self.data.demonstrations is None:
            raise ConfigError(
                "data.demonstrations is not set: name a file of prompts with good answers for SFT;"
                " a file of pairs serves too, its preferred answers are taken"
            )
        # A whole pass needs no count, which reads the file.
        if self.config.epochs < 1 and (rows := count_rows(self.data.demonstrations)) is not None:
            require_any(
                "sft.epochs",
                self.config.epochs,
                min(rows, self.data.limit or rows),
                "demonstration",
            )

    def build(self, work: Work, inputs: dict[str, Artifact]) -> dict[str, Any]:
        assert self.data.demonstrations is not None  # seen to in ``preflight``
        loaded = load_demonstrations(
            self.data.demonstrations,
            layout=self.data.layout,
            bad_rows=self.data.bad_rows,
            quarantine_dir=work.folder,
            limit=self.data.limit,
        )
        say(f"  {loaded.describe()}")
        backbone = work.runtime.backbone
        encoder = Encoder(backbone.chat, backbone.config.max_length)
        every = self.config.turns == "all"
        aside = (
            work.folder / f"{TOO_LONG}.quarantine.jsonl"
            if self.data.bad_rows == "quarantine"
            else None
        )
        kept = encoded(loaded.records, lambda d: _rows(d, encoder, every), Unusable(aside))
        rows = [row for _, found in kept for row in found]
        audit = Audit(self.name)
        audit.tokens(backbone.chat, (row.document(i) for i, row in enumerate(rows)), encoder.cut)
        audit.texts(backbone.chat, encoder, rows[0].tokens)
        audit.check("truncated responses", True, f"{encoder.cut} of {len(rows)}", "")
        turns = sum(row.tokens.turns for row in rows)
        audit.note(
            f"{counted(turns, 'assistant turn')} learnt of {counted(len(kept), 'conversation')} in"
            f" {counted(len(rows), 'sequence')}"
        )
        if len(rows) > len(kept):
            longest = sum(max(len(row.tokens.ids) for row in found) for _, found in kept)
            audit.note(
                "the chat template rewrites earlier turns once others follow:"
                f" {counted(len(kept), 'conversation')} became {counted(len(rows), 'sequence')},"
                f" {sum(len(row.tokens.ids) for row in rows) / longest:.1f} times the tokens"
                " (backbone.chat_template may name a template that keeps them)"
            )
        train, held = split(rows, self.config, work.runtime.seed)
        require_any("sft.epochs", self.config.epochs, len(train), "sequence")
        looks = HeldOut(work, ROLE, held, self.config) if held else None

        backbone.add_role(ROLE, seed=work.runtime.seed)
        done = _goes_on_from(checkpoints(work.checkpoints), looks, self.config.epochs)
        if done:
            say(f"  {self.name}: goes on from step {step_of(done.path)}", "dim")
        # Done again where training goes on: what it makes of the role decides which parameters
        # there are.
        fit(backbone, ROLE, (row.document(i) for i, row in enumerate(train)))
        trainer = self._trainer(work, train, looks.so_far if looks else Looks)
        if looks:
            trainer.add_callback(looks)
        named = {n: p for n, p in backbone.model.named_parameters() if p.requires_grad}
        audit.trainable(named, ROLE, backbone.method.count(ROLE))
        before = {n: p.detach().clone() for n, p in named.items()}
        frozen = backbone.frozen_digest()
        trainer.after_first_step(
            lambda: audit.moved(
                before,
                {n: p.detach() for n, p in named.items()},
                frozen,
                backbone.frozen_digest(),
                backbone.method.waits,
            )
        )
        trainer.add_callback(Ending())
        try:
            with deferred():
                result = trainer.train(resume_from_checkpoint=str(done.path) if done else None)
            best = {}
            if looks:
                best = looks.save(work.folder)
            else:
                backbone.method.finish(ROLE)
                backbone.save_role(ROLE, work.folder)
        finally:
            backbone.model.eval()  # the trainer leaves it in training mode
            backbone.drop_role(ROLE)
        audit.stepped(trainer.state.global_step)
        losses = [h["loss"] for h in trainer.state.log_history if "loss" in h]
        if not losses or not math.isfinite(result.training_loss):
            raise ConfigError(
                f"sft: training loss is {result.training_loss}: lower sft.optim.learning_rate"
            )
        return audit.finish(
            {
                "loss_first": losses[0],
                "loss_last": losses[-1],
                "steps": trainer.state.global_step,
                "rows": len(rows),
                "turns": turns,
                "truncated": encoder.cut,
                **best,
            }
        )

    def _trainer(self, work: Work, rows: list[SFTRow], looks: Callable[[], Looks]) -> Trainer:
        backbone, config = work.runtime.backbone, self.config
        tokens = [len(row.tokens.ids) for row in rows]
        longest = backbone.config.max_length if config.packing else max(tokens)
        per_row = longest / (sum(tokens) / len(tokens)) if config.packing else 1.0
        rows_a_step = max(1, round(config.batch_size / per_row))
        arguments = SFTConfig(
            output_dir=str(work.checkpoints),
            per_device_train_batch_size=1 if config.packing else config.batch_size,
            gradient_accumulation_steps=rows_a_step if config.packing else 1,
            num_train_epochs=config.epochs,
            optim=TRANSFORMERS[config.optim.name],
            adam_beta2=(
                0.99 if "lion" in config.optim.name else 0.999
            ),  # Lion's own, which transformers does not know
            learning_rate=config.optim.learning_rate,
            weight_decay=config.optim.weight_decay,
            max_grad_norm=config.optim.max_grad_norm,
            max_length=longest,
            packing=config.packing,
            completion_only_loss=True,
            gradient_checkpointing=backbone.config.gradient_checkpointing == "block",
            bf16=backbone.compute_dtype == torch.bfloat16 and not backbone.fused,
            use_cpu=backbone.device.type == "cpu",
            save_strategy="steps",
            save_steps=config.optim.checkpoint_every,
            logging_steps=1,
            logging_nan_inf_filter=False,
            report_to="none",
            disable_tqdm=True,
            seed=work.runtime.seed,
            dataset_num_proc=None,
        )
        data = Dataset.from_list(
            [
                {"input_ids": r.tokens.ids, "completion_mask": list(map(int, r.tokens.learn))}
                for r in rows
            ]
        )
        for chatty in ("trl", "transformers", "datasets"):
            logging.getLogger(chatty).setLevel(logging.ERROR)
        backbone.activate(ROLE, dropout=backbone.config.adapter.dropout > 0)
        for parameter in backbone.parameters(ROLE):
            parameter.requires_grad_(True)
        learner = Learner(backbone, ROLE, "")
        disable_progress_bars()  # TRL's, one for every step of its preparation
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = Trainer(
                config.optim,
                learner,
                looks,
                model=backbone.model,
                args=arguments,
                train_dataset=data,
                processing_class=backbone.chat.tokenizer,
                callbacks=[Log(work), Hooks(learner)],
            )
        trainer.remove_callback(PrinterCallback)
        for parameter in backbone.parameters(ROLE):
            parameter.data = parameter.data.float()
        return trainer


def _goes_on_from(
    places: Sequence[Path], looks: HeldOut | None, epochs: float
) -> Checkpoint | None:
    """The checkpoint to go on from, with what had been looked at by then.

    None of the step that training ended at, from which transformers would train on: that of
    patience, and the last of all in the middle of an epoch. It is removed: training on from the one
    before forgets looks that it needs.
    """
    found = newest_whole(places, Checkpoint.read)
    if looks:
        looks.losses = found.losses if found else {}
    if found and ((looks and looks.stops_at(step_of(found.path))) or (epochs % 1 and found.last)):
        remove(found.path)
        found = newest_whole(places[: places.index(found.path)], Checkpoint.read)
        if looks:
            looks.losses = found.losses if found else {}
    return found


def _rows(demonstration: Demonstration, encoder: Encoder, every: bool) -> list[SFTRow]:
    found = encoder.conversation(demonstration, every)
    first = document_of_sequence(found[0])
    return [SFTRow(tokens, tuple(first.prompt_ids)) for tokens in found]
