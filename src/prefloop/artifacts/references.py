"""Results by reference: ``runs/demo:ppo``, ``runs/demo:base``, an adapter's folder, a file of
answers.

``resolve`` reads what a result's own files say and loads nothing; ``opening.open_policies`` puts
several on one backbone.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from prefloop.artifacts.adapter_config import described_shape, read_adapter
from prefloop.artifacts.declared import read_said
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
"""Slot of the bare model of a run, without any adapter."""
ADAPTER = "adapter_model.safetensors"
HEAD = "head.safetensors"
"""Beside the adapter of a reward model, which scores answers and gives none."""
ABOUT = "prefloop.json"
"""What an exported folder says about its backbone and its sampling; an artifact's manifest says the
same.
"""


@dataclasses.dataclass(frozen=True)
class Origin:
    """The backbone that an adapter belongs to, as far as its files say."""

    model: str
    """Name that it had when the adapter was made; empty where PEFT was not told it."""
    fingerprint: str | None = None
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of ``BackboneConfig`` but ``model`` and ``compute``."""
    shape: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Of the adapter: method, r, alpha, target_modules as PEFT has them, as far as its method does;
    empty for a bare model.
    """
    experts: list[str] = dataclasses.field(default_factory=list)
    """Folders of the adapters that it mixes, where ``settings`` says what is in them."""

    def differs(self, other: Origin, adapters: bool = True) -> list[str]:
        """What keeps two results from one backbone, where both say it; without ``adapters`` what
        keeps them from one model.
        """
        found = []
        known = self.fingerprint and other.fingerprint
        named = self.model and other.model
        if (
            (self.fingerprint != other.fingerprint)
            if known
            else named and self.model != other.model
        ):
            found.append(
                f"model {self.model} and {other.model}"
                + (" (other files)" if self.model == other.model else "")
            )
        # Results from before ``backbone.rope`` existed had none.
        own, others = (
            {"rope": {"type": "none", "factor": 1.0}, **o.settings} if o.settings else {}
            for o in (self, other)
        )
        for mine, theirs, names in (
            (own, others, ("precision", "chat_template", "rope")),
            (
                self.shape,
                other.shape,
                ("method", "r", "alpha", "target_modules") if adapters else (),
            ),
        ):
            both = [n for n in names if n in mine and n in theirs and mine[n] != theirs[n]]
            found += [f"{n} {_short(mine[n])} and {_short(theirs[n])}" for n in both]
        return found


@dataclasses.dataclass(frozen=True)
class Policy:
    """Something that answers prompts: an adapter, or the bare model (``folder`` is ``None``)."""

    name: str
    folder: Path | None
    key: str
    """Identifies what it is: an artifact's key, a digest of a bare adapter's files or of the
    model's fingerprint.
    """
    origin: Origin
    generation: GenerationConfig | None = None
    """How its run samples; ``None`` where nothing says it."""
    engine: str | None = None
    output: Path | None = None
    """The folder of its run and its store."""


@dataclasses.dataclass(frozen=True)
class Answers:
    """Answers that exist already, in a file or wherever else rows can be read."""

    name: str
    source: Source


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a reference points: the folder of an artifact or adapter, ``None`` for the bare model
    of a run.
    """

    name: str
    folder: Path | None
    run: Path | None = None
    slot: str | None = None


def slots(run: Path) -> dict[str, Path]:
    """The adapters of a run by slot: sft first, reward models too."""
    found = {p.name: p for p in sorted((run / "artifacts").iterdir()) if (p / ADAPTER).is_file()}
    return {k: found[k] for k in sorted(found, key=lambda name: (name != "sft", name))}


def policy_slots(run: Path) -> list[str]:
    """Slots of a run that answer prompts: its policies and the bare model."""
    return [*(slot for slot, folder in slots(run).items() if not (folder / HEAD).is_file()), BASE]


