"""Tiny backbones with an adapter of any method, roles on them, a few steps of training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tiny import add_random_role, attention_of, random_documents
from tiny import load as load_lora
from torch import Tensor

from prefloop.config import AdapterConfig, BackboneConfig, DataConfig
from prefloop.data.packing import pack
from prefloop.data.sources import write_jsonl
from prefloop.models.adapters import card_of
from prefloop.models.backbone import Backbone
from prefloop.models.forward import hidden_N_H, response_logps_R
from prefloop.records import Comparison, Demonstration, Message, Prompt, Response, Vote

R, ALPHA = 4, 8
DOCUMENTS = random_documents([(10, [8, 5]), (4, [12, 6])])
PACK = pack(DOCUMENTS)
LINEAR = [(64, 64), (64, 32), (64, 32), (64, 64), (64, 128), (64, 128), (128, 64)] * 2
"""Inputs and outputs of the tiny model's linear layers: q, k, v, o, gate, up, down, twice."""


def load(
    folder: Path,
    method: str,
    precision: str = "fp32",
    kind: str = "llama",
    r: int = R,
    alpha: int = ALPHA,
    **settings: Any,
) -> Backbone:
    """The model in ``folder`` on the CPU; what ``AdapterConfig`` has of ``settings`` goes to the
    adapter.
    """
    of_adapter = {
        name: settings.pop(name)
        for name in ("options", "dropout", "target_modules")
        if name in settings
    }
    config = BackboneConfig(
        model=f"tiny-{kind}",
        precision=precision,  # type: ignore[arg-type]
        compute="bf16" if precision == "bf16" else "fp32",
        attention=attention_of(kind),
        max_length=256,
        adapter=AdapterConfig(method=method, r=r, alpha=alpha, **of_adapter),
        **settings,
    )
    return Backbone.load(config, folder, torch.device("cpu"))


def logps(backbone: Backbone, role: str | None) -> Tensor:
    with backbone.role(role):
        return response_logps_R(backbone, hidden_N_H(backbone, PACK), PACK)


def train(backbone: Backbone, role: str, steps: int = 2, rate: float = 1e-2) -> None:
    optimizer = torch.optim.AdamW(backbone.parameters(role), lr=rate, weight_decay=0.0)
    for step in range(steps):
        with backbone.role(role, train=True):
            optimizer.zero_grad()
            loss = -response_logps_R(backbone, hidden_N_H(backbone, PACK), PACK).mean()
            penalty = backbone.method.penalty(role)
            (loss if penalty is None else loss + penalty).backward()
            optimizer.step()
        backbone.method.after_step(role, step, steps)


def sample(backbone: Backbone, role: str) -> Any:
    """What a stage passes to ``fit``."""

    def run() -> Iterator[None]:
        for seed in range(3):
            batch = pack(random_documents([(6, [8, 7]), (5, [9])], seed))
            with backbone.role(role):
                hidden_N_H(backbone, batch)
            yield

    return run


def trained(backbone: Backbone, role: str = "policy", seed: int = 0) -> None:
    backbone.add_role(role, seed=seed)
    if card_of(backbone.config.adapter.method).reads_data:
        backbone.method.fit(role, sample(backbone, role))
    train(backbone, role)


def two_experts(folder: Path, tiny_folder: Path) -> list[str]:
    """Two trained LoRA adapters of the tiny backbone, of different ranks."""
    for seed, rank in ((1, 4), (2, 8)):
        backbone = load_lora(tiny_folder, r=rank)
        add_random_role(backbone, "expert", seed)
        backbone.save_role("expert", folder / f"expert-{seed}")
    return [str(folder / f"expert-{seed}") for seed in (1, 2)]


def small_data(folder: Path) -> DataConfig:
    """Files of four demonstrations, six comparisons and four prompts."""
    asked = [[Message("user", f"Say {i}")] for i in range(6)]
    answers = [[Response(f"good {i}"), Response(f"bad, {i}")] for i in range(6)]
    rows = [
        Comparison(str(i), a, b, [Vote("a", 0)])
        for i, (a, b) in enumerate(zip(asked, answers, strict=True))
    ]
    write_jsonl(
        folder / "d.jsonl",
        [Demonstration(str(i), a, f"It is {i}.") for i, a in enumerate(asked[:4])],
    )
    write_jsonl(folder / "c.jsonl", rows)
    write_jsonl(folder / "p.jsonl", [Prompt(str(i), a) for i, a in enumerate(asked[:4])])
    return DataConfig(
        demonstrations=folder / "d.jsonl",
        comparisons=folder / "c.jsonl",
        prompts=folder / "p.jsonl",
    )
