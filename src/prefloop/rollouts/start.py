"""The rollout engine by its name: ``transformers``, ``server`` or ``vllm``."""

from __future__ import annotations

from prefloop.config import GenerationConfig
from prefloop.models.backbone import Backbone
from prefloop.rollouts.engine import Restarting, RolloutEngine, TransformersEngine


def start(name: str, backbone: Backbone, generation: GenerationConfig) -> RolloutEngine:
    """Start the engine called ``name``. vLLM in this process is restarted once if it dies."""
    if name == "transformers":
        return TransformersEngine(backbone, generation)
    if name == "server":
        from prefloop.rollouts.server import ServerEngine

        return ServerEngine(backbone, generation)
    from prefloop.rollouts.vllm import VLLMEngine

    return Restarting(lambda: VLLMEngine(backbone, generation))