def locate(reference: str | Path) -> Place:
    """Find what ``RUN:SLOT`` or a path points to. Raises ``ModelError`` with what exists there."""
    text = str(reference)
    left, colon, slot = text.rpartition(":")
    path = Path(text)
    if colon and not path.exists():
        run = Path(left)
        if not (run / "artifacts").is_dir():
            raise ModelError(f"'{left}' is no folder of a run{meant(run)}")
        known = slots(run)
        if slot == BASE:
            return Place(text, None, run, BASE)
        if slot not in known:
            if (run / "artifacts" / slot).is_symlink() and not (run / "artifacts" / slot).exists():
                raise ModelError(
                    f"'{text}': its artifact is gone from the store: run the command of the run"
                    " again"
                )
            raise ModelError(
                f"'{text}': the run holds no finished result '{slot}'"
                f" ({among(slot, [*known, BASE])})"
            )
        return Place(text, known[slot].resolve(), run, slot)
    if (path / "artifacts").is_dir():
        which = ", ".join(f"{text}:{name}" for name in policy_slots(path))
        raise ModelError(f"'{text}' is a run, with several results: say which one of {which}")
    if (path / ADAPTER).is_file():
        return Place(text, path.resolve())
    raise ModelError(
        f"'{text}' is no result{'' if path.exists() else meant(path)}: give RUN:SLOT such as"
        f" runs/demo:ppo, RUN:{BASE}, or a folder with {ADAPTER}"
        + (" or a file of answers" if not path.exists() else "")
    )


def expert_folder(name: str) -> Path:
    """The folder of an adapter that ``backbone.adapter.options.experts`` names: a path, or
    ``RUN:SLOT``. Raises ``ModelError`` where there is none.
    """
    path, where = Path(name).expanduser(), "backbone.adapter.options.experts: "
    if path.is_dir() and not (path / "artifacts").is_dir():
        return path
    if ":" not in name and not path.exists():
        start = (
            ""
            if path.is_absolute()
            else (
                " (relative paths start at the current folder, those of an exported adapter lie"
                " beside it)"
            )
        )
        raise ModelError(
            f"{where}'{name}' does not exist: give LoRA adapters, {EXPERTS}, or their"
            f" folders{start}"
        )
    try:
        folder = locate(name).folder
    except ModelError as error:
        raise ModelError(f"{where}{error}") from None
    if folder is None:
        raise ModelError(f"{where}'{name}' is a bare model: give LoRA adapters, {EXPERTS}")
    return folder


def meant(run: Path) -> str:
    """The runs beside one that does not exist, or the one with nearly its name, in brackets;
    nothing where there are none.
    """
    near = [str(p.parent) for p in run.parent.glob("*/artifacts")]
    return f" ({nearest(str(run), near)})" if near else ""


def resolve(reference: str | Path) -> Policy | Answers:
    """What a reference stands for. Raises ``ModelError`` when it is nothing that answers
    prompts.
    """
    found = answers_of(reference)
    return policy_of(reference) if found is None else found


def answers_of(reference: str | Path) -> Answers | None:
    """The answers that a reference names; ``None`` where it names a policy, or nothing."""
    try:
        source = Source.of(reference)
    except ConfigError:
        return None
    if not source.scheme:
        for place in {Path(reference), Path(str(reference).rpartition(":")[0])}:
            if place.parts and ((place / "artifacts").is_dir() or (place / ADAPTER).is_file()):
                return None
    return Answers(str(reference), source) if source.scheme or source.exists() else None


def policy_of(reference: str | Path) -> Policy:
    """The policy that a reference names. Raises ``ModelError`` for a reward model, a damaged
    adapter, or where nothing is.
    """
    place = locate(reference)
    if place.folder is None:
        assert place.run is not None
        return _bare(place.name, place.run)
    if (place.folder / HEAD).is_file():
        raise ModelError(f"'{place.name}' is a reward model: it scores answers and gives none")
    said = _said(place.folder)
    generation, engine = _generation(
        said.get("identity", {}).get("generation"), place, said.get("sampling")
    )
    return Policy(
        place.name,
        place.folder,
        _key(place.folder, said),
        _origin(place.folder, said),
        generation,
        engine,
        _output(place),
    )


