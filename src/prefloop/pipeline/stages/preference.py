"""Learning straight from votes: DPO and its relatives, one stage, the loss looked up by name.

Each response is run once per policy and once per reference, in packs that share the prompt; pairs
only index the results. The reference is the frozen SFT adapter the policy started from, on the same
backbone: no second model.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from prefloop.artifacts.store import Artifact
from prefloop.config import PreferenceConfig
from prefloop.data.encode import Encoder, PreferenceGroup
from prefloop.data.groups import Groups, documents, write_groups
from prefloop.data.packing import Pack, packs
from prefloop.errors import ConfigError
from prefloop.labeling.aggregation import WEIGHTS, aggregation, hardened
from prefloop.models.backbone import Backbone
from prefloop.pipeline.stage import Stage
from prefloop.pipeline.stages.comparisons import require_pairs, unusable_of
from prefloop.runs.work import Work
from prefloop.training.adapter_hooks import Learner
from prefloop.training.audit import Audit
from prefloop.training.batches import epochs_of_groups, warn_of_few
from prefloop.training.dpo import PAIR_LOSSES, PairLoss
from prefloop.training.loop import Loop
from prefloop.training.pair_batch import accuracy, decided, pairs_of
from prefloop.training.policy import (
    POLICY,
    REFERENCE,
    policy_B,
    policy_parameters,
    reference_B,
    save_policy,
    start_policy,
)
from prefloop.training.steps import train_steps


@dataclasses.dataclass(eq=False)
class PairStep:
    """An optimizer step on the pairs of some prompts."""

    backbone: Backbone
    algorithm: PairLoss
    config: PreferenceConfig
    temperature: float
    groups: list[PreferenceGroup]
    cached: Tensor | None = None
    """The reference's summed log-prob of each response, by key."""

    def __post_init__(self) -> None:
        self.packs = packs([g.document for g in self.groups], self.backbone.config.pack_tokens)
        self.items = sum(len(g.pairs) for g in self.groups)
        self.by_key = {key: g for g in self.groups for key in g.document.keys}
        self.counts: list[Tensor] = []
        self.margins: list[Tensor] = []

    def loss(self, pack: Pack) -> Tensor:
        backbone, temperature = self.backbone, self.temperature
        needs = self.algorithm.needs_reference
        reference = reference_B(backbone, pack, temperature, self.cached) if needs else 0.0
        pairs = pairs_of(pack, self.by_key, policy_B(backbone, pack, temperature), reference)
        margin_P = self.algorithm.reward_margin(pairs, self.config).detach()
        self.counts.append(torch.stack(decided(margin_P, pairs.label)))
        self.margins.append((margin_P * (2 * pairs.label - 1).sign()).sum())
        return (pairs.weight * self.algorithm.loss(pairs, self.config)).sum()

    def metrics(self) -> dict[str, float]:
        margin = sum(float(margin) for margin in self.margins) / self.items
        return {"accuracy": accuracy(self.counts), "margin": margin}

    def at_start(self) -> float | None:
        known = self.algorithm.at_start if self.config.weights == "equal" else None
        return known(self.config) if known else None


class Preference(Stage):
    """Comparisons and an SFT adapter → an aligned adapter. Produces a slot named after the loss."""

    uses = frozenset({"backbone", "temperature"})
    needs_temperature = "divides log-probs by it"

    def __init__(self, loss: str = "dpo", config: PreferenceConfig | None = None) -> None:
        self.name = self.produces = loss
        self.loss = PAIR_LOSSES[loss]
        self.config = config or PreferenceConfig()
        if not 0 <= self.config.flipped_share < 0.5:
            raise ConfigError(
                f"preference.flipped_share is {self.config.flipped_share}: a share of flipped votes"
                " lies in [0, 0.5)"
            )
        self.cached = self.loss.needs_reference and self.config.reference == "cached"
        self.inputs = ("sft", "comparisons", *(("reference",) if self.cached else ()))

    def parts(self) -> dict[str, Any]:
        return {"config": self.config}

    def build(self, work: Work, inputs: dict[str, Artifact]) -> dict[str, Any]:
        require_pairs(inputs["comparisons"], self.name)
        runtime, config, audit = work.runtime, self.config, Audit(self.name)
        backbone, temperature = runtime.backbone, runtime.generation.temperature
        encoder = Encoder(backbone.chat, backbone.config.max_length)
        source = inputs["comparisons"] / "comparisons.jsonl"
        labels = aggregation(config.aggregation)
        groups = write_groups(
            source,
            work.scratch / "groups.arrow",
            encoder,
            labels if config.soft_labels else hardened(labels),
            WEIGHTS[config.weights],
            unusable_of(inputs["comparisons"], work.folder),
        )
        audit.tokens(backbone.chat, documents(groups), encoder.cut + encoder.unfinished)
        audit.texts(backbone.chat, encoder, groups[0].document.tokens(0))
        cached = (
            load_file(inputs["reference"] / "logps.safetensors")["logp_sum"]
            if self.cached
            else None
        )
        try:
            start_policy(work, inputs["sft"], audit, [g.document for g in groups[:2]], temperature)
            metrics = self._train(work, audit, groups, temperature, cached)
            save_policy(backbone, work.folder)
        finally:
            backbone.drop_role(POLICY)
            backbone.drop_role(REFERENCE)
        return audit.finish(
            {
                **metrics,
                "pairs": groups.total_pairs,
                "truncated": encoder.cut,
                **groups.left_out.metrics(),
            }
        )

    def _train(
        self, work: Work, audit: Audit, groups: Groups, temperature: float, cached: Tensor | None
    ) -> dict[str, Any]:
        backbone, config = work.runtime.backbone, self.config
        steps = epochs_of_groups(
            len(groups),
            groups.pairs,
            config.batch_pairs,
            config.epochs,
            work.runtime.seed,
            "preference.epochs",
        )
        warn_of_few(self.name, len(steps), "preference")
        loop = Loop(
            policy_parameters(backbone),
            config.optim,
            len(steps),
            work.checkpoints,
            ids_of=groups.ids_of,
            learners=[Learner(backbone, POLICY)],
        )

        def prepare(indices: list[int]) -> PairStep:
            batch = [groups[i] for i in indices]
            return PairStep(backbone, self.loss, config, temperature, batch, cached)

        last = train_steps(loop, work, audit, steps, prepare).last
        return {
            "steps": loop.step,
            "loss_last": last.get("loss"),
            "accuracy_last": last.get("accuracy"),
            "margin_last": last.get("margin"),
        }
