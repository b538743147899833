"""The reward model: adapters and scalar heads that learn from votes, one or an ensemble on
bootstraps of the same comparisons.
"""

from __future__ import annotations

import dataclasses
import os
import random
from typing import Any

import torch
from torch import Tensor

from prefloop.artifacts.store import Artifact
from prefloop.base.console import say
from prefloop.base.sealed import read_folder, remove, seal_folder
from prefloop.config import RewardConfig
from prefloop.data.encode import Encoder, PreferenceGroup
from prefloop.data.groups import Groups, documents, write_groups
from prefloop.data.packing import Pack, packs
from prefloop.errors import DataError
from prefloop.evaluation.reward_metrics import PairMetrics, pairwise
from prefloop.evaluation.standing import unproven
from prefloop.labeling.aggregation import aggregation
from prefloop.models.backbone import Backbone
from prefloop.models.forward import hidden_N_H
from prefloop.models.heads import ScalarHead
from prefloop.models.reward_model import Reward, raw_B, role_of
from prefloop.objectives.calibration import fit_temperature
from prefloop.objectives.reward import bradley_terry, centering
from prefloop.pipeline.stage import Stage
from prefloop.pipeline.stages.comparisons import has_pairs, require_pairs, unusable_of
from prefloop.runs.work import Work
from prefloop.training.adapter_hooks import Learner, fit
from prefloop.training.audit import Audit
from prefloop.training.batches import epochs_of_groups
from prefloop.training.loop import Loop, newest_whole
from prefloop.training.pair_batch import accuracy, decided, pairs_of
from prefloop.training.steps import train_steps

REFERENCE_PROMPTS = 40
"""Training prompts whose responses, with the held-out ones, set the score's mean 0 and standard
deviation 1.
"""


@dataclasses.dataclass(eq=False)
class VoteStep:
    """An optimizer step of one member on the pairs of some prompts."""

    backbone: Backbone
    role: str
    head: ScalarHead
    config: RewardConfig
    groups: list[PreferenceGroup]

    def __post_init__(self) -> None:
        self.packs = packs([g.document for g in self.groups], self.backbone.config.pack_tokens)
        self.items = sum(len(g.pairs) for g in self.groups)
        self.by_key = {key: g for g in self.groups for key in g.document.keys}
        self.counts: list[Tensor] = []

    def loss(self, pack: Pack) -> Tensor:
        with self.backbone.role(self.role, train=True, dropout=True):
            score_B = self.head(hidden_N_H(self.backbone, pack).index_select(0, pack.last_B))
        p = pairs_of(pack, self.by_key, score_B, 0.0)
        self.counts.append(torch.stack(decided(p.margin.detach(), p.label)))
        loss_P = bradley_terry(p.margin, p.label, self.config.margin * (2 * p.label - 1).abs())
        if self.config.center:
            loss_P = loss_P + self.config.center * centering(p.first_ratio, p.second_ratio)
        return loss_P.sum()

    def metrics(self) -> dict[str, float]:
        return {"accuracy": accuracy(self.counts)}

    def at_start(self) -> None:
        """No reference, and a head that begins at random."""


