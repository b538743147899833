"""A run folder as the pipeline leaves it, with random adapters on a tiny model: made in a second,
opened like a real one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from prefloop.artifacts.store import Artifact
from prefloop.base.atomic import link
from prefloop.config import AdapterConfig, BackboneConfig, GenerationConfig
from prefloop.models.heads import ScalarHead
from prefloop.models.reward_model import Reward, role_of
from prefloop.pipeline.stage import Stage
from prefloop.runs.runtime import Runtime
from prefloop.runs.work import Work


class Made(Stage):
    """A random adapter in the place of a trained one."""

    uses = frozenset({"backbone", "generation"})

    def __init__(
        self, slot: str, seed: int, inputs: tuple[str, ...] = (), members: int = 2
    ) -> None:
        self.name = self.produces = slot
        self.seed, self.inputs, self.members = seed, inputs, members
        if slot in ("sft", "dpo"):
            self.uses = frozenset({"backbone"} if slot == "sft" else {"backbone", "temperature"})

    def parts(self) -> dict[str, Any]:
        return {"made": self.seed, "members": self.members}

    def build(self, work: Work, inputs: dict[str, Artifact]) -> dict[str, Any]:
        backbone = work.runtime.backbone
        roles = [role_of(k) for k in range(self.members)] if self.name == "reward" else ["made"]
        for k, role in enumerate(roles):
            backbone.add_role(role, seed=self.seed)
            generator = torch.Generator().manual_seed(self.seed + k)
            with torch.no_grad():
                for parameter in backbone.parameters(role):
                    parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        if self.name == "reward":
            heads = [
                ScalarHead(backbone.hidden_size, init="normal", seed=self.seed + k)
                for k in range(self.members)
            ]
            Reward(backbone, heads).save(work.folder)
        else:
            backbone.save_role("made", work.folder)
        for role in roles:
            backbone.drop_role(role)
        return {"steps": 1}


def make_run(
    output: Path,
    name: str,
    model: Path,
    seed: int = 1,
    slots: tuple[str, ...] = ("sft", "reward", "ppo"),
    members: int = 2,
    **settings: Any,
) -> Path:
    """``output/name`` with a random adapter in each slot, ``members`` in a reward model;
    ``settings`` go to the backbone.
    """
    defaults = {"precision": "fp32", "max_length": 256, "adapter": AdapterConfig(r=4, alpha=8)}
    config = BackboneConfig(model=str(model), **{**defaults, **settings})
    generation = GenerationConfig(max_new_tokens=12, temperature=0.9)
    runtime = Runtime(config, generation, "transformers", output=output)
    run = output / name
    (run / "artifacts").mkdir(parents=True)
    made: dict[str, Artifact] = {}
    for k, slot in enumerate(slots):
        stage = Made(slot, 10 * seed + k, tuple(made) if slot == "ppo" else (), members)
        made[slot] = stage.run(runtime, **{s: made[s] for s in stage.inputs})
        link(run / "artifacts" / slot, made[slot].path)
    return run
