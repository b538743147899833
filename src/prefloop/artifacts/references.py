"""References to results: ``runs/demo:ppo``, ``runs/demo:base``, an adapter's folder, an answer
file.

``resolve`` reads the description in a result's files and loads no weights;
``runs.open.open_policies`` loads several results onto one backbone.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from prefloop.artifacts.adapter_config import AdapterShape, described_shape, read_adapter
from prefloop.artifacts.declared import DeclaredFields, read_declared
from prefloop.artifacts.manifest import MANIFEST, read_manifest
from prefloop.artifacts.store import lineage
from prefloop.base.console import say
from prefloop.base.json_object import problems
from prefloop.base.sealed import digest, file_digest, read_sealed
from prefloop.config import GenerationConfig
from prefloop.config.adapters import EXPERTS
from prefloop.data.overlap import Prompted
from prefloop.data.source import Source
from prefloop.data.trained import roles_read, trained_prompts
from prefloop.errors import ConfigError, DataError, ModelError, StoreError, among, nearest

BASE = "base"
"""The slot of a run's bare model, without an adapter."""
ADAPTER = "adapter_model.safetensors"
HEAD = "head.safetensors"
"""A reward model's folder has this file too: it scores answers and gives none."""
ABOUT = "prefloop.json"
"""An exported folder's description of its backbone and sampling, like an artifact's manifest."""


@dataclasses.dataclass(frozen=True)
class Origin:
    """The backbone that an adapter belongs to, as far as its files describe it."""

    model: str
    """The model's name at training time; empty if PEFT did not know it."""
    fingerprint: str | None = None
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of ``BackboneConfig`` except ``model`` and ``compute``."""
    shape: AdapterShape = dataclasses.field(default_factory=AdapterShape)
    """The adapter's method and shape; empty for a bare model."""
    experts: list[str] = dataclasses.field(default_factory=list)
    """Folders of the adapters that a mixture of adapters (mole) uses."""

    def differs(self, other: Origin, adapters: bool = True) -> list[str]:
        """The settings that keep two adapters from sharing a backbone, as 'name A and B'.

        Settings that one of them does not state are not compared. Without ``adapters`` the
        adapter's method and shape may differ.
        """
        differences = []
        if self.fingerprint and other.fingerprint:
            other_model = self.fingerprint != other.fingerprint
        else:
            other_model = bool(self.model and other.model and self.model != other.model)
        if other_model:
            same_name = " (the files differ)" if self.model == other.model else ""
            differences.append(f"model {self.model} and {other.model}{same_name}")
        # Results from before ``backbone.rope`` existed had none.
        own, others = (
            {"rope": {"type": "none", "factor": 1.0}, **o.settings} if o.settings else {}
            for o in (self, other)
        )
        names = ["precision", "chat_template", "rope"]
        if adapters:
            own, others = {**own, **self.shape}, {**others, **other.shape}
            names += ["method", "r", "alpha", "target_modules"]
        for name in names:
            if name in own and name in others and own[name] != others[name]:
                differences.append(f"{name} {_short(own[name])} and {_short(others[name])}")
        return differences


@dataclasses.dataclass(frozen=True)
class Policy:
    """A model that answers prompts: an adapter, or the bare model (``folder`` is ``None``)."""

    name: str
    folder: Path | None
    key: str
    """Identifies the policy: an artifact's key, or a digest of an adapter's files or of the bare
    model's fingerprint.
    """
    origin: Origin
    generation: GenerationConfig | None = None
    """The sampling settings of its run; ``None`` if no file states them."""
    engine: str | None = None
    output: Path | None = None
    """The folder that contains its run and its store."""


@dataclasses.dataclass(frozen=True)
class Answers:
    """Existing answers, in a file or another source of rows."""

    name: str
    source: Source


@dataclasses.dataclass(frozen=True)
class Place:
    """The folder that a reference points to, of an artifact or adapter; ``None`` for a bare
    model.
    """

    name: str
    folder: Path | None
    run: Path | None = None
    slot: str | None = None


def slots(run: Path) -> dict[str, Path]:
    """Slot → folder of a run's adapters, including reward models; sft comes first."""
    folders = [path for path in (run / "artifacts").iterdir() if (path / ADAPTER).is_file()]
    return {p.name: p for p in sorted(folders, key=lambda path: (path.name != "sft", path.name))}


