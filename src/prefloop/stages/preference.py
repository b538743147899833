"""Learning straight from votes: DPO and its relatives, one stage, the loss looked up by name.

Each response is run once per policy and once per reference, in packs that share the prompt; pairs only index the results. The
reference is the frozen SFT adapter the policy started from, on the same backbone: no second model.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from prefloop.audit import Audit
from prefloop.config import PreferenceConfig
from prefloop.console import progress
from prefloop.data.encode import Encoder, PreferenceGroup, pair_indices, preference_groups
from prefloop.data.packing import Pack, packs
from prefloop.labels.aggregation import AGGREGATIONS
from prefloop.models.backbone import Backbone
from prefloop.models.forward import hidden_N_H, response_logps_R, sum_by_branch_B
from prefloop.objectives import preference as losses
from prefloop.records import Comparison, from_dict
from prefloop.stage import Stage, Work
from prefloop.store import Artifact, read_rows
from prefloop.training.batches import epochs_of_groups
from prefloop.training.loop import Loop
from prefloop.training.policy import POLICY, REFERENCE, logps_R, policy_parameters, start_policy


@dataclasses.dataclass(frozen=True)
class Margins:
    """What a preference loss may look at; P pairs, 'first' against 'second' response."""

    logratio_sum_P: Tensor
    """Difference of summed log(π/π_ref)."""
    logratio_mean_P: Tensor
    """Difference of per-token means of log(π/π_ref)."""
    first_mean_P: Tensor
    """Policy's mean log-prob a token, first response."""
    second_mean_P: Tensor


@dataclasses.dataclass(frozen=True)
class PreferenceLoss:
    """A named loss: [P] from margins, soft labels and config; ``at_start`` is its value when policy = reference, if known."""

    loss: Callable[[Margins, Tensor, PreferenceConfig], Tensor]
    needs_reference: bool
    at_start: Callable[[PreferenceConfig], float] | None = None


def _ipo(m: Margins, label_P: Tensor, c: PreferenceConfig) -> Tensor:
    return losses.ipo(m.logratio_mean_P if c.ipo_reduction == "mean" else m.logratio_sum_P, c.beta, label_P)


LOSSES: dict[str, PreferenceLoss] = {
    "dpo": PreferenceLoss(
        lambda m, p, c: losses.dpo(m.logratio_sum_P, c.beta, p, c.label_smoothing), True, lambda c: math.log(2)
    ),
    "ipo": PreferenceLoss(_ipo, True, lambda c: 1 / (4 * c.beta**2)),
    "hinge": PreferenceLoss(lambda m, p, c: losses.hinge(m.logratio_sum_P, c.beta, p), True, lambda c: 1.0),
    "orpo": PreferenceLoss(lambda m, p, c: losses.orpo(m.first_mean_P, m.second_mean_P, c.sft_weight, p), False),
    "simpo": PreferenceLoss(lambda m, p, c: losses.simpo(m.first_mean_P, m.second_mean_P, c.beta, c.margin, p), False),
}
"""Losses on pairs by the name that --algo takes."""


