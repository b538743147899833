"""KTO: learning from thumbs on single responses (Ethayarajh et al. 2024, arXiv 2402.01306).

Pairs serve too: every vote is a thumb up for its choice and one down for the other
(``data/convert.py``); a response counts as what most of its thumbs say.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from torch import Tensor

from prefloop.artifacts.store import Artifact
from prefloop.base.console import say
from prefloop.config import PreferenceConfig
from prefloop.data.encode import Encoder, ThumbGroup
from prefloop.data.groups import Groups, documents, write_thumbs
from prefloop.data.packing import Pack, packs
from prefloop.errors import DataError
from prefloop.models.backbone import Backbone
from prefloop.pipeline.stage import Stage
from prefloop.pipeline.stages.comparisons import unusable_of
from prefloop.pipeline.stages.ratings import ratings_of
from prefloop.runs.work import Work
from prefloop.training.adapter_hooks import Learner
from prefloop.training.audit import Audit
from prefloop.training.batches import epochs_of_groups, warn_of_few
from prefloop.training.kto import Estimates, balanced, estimate, kto_loss, one_sided, reads
from prefloop.training.loop import Loop
from prefloop.training.policy import POLICY, REFERENCE, policy_parameters, save_policy, start_policy
from prefloop.training.steps import train_steps


@dataclasses.dataclass(eq=False)
class ThumbStep:
    """An optimizer step on the rated responses of some prompts."""

    backbone: Backbone
    beta: float
    weights: tuple[float, float]
    """Of thumbs up and down."""
    temperature: float
    groups: list[ThumbGroup]

    def __post_init__(self) -> None:
        self.packs = packs([g.document for g in self.groups], self.backbone.config.pack_tokens)
        self.reads = reads(self.groups, self.backbone.scoring_tokens)
        self.up = {
            key: good for g in self.groups for key, good in zip(g.document.keys, g.up, strict=True)
        }
        self.items = len(self.up)
        self.ratios: list[tuple[Tensor, Tensor]] = []

    @functools.cached_property
    def known(self) -> Estimates:
        """Computed ahead of the first pack's gradient."""
        return estimate(self.backbone, self.reads, self.temperature)

    def loss(self, pack: Pack) -> Tensor:
        loss_B, ratio_B, up_B = kto_loss(
            self.backbone, pack, self.up, self.known, self.beta, self.weights, self.temperature
        )
        self.ratios.append((ratio_B[up_B].sum(), ratio_B[~up_B].sum()))
        return loss_B.sum()

    def metrics(self) -> dict[str, float]:
        ups = sum(self.up.values())
        return {
            "z0": float(self.known.z0),
            "logratio_up": sum(float(a) for a, _ in self.ratios) / max(1, ups),
            "logratio_down": sum(float(b) for _, b in self.ratios) / max(1, self.items - ups),
        }

    def at_start(self) -> float:
        up, down = self.weights
        return sum(up if good else down for good in self.up.values()) / (2 * self.items)


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
        loop = Loop(
            policy_parameters(backbone),
            config.optim,
            len(steps),
            work.checkpoints,
            ids_of=groups.ids_of,
            learners=[Learner(backbone, POLICY)],
        )

        def prepare(indices: list[int]) -> ThumbStep:
            batch = [groups.thumbs(i) for i in indices]
            return ThumbStep(backbone, config.beta, weights, temperature, batch)

        last = train_steps(loop, work, audit, steps, prepare).last
        return {"steps": loop.step, "loss_last": last.get("loss"), "z0_last": last.get("z0")}


def no_singles(steps: list[list[int]]) -> list[list[int]]:
    """Steps of at least two prompts, which z0 needs: one of a single prompt joins its neighbor.
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