def policy_slots(run: Path) -> list[str]:
    """The slots of a run that answer prompts: its policies and the bare model."""
    return [*(slot for slot, folder in slots(run).items() if not (folder / HEAD).is_file()), BASE]


def locate(reference: str | Path) -> Place:
    """Find the result of ``RUN:SLOT`` or a path.

    Raises ``ModelError``, which lists the existing results, where there is none.
    """
    text = str(reference)
    left, colon, slot = text.rpartition(":")
    path = Path(text)
    if colon and not path.exists():
        run = Path(left)
        if not (run / "artifacts").is_dir():
            raise ModelError(f"'{left}' is not the folder of a run{meant(run)}")
        known = slots(run)
        if slot == BASE:
            return Place(text, None, run, BASE)
        if slot not in known:
            if (run / "artifacts" / slot).is_symlink() and not (run / "artifacts" / slot).exists():
                raise ModelError(
                    f"'{text}': its artifact is gone from the store: repeat the command of the run"
                )
            raise ModelError(
                f"'{text}': the run has no finished result '{slot}' ({among(slot, [*known, BASE])})"
            )
        return Place(text, known[slot].resolve(), run, slot)
    if (path / "artifacts").is_dir():
        which = ", ".join(f"{text}:{name}" for name in policy_slots(path))
        raise ModelError(f"'{text}' is a run with several results: choose one of {which}")
    if (path / ADAPTER).is_file():
        return Place(text, path.resolve())
    raise ModelError(
        f"'{text}' is not a result{'' if path.exists() else meant(path)}: give RUN:SLOT such as"
        f" runs/demo:ppo, RUN:{BASE}, or a folder with {ADAPTER}"
        + (" or a file of answers" if not path.exists() else "")
    )


def expert_folder(name: str) -> Path:
    """The folder of an adapter in ``backbone.adapter.options.experts``: a path or ``RUN:SLOT``.

    Raises ``ModelError`` where there is no such adapter.
    """
    path, where = Path(name).expanduser(), "backbone.adapter.options.experts: "
    if path.is_dir() and not (path / "artifacts").is_dir():
        return path
    if ":" not in name and not path.exists():
        relative = (
            " (relative paths start at the current folder, and those of an exported adapter next to"
            " its folder)"
        )
        raise ModelError(
            f"{where}'{name}' does not exist: give LoRA adapters, {EXPERTS}, or their"
            f" folders{'' if path.is_absolute() else relative}"
        )
    try:
        folder = locate(name).folder
    except ModelError as error:
        raise ModelError(f"{where}{error}") from None
    if folder is None:
        raise ModelError(f"{where}'{name}' is a bare model: give LoRA adapters, {EXPERTS}")
    return folder


def meant(run: Path) -> str:
    """A hint in parentheses for a run that does not exist: the run in the same folder with the most
    similar name, or all of them. Empty where there are none.
    """
    near = [str(p.parent) for p in run.parent.glob("*/artifacts")]
    return f" ({nearest(str(run), near)})" if near else ""


def resolve(reference: str | Path) -> Policy | Answers:
    """The policy or the answers that a reference names. Raises ``ModelError`` for anything else."""
    answers = answers_of(reference)
    return policy_of(reference) if answers is None else answers


def answers_of(reference: str | Path) -> Answers | None:
    """The answers that a reference names; ``None`` if it names a policy or nothing."""
    try:
        source = Source.of(reference)
    except ConfigError:
        return None
    if not source.scheme:
        for folder in {Path(reference), Path(str(reference).rpartition(":")[0])}:
            if folder.parts and ((folder / "artifacts").is_dir() or (folder / ADAPTER).is_file()):
                return None
    return Answers(str(reference), source) if source.scheme or source.exists() else None


def policy_of(reference: str | Path) -> Policy:
    """The policy that a reference names.

    Raises ``ModelError`` for a reward model, a damaged adapter, or a reference to nothing.
    """
    place = locate(reference)
    if place.folder is None:
        assert place.run is not None
        return _bare(place.name, place.run)
    if (place.folder / HEAD).is_file():
        raise ModelError(f"'{place.name}' is a reward model: it scores answers and gives none")
    declared = _declared(place.folder)
    generation, engine = _generation(
        declared.get("identity", {}).get("generation"), place, declared.get("sampling")
    )
    key, origin = _key(place.folder, declared), _origin(place.folder, declared)
    return Policy(place.name, place.folder, key, origin, generation, engine, _output(place))


