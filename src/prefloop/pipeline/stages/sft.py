"""Supervised fine-tuning: packs of demonstrations, and the mean log-prob of their learnt tokens.

The loss is that of TRL's SFTTrainer with ``completion_only_loss`` over the same rows
(``tests/training/test_trl_parity.py``); the loop, checkpoints and adapters' hooks are those of the
other stages.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from prefloop.artifacts.store import Artifact
from prefloop.base.console import counted, say
from prefloop.config import DataConfig, SFTStageConfig
from prefloop.data.encode import Encoder
from prefloop.data.files import count_rows
from prefloop.data.packing import Document, Pack, document_of_sequence, packs
from prefloop.data.quarantine import TOO_LONG, Unusable, encoded
from prefloop.data.sources import load_demonstrations
from prefloop.errors import ConfigError
from prefloop.models.backbone import Backbone
from prefloop.models.forward import hidden_N_H, response_logps_R
from prefloop.pipeline.stage import Stage
from prefloop.records import Demonstration
from prefloop.runs.work import Work
from prefloop.training.adapter_hooks import Learner, fit
from prefloop.training.audit import Audit
from prefloop.training.batches import epochs_of_groups, require_any
from prefloop.training.held_out import HeldOut, SFTRow, split
from prefloop.training.loop import Loop
from prefloop.training.steps import train_steps

ROLE = "sft"


@dataclasses.dataclass(eq=False)
class AnswerStep:
    """An optimizer step on the learnt tokens of some sequences, each token with the same weight."""

    backbone: Backbone
    documents: list[Document]

    def __post_init__(self) -> None:
        self.packs = packs(self.documents, self.backbone.config.pack_tokens)
        self.items = sum(len(pack.target_R) for pack in self.packs)

    def loss(self, pack: Pack) -> Tensor:
        with self.backbone.role(ROLE, train=True, dropout=True):
            return -response_logps_R(self.backbone, hidden_N_H(self.backbone, pack), pack).sum()

    def metrics(self) -> dict[str, float]:
        return {}

    def at_start(self) -> None:
        """There is no reference."""


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
        backbone.add_role(ROLE, seed=work.runtime.seed)
        try:
            metrics = self._train(work, audit, train, held)
        finally:
            backbone.drop_role(ROLE)
        counts = {"rows": len(rows), "turns": turns, "truncated": encoder.cut}
        return audit.finish({**metrics, **counts})

    def _train(
        self, work: Work, audit: Audit, rows: list[SFTRow], held: list[SFTRow]
    ) -> dict[str, Any]:
        """Train the fresh role and save it: as it is after the last step, or after the best look at
        the ``held`` rows.
        """
        backbone, config = work.runtime.backbone, self.config
        seed, size = work.runtime.seed, config.batch_size
        steps = epochs_of_groups(
            len(rows), lambda _: 1, size, config.epochs, seed, "sft.epochs", "sequence"
        )
        # Done again where training goes on: this decides which parameters the role has.
        fit(backbone, ROLE, (row.document(i) for i, row in enumerate(rows)))
        with backbone.role(ROLE, train=True):
            learning = {n: p for n, p in backbone.model.named_parameters() if p.requires_grad}
        audit.trainable(learning, ROLE, backbone.method.count(ROLE))
        loop = Loop(
            {f"adapter/{n}": p for n, p in backbone.named_parameters(ROLE).items()},
            config.optim,
            len(steps),
            work.checkpoints,
            ids_of=lambda keys: list(dict.fromkeys(rows[key].id for key in keys)),
            learners=[Learner(backbone, ROLE)],
        )
        observer = HeldOut(work, loop, ROLE, held, config) if held else None

        def prepare(indices: list[int]) -> AnswerStep:
            return AnswerStep(backbone, [rows[i].document(i) for i in indices])

        trained = train_steps(loop, work, audit, steps, prepare, observer)
        best: dict[str, Any] = {}
        if observer:
            best = observer.save(work.folder)
        else:
            backbone.method.finish(ROLE)
            backbone.save_role(ROLE, work.folder)
        losses = {"loss_first": trained.first["loss"], "loss_last": trained.last["loss"]}
        return {**losses, "steps": loop.step, **best}


def _rows(demonstration: Demonstration, encoder: Encoder, every: bool) -> list[SFTRow]:
    found = encoder.conversation(demonstration, every)
    first = document_of_sequence(found[0])
    return [SFTRow(tokens, tuple(first.prompt_ids), demonstration.id) for tokens in found]