def key_of(folder: Path) -> str:
    """What identifies the adapter in ``folder``: its artifact's key, exported or not, or a digest
    of the files of one that has none.
    """
    return _key(folder, _said(folder))


def identity_of(folder: Path) -> dict[str, Any]:
    """What the adapter in ``folder`` says of how it came to be: backbone, generation, config; empty
    for a folder of PEFT's own.
    """
    return dict(_said(folder).get("identity", {}))


def metrics_of(folder: Path) -> dict[str, Any]:
    """What was measured of the adapter in ``folder`` while it was trained; empty for a folder of
    PEFT's own.
    """
    return dict(_said(folder).get("metrics", {}))


def _key(folder: Path, said: Mapping[str, Any]) -> str:
    return said.get("key") or digest(
        [file_digest(folder / name) for name in (ADAPTER, "adapter_config.json")]
    )


def origin_of(folder: Path) -> Origin:
    """The backbone that the adapter in ``folder`` was made on. Raises ``ModelError`` when its files
    cannot be read.
    """
    return _origin(folder, _said(folder))


def _origin(folder: Path, said: Mapping[str, Any]) -> Origin:
    adapter = read_adapter(folder)
    try:
        shape = described_shape(adapter)
    except ValueError as error:
        raise ModelError(
            f"'{folder.name}' has no adapter_config.json that describes an adapter ({error}): give"
            " a folder written by prefloop or PEFT"
        ) from None
    backbone = dict(said.get("identity", {}).get("backbone", {}))
    settings = {k: v for k, v in backbone.items() if k not in ("model", "compute")}
    experts = [
        _expert(folder, str(place)) for place in said.get("experts") or adapter.get("experts") or ()
    ]
    return Origin(
        adapter["base_model_name_or_path"] or "", backbone.get("model"), settings, shape, experts
    )


def _expert(folder: Path, place: str) -> str:
    """Where an expert of the adapter in ``folder`` lies: what is exported knows a name alone, and
    looks beside itself first.
    """
    beside = folder.parent / place
    return str(beside) if beside.is_dir() else place


def _bare(name: str, run: Path) -> Policy:
    """The model under a run, as any of its adapters knows it."""
    known = slots(run)
    if not known:
        raise ModelError(
            f"'{run}' holds no adapter yet that says which model it is on: let it get through its"
            " first stage"
        )
    folder = next(iter(known.values())).resolve()
    origin = dataclasses.replace(origin_of(folder), shape={})
    generation, engine = _generation(None, Place(name, folder, run))
    key = digest({"base": origin.fingerprint, "settings": origin.settings})
    return Policy(name, None, key, origin, generation, engine, _output(Place(name, folder, run)))


def _said(folder: Path) -> dict[str, Any]:
    """An artifact's manifest or what an exported folder says; empty for a folder of PEFT's own.
    Raises ``ModelError`` when damaged.
    """
    for name in (MANIFEST, ABOUT):
        if not (folder / name).is_file():
            continue
        try:
            found = read_said(folder / name)
        except ModelError as error:
            raise ModelError(
                f"{name} is damaged; make the artifact or the export again ({error})"
            ) from error
        expected = found["files"].get(ADAPTER)
        if not (folder / ADAPTER).is_file():
            raise ModelError(
                f"'{folder.name}': {ADAPTER} is missing; make the artifact or the export again"
            )
        if file_digest(folder / ADAPTER) != expected:
            raise ModelError(
                f"'{folder.name}': {ADAPTER} is not what {name} says (its hash differs); make the"
                " artifact or the export again"
            )
        return dict(found)
    return {}


