"""Settings that make everything fit: a search over what costs nothing but time, then over what
changes the run.

The order of preference: the configuration's precision before nf4, no recomputation before blocks,
full vLLM weights before 4-bit ones, large packs before small. Only settings that exist are
proposed; sharding does not, so what does not fit one card is said to need more.
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
    """Changed settings by their flags, and the stages under them."""

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
    """The configuration with some ``part.field`` replaced."""
    for name, value in changes.items():
        part, field = name.split(".")
        config = dataclasses.replace(
            config, **{part: dataclasses.replace(getattr(config, part), **{field: value})}
        )
    return config


def fits(stages: list[StagePlan] | tuple[StagePlan, ...], memory: int) -> bool:
    """Whether every stage fits even when its estimate is as wrong as it says."""
    return all(stage.at_most <= memory for stage in stages)


def propose(config: RLHFConfig, shape: Shape, memory: int, cpu: bool = False) -> Proposal | None:
    """The configuration as it is where that fits ``memory`` bytes, else the first combination in
    the order of preference that does; None when none does.
    """
    for changes in _combinations(config, shape, cpu):
        candidate = _planned(config, shape, memory, changes, cpu)
        if fits(candidate.stages, memory):
            return candidate
    return None


def most_helpful(
    config: RLHFConfig, shape: Shape, memory: int, cpu: bool = False
) -> tuple[Proposal, int]:
    """The one change of a setting that lowers the highest peak most, and by how many bytes."""
    now = _planned(config, shape, memory, {}, cpu).at_most
    single = []
    halves = {"backbone.max_length": (max(64, config.backbone.max_length // 2),)}
    for name, values in (_choices(config, shape, cpu) | halves).items():
        changes = [{name: value} for value in values if value != value_of(config, name)]
        single += [
            _planned(config, shape, memory, c, cpu)
            for c in changes
            if _possible(changed(config, c), shape)
        ]
    best = min(single, key=lambda proposal: proposal.at_most)
    return best, now - best.at_most


def cards_needed(config: RLHFConfig, shape: Shape, memory: int) -> int | None:
    """Cards of ``memory`` bytes that would hold the smallest plan if everything but a GiB of each
    (CUDA's context, remains) were cut into equal parts; None for cards that hold no more than that.

    prefloop runs on one card; the figure says how far away one is.
    """
    if memory <= GIB:
        return None
    *_, last = _combinations(config, shape)
    least = _planned(config, shape, None, last).at_most
    return -(-least // (memory - GIB))


def _choices(config: RLHFConfig, shape: Shape, cpu: bool = False) -> dict[str, tuple[Any, ...]]:
    """Values of each setting from the best to the smallest; those above what the configuration asks
    for, or that a processor passes over, are left out.
    """
    now = config.backbone.pack_tokens
    vllm = config.rollout == "vllm" and not cpu
    precisions = (
        ("nf4",)
        if config.backbone.precision == "nf4" or shape.stored_4bit
        else (config.backbone.precision, "nf4")
    )
    choices: dict[str, tuple[Any, ...]] = {
        "backbone.precision": precisions,
        "generation.weights": (config.generation.weights, "nf4")
        if vllm and config.generation.weights != "nf4"
        else (config.generation.weights,),
        "generation.sleep": (True,) if vllm else (config.generation.sleep,),
        "generation.max_num_seqs": (
            config.generation.max_num_seqs,
            *(n for n in SEQUENCES if n < config.generation.max_num_seqs),
        ),
        "backbone.gradient_checkpointing": ("none", "block")
        if config.backbone.gradient_checkpointing == "none"
        else ("block",),
        "backbone.pack_tokens": (now, *(p for p in PACKS if p < now)),
    }
    if vllm and config.generation.kv_cache_gb is not None:
        choices["generation.kv_cache_gb"] = (config.generation.kv_cache_gb, None)
    return choices


def _combinations(config: RLHFConfig, shape: Shape, cpu: bool = False) -> Iterator[dict[str, Any]]:
    choices = _choices(config, shape, cpu)
    for values in itertools.product(*choices.values()):
        picked = dict(zip(choices, values, strict=True))
        changes = {name: value for name, value in picked.items() if value != value_of(config, name)}
        if _possible(changed(config, changes), shape):
            yield changes


def _possible(config: RLHFConfig, shape: Shape) -> bool:
    """Whether a run takes these settings together."""
    try:
        settled(config, shape)
    except PrefloopError:
        return False
    return True


def value_of(config: RLHFConfig, name: str) -> Any:
    """A setting by ``part.field``."""
    part, field = name.split(".")
    return getattr(getattr(config, part), field)


def _planned(
    config: RLHFConfig, shape: Shape, memory: int | None, changes: dict[str, Any], cpu: bool = False
) -> Proposal:
    new = changed(config, changes)
    flags = dict(_flag(name, value) for name, value in changes.items())
    return Proposal(flags, new, tuple(Planner(new, shape, memory, cpu).stages()))


def _flag(name: str, value: Any) -> tuple[str, str]:
    """Name and value as the command line takes them; a switch has none."""
    part, field = name.replace("_", "-").split(".")
    if isinstance(value, bool):
        return f"{part}.{'' if value else 'no-'}{field}", ""
    return f"{part}.{field}", str(value)