def key_of(folder: Path) -> str:
    """The adapter's identity: its artifact's key, also after an export, else a digest of its
    files.
    """
    return _key(folder, _declared(folder))


def identity_of(folder: Path) -> dict[str, Any]:
    """The settings that the adapter in ``folder`` was made with (backbone, generation, config).

    Empty for a folder that PEFT wrote.
    """
    return dict(_declared(folder).get("identity", {}))


def metrics_of(folder: Path) -> dict[str, Any]:
    """The metrics of the adapter's training; empty for a folder that PEFT wrote."""
    return dict(_declared(folder).get("metrics", {}))


def _key(folder: Path, declared: DeclaredFields) -> str:
    return declared.get("key") or digest(
        [file_digest(folder / name) for name in (ADAPTER, "adapter_config.json")]
    )


def origin_of(folder: Path) -> Origin:
    """The backbone of the adapter in ``folder``. Raises ``ModelError`` for unreadable files."""
    return _origin(folder, _declared(folder))


def _origin(folder: Path, declared: DeclaredFields) -> Origin:
    adapter = read_adapter(folder)
    try:
        shape = described_shape(adapter)
    except ValueError as error:
        raise ModelError(
            f"'{folder.name}' has no adapter_config.json that describes an adapter ({error}): give"
            " a folder written by prefloop or PEFT"
        ) from None
    backbone = declared.get("identity", {}).get("backbone", {})
    settings = {k: v for k, v in backbone.items() if k not in ("model", "compute")}
    named = declared.get("experts") or adapter.get("experts") or ()
    # An exported adapter knows its experts by name: folders next to its own come first.
    experts = [
        str(folder.parent / name) if (folder.parent / name).is_dir() else name for name in named
    ]
    model = adapter["base_model_name_or_path"] or ""
    return Origin(model, backbone.get("model"), settings, shape, experts)


def _bare(name: str, run: Path) -> Policy:
    """The bare model of a run, as described by the run's first adapter."""
    known = slots(run)
    if not known:
        raise ModelError(
            f"'{run}' has no adapter yet, so its model is unknown: let the run finish its first"
            " stage"
        )
    folder = next(iter(known.values())).resolve()
    origin = dataclasses.replace(origin_of(folder), shape=AdapterShape())
    generation, engine = _generation(None, Place(name, folder, run))
    key = digest({"base": origin.fingerprint, "settings": origin.settings})
    return Policy(name, None, key, origin, generation, engine, _output(Place(name, folder, run)))


def _declared(folder: Path) -> DeclaredFields:
    """An artifact's manifest or an export's prefloop.json; no fields for a folder that PEFT wrote.

    Raises ``ModelError`` for a damaged file, and when the adapter is not the one that it describes.
    """
    for name in (MANIFEST, ABOUT):
        if not (folder / name).is_file():
            continue
        try:
            declared = read_declared(folder / name)
        except ModelError as error:
            raise ModelError(
                f"{name} is damaged; make the artifact or the export again ({error})"
            ) from error
        if not (folder / ADAPTER).is_file():
            raise ModelError(
                f"'{folder.name}': {ADAPTER} is missing; make the artifact or the export again"
            )
        if file_digest(folder / ADAPTER) != declared["files"].get(ADAPTER):
            raise ModelError(
                f"'{folder.name}': {ADAPTER} does not match {name} (its hash differs); make the"
                " artifact or the export again"
            )
        return declared
    return cast(DeclaredFields, {"files": {}})


