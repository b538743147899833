"""Learning straight from votes: DPO and its relatives, one stage, the loss looked up by name.

Each response is run once per policy and once per reference, in packs that share the prompt; pairs
only index the results. The reference is the frozen SFT adapter the policy started from, on the same
backbone: no second model.
"""

from __future__ import annotations

from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from prefloop.artifacts.store import Artifact
from prefloop.base.console import progress
from prefloop.base.interrupt import deferred
from prefloop.config import PreferenceConfig
from prefloop.data.encode import Encoder, PreferenceGroup
from prefloop.data.groups import Groups, documents, write_groups
from prefloop.data.packing import Pack, packs
from prefloop.errors import ConfigError
from prefloop.labeling.aggregation import WEIGHTS, aggregation, hardened
from prefloop.pipeline.stage import Stage
from prefloop.pipeline.stages.comparisons import require_pairs, unusable_of
from prefloop.runs.work import Work
from prefloop.training.adapter_hooks import Learner
from prefloop.training.audit import Audit
from prefloop.training.batches import ahead, epochs_of_groups, warn_of_few
from prefloop.training.dpo import PAIR_LOSSES
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
        parameters = policy_parameters(backbone)
        loop = Loop(
            parameters,
            config.optim,
            len(steps),
            work.checkpoints,
            ids_of=groups.ids_of,
            learners=[Learner(backbone, POLICY)],
        )
        restored = loop.restore()
        fresh = loop.step == 0
        before = {n: p.detach().clone() for n, p in parameters.items()} if fresh else {}
        frozen = backbone.frozen_digest() if fresh else ""
        metrics: dict[str, float] = restored[0]["last"] if restored else {}

        def prepare(indices: list[int]) -> tuple[list[PreferenceGroup], list[Pack]]:
            batch = [groups[i] for i in indices]
            return batch, packs([g.document for g in batch], backbone.config.pack_tokens)

        with deferred(), progress(self.name, len(steps), "step", done=loop.step) as advance:
            for batch, ready in ahead(prepare, steps[loop.step :]):
                by_key = {key: g for g in batch for key in g.document.keys}
                count = sum(len(g.pairs) for g in batch)
                counts: list[Tensor] = []
                margins: list[Tensor] = []

                def loss_of(
                    pack: Pack,
                    by_key: Any = by_key,
                    counts: list[Tensor] = counts,
                    margins: list[Tensor] = margins,
                ) -> Tensor:
                    reference = (
                        reference_B(backbone, pack, temperature, cached)
                        if self.loss.needs_reference
                        else 0.0
                    )
                    pairs = pairs_of(pack, by_key, policy_B(backbone, pack, temperature), reference)
                    margin_P = self.loss.reward_margin(pairs, config).detach()
                    counts.append(torch.stack(decided(margin_P, pairs.label)))
                    margins.append((margin_P * (2 * pairs.label - 1).sign()).sum())
                    return (pairs.weight * self.loss.loss(pairs, config)).sum()

                metrics = loop.update(ready, loss_of, count)
                metrics["accuracy"] = accuracy(counts)
                metrics["margin"] = sum(float(margin) for margin in margins) / count
                if loop.step == 1 and fresh:
                    if self.loss.at_start and config.weights == "equal":
                        audit.equal(
                            f"{self.name} loss at the reference",
                            metrics["loss"],
                            expected := self.loss.at_start(config),
                            (
                                1e-3
                                if backbone.compute_dtype == torch.float32
                                else 2e-2 * max(1.0, expected)
                            ),
                            "Policy and reference differ before training: the reference is not the"
                            " SFT adapter.",
                        )
                    after = {n: p.detach() for n, p in parameters.items()}
                    audit.moved(
                        before, after, frozen, backbone.frozen_digest(), backbone.method.waits
                    )
                work.emit("step", step=loop.step, **metrics)
                advance(note=f"loss {metrics['loss']:.3f}")
                if loop.due():
                    loop.save({"last": metrics})
        audit.stepped(loop.step)
        return {
            "steps": loop.step,
            "loss_last": metrics.get("loss"),
            "accuracy_last": metrics.get("accuracy"),
            "margin_last": metrics.get("margin"),
        }
