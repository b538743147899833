"""The configuration of a run on a machine without a GPU, as far as memory depends on it."""

from __future__ import annotations

import dataclasses
from typing import Literal

from prefloop.config import RLHFConfig


def on_cpu(config: RLHFConfig) -> RLHFConfig:
    """The configuration that a run without a GPU uses.

    The compute dtype is bfloat16 if the CPU multiplies it fast, and no optimizer is paged. vLLM's
    CPU build keeps full weights, never sleeps, and has 1 GiB of cache by default
    (``rollouts.vllm``).
    """
    import torch

    from prefloop.models.load import compute_dtype

    dtype = compute_dtype(config.backbone, torch.device("cpu"))
    compute: Literal["fp32", "bf16"] = "fp32" if dtype == torch.float32 else "bf16"
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
