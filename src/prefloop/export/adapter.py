"""A result as a folder that PEFT, transformers and vLLM load, with the full model card: what
``prefloop export`` writes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefloop.artifacts.manifest import MANIFEST, Manifest, read_manifest
from prefloop.artifacts.references import (
    ABOUT,
    ADAPTER,
    HEAD,
    Place,
    Policy,
    identity_of,
    locate,
    origin_of,
    policy_of,
)
from prefloop.base.atomic import settle
from prefloop.base.sealed import check_files, copy_file, write_json, write_sealed
from prefloop.config.algorithms import kind_of
from prefloop.errors import ConfigError, StoreError
from prefloop.evaluation.standing import MEASURED
from prefloop.models.folder import described
from prefloop.models.rope import overrides, written
from prefloop.pipeline.stage import content
from prefloop.runs.open import config_of, open_policies, require_model
from prefloop.runs.runtime import Runtime, environment

if TYPE_CHECKING:
    from prefloop.export.card_tables import Compared

_KEPT = ("adapter_config.json", ADAPTER, "head.json", HEAD, "reward.json")


def export(reference: str, folder: Path, merge: bool = False, model: str | None = None) -> Path:
    """Write a trained result and its card to a new folder, complete or not at all; returns the
    folder.

    With ``merge`` it holds the whole model in the backbone's floating-point type instead of an
    adapter. ``model``: path or name of the base model, if it has moved since training. Raises
    ``ConfigError`` for what cannot be exported, ``ModelError`` for what is no result.
    """
    place = locate(reference)
    if place.folder is None:
        raise ConfigError(f"'{reference}' is the bare model: nothing in it was trained here")
    if not os.path.lexists(place.folder / MANIFEST):
        raise ConfigError(
            f"'{reference}' is no artifact of a run ({MANIFEST} is missing), so a card has no"
            " source. A merged or exported adapter's own README.md says how to load it"
        )
    manifest = read_manifest(place.folder, required=False)
    if not isinstance(manifest.identity.get("backbone"), dict):
        raise StoreError(
            f"{place.folder / MANIFEST}: damaged, identity.backbone does not name the adapter's"
            " base model"
        )
    if merge and (place.folder / HEAD).is_file():
        raise ConfigError(
            "--merge: a reward model is an adapter and a head, which no plain model has a place for"
        )
    if merge:
        _require_merging(place.folder, reference)
    with new_folder(folder) as draft:
        _write(place, manifest, draft, merge, model)
    return folder


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A draft that becomes ``folder`` when the block ends well and leaves nothing otherwise. Raises
    ``ConfigError`` where something is there.
    """
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"'{folder}' exists already: name a new folder")
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft.mkdir()
    except OSError as error:
        raise ConfigError(
            f"'{str(folder)[:200]}' cannot be written ({error.strerror}): name another folder"
        ) from error
    try:
        yield draft
        settle(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _require_merging(folder: Path, reference: str) -> None:
    from prefloop.artifacts.adapter_config import read_adapter
    from prefloop.config.adapters import others
    from prefloop.export.card_tables import card_for

    card = card_for(identity_of(folder), read_adapter(folder))
    if not card.merges:
        raise ConfigError(
            f"--merge: '{reference}' is an adapter of method {card.name}, which no plain weights"
            f" can stand for: export it without --merge; what merges is {others('merges')}"
        )


def _write(place: Place, manifest: Manifest, draft: Path, merge: bool, model: str | None) -> None:
    from prefloop.artifacts.store import lineage
    from prefloop.export.card import Exported, model_card
    from prefloop.export.card_base import base_of
    from prefloop.report.inputs import read_summary

    source = place.folder
    assert source is not None
    origin = origin_of(source)
    runtime = Runtime(config_of(origin, place.name, model), output=source.parent.parent)
    require_model(runtime, {place.name: origin})
    policy = None if (source / HEAD).is_file() else policy_of(place.name)
    dtype = None
    kept = {
        n: hashed
        for n, hashed in manifest.files.items()
        if Path(n).name in _KEPT and not n.startswith("value/")
    }
    if merge:
        check_files(source, kept)
        dtype = _write_merged(place, draft, model)
    else:
        for name, hashed in kept.items():
            copy_file(source, name, hashed, draft / name)
        identity = {
            k: manifest.identity[k] for k in ("backbone", "generation") if k in manifest.identity
        }
        if policy is not None and policy.generation and "generation" not in identity:
            identity["generation"] = sampling_of(policy)
        metrics = {name: manifest.metrics[name] for name in MEASURED if name in manifest.metrics}
        about = {
            "stage": manifest.stage,
            "key": manifest.key,
            "identity": identity,
            "metrics": metrics,
            "files": kept,
        }
        write_sealed(draft / ABOUT, about)
    write_tokenizer(runtime, draft)
    summary = place.run / "summary.json" if place.run else None
    notes = read_summary(summary).disclosure if summary and summary.is_file() else []
    exported = Exported(
        compared_in(place, manifest),
        notes,
        environment()["versions"],
        policy.generation if policy else None,
        dtype,
    )
    base = base_of(runtime, origin.model)
    text = model_card(source, manifest, lineage(source.parent, manifest), base, exported)
    (draft / "README.md").write_text(text, encoding="utf-8")


def compared_in(place: Place, manifest: Manifest) -> Compared | None:
    """The run's final comparison, when it was of this very artifact."""
    from prefloop.artifacts.store import lineage
    from prefloop.export.card_tables import Compared
    from prefloop.report.former import read_evaluation
    from prefloop.report.summary import quotable

    judge = place.run / "artifacts" / "judge" / MANIFEST if place.run else None
    if judge is None or not judge.is_file() or place.folder is None:
        return None
    judged = read_manifest(judge.parent, required=False)
    try:
        evaluation = read_evaluation(judged.metrics)
    except ValueError as error:
        raise StoreError(f"{judge}: {error}. Run the pipeline again to rewrite it") from None
    before = lineage(judge.resolve().parent.parent, judged)
    reward = next(
        (made.metrics for made in reversed(before) if kind_of(made.stage) == "reward"), {}
    )
    for made in before:
        if (
            made.stage == f"respond-{place.slot}"
            and made.inputs.get(str(place.slot)) == manifest.key
        ):
            return Compared(
                *quotable(evaluation, reward), made.reads.get("prompts", "the evaluation prompts")
            )
    return None


def _write_merged(place: Place, draft: Path, model: str | None) -> str:
    """Whole weights under their checkpoint names, and the model's configuration without its
    quantization; returns their type.
    """
    from prefloop.models.merge import save_merged

    opened = open_policies([place.folder or ""], model=model)
    backbone = opened.runtime.backbone
    save_merged(
        backbone.causal_lm, next(iter(opened.roles.values())), draft, backbone.compute_dtype
    )
    dtype = str(backbone.compute_dtype).removeprefix("torch.")
    config = described(backbone.folder)
    for name in ("quantization_config", "torch_dtype", "auto_map"):
        config.pop(name, None)
    changes = overrides(backbone.folder, backbone.config.rope, backbone.config.model)
    write_json(draft / "config.json", written(config, changes) | {"dtype": dtype})
    if (backbone.folder / "generation_config.json").is_file():
        shutil.copyfile(
            backbone.folder / "generation_config.json", draft / "generation_config.json"
        )
    return dtype


def sampling_of(policy: Policy) -> dict[str, Any]:
    """The sampling settings of a policy that records them, for ``prefloop.json``."""
    return content(policy.generation) | ({"engine": policy.engine} if policy.engine else {})


def write_tokenizer(runtime: Runtime, draft: Path) -> None:
    """The tokenizer of a run's model with the run's chat template."""
    from prefloop.data.chat import ChatFormat
    from prefloop.models.folder import tokenizer

    ChatFormat.load(
        tokenizer(runtime.model_folder), runtime.backbone_config.chat_template
    ).tokenizer.save_pretrained(draft)