def _generation(
    own: Mapping[str, Any] | None, place: Place, noted: Mapping[str, Any] | None = None
) -> tuple[GenerationConfig | None, str | None]:
    """How the artifact samples; for one that does not, such as sft, how the other stages of its run
    do, or would have.

    ``noted``: how the run sampled that built a policy whose key does not hold that.
    """
    sampling: Any = own or noted or None
    if sampling is None and place.run is not None:
        damaged = []
        for path in sorted((place.run / "artifacts").glob(f"*/{MANIFEST}")):
            try:
                sampling = read_said(path).get("identity", {}).get("generation")
            except (
                ModelError
            ) as error:  # another stage's: what it says of sampling, others may say too
                say(f"passed over {path.parent.name} of the run: {error}", "yellow")
                damaged.append(error)
            if sampling is not None:
                break
        else:
            if damaged:
                raise damaged[0]
            told = _settings(place.run)
            sampling = told.get(
                "generation"
            )  # its engine was never asked for, so nothing says that it is there
    if not sampling:
        return None, None
    known = {f.name for f in dataclasses.fields(GenerationConfig)}
    try:
        return GenerationConfig(**{k: v for k, v in sampling.items() if k in known}), sampling.get(
            "engine"
        )
    except (ValidationError, ConfigError) as error:
        found = problems(error) if isinstance(error, ValidationError) else str(error)
        raise ModelError(
            f"'{place.name}' says how it samples, but not so that it can be: {found}"
        ) from error


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
    """The folder of the run that a reference like ``runs/demo:ppo`` names; ``None`` for anything
    else.
    """
    run, colon, _ = reference.rpartition(":")
    return (
        Path(run)
        if colon and not Path(reference).exists() and (Path(run) / "artifacts").is_dir()
        else None
    )


def _settings(run: Path) -> dict[str, Any]:
    """The configuration of a run by its own summary; nothing where there is none."""
    try:
        config = read_sealed(run / "summary.json", required=False).get("config")
    except StoreError:
        return {}
    return config if isinstance(config, dict) else {}


def _training_files(run: Path) -> dict[str, Source]:
    """The files that a run was trained on by role, by its own summary and artifacts; none where
    they do not say.
    """
    data = _settings(run).get("data")
    if not isinstance(data, dict):
        return {}
    known = slots(run) if (run / "artifacts").is_dir() else {}
    try:
        read = {role for folder in known.values() for role in _read_by(folder.resolve())}
    except StoreError:  # what is not known to be unread may have been read
        read = set()
    try:
        return {role: Source.parse(data[role]) for role in roles_read(read) if data.get(role)}
    except (ConfigError, TypeError, AttributeError):
        return {}


def _read_by(folder: Path) -> set[str]:
    """What the artifact in ``folder``, and everything that it was made from, read.

    Raises ``StoreError`` where one of these is damaged or gone from the store.
    """
    made = read_manifest(folder, required=False)
    before = lineage(folder.parent, made)
    there = {one.key for one in before}
    if gone := {key for one in (*before, made) for key in one.inputs.values()} - there:
        raise StoreError(
            f"{folder.parent}: {len(gone)} of the artifacts that {made.stage} was made from are"
            " gone"
        )
    return {role for one in (*before, made) for role in one.reads}


def untraced(run: Path) -> str:
    """Why ``trained_on`` gives no prompts of a run, and what to do."""
    files = _training_files(run)
    if not files:
        return "its summary names no training files"
    gone = next((source for source in files.values() if not source.exists()), None)
    if gone is None:
        return "its training files cannot be read any more as they were"
    if gone.scheme or Path(str(gone)).is_absolute():
        return f"its training file '{gone}' is gone"
    return (
        f"its training file '{gone}' is not found from here: run the command in the folder where"
        " the run was started"
    )


def trained_on(run: Path) -> list[Prompted] | None:
    """The prompts of the files that a run was trained on, by its own summary; ``None`` where
    ``untraced`` says why.
    """
    data, files = _settings(run).get("data", {}), _training_files(run)
    if not files or not all(source.exists() for source in files.values()):
        return None
    with tempfile.TemporaryDirectory(prefix="prefloop-") as scratch:
        try:
            return list(
                trained_prompts(files, data.get("layout", "auto"), data.get("limit"), Path(scratch))
            )
        except DataError:  # another file by now
            return None
