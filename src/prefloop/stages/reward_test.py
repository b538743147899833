"""The reward model on files of labelled pairs that it was not trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from prefloop.config import DataConfig
from prefloop.console import console
from prefloop.data.encode import Encoder
from prefloop.data.groups import Groups, write_groups
from prefloop.data.sources import copy_records
from prefloop.judging.reward import pairwise
from prefloop.judging.statistics import clustered_mean
from prefloop.labels.aggregation import vote_share
from prefloop.models.reward import Reward
from prefloop.objectives.reward import bradley_terry
from prefloop.records import Comparison
from prefloop.stage import Stage, Work
from prefloop.store import Artifact, write_json


class RewardTest(Stage):
    """Accuracy, log loss and calibration with 95 % intervals clustered by prompt, for each of ``data.reward_tests``. Produces ``reward-test``."""

    name = "reward-test"
    produces = "reward-test"
    inputs = ("reward",)
    uses = frozenset({"backbone"})

    def __init__(self, data: DataConfig | None = None) -> None:
        self.data = data or DataConfig()
        self.names = [path.name for path in self.data.reward_tests]
        if len(set(self.names)) < len(self.names):
            self.names = [str(path) for path in self.data.reward_tests]

    def parts(self) -> dict[str, Any]:
        data = self.data
        return {
            "tests": list(data.reward_tests),
            "names": self.names,
            "layout": data.layout,
            "bad_rows": data.bad_rows,
            "limit": data.eval_limit,
        }

    def build(self, work: Work, inputs: dict[str, Artifact]) -> dict[str, Any]:
        backbone = work.runtime.backbone
        reward = Reward.load(backbone, inputs["reward"].path)
        found: dict[str, Any] = {}
        try:
            for number, path in enumerate(self.data.reward_tests):
                pairs = work.scratch / f"{number}.jsonl"
                copy_records(
                    Comparison,
                    path,
                    pairs,
                    layout=self.data.layout,
                    bad_rows=self.data.bad_rows,
                    quarantine_dir=work.folder,
                    limit=self.data.eval_limit,
                )
                encoder = Encoder(backbone.chat, backbone.config.max_length)
                aside = (
                    work.folder / f"{number}-{path.name}.too-long.jsonl" if self.data.bad_rows == "quarantine" else None
                )
                target = work.scratch / f"{number}.arrow"
                groups = write_groups(pairs, target, encoder, vote_share, quarantine=aside)
                found[self.names[number]] = self._measure(reward, groups, path) | {"truncated": encoder.cut}
        finally:
            reward.drop()
        write_json(work.folder / "tests.json", found)
        console.print(_table(found))
        return {"tests": found}

    def _measure(self, reward: Reward, groups: Groups, path: Path) -> dict[str, Any]:
        responses = groups[len(groups) - 1].document.keys[-1] + 1
        scores = reward.score((g.document for g in groups), f"{self.name}: {path.name}", responses)
        pairs = pairwise(groups, scores)
        prompt_of = [i for i, g in enumerate(groups) for _ in g.pairs]
        decided = (pairs.label_P != 0.5).tolist()
        right = pairs.right_P.tolist()
        loss_P = bradley_terry(pairs.margin_P / reward.temperature, pairs.label_P).tolist()
        spread = torch.tensor([float(np.std(s)) for s in scores.values()]).mean() if len(reward.heads) > 1 else None
        return {
            "pairs": len(loss_P),
            **pairs.metrics(reward.temperature),
            **_interval("accuracy", right, [p for p, d in zip(prompt_of, decided, strict=True) if d]),
            **_interval("loss", loss_P, prompt_of),
            "length": pairs.by_length(),
            "member_spread": None if spread is None else float(spread),
        }


def _interval(name: str, values: list[float], prompts: list[int]) -> dict[str, Any]:
    """Mean over prompts of their pairs' mean, and its 95 % interval, resampling prompts."""
    if not values:
        return {name: None, f"{name}_ci": [None, None]}
    grouped: dict[str, list[float]] = {}
    for value, prompt in zip(values, prompts, strict=True):
        grouped.setdefault(str(prompt), []).append(value)
    found = clustered_mean(grouped)
    low, high = (max(0.0, bound) if name == "loss" else min(1.0, max(0.0, bound)) for bound in (found.low, found.high))
    return {name: found.mean, f"{name}_ci": [low, high]}


def _table(found: dict[str, Any]) -> Table:
    table = Table(box=None, header_style="bold")
    for column in ("reward model on", "pairs", "accuracy", "log loss", "ECE", "longer wins"):
        table.add_column(column, justify="left" if column == "reward model on" else "right", no_wrap=True)
    for name, m in found.items():
        low, high = ("" if bound is None else f"{bound:.3f}" for bound in m["accuracy_ci"])
        longer = m["length"]["always the longer"]
        table.add_row(
            name.split(".jsonl")[0],
            str(m["pairs"]),
            "-" if m["accuracy"] is None else f"{m['accuracy']:.3f} [{low}, {high}]",
            f"{m['loss']:.3f}",
            f"{m['ece']:.3f}",
            "-" if longer is None else f"{longer:.3f}",
        )
    return table
