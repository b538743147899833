"""Reward model: an adapter and a scalar head, trained by Bradley-Terry on votes.

Every candidate of a prompt is run once, in one pack with its shared prompt, however many pairs it is part of (Ouyang et al. 2022, section 3.4);
the score is the head's output at the response's last token.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prefloop.audit import Audit
from prefloop.config import RewardConfig
from prefloop.console import progress, say
from prefloop.data.encode import Encoder, PreferenceGroup, pair_indices, preference_groups
from prefloop.data.packing import Document, Pack, packs
from prefloop.errors import DataError
from prefloop.labels.aggregation import vote_share
from prefloop.models.backbone import Backbone
from prefloop.models.forward import hidden_N_H
from prefloop.models.heads import ScalarHead
from prefloop.models.scoring import score, scores_B
from prefloop.objectives.reward import bradley_terry
from prefloop.records import Comparison, from_dict
from prefloop.stage import Stage, Work
from prefloop.store import Artifact, read_rows
from prefloop.training.batches import epochs_of_groups
from prefloop.training.loop import Loop

ROLE = "reward/0"
REFERENCE_PROMPTS = 40
"""Training prompts whose responses, with the held-out ones, set the score's mean 0 and standard deviation 1."""


class RewardModel(Stage):
    """Comparisons → reward adapter and head, started from the SFT adapter. Produces ``reward``."""

    name = "reward"
    produces = "reward"
    inputs = ("sft", "comparisons")
    uses = frozenset({"backbone"})

    def __init__(self, config: RewardConfig | None = None) -> None:
        self.config = config or RewardConfig()

    def parts(self) -> dict[str, Any]:
        return {"config": self.config}

    def build(self, work: Work, inputs: dict[str, Artifact]) -> dict[str, Any]:
        backbone, config, audit = work.runtime.backbone, self.config, Audit(self.name)
        comparisons = [from_dict(Comparison, row) for row in read_rows(inputs["comparisons"] / "comparisons.jsonl")]
        encoder = Encoder(backbone.chat, backbone.config.max_length)
        labels = [vote_share(c) for c in comparisons]
        groups = preference_groups(comparisons, [0.5 if p is None else p for p in labels], encoder)
        documents = [g.document for g in groups]
        audit.tokens(
            backbone.chat,
            [d.prompt_ids for d in documents],
            [r for d in documents for r in d.responses_ids],
            encoder.cut + encoder.unfinished,
        )
        train, held = split(groups, config.holdout, work.runtime.seed)

        backbone.add_role(ROLE, start=inputs["sft"].path)
        head = ScalarHead(backbone.hidden_size, init="normal", seed=work.runtime.seed).to(backbone.device)
        try:
            metrics = self._train(work, audit, head, train)
            known = train[:REFERENCE_PROMPTS]
            scores = score(backbone, head, [g.document for g in known + held], ROLE, f"{self.name}: normalise")
            head.calibrate(torch.tensor(list(scores.values())))
            measured = {f"train_{k}": v for k, v in _agreement(known, scores).items()}
            if held:
                measured |= _agreement(held, scores)
                if measured["loss"] >= math.log(2):
                    say(
                        f"  reward: held-out loss {measured['loss']:.3f} is no better than chance ({math.log(2):.3f}): more votes, more "
                        "steps (reward.batch_pairs, reward.epochs) or another learning rate",
                        "yellow",
                    )
            backbone.save_role(ROLE, work.folder)
            head.save(work.folder)
            self._audit_saved(backbone, head, audit, documents[:4], work)
        finally:
            backbone.drop_role(ROLE)
        return audit.finish(
            {
                **metrics,
                **measured,
                "pairs": sum(len(g.pairs) for g in groups),
                "held_out_pairs": sum(len(g.pairs) for g in held),
                "truncated": encoder.cut,
            }
        )

    def _train(self, work: Work, audit: Audit, head: ScalarHead, train: list[PreferenceGroup]) -> dict[str, Any]:
        backbone, config = work.runtime.backbone, self.config
        named = dict(zip((f"adapter/{i:04d}" for i in range(10**4)), backbone.parameters(ROLE), strict=False))
        parameters = {**named, **{f"head/{n}": p for n, p in head.named_parameters()}}
        steps = epochs_of_groups(train, config.batch_pairs, config.epochs, work.runtime.seed)
        loop = Loop(parameters, config.optim, len(steps), work.checkpoints, {"head/": config.head_learning_rate})
        restored = loop.restore()
        fresh = loop.step == 0
        if fresh:
            audit.check(
                "trainable parameters", True, f"{sum(p.numel() for p in parameters.values()):,} in adapter and head", ""
            )
            sample = packs([g.document for g in train[:2]], backbone.config.pack_tokens)[0].to(backbone.device)
            audit.no_dropout(scores_B(backbone, head, sample, ROLE), scores_B(backbone, head, sample, ROLE))
        before = {n: p.detach().clone() for n, p in parameters.items()}
        frozen = backbone.frozen_digest()
        last: dict[str, float] = restored[0]["last"] if restored else {}
        with progress(self.name, len(steps) - loop.step, "step") as advance:
            for batch in steps[loop.step :]:
                pairs = {key: g for g in batch for key in g.document.keys}
                correct = 0.0

                def loss_of(pack: Pack, pairs: dict[int, PreferenceGroup] = pairs) -> Tensor:
                    nonlocal correct
                    with backbone.role(ROLE, train=True, dropout=True):
                        score_B = head(hidden_N_H(backbone, pack)[pack.last_B])
                    first, second, labels = pair_indices(pack, pairs)
                    margin_P, label_P = score_B[first] - score_B[second], torch.tensor(labels, device=score_B.device)
                    correct += float(((margin_P.detach() > 0) == (label_P > 0.5)).sum())
                    return bradley_terry(margin_P, label_P).sum()

                count = sum(len(g.pairs) for g in batch)
                last = loop.update(packs([g.document for g in batch], backbone.config.pack_tokens), loss_of, count)
                last["accuracy"] = correct / count
                work.emit("step", step=loop.step, **last)
                advance(note=f"loss {last['loss']:.3f}")
                if loop.step == 1 and fresh:
                    audit.moved(
                        before, {n: p.detach() for n, p in parameters.items()}, frozen, backbone.frozen_digest()
                    )
                if loop.step % config.optim.checkpoint_every == 0:
                    loop.save({"last": last})
        return {"steps": loop.step, "loss_last": last.get("loss")}

    def _audit_saved(
        self, backbone: Backbone, head: ScalarHead, audit: Audit, documents: Sequence[Document], work: Work
    ) -> None:
        before = score(backbone, head, documents, ROLE)
        backbone.add_role(ROLE, start=work.folder)
        again = score(backbone, ScalarHead.load(work.folder).to(backbone.device), documents, ROLE)
        same = before == again
        audit.check(
            "save, load, same scores",
            same,
            f"{len(before)} scores {'equal' if same else 'differ'}",
            "The adapter or its head is not saved whole.",
        )


def split(
    groups: list[PreferenceGroup], holdout: float, seed: int
) -> tuple[list[PreferenceGroup], list[PreferenceGroup]]:
    """Hold prompts (never single pairs) out of training."""
    order = list(range(len(groups)))
    random.Random(seed).shuffle(order)
    held = set(order[: round(holdout * len(groups))])
    train = [g for i, g in enumerate(groups) if i not in held]
    if not train:
        raise DataError("no comparisons are left to train on: label more pairs or lower reward.holdout")
    return train, [groups[i] for i in sorted(held)]


def _agreement(groups: list[PreferenceGroup], scores: dict[int, float]) -> dict[str, float]:
    """Accuracy against the majority (ties left out) and log loss against the share of votes."""
    right = decided = 0
    loss = total = 0.0
    for group in groups:
        for a, b, label in group.pairs:
            margin = scores[group.document.keys[a]] - scores[group.document.keys[b]]
            if label != 0.5:
                decided += 1
                right += (margin > 0) == (label > 0.5)
            loss += float(bradley_terry(torch.tensor(margin), label))
            total += 1
    return {"accuracy": right / decided if decided else math.nan, "loss": loss / max(1.0, total)}
