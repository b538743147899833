"""The model card of an adapter that ``prefloop adapters merge`` made of others."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard, ModelCardData

from prefloop.artifacts.adapter_config import read_adapter
from prefloop.config.adapters import CARDS
from prefloop.export.card_base import base_of
from prefloop.export.card_tables import cell
from prefloop.export.loading import loading
from prefloop.pipeline.stage import backbone_identity
from prefloop.runs.runtime import environment

if TYPE_CHECKING:
    from prefloop.config import AdapterConfig, GenerationConfig
    from prefloop.runs.runtime import Runtime

_WHAT = {
    "linear": (
        "the weighted sum of the changes of the weights, exact (task arithmetic, arXiv 2212.04089)"
    ),
    "svd": (
        "the weighted sum of the changes of the weights (task arithmetic, arXiv 2212.04089), cut to"
        " the rank by its singular values"
    ),
    "ties": (
        "TIES (arXiv 2306.01708) on the changes of the weights: of each the largest are kept, signs"
        " elected, those that agree averaged"
    ),
    "dare_linear": (
        "DARE (arXiv 2311.03099) on the changes of the weights: of each some are dropped at random,"
        " the rest scaled up, then summed"
    ),
    "dare_ties": (
        "DARE (arXiv 2311.03099), then the sign election of TIES (arXiv 2306.01708), on the changes"
        " of the weights"
    ),
    "magnitude_prune": "the weighted sum of the largest changes of the weights",
}
_CARD = """---
{data}
---

# {short}: merged adapter

A LoRA adapter for `{base}`, merged from {count} others with prefloop. It was not trained as a whole, and nobody has measured it: what was
measured of its parts stands in their cards.

## How it was made
By `{how}`: {what}.

| adapter | method | r | weight | artifact |
|---|---|---|---|---|
{rows}

| setting | value |
|---|---|
{settings}

## Use and limits
- Meant for research on preference learning, on prompts like those that its parts were trained on.
- It has what the base model has of errors, biases and unsafe answers; nothing here was trained or tested for safety.

## Loading
{loading}

## Versions
Merged with {versions}.
"""  # noqa: E501


@dataclasses.dataclass(frozen=True)
class MergedPart:
    """One adapter that went in."""

    name: str
    key: str
    adapter: AdapterConfig
    weight: float


def combined_card(
    folder: Path,
    parts: Sequence[MergedPart],
    settings: Mapping[str, Any],
    runtime: Runtime,
    sampling: GenerationConfig | None = None,
) -> str:
    """The card of the adapter in ``folder``, as text. ``settings``: how, density, seed, rank, kept.
    ``sampling``: of a part that says it.
    """
    adapter = read_adapter(folder)
    model = base_of(runtime, adapter["base_model_name_or_path"])
    base = model.name
    short, how = base.rpartition("/")[2], str(settings["how"])
    data = ModelCardData(
        base_model=base,
        library_name="peft",
        pipeline_tag="text-generation",
        license=model.license,
        model_name=f"{short}-merged",
        tags=["prefloop", "lora", "rlhf", "merge"],
    )
    rows = [
        f"| `{cell(p.name)}` | {p.adapter.method} | {p.adapter.r} | {p.weight:g} | `{p.key[:16]}` |"
        for p in parts
    ]
    versions = environment()["versions"]
    text = _CARD.format(
        data=data.to_yaml(),
        short=short,
        base=base,
        count=len(parts),
        how=how,
        what=_WHAT[how],
        rows="\n".join(rows),
        settings="\n".join(f"| {name} | {value} |" for name, value in _settings(how, settings)),
        loading=loading(
            "merge",
            model,
            CARDS["lora"],
            adapter,
            backbone_identity(runtime),
            merged=False,
            sampling=sampling,
        ),
        versions=", ".join(
            f"{name} {versions[name]}" for name in ("prefloop", "peft", "torch") if name in versions
        ),
    )
    return str(ModelCard(text))


def _settings(how: str, said: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [("rank", str(said["rank"]))]
    if how != "linear":
        rows.append(
            ("share of the combination's squared norm that the rank holds", f"{said['kept']:.4f}")
        )
    if how not in ("linear", "svd"):
        rows.append(("density", f"{said['density']:g}"))
    if how.startswith("dare"):
        rows.append(("seed", str(said["seed"])))
    return rows
