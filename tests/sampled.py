"""Prompts and an engine that samples responses to them from the role ``policy`` of a tiny
backbone.
"""

from __future__ import annotations

from prefloop.config import GenerationConfig
from prefloop.models.backbone import Backbone
from prefloop.records import Message
from prefloop.rollouts.engine import TransformersEngine

PROMPTS = ["try", "What is the capital of the country by the river?", "Please tell me how"]


def prompts_ids(backbone: Backbone) -> list[list[int]]:
    return [backbone.chat.prompt_ids([Message("user", text)]) for text in PROMPTS]


def engine_of(backbone: Backbone, **generation: float | int) -> TransformersEngine:
    settings = {"temperature": 0.7, "max_new_tokens": 24, "max_num_seqs": 4, **generation}
    engine = TransformersEngine(backbone, GenerationConfig(**settings))
    engine.load_policy("policy")
    return engine
