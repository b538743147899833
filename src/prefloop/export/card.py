"""The model card of an exported adapter: a ``README.md`` that Hugging Face's tools read.

Its sources are the manifests of the artifact and its inputs, and the run's final comparison. It
holds no paths. People who voted are counted and not named.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard, ModelCardData

from prefloop.artifacts.adapter_config import read_adapter
from prefloop.artifacts.codec import read
from prefloop.artifacts.labels import Annotator, Labels
from prefloop.artifacts.manifest import Manifest
from prefloop.base.console import counted
from prefloop.config import GenerationConfig
from prefloop.config.algorithms import IMITATING, ROLLOUTS, kind_of
from prefloop.evaluation.learnt import unmoved
from prefloop.export.card_base import Base, filled
from prefloop.export.card_tables import (
    UNSAFE,
    WORDS,
    Compared,
    card_for,
    cell,
    comparison,
    eval_results,
    measured,
    settings,
    stage_row,
)
from prefloop.export.loading import loading

if TYPE_CHECKING:
    from prefloop.config.adapters import Card


@dataclasses.dataclass(frozen=True)
class Exported:
    """What a card holds beyond the artifact and its inputs."""

    compared: Compared | None = None
    notes: Sequence[str] = ()
    """What the run discloses about its numbers."""
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    sampling: GenerationConfig | None = None
    """How the run samples, where it says so."""
    merged: str | None = None
    """The floating-point type, when the adapter is merged into whole weights."""


def model_card(
    folder: Path,
    manifest: Manifest,
    ancestors: Sequence[Manifest],
    model: Base,
    exported: Exported,
) -> str:
    """The card of the adapter in ``folder``, as text; the same text for the same artifact and
    comparison.
    """
    adapter = read_adapter(folder)
    base, stage = model.name, manifest.stage
    kind, method = kind_of(stage), card_for(manifest.identity, adapter)
    short = base.rpartition("/")[2]
    merged, compared = exported.merged, exported.compared
    data = ModelCardData(
        base_model=base,
        library_name="transformers" if merged else "prefloop" if method.ours else "peft",
        pipeline_tag="text-classification" if kind == "reward" else "text-generation",
        license=model.license,
        model_name=f"{short}-{stage}",
        tags=list(dict.fromkeys(["prefloop", *([] if merged else _tags(method)), "rlhf", kind])),
        eval_results=eval_results(kind, compared) or None,
    )
    people, simulated = _annotators(ancestors)
    text = filled(
        "card.md.j2",
        merge=None,
        card_data=data.to_yaml(),
        title=f"{short}: {kind}" + ("" if merged or method.name == "lora" else f" ({method.name})"),
        summary=_summary(kind, base, method, bool(merged)),
        stages=[stage_row(made) for made in (*ancestors, manifest)],
        votes=_votes(people, simulated),
        settings=settings(manifest, adapter),
        stage=cell(stage),
        sampled=kind in ROLLOUTS,
        measured=measured(manifest.metrics),
        evaluation=comparison(kind, compared),
        limits=_limits(kind, simulated, exported) + _unmoved(manifest, compared),
        loading=loading(
            kind,
            model,
            method,
            adapter,
            manifest.identity["backbone"],
            bool(merged),
            exported.sampling,
        ),
        versions=_versions(manifest, adapter, exported),
    )
    return str(ModelCard(text))


def _tags(method: Card) -> list[str]:
    """The tags that the Hub lists adapters by; files in LoRA's format are tagged as LoRA too."""
    return [*(["lora"] if method.handover == "adapter" else []), method.name]


def _what(method: Card, base: str) -> str:
    """What the files are."""
    if method.name == "lora":
        return f"a LoRA adapter for `{base}`"
    reference = (
        f"{method.title}; {f'arXiv {method.paper}' if method.paper[:4].isdigit() else method.paper}"
    )
    return f"an adapter of method {method.name} ({reference}) for `{base}`"


def _summary(kind: str, base: str, method: Card, merged: bool) -> str:
    what = _what(method, base)
    if kind == "reward":
        return (
            f"A reward model that scores responses: {what} and a head, learnt from votes with"
            " prefloop."
        )
    if merged:
        what = f"the weights of `{base}` with an adapter merged in"
    done = "trained" if kind in IMITATING else "aligned"
    return f"{what[0].upper()}{what[1:]}, {done} with prefloop by {WORDS.get(kind, cell(kind))}."


def _annotators(ancestors: Sequence[Manifest]) -> tuple[list[Annotator], list[Annotator]]:
    """People and simulated annotators of the last round, whose comparisons hold those before it."""
    rounds = [m.metrics for m in ancestors if m.metrics.get("annotators")]
    voters = read(Labels, rounds[-1]).annotators if rounds else []
    return [a for a in voters if not a.simulated], [a for a in voters if a.simulated]


def _votes(people: Sequence[Annotator], simulated: Sequence[Annotator]) -> str:
    parts = []
    if simulated:
        names = ", ".join(f"`{cell(name)}`" for name in dict.fromkeys(a.name for a in simulated))
        parts.append(
            f"{sum(a.votes or 0 for a in simulated):,} votes are of *simulated* annotators"
            f" ({names}), drawn from a disclosed score: no person cast them."
        )
    if people:
        of_whom = counted(
            len({a.name for a in people}),
            "annotator or file of labels",
            "annotators or files of labels",
        )
        parts.append(f"{sum(a.votes or 0 for a in people):,} votes are of {of_whom}.")
    return " ".join(parts)


def _limits(kind: str, simulated: Sequence[Annotator], exported: Exported) -> list[str]:
    use = (
        "scoring responses of the kind that its votes were about"
        if kind == "reward"
        else "research on preference learning, on prompts like those it was trained on"
    )
    lines = [f"Meant for {use}.", UNSAFE]
    if simulated:
        lines.append(
            "Simulated annotators voted by a disclosed score. Its preferences are those of the"
            " score and no evidence of what people prefer."
        )
    if kind == "reward":
        lines.append(
            "A policy that is trained hard against it finds its errors. Scores compare responses"
            " to one prompt only."
        )
    elif kind not in IMITATING:
        lines.append("It learned from votes, with their errors and their taste in length.")
    return lines + [" ".join(note.split()).replace("<", "&lt;") for note in exported.notes]


def _unmoved(manifest: Manifest, compared: Compared | None) -> list[str]:
    """A sentence where the comparison shows that the policy is still where it began."""
    kind = kind_of(manifest.stage)
    row = compared.evaluation.results.get(kind) if compared else None
    return unmoved({kind: manifest.metrics}, {kind: row}) if row else []


def _versions(manifest: Manifest, adapter: Mapping[str, Any], exported: Exported) -> str:
    parts = [f"prefloop {manifest.prefloop}", f"peft {adapter.get('peft_version')}"]
    here = ", ".join(f"{name} {version}" for name, version in sorted(exported.versions.items()))
    return f"Made with {', '.join(parts)}; exported with {here}. Artifact `{manifest.key[:16]}`."