class RewardModel(Stage):
    """Comparisons → reward adapters and heads, started from the SFT adapter where there is one.
    Produces ``reward``.
    """

    name = "reward"
    produces = "reward"
    uses = frozenset({"backbone"})

    def __init__(
        self, config: RewardConfig | None = None, from_sft: bool = True, optional: bool = False
    ) -> None:
        self.config = config or RewardConfig()
        self.optional = optional
        """Whether the run can do without: only the comparison would use it."""
        self.inputs = ("sft", "comparisons") if from_sft else ("comparisons",)

    def parts(self) -> dict[str, Any]:
        return {"config": self.config}

    def expand(self, run: Any) -> list[Stage]:
        if not self.optional or has_pairs(run.artifacts["comparisons"]):
            return [self]
        say("no reward model is trained: it learns from pairs, and the thumbs form none", "yellow")
        return []

    def build(self, work: Work, inputs: dict[str, Artifact]) -> dict[str, Any]:
        require_pairs(inputs["comparisons"], "a reward model")
        backbone, config, audit = work.runtime.backbone, self.config, Audit(self.name)
        encoder = Encoder(backbone.chat, backbone.config.max_length)
        source, target = inputs["comparisons"] / "comparisons.jsonl", work.scratch / "groups.arrow"
        aside = unusable_of(inputs["comparisons"], work.folder)
        labels = aggregation(config.aggregation)
        groups = write_groups(source, target, encoder, labels, unusable=aside)
        audit.tokens(backbone.chat, documents(groups), encoder.cut + encoder.unfinished)
        audit.texts(backbone.chat, encoder, groups[0].document.tokens(0))
        train, held = split(groups, config.holdout, work.runtime.seed)
        start = inputs["sft"].path if "sft" in inputs else None
        heads: list[ScalarHead] = []
        metrics: dict[str, Any] = {}
        try:
            for k in range(config.members):
                place = (
                    work.checkpoints / f"finished-{k}"
                )  # a member that was finished before a kill
                done = newest_whole(
                    [place] if os.path.lexists(place) else [], read_folder, "what is before it"
                )
                backbone.add_role(
                    role_of(k), start=start if done is None else place, seed=work.runtime.seed + k
                )
                head = ScalarHead(backbone.hidden_size, init="normal", seed=work.runtime.seed + k)
                heads.append((head if done is None else ScalarHead.load(place)).to(backbone.device))
                if done is not None:
                    metrics = done["metrics"]
                else:
                    sample = bootstrap(train, work.runtime.seed, k) if config.members > 1 else train
                    metrics = self._train(work, audit, heads[k], sample, k, start is None)
                    partial = work.scratch / f"finished-{k}"
                    remove(partial)
                    backbone.save_role(role_of(k), partial)
                    heads[k].save(partial)
                    seal_folder(partial, place, {"metrics": metrics})
            reward = Reward(backbone, heads)
            measured = self._calibrate(reward, train[:REFERENCE_PROMPTS], held)
            reward.save(work.folder)
            self._audit_saved(reward, audit, groups, work)
        finally:
            for k in range(config.members):
                backbone.drop_role(role_of(k))
        counts = {
            "pairs": groups.total_pairs,
            "held_out_pairs": held.total_pairs,
            "truncated": encoder.cut,
            **groups.left_out.metrics(),
        }
        return audit.finish({**metrics, **measured, **counts})

    def _train(
        self, work: Work, audit: Audit, head: ScalarHead, groups: Groups, member: int, unread: bool
    ) -> dict[str, Any]:
        """``unread``: the adapter is fresh and may want to see data first."""
        backbone, config, role = work.runtime.backbone, self.config, role_of(member)
        steps = epochs_of_groups(
            len(groups),
            groups.pairs,
            config.batch_pairs,
            config.epochs,
            work.runtime.seed + 1000 * member,
            "reward.epochs",
        )
        if unread:
            # After a kill, too: this decides which parameters the role has.
            fit(backbone, role, (groups[i].document for step in steps for i in step))
        learning = backbone.below_head(role)
        named = {f"adapter/{name}": p for name, p in learning.items()}
        parameters = {**named, **{f"head/{n}": p for n, p in head.named_parameters()}}
        rates = {"head/": config.head_learning_rate}
        learners = [Learner(backbone, role)]
        folder = work.checkpoints / f"member-{member}"
        loop = Loop(parameters, config.optim, len(steps), folder, rates, groups.ids_of, learners)
        in_head = sum(
            p.numel() for n, p in backbone.named_parameters(role).items() if n not in learning
        )
        count = backbone.method.count(role) - in_head + sum(p.numel() for p in head.parameters())
        audit.check("trainable parameters", True, f"{count:,} in adapter and head", "")
        sample = packs([g.document for g in groups[:2]], backbone.config.pack_tokens)[0].to(
            backbone.device
        )
        audit.no_dropout(raw_B(backbone, head, sample, role), raw_B(backbone, head, sample, role))
        title = self.name if config.members == 1 else f"{self.name} {member + 1}/{config.members}"

        def prepare(indices: list[int]) -> VoteStep:
            return VoteStep(backbone, role, head, config, [groups[i] for i in indices])

        last = train_steps(loop, work, audit, steps, prepare, title=title, member=member).last
        backbone.method.finish(role)
        return {"steps": loop.step, "loss_last": last.get("loss")}

    def _calibrate(self, reward: Reward, known: Groups, held: Groups) -> dict[str, Any]:
        """Normalize every member, fit the temperature on held-out pairs, measure."""
        scores = reward.score(
            (g.document for part in (known, held) for g in part),
            f"{self.name}: normalize",
            known.total_responses + held.total_responses,
        )
        all_M_K = torch.tensor(list(scores.values()))
        for k, head in enumerate(reward.heads):
            head.calibrate(all_M_K[:, k])
        scale_K = torch.stack([head.std for head in reward.heads]).cpu()
        mean_K = torch.stack([head.mean for head in reward.heads]).cpu()
        scores = {key: ((torch.tensor(s) - mean_K) / scale_K).tolist() for key, s in scores.items()}
        before = 1 / float(
            scale_K.mean()
        )  # what σ of the raw difference amounts to on normalized scores
        measured = {f"train_{k}": v for k, v in pairwise(known, scores).metrics(before).items()}
        reward.temperature = before
        if held:
            found = pairwise(held, scores)
            measured |= found.metrics(before) | found.bounds() | crossed(found)
            if len(found.margin_P) >= 2 * MINIMUM:
                reward.temperature = fit_temperature(found.margin_P, found.label_P) or before
        if why := unproven(measured | {"held_out_pairs": held.total_pairs}):
            say(
                f"  reward: the reward model {why}. Its verdicts will name no winner: it needs more"
                " votes, more steps (reward.batch_pairs, reward.epochs) or another learning rate",
                "yellow",
            )
        return {**measured, "temperature": reward.temperature}

    def _audit_saved(self, reward: Reward, audit: Audit, groups: Groups, work: Work) -> None:
        documents = [g.document for g in groups[:4]]
        before = reward.score(documents)
        again = Reward.load(reward.backbone, work.folder).score(documents)
        same = before == again
        audit.check(
            "save, load, same scores",
            same,
            f"{len(before)} scores {'equal' if same else 'differ'}",
            "The adapter or its head is not saved whole.",
        )


