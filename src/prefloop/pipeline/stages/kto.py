"""KTO: learning from thumbs on single responses (Ethayarajh et al. 2024, arXiv 2402.01306).

Pairs serve too: every vote is a thumb up for its choice and one down for the other
(``data/convert.py``); a response counts as what most of its thumbs say.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prefloop.artifacts.store import Artifact
from prefloop.base.console import progress, say
from prefloop.base.interrupt import deferred
from prefloop.config import PreferenceConfig
from prefloop.data.encode import Encoder, ThumbGroup
from prefloop.data.groups import Groups, documents, write_thumbs
from prefloop.data.packing import Pack, packs
from prefloop.errors import DataError
from prefloop.pipeline.stage import Stage
from prefloop.pipeline.stages.comparisons import unusable_of
from prefloop.pipeline.stages.ratings import ratings_of
from prefloop.runs.work import Work
from prefloop.training.adapter_hooks import Learner
from prefloop.training.audit import Audit
from prefloop.training.batches import ahead, epochs_of_groups, warn_of_few
from prefloop.training.kto import Estimates, Reads, balanced, estimate, kto_loss, one_sided, reads
from prefloop.training.loop import Loop
from prefloop.training.policy import POLICY, REFERENCE, policy_parameters, save_policy, start_policy


class KTO(Stage):
    """Comparisons and an SFT adapter → an aligned adapter. Produces ``kto``."""

    name = produces = "kto"
    inputs = ("sft", "comparisons")
    uses = frozenset({"backbone", "temperature"})
    needs_temperature = "divides log-probs by it"

    def __init__(self, config: PreferenceConfig | None = None) -> None:
        self.config = config or PreferenceConfig()

    def parts(self) -> dict[str, Any]:
        return {"config": self.config}

    def build(self, work: Work, inputs: dict[str, Artifact]) -> dict[str, Any]:
        runtime, audit = work.runtime, Audit(self.name)
        backbone, temperature = runtime.backbone, runtime.generation.temperature
        encoder = Encoder(backbone.chat, backbone.config.max_length)
        groups = write_thumbs(
            ratings_of(inputs["comparisons"], work),
            work.scratch / "thumbs.arrow",
            encoder,
            unusable_of(inputs["comparisons"], work.folder),
        )
        audit.tokens(backbone.chat, documents(groups), encoder.cut + encoder.unfinished)
        audit.texts(backbone.chat, encoder, groups[0].document.tokens(0))
        ups = sum(sum(groups.thumbs(i).up) for i in range(len(groups)))
        downs = sum(groups.rated(i) for i in range(len(groups))) - ups
        weights = balanced(ups, downs) if self.config.balance_thumbs else (1.0, 1.0)
        if warning := one_sided(ups, downs):
            say(f"  {warning}", "yellow")
        audit.check(
            "thumbs",
            True,
            f"{ups} up weighing {weights[0]:.3f}, {downs} down weighing {weights[1]:.3f}",
            "",
        )
        try:
            start_policy(work, inputs["sft"], audit, [g.document for g in groups[:2]], temperature)
            metrics = self._train(work, audit, groups, weights, temperature)
            save_policy(backbone, work.folder)
        finally:
            backbone.drop_role(POLICY)
            backbone.drop_role(REFERENCE)
        return audit.finish(
            {
                **metrics,
                "up": ups,
                "down": downs,
                "truncated": encoder.cut,
                **({"warning": warning} if warning else {}),
                **groups.left_out.metrics(),
            }
        )

    def _train(
        self,
        work: Work,
        audit: Audit,
        groups: Groups,
        weights: tuple[float, float],
        temperature: float,
    ) -> dict[str, Any]:
        backbone, config = work.runtime.backbone, self.config
        # A pair gives two thumbs: preference.batch_pairs means as many responses a step as for the
        # losses on pairs.
        steps = epochs_of_groups(
            len(groups),
            groups.rated,
            2 * config.batch_pairs,
            config.epochs,
            work.runtime.seed,
            "preference.epochs",
        )
        steps = no_singles(steps)
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

        def prepare(indices: list[int]) -> tuple[list[ThumbGroup], Reads, list[Pack]]:
            batch = [groups.thumbs(i) for i in indices]
            documents = [g.document for g in batch]
            return (
                batch,
                reads(batch, backbone.scoring_tokens),
                packs(documents, backbone.config.pack_tokens),
            )

        with deferred(), progress(self.name, len(steps), "step", done=loop.step) as advance:
            for batch, before_step, ready in ahead(prepare, steps[loop.step :]):
                up = {
                    key: good
                    for g in batch
                    for key, good in zip(g.document.keys, g.up, strict=True)
                }
                known = estimate(backbone, before_step, temperature)
                seen: list[tuple[Tensor, Tensor]] = []

                def loss_of(
                    pack: Pack,
                    up: dict[int, bool] = up,
                    known: Estimates = known,
                    seen: list[tuple[Tensor, Tensor]] = seen,
                ) -> Tensor:
                    loss_B, ratio_B, up_B = kto_loss(
                        backbone, pack, up, known, config.beta, weights, temperature
                    )
                    seen.append((ratio_B[up_B].sum(), ratio_B[~up_B].sum()))
                    return loss_B.sum()

                metrics = loop.update(ready, loss_of, len(up))
                ups = sum(up.values())
                metrics["z0"] = float(known.z0)
                metrics["logratio_up"] = sum(float(a) for a, _ in seen) / max(1, ups)
                metrics["logratio_down"] = sum(float(b) for _, b in seen) / max(1, len(up) - ups)
                if loop.step == 1 and fresh:
                    expected = sum(weights[0] if good else weights[1] for good in up.values()) / (
                        2 * len(up)
                    )
                    audit.equal(
                        "kto loss at the reference",
                        metrics["loss"],
                        expected,
                        1e-3 if backbone.compute_dtype == torch.float32 else 2e-2,
                        "Policy and reference differ before training: the reference is not the SFT"
                        " adapter.",
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
        return {"steps": loop.step, "loss_last": metrics.get("loss"), "z0_last": metrics.get("z0")}


def no_singles(steps: list[list[int]]) -> list[list[int]]:
    """Steps of at least two prompts, which z0 needs: one of a single prompt joins its neighbour.
    Raises ``DataError`` when there is one prompt in all.
    """
    out: list[list[int]] = []
    for step in steps:
        if out and (len(step) < 2 or len(out[-1]) < 2) and not set(step) & set(out[-1]):
            out[-1] = out[-1] + step
        else:
            out.append(step)
    if any(len(step) < 2 for step in out):
        raise DataError(
            "KTO estimates its KL from mismatched prompts and responses: a step needs at least 2"
            " prompts, raise preference.batch_pairs"
        )
    return out
