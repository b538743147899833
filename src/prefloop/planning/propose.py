"""Search for settings under which every stage fits into memory.

The order of preference: the configuration's precision before nf4, full vLLM weights before 4-bit
ones, no recomputation before recomputed blocks, large packs before small ones. prefloop cannot
shard a model, so a run that fits under no settings needs a larger card.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

from prefloop.config import RLHFConfig
from prefloop.errors import PrefloopError
from prefloop.planning.memory import GIB
from prefloop.planning.refusals import settled
from prefloop.planning.shapes import Shape
from prefloop.planning.stages import Planner, StagePlan

PACKS = (16384, 8192, 4096, 2048, 1024, 512, 256)
SEQUENCES = (256, 128, 64, 32, 16)


@dataclasses.dataclass(frozen=True)
class Proposal:
    """Changed settings by their flags, and the plan of the stages with them."""

    changes: dict[str, str]
    config: RLHFConfig
    stages: tuple[StagePlan, ...]

    @property
    def flags(self) -> str:
        return " ".join(f"--{name} {value}".rstrip() for name, value in self.changes.items())

    @property
    def at_most(self) -> int:
        return max(stage.at_most for stage in self.stages)


def changed(config: RLHFConfig, changes: dict[str, Any]) -> RLHFConfig:
    """The configuration with new values for fields named ``part.field``."""
    for name, value in changes.items():
        part, field = name.split(".")
        config = dataclasses.replace(
            config, **{part: dataclasses.replace(getattr(config, part), **{field: value})}
        )
    return config


def fits(stages: list[StagePlan] | tuple[StagePlan, ...], memory: int) -> bool:
    """Whether every stage fits into ``memory`` bytes, with its estimate's stated error."""
    return all(stage.at_most <= memory for stage in stages)


def propose(config: RLHFConfig, shape: Shape, memory: int, cpu: bool = False) -> Proposal | None:
    """The first combination of settings in the order of preference that fits ``memory`` bytes.

    The unchanged configuration comes first. Returns ``None`` if no combination fits.
    """
    for changes in _combinations(config, shape, cpu):
        candidate = _planned(config, shape, memory, changes, cpu)
        if fits(candidate.stages, memory):
            return candidate
    return None


def most_helpful(
    config: RLHFConfig, shape: Shape, memory: int, cpu: bool = False
) -> tuple[Proposal, int]:
    """The single change that lowers the highest peak most, and by how many bytes it does."""
    now = _planned(config, shape, memory, {}, cpu).at_most
    proposals = []
    half_length = {"backbone.max_length": (max(64, config.backbone.max_length // 2),)}
    for name, values in (_choices(config, shape, cpu) | half_length).items():
        for value in values:
            change = {name: value}
            if value != value_of(config, name) and _possible(changed(config, change), shape):
                proposals.append(_planned(config, shape, memory, change, cpu))
    best = min(proposals, key=lambda proposal: proposal.at_most)
    return best, now - best.at_most


def cards_needed(config: RLHFConfig, shape: Shape, memory: int) -> int | None:
    """How many cards of ``memory`` bytes would hold the smallest plan, cut into equal parts.

    1 GiB of each card is reserved for CUDA's context and fragments; ``None`` for cards that have no
    more. prefloop itself runs on one card, so the number only shows how far the run is from
    fitting.
    """
    if memory <= GIB:
        return None
    *_, last = _combinations(config, shape)
    least = _planned(config, shape, None, last).at_most
    return -(-least // (memory - GIB))


def _choices(config: RLHFConfig, shape: Shape, cpu: bool = False) -> dict[str, tuple[Any, ...]]:
    """Values of each setting from the preferred to the smallest.

    Values above the configuration's own are left out, and so are settings that a CPU ignores.
    """
    backbone, generation = config.backbone, config.generation
    vllm = config.rollout == "vllm" and not cpu
    precision = "nf4" if shape.stored_4bit else backbone.precision
    checkpointing = backbone.gradient_checkpointing
    choices: dict[str, tuple[Any, ...]] = {
        "backbone.precision": _first(precision, "nf4"),
        "generation.weights": _first(generation.weights, *(("nf4",) if vllm else ())),
        "generation.sleep": (True,) if vllm else (generation.sleep,),
        "generation.max_num_seqs": _below(generation.max_num_seqs, SEQUENCES),
        "backbone.gradient_checkpointing": _first(checkpointing, "block"),
        "backbone.pack_tokens": _below(backbone.pack_tokens, PACKS),
    }
    if vllm and generation.kv_cache_gb is not None:
        choices["generation.kv_cache_gb"] = (generation.kv_cache_gb, None)
    return choices


def _first(own: str, *others: str) -> tuple[str, ...]:
    return (own, *(other for other in others if other != own))


def _below(own: int, values: tuple[int, ...]) -> tuple[int, ...]:
    return (own, *(value for value in values if value < own))


def _combinations(config: RLHFConfig, shape: Shape, cpu: bool = False) -> Iterator[dict[str, Any]]:
    choices = _choices(config, shape, cpu)
    for values in itertools.product(*choices.values()):
        picked = dict(zip(choices, values, strict=True))
        changes = {name: value for name, value in picked.items() if value != value_of(config, name)}
        if _possible(changed(config, changes), shape):
            yield changes


def _possible(config: RLHFConfig, shape: Shape) -> bool:
    """Whether a run accepts these settings together."""
    try:
        settled(config, shape)
    except PrefloopError:
        return False
    return True


def value_of(config: RLHFConfig, name: str) -> Any:
    """The value of the setting ``part.field``."""
    part, field = name.split(".")
    return getattr(getattr(config, part), field)


def _planned(
    config: RLHFConfig, shape: Shape, memory: int | None, changes: dict[str, Any], cpu: bool = False
) -> Proposal:
    new = changed(config, changes)
    flags = dict(_flag(name, value) for name, value in changes.items())
    return Proposal(flags, new, tuple(Planner(new, shape, memory, cpu).stages()))


def _flag(name: str, value: Any) -> tuple[str, str]:
    """Name and value on the command line; a switch has an empty value."""
    part, field = name.replace("_", "-").split(".")
    if isinstance(value, bool):
        return f"{part}.{'' if value else 'no-'}{field}", ""
    return f"{part}.{field}", str(value)
