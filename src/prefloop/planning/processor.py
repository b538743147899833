"""A run on a machine without a GPU: what changes in its configuration, as far as memory goes."""

from __future__ import annotations

import dataclasses
from typing import Literal

from prefloop.config import RLHFConfig


def on_cpu(config: RLHFConfig) -> RLHFConfig:
    """The configuration as a run without a GPU takes it: bfloat16 where the processor multiplies it
    fast, nothing paged, and vLLM's CPU build, which keeps full weights, never sleeps and has a GiB
    of cache unless told (``rollouts.vllm``).
    """
    import torch

    from prefloop.models.load import compute_dtype

    compute: Literal["fp32", "bf16"]
    compute = (
        "fp32" if compute_dtype(config.backbone, torch.device("cpu")) == torch.float32 else "bf16"
    )
    cache = max(1, round(config.generation.kv_cache_gb or 1))
    generation = dataclasses.replace(
        config.generation, sleep=False, weights="full", kv_cache_gb=cache
    )
    config = dataclasses.replace(
        config,
        generation=generation,
        backbone=dataclasses.replace(config.backbone, compute=compute),
    )
    for name in ("sft", "reward", "preference", "ppo"):
        stage = getattr(config, name)
        optim = dataclasses.replace(stage.optim, name=stage.optim.name.removeprefix("paged_"))
        config = dataclasses.replace(config, **{name: dataclasses.replace(stage, optim=optim)})
    return config
