"""What a run would refuse, from the configurations of run and model alone, and what no plan
counts.
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
    """Raise what a run of ``config`` would before it loads a weight: ``ConfigError``,
    ``EngineError`` or ``ModelError``.
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
            f"{shape.name} is stored in 4 bits, which are trained on with backbone.precision nf4"
            " alone"
        )
    if cpu and samples(config) and config.rollout == "vllm":
        raise EngineError(f"{shape.name} is {NOT_ON_CPU}")
    if samples(config) and config.rollout == "vllm" and generation.handover == "merged":
        raise EngineError(f"{shape.name} is stored in 4 bits: {NOT_INTO_4_BITS}")
    if samples(config) and config.rollout == "vllm" and card.handover != "adapter":
        raise EngineError(
            f"{shape.name} is stored in 4 bits, where vLLM takes adapters alone, and not those of"
            f" method {card.name}: say --rollout transformers, or take one of {others('adapter')}"
        )


def samples(config: RLHFConfig) -> bool:
    """Whether any stage of a run asks the rollout engine for responses."""
    return config.algo != SFT_ONLY and (config.algo != REWARD_ONLY or config.label.source != "file")


def uncounted(config: RLHFConfig) -> list[str]:
    """What a run of ``config`` also puts on the device and no plan counts."""
    out = [said] if (said := unseen(config)) else []
    if config.algo.startswith(PREFIX):
        out.append(
            f"the stage of TRL's {config.algo.removeprefix(PREFIX)}: the planner has no model of"
            " its memory and time"
        )
    if config.bench.tasks or config.bench.domain:
        out.append(
            "benchmarks: logits of bench.batch_size whole questions, in float32 (lower"
            " bench.batch_size where they do not fit)"
        )
    if (config.evaluate.judge or "").startswith(("local:", "reward:")):
        out.append(f"the model of evaluate.judge {config.evaluate.judge}")
    return out
