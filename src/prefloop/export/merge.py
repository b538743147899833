"""Several adapters as one: what ``prefloop adapters merge`` writes. No weights of the backbone are
loaded; the arithmetic needs A and B alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefloop.artifacts.references import ABOUT, ADAPTER, Policy, identity_of, policy_of
from prefloop.base.sealed import digest, file_digest, write_json, write_sealed
from prefloop.errors import ConfigError, ModelError
from prefloop.export.adapter import new_folder, sampling_of, write_tokenizer
from prefloop.runs.open import config_of, require_model, require_one_backbone, runtime_of

if TYPE_CHECKING:
    from prefloop.export.combine import Combined, Factors
    from prefloop.runs.runtime import Runtime

STAGE = "merge"


def merge_adapters(
    references: Sequence[str | Path],
    folder: Path,
    weights: Sequence[float] = (),
    how: str = "linear",
    density: float = 0.5,
    rank: int | None = None,
    seed: int = 0,
    model: str | None = None,
) -> Combined:
    """Combine the adapters that ``references`` name and write the result to a new folder, complete
    or not at all.

    The folder is like one of ``export``: PEFT's files, tokenizer, card, and what prefloop needs to
    open it again. Raises ``ModelError`` for adapters of different backbones or layers or of methods
    whose files are no plain LoRA, ``ConfigError`` for settings that do not fit.
    """
    from prefloop.export.combine import combine

    policies = [policy_of(reference) for reference in references]
    for policy in policies:
        _require_lora(policy, model)
    # Ranks and scales may differ: what is combined are the changes of the weights.
    require_one_backbone(
        [dataclasses.replace(p, origin=dataclasses.replace(p.origin, shape={})) for p in policies],
        model,
    )
    first = max(policies, key=lambda p: (bool(p.origin.settings), bool(p.origin.model)))
    with new_folder(folder) as draft:
        runtime = runtime_of([first], model)
        require_model(runtime, {p.name: p.origin for p in policies})
        made = combine(_factors(policies), weights, how, density, rank, seed)
        _write(policies, first, made, runtime, draft)
        write_tokenizer(runtime, draft)
        _write_card(policies, made, {"how": how, "density": density, "seed": seed}, runtime, draft)
    return made


def _require_lora(policy: Policy, model: str | None) -> None:
    from prefloop.config.adapters import card_of, others

    if policy.folder is None:
        raise ConfigError(
            f"'{policy.name}' is the bare model: it adds nothing to the weights, name adapters"
        )
    method = config_of(policy.origin, policy.name, model).adapter.method
    if card_of(method).handover != "adapter":
        raise ModelError(
            f"'{policy.name}' is of method {method}, whose files are no plain LoRA: what can be"
            f" combined are adapters of {others('adapter')}"
        )


def _factors(policies: Sequence[Policy]) -> list[Factors]:
    from prefloop.export.combine import read

    found = [read(Path(policy.folder or ""), policy.name) for policy in policies]
    for policy, factors in zip(policies[1:], found[1:], strict=True):
        sizes = [{n: (f.b[n].shape[0], f.a[n].shape[1]) for n in f.a} for f in (found[0], factors)]
        differing = sorted(
            n for n in sizes[0].keys() | sizes[1].keys() if sizes[0].get(n) != sizes[1].get(n)
        )
        if differing:
            raise ModelError(
                f"'{policies[0].name}' and '{policy.name}' adapt different layers ({len(differing)}"
                f" of them, first {differing[0]}): give adapters with the same"
                " backbone.adapter.target_modules"
            )
    return found


def _write(
    policies: Sequence[Policy], first: Policy, made: Combined, runtime: Runtime, draft: Path
) -> None:
    """PEFT's files, and what says which backbone they belong to."""
    from safetensors.torch import save_file

    from prefloop.artifacts.adapter_config import KEY, read_adapter

    assert first.folder is not None
    config = read_adapter(first.folder)
    config.pop(KEY, None)
    config["base_model_name_or_path"] = (
        config["base_model_name_or_path"] or runtime.backbone_config.model
    )
    # Of the rank of its sources it lies on a backbone beside them: the same alpha, where that is a
    # whole number.
    alpha = made.rank * config["lora_alpha"] / config["r"]
    alpha = int(alpha) if alpha >= 1 and alpha == int(alpha) else made.rank
    config |= {
        "r": made.rank,
        "lora_alpha": alpha,
        "use_rslora": False,
        "lora_dropout": 0.0,
        "inference_mode": True,
    }
    save_file(
        {n: t.contiguous() for n, t in made.state(alpha / made.rank).items()}, draft / ADAPTER
    )
    write_json(draft / "adapter_config.json", config)
    known = identity_of(first.folder)
    identity: dict[str, Any] = {k: known[k] for k in ("backbone", "generation") if k in known}
    sampled = next((policy for policy in policies if policy.generation), None)
    if sampled is not None and "generation" not in identity:
        identity["generation"] = sampling_of(sampled)
    if "backbone" in identity:
        adapter = {"method": "lora", "r": made.rank, "alpha": alpha, "dropout": 0.0, "options": {}}
        identity["backbone"] = identity["backbone"] | {
            "adapter": identity["backbone"].get("adapter", {}) | adapter
        }
    files = {name: file_digest(draft / name) for name in (ADAPTER, "adapter_config.json")}
    key = digest({"parts": [policy.key for policy in policies], "files": files})
    write_sealed(draft / ABOUT, {"stage": STAGE, "key": key, "identity": identity, "files": files})


def _write_card(
    policies: Sequence[Policy],
    made: Combined,
    settings: dict[str, Any],
    runtime: Runtime,
    draft: Path,
) -> None:
    from prefloop.export.card_combined import MergedPart, combined_card

    parts = [
        MergedPart(
            _short(policy.name),
            policy.key,
            config_of(policy.origin, policy.name, runtime.backbone_config.model).adapter,
            weight,
        )
        for policy, weight in zip(policies, made.weights, strict=True)
    ]
    sampling = next((policy.generation for policy in policies if policy.generation), None)
    text = combined_card(
        draft, parts, settings | {"rank": made.rank, "kept": made.kept}, runtime, sampling
    )
    (draft / "README.md").write_text(text, encoding="utf-8")


def _short(name: str) -> str:
    """The last part of a reference: a card tells nothing of the folders of the machine."""
    return Path(name).name
