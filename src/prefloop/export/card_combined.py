"""The model card of an adapter that ``prefloop adapters merge`` made of others."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard, ModelCardData

from prefloop.artifacts.adapter_config import read_adapter
from prefloop.config.adapters import CARDS
from prefloop.export.card_base import base_of, filled
from prefloop.export.card_tables import UNSAFE, cell
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
    """The card of the adapter in ``folder``, as text.

    ``settings``: how, density, seed, rank, kept. ``sampling``: of a part whose run recorded it.
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
    versions = environment()["versions"]
    text = filled(
        "card.md.j2",
        card_data=data.to_yaml(),
        title=f"{short}: merged adapter",
        summary=(
            f"A LoRA adapter for `{base}`, merged from {len(parts)} others with prefloop. It was"
            " not trained as a whole, and nobody has measured it: the cards of its parts hold"
            " their own figures."
        ),
        merge={
            "how": how,
            "what": _WHAT[how],
            "parts": [
                (
                    f"`{cell(part.name)}`",
                    part.adapter.method,
                    part.adapter.r,
                    f"{part.weight:g}",
                    f"`{part.key[:16]}`",
                )
                for part in parts
            ],
        },
        settings=_settings(how, settings),
        limits=[
            "Meant for research on preference learning, on prompts like those that its parts were"
            " trained on.",
            UNSAFE,
        ],
        loading=loading(
            "merge",
            model,
            CARDS["lora"],
            adapter,
            backbone_identity(runtime),
            merged=False,
            sampling=sampling,
        ),
        versions="Merged with "
        + ", ".join(
            f"{name} {versions[name]}" for name in ("prefloop", "peft", "torch") if name in versions
        )
        + ".",
    )
    return str(ModelCard(text))


def _settings(how: str, used: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [("rank", str(used["rank"]))]
    if how != "linear":
        rows.append(
            ("share of the combination's squared norm that the rank holds", f"{used['kept']:.4f}")
        )
    if how not in ("linear", "svd"):
        rows.append(("density", f"{used['density']:g}"))
    if how.startswith("dare"):
        rows.append(("seed", str(used["seed"])))
    return rows
