"""The errors that a run would raise at its start, and the memory that no plan counts.

Both come from the configurations of run and model alone.
"""

from __future__ import annotations

from prefloop.config import RLHFConfig
from prefloop.config.adapters import others, require
from prefloop.config.algorithms import REWARD_ONLY, SFT_ONLY
from prefloop.config.trl import PREFIX
from prefloop.errors import EngineError, ModelError
from prefloop.models.rope import stretched
from prefloop.planning.groups import unseen
from prefloop.planning.shapes import Shape
from prefloop.rollouts.check import NOT_INTO_4_BITS, NOT_ON_CPU, agree


def settled(config: RLHFConfig, shape: Shape, cpu: bool = False) -> None:
    """Raise the error that a run of ``config`` would raise before loading weights.

    It is a ``ConfigError``, an ``EngineError`` or a ``ModelError``.
    """
    backbone, generation = config.backbone, config.generation
    card = require(backbone)
    if samples(config):
        agree(config.rollout, generation, backbone)
    stretched(shape.described, backbone)
    if not shape.stored_4bit:
        return
    if backbone.precision != "nf4":
        raise ModelError(
            f"{shape.name} is stored in 4 bits, which can only be trained on with"
            " backbone.precision nf4"
        )
    if not samples(config) or config.rollout != "vllm":
        return
    if cpu:
        raise EngineError(f"{shape.name} is {NOT_ON_CPU}")
    if generation.handover == "merged":
        raise EngineError(f"{shape.name} is stored in 4 bits: {NOT_INTO_4_BITS}")
    if card.handover != "adapter":
        raise EngineError(
            f"{shape.name} is stored in 4 bits, so vLLM can only run LoRA adapters, not those of"
            f" method {card.name}: use --rollout transformers, or one of {others('adapter')}"
        )


def samples(config: RLHFConfig) -> bool:
    """Whether any stage of a run samples from the rollout engine."""
    return config.algo != SFT_ONLY and (config.algo != REWARD_ONLY or config.label.source != "file")


def uncounted(config: RLHFConfig) -> list[str]:
    """Descriptions of the device memory of a run that no plan counts."""
    out = [groups] if (groups := unseen(config)) else []
    if config.algo.startswith(PREFIX):
        out.append(
            f"the stage of TRL's {config.algo.removeprefix(PREFIX)}: the planner has no model of"
            " its memory and time"
        )
    if config.bench.tasks or config.bench.domain:
        out.append(
            "benchmarks: float32 logits of bench.batch_size whole questions (lower"
            " bench.batch_size if they do not fit)"
        )
    if (config.evaluate.judge or "").startswith(("local:", "reward:")):
        out.append(f"the model of evaluate.judge {config.evaluate.judge}")
    return out