def _generation(
    own: Mapping[str, Any] | None, place: Place, noted: Mapping[str, Any] | None = None
) -> tuple[GenerationConfig | None, str | None]:
    """The sampling settings and the engine of an artifact.

    Artifacts that do not sample, such as sft, use the settings of another stage of their run, or
    else of the run's summary. ``noted`` holds the run's settings for a policy whose key does not
    include them.
    """
    sampling: Any = own or noted or None
    if sampling is None and place.run is not None:
        damaged = []
        for path in sorted((place.run / "artifacts").glob(f"*/{MANIFEST}")):
            try:
                sampling = read_declared(path).get("identity", {}).get("generation")
            except ModelError as error:  # another stage may have the same settings
                say(f"skipped {path.parent.name} of the run: {error}", "yellow")
                damaged.append(error)
            if sampling is not None:
                break
        else:
            if damaged:
                raise damaged[0]
            # No stage of the run has sampled. The summary does not state an engine.
            sampling = _settings(place.run).get("generation")
    if not sampling:
        return None, None
    known = {f.name for f in dataclasses.fields(GenerationConfig)}
    try:
        generation = GenerationConfig(**{k: v for k, v in sampling.items() if k in known})
    except (ValidationError, ConfigError) as error:
        reason = problems(error) if isinstance(error, ValidationError) else str(error)
        raise ModelError(f"'{place.name}' has invalid sampling settings: {reason}") from error
    return generation, sampling.get("engine")


def _output(place: Place) -> Path | None:
    if place.folder is not None and place.folder.parent.name == ".store":
        return place.folder.parent.parent
    return place.run.parent if place.run else None


def _short(value: Any) -> str:
    if isinstance(value, dict):
        if value.get("type") == "none":
            return "none"
        return " ".join(
            f"{part:g}" if isinstance(part, float) else str(part) for part in value.values()
        )
    return "+".join(value) if isinstance(value, list) else str(value)


def run_of(reference: str) -> Path | None:
    """The run of a reference like ``runs/demo:ppo``; ``None`` for any other reference."""
    run, colon, _ = reference.rpartition(":")
    is_run = colon and not Path(reference).exists() and (Path(run) / "artifacts").is_dir()
    return Path(run) if is_run else None


def _settings(run: Path) -> dict[str, Any]:
    """The configuration in a run's summary; empty without a summary."""
    try:
        config = read_sealed(run / "summary.json", required=False).get("config")
    except StoreError:
        return {}
    return config if isinstance(config, dict) else {}


def _training_files(run: Path) -> dict[str, Source]:
    """Role → file that a run was trained on, from its summary and artifacts.

    Empty where they do not state it.
    """
    data = _settings(run).get("data")
    if not isinstance(data, dict):
        return {}
    known = slots(run) if (run / "artifacts").is_dir() else {}
    try:
        read = {role for folder in known.values() for role in _read_by(folder.resolve())}
    except StoreError:  # a damaged artifact: assume that every file was read
        read = set()
    try:
        return {role: Source.parse(data[role]) for role in roles_read(read) if data.get(role)}
    except (ConfigError, TypeError, AttributeError):
        return {}


def _read_by(folder: Path) -> set[str]:
    """The roles of the files that the artifact in ``folder`` and all of its inputs read.

    Raises ``StoreError`` for an artifact among these that is damaged or missing.
    """
    artifact = read_manifest(folder, required=False)
    ancestors = lineage(folder.parent, artifact)
    needed = {key for one in (*ancestors, artifact) for key in one.inputs.values()}
    if missing := needed - {one.key for one in ancestors}:
        raise StoreError(
            f"{folder.parent}: {len(missing)} of the artifacts that {artifact.stage} was made from"
            " are missing"
        )
    return {role for one in (*ancestors, artifact) for role in one.reads}


def untraced(run: Path) -> str:
    """The reason why ``trained_on`` returns no prompts of a run, and what to do."""
    files = _training_files(run)
    if not files:
        return "its summary names no training files"
    missing = next((source for source in files.values() if not source.exists()), None)
    if missing is None:
        return "its training files have changed and cannot be read any more"
    if missing.scheme or Path(str(missing)).is_absolute():
        return f"its training file '{missing}' is gone"
    return (
        f"its training file '{missing}' is not found from here: run the command in the folder where"
        " the run was started"
    )


def trained_on(run: Path) -> list[Prompted] | None:
    """The prompts of a run's training files; ``None`` for the reason that ``untraced`` returns."""
    data, files = _settings(run).get("data", {}), _training_files(run)
    if not files or not all(source.exists() for source in files.values()):
        return None
    with tempfile.TemporaryDirectory(prefix="prefloop-") as scratch:
        try:
            return list(
                trained_prompts(files, data.get("layout", "auto"), data.get("limit"), Path(scratch))
            )
        except DataError:  # the file has changed since
            return None