MINIMUM = 10
"""Pairs in each half of the held-out ones below which no temperature is fitted."""


def crossed(found: PairMetrics) -> dict[str, float]:
    """Calibration error after fitting, each half of the pairs with the temperature of the other
    half, so that none is judged by its own fit.
    """
    half = torch.arange(len(found.margin_P)) % 2 == 0
    if int(half.sum()) < MINIMUM or int((~half).sum()) < MINIMUM:
        return {}
    scaled_P = found.margin_P.clone()
    for part in (half, ~half):
        scaled_P[part] /= fit_temperature(found.margin_P[~part], found.label_P[~part]) or 1.0
    after = PairMetrics(scaled_P, found.label_P, found.length_P).metrics(1.0)
    return {"calibrated_loss": after["loss"], "calibrated_ece": after["ece"]}


def bootstrap(train: Groups, seed: int, member: int) -> Groups:
    """Prompts drawn with replacement, as many as there are."""
    draw = random.Random(f"{seed}:bootstrap:{member}")
    return train.subset([draw.randrange(len(train)) for _ in range(len(train))])


def split(groups: Groups, holdout: float, seed: int) -> tuple[Groups, Groups]:
    """Hold prompts (never single pairs) out of training."""
    order = list(range(len(groups)))
    random.Random(seed).shuffle(order)
    held = set(order[: round(holdout * len(groups))])
    train = [i for i in range(len(groups)) if i not in held]
    if not train:
        raise DataError(
            "no comparisons are left to train on: label more pairs or lower reward.holdout"
        )
    return groups.subset(train), groups.subset(sorted(held))