class Preference(Stage):
    """Comparisons and an SFT adapter → an aligned adapter. Produces a slot named after the loss."""

    inputs = ("sft", "comparisons")
    uses = frozenset({"backbone", "generation"})

    def __init__(self, loss: str = "dpo", config: PreferenceConfig | None = None) -> None:
        self.name = self.produces = loss
        self.loss = LOSSES[loss]
        self.config = config or PreferenceConfig()

    def parts(self) -> dict[str, Any]:
        return {"config": self.config}

    def build(self, work: Work, inputs: dict[str, Artifact]) -> dict[str, Any]:
        runtime, config, audit = work.runtime, self.config, Audit(self.name)
        backbone, temperature = runtime.backbone, runtime.generation.temperature
        comparisons = [from_dict(Comparison, row) for row in read_rows(inputs["comparisons"] / "comparisons.jsonl")]
        aggregate = AGGREGATIONS["share" if config.soft_labels else "majority"]
        encoder = Encoder(backbone.chat, backbone.config.max_length)
        labels = [aggregate(c) for c in comparisons]
        groups = preference_groups(comparisons, [0.5 if p is None else p for p in labels], encoder)
        documents = [g.document for g in groups]
        responses = [r for d in documents for r in d.responses_ids]
        audit.tokens(
            backbone.chat,
            [d.prompt_ids for d in documents],
            responses,
            encoder.cut + encoder.unfinished,
        )
        try:
            start_policy(work, inputs["sft"], audit, documents[:2], temperature)
            metrics = self._train(work, audit, groups, temperature)
            backbone.save_role(POLICY, work.folder)
        finally:
            backbone.drop_role(POLICY)
            backbone.drop_role(REFERENCE)
        return audit.finish({**metrics, "pairs": sum(len(g.pairs) for g in groups), "truncated": encoder.cut})

    def _train(self, work: Work, audit: Audit, groups: list[PreferenceGroup], temperature: float) -> dict[str, Any]:
        backbone, config = work.runtime.backbone, self.config
        steps = epochs_of_groups(groups, config.batch_pairs, config.epochs, work.runtime.seed)
        parameters = policy_parameters(backbone)
        loop = Loop(parameters, config.optim, len(steps), work.checkpoints)
        restored = loop.restore()
        fresh = loop.step == 0
        before = {n: p.detach().clone() for n, p in parameters.items()}
        frozen = backbone.frozen_digest()
        metrics: dict[str, float] = restored[0]["last"] if restored else {}
        with progress(self.name, len(steps) - loop.step, "step") as advance:
            for batch in steps[loop.step :]:
                by_key = {key: g for g in batch for key in g.document.keys}
                count = sum(len(g.pairs) for g in batch)
                seen = {"accuracy": 0.0, "margin": 0.0}

                def loss_of(
                    pack: Pack, by_key: dict[int, PreferenceGroup] = by_key, seen: dict[str, float] = seen
                ) -> Tensor:
                    margins, label_P = self._margins(backbone, pack, by_key, temperature)
                    signed_P = margins.logratio_sum_P.detach() * (2 * label_P - 1).sign()
                    seen["accuracy"] += float((signed_P > 0).sum())
                    seen["margin"] += float(config.beta * signed_P.sum())
                    return self.loss.loss(margins, label_P, config).sum()

                metrics = loop.update(packs([g.document for g in batch], backbone.config.pack_tokens), loss_of, count)
                metrics |= {name: value / count for name, value in seen.items()}
                if loop.step == 1 and fresh:
                    if self.loss.at_start:
                        audit.equal(
                            f"{self.name} loss at the reference",
                            metrics["loss"],
                            self.loss.at_start(config),
                            1e-3,
                            "Policy and reference differ before training: the reference is not the SFT adapter.",
                        )
                    audit.moved(
                        before, {n: p.detach() for n, p in parameters.items()}, frozen, backbone.frozen_digest()
                    )
                work.emit("step", step=loop.step, **metrics)
                advance(note=f"loss {metrics['loss']:.3f}")
                if loop.step % config.optim.checkpoint_every == 0:
                    loop.save({"last": metrics})
        return {
            "steps": loop.step,
            "loss_last": metrics.get("loss"),
            "accuracy_last": metrics.get("accuracy"),
            "margin_last": metrics.get("margin"),
        }

    def _margins(
        self, backbone: Backbone, pack: Pack, by_key: dict[int, PreferenceGroup], temperature: float
    ) -> tuple[Margins, Tensor]:
        reference_B: Tensor | float = 0.0
        if self.loss.needs_reference:
            reference_B = sum_by_branch_B(logps_R(backbone, pack, REFERENCE, temperature), pack)
        with backbone.role(POLICY, train=True):
            policy_B = sum_by_branch_B(response_logps_R(backbone, hidden_N_H(backbone, pack), pack, temperature), pack)
        first, second, labels = pair_indices(pack, by_key)
        ratio_B = policy_B - reference_B
        mean_ratio_B, mean_B = ratio_B / pack.length_B, policy_B / pack.length_B
        margins = Margins(
            ratio_B[first] - ratio_B[second], mean_ratio_B[first] - mean_ratio_B[second], mean_B[first], mean_B[second]
        )
        return margins, torch.tensor(labels, device=policy_B.device)
