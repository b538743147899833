"""Any trainer of TRL as the stage that makes the policy: ``--algo trl:DPOTrainer``.

It starts from the SFT adapter, learns from what the run has, as token ids that prefloop made, and
ends in an adapter that is compared like every other. Loss, optimizer and schedule are TRL's. Its
losses on pairs and thumbs do not divide logits by ``generation.temperature``, as prefloop's own do;
its trainers that sample do.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from prefloop.artifacts.store import Artifact
from prefloop.base.console import say
from prefloop.base.interrupt import deferred
from prefloop.config import DataConfig
from prefloop.config.trl import (
    PREFIX,
    REWARD_MODEL,
    TrlConfig,
    require_method,
    slot_of,
    trainer_named,
)
from prefloop.data.packing import Document, packs
from prefloop.errors import ConfigError
from prefloop.models.reward_model import Reward
from prefloop.pipeline.stage import Stage
from prefloop.pipeline.stages.trl_rows import ROWS, RowSource
from prefloop.runs.work import Work
from prefloop.training.audit import Audit
from prefloop.training.policy import logps_R
from prefloop.training.trl_rewards import RewardFunctions


class Trl(Stage):
    """An SFT adapter and what the trainer learns from → an aligned adapter. Produces ``trl_dpo``
    with ``DPOTrainer``, and the like.
    """

    def __init__(
        self, trainer: str, config: TrlConfig | None = None, data: DataConfig | None = None
    ) -> None:
        """``trainer`` names a class of TRL. Raises ``ConfigError`` for one that is unknown or makes
        no policy.
        """
        self.kind = trainer_named(trainer)
        self.trainer = trainer
        self.config = config or TrlConfig()
        self.data = data or DataConfig()
        self.name = self.produces = slot_of(PREFIX + trainer)
        learns_from, weights = self.kind.learns_from, self.config.weights
        self.reads = learns_from if learns_from in ("prompts", "demonstrations") else ""
        """The field of ``data`` that the trainer learns from; empty where it learns from votes."""
        self.inputs = ("sft", *(() if self.reads else ("comparisons",)))
        self.uses = frozenset({"backbone"})
        self.rewards: RewardFunctions | None = None
        if learns_from == "prompts":
            self.rewards = RewardFunctions(weights)
            self.inputs += ("reward",) if REWARD_MODEL in weights else ()
            self.uses |= {"generation"}
            self.needs_temperature = "samples at it"
        elif self.config.rewards:
            raise ConfigError(
                f"trl.rewards is for trainers that sample, and {trainer} learns from"
                f" {learns_from}: leave it out"
            )
        if learns_from == "thumbs" and "train_sampling_strategy" in self.config.args:
            raise ConfigError(
                "trl.args.train_sampling_strategy is not for the trainer: the order of its rows"
                " decides which responses KTO's KL is estimated from"
            )

    def parts(self) -> dict[str, Any]:
        parts: dict[str, Any] = {"config": self.config, "trainer": self.trainer}
        if self.reads:
            names = (self.reads, "layout", "bad_rows", "limit")
            parts |= {name: getattr(self.data, name) for name in names}
        return parts | ({"rewards": self.rewards.parts()} if self.rewards else {})

    def preflight(self) -> None:
        super().preflight()
        if self.reads and getattr(self.data, self.reads) is None:
            raise ConfigError(
                f"data.{self.reads} is not set, and TRL's {self.trainer} learns from them"
            )
        if self.rewards:
            self.rewards.preflight()
        from prefloop.training.trl_arguments import arguments

        arguments(self.trainer, self.config.args, Path("unused"), self.config.checkpoint_every)

    def build(self, work: Work, inputs: dict[str, Artifact]) -> dict[str, Any]:
        from prefloop.training import trl_trainer
        from prefloop.training.trl_arguments import arguments
        from prefloop.training.trl_callbacks import Moving, TrlEnding, TrlLog
        from prefloop.training.trl_seat import POLICY, seated

        runtime, config, audit = work.runtime, self.config, Audit(self.name)
        require_method(runtime.backbone_config.adapter.method)
        backbone = runtime.backbone
        source = RowSource(self.name, config, self.data, inputs)
        found = ROWS[self.kind.learns_from](source, work, audit)
        made = arguments(
            self.trainer, config.args, work.checkpoints, config.checkpoint_every, runtime
        )
        if "learning_rate" not in config.args:
            say(
                f"  {self.name}: the learning rate is TRL's own, {made.learning_rate:g}; adapters"
                " usually take 1e-5 to 5e-4 (trl.args learning_rate)",
                "yellow",
            )
        dropout = self.reads == "demonstrations" and backbone.config.adapter.dropout > 0
        with seated(work, inputs["sft"].path, dropout) as seat:
            more: dict[str, Any] = {}
            if self.rewards:
                reward = (
                    Reward.load(backbone, inputs["reward"].path) if "reward" in inputs else None
                )
                made.reward_weights = list(self.rewards.weights.values())
                more["reward_funcs"] = self.rewards.functions(
                    found.prompts, found.ids, reward, seat.lent, backbone.chat.decode
                )
            log = TrlLog(work, audit, self.kind.reference)
            trainer = trl_trainer.make(self.trainer, seat, made, found, log, **more)
            self._look_at_start(seat, audit, found.probe)
            moving = Moving(seat, audit)
            trainer.add_callback(moving)
            trainer.add_callback(TrlEnding())
            if done := trl_trainer.resumed_from(work.checkpoints):
                say(f"  {self.name}: goes on from step {done.name.rpartition('-')[2]}", "dim")
                moving.resume(load_file(done / trl_trainer.LEARNT))
            with deferred(), contextlib.closing(log):
                trainer.train(resume_from_checkpoint=str(done) if done else None)
            audit.stepped(trainer.state.global_step)
            moving.require()
            backbone.save_role(POLICY, work.folder)
        last = {f"{key}_last": log.last.get(key) for key in ("loss", "accuracy", "margin")}
        sampled = {key: log.last.get(key) for key in ("reward_mean", "kl")} if self.rewards else {}
        known = {key: value for key, value in (last | sampled).items() if value is not None}
        return audit.finish({"steps": trainer.state.global_step, **known, **found.metrics})

    def _look_at_start(self, seat: Any, audit: Audit, probe: Document) -> None:
        """The policy alone learns, and TRL's reference has the policy's log-probs."""
        from prefloop.training.trl_seat import POLICY, REFERENCE

        backbone = seat.backbone
        named = {n: p for n, p in backbone.model.named_parameters() if p.requires_grad}
        audit.trainable(named, POLICY, backbone.method.count(POLICY))
        if REFERENCE not in backbone.roles:
            return
        pack = packs([probe], budget=1)[0].to(backbone.device)
        with seat.lent():
            log_ratio_R = logps_R(backbone, pack, POLICY, 1.0) - logps_R(
                backbone, pack, REFERENCE, 1.0
            )
        audit.equal(
            "ratio policy / reference",
            float(log_ratio_R.exp().mean()),
            1.0,
            1e-6,
            "TRL's reference is not the SFT adapter that the policy starts from.",
        )
