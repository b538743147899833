"""A stage: a config, named inputs, and ``run(**inputs) -> Artifact``.

The key of an artifact is the hash of what determines its content: stage name and version, the
content fields of its config (files count by their bytes), model and generation settings where the
stage uses them, the seed, and the keys of its inputs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import inspect
import json
import marshal
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any, Self

import prefloop
from prefloop.artifacts.codec import to_json
from prefloop.artifacts.manifest import MANIFEST, Manifest, is_name
from prefloop.artifacts.references import expert_folder
from prefloop.artifacts.store import EVENTS, Artifact
from prefloop.base.console import duration, listed, say
from prefloop.base.interrupt import check_interrupted
from prefloop.base.redact import flat_without_secrets, short
from prefloop.base.sealed import digest, file_digest, write_sealed
from prefloop.config import is_config
from prefloop.config.adapters import options_of
from prefloop.data.source import Source
from prefloop.data.sources import detect_layout
from prefloop.errors import AuditError, ConfigError, DataError, StoreError
from prefloop.pipeline.code import changed, code_of
from prefloop.runs.runtime import Runtime
from prefloop.runs.work import Work


class Stage:
    """Base of all stages. A subclass names its inputs, what it produces, and implements
    ``build``.
    """

    name: str
    inputs: tuple[str, ...] = ()
    """Slots that must be filled before this stage runs."""
    produces: str = ""
    """Slot that this stage fills; empty for one that only stands for several."""
    uses: frozenset[str] = frozenset()
    """Parts of the runtime that the stage uses: 'backbone', 'generation' (the sampler),
    'temperature' (its temperature alone).
    """
    needs_temperature: str = ""
    """Why the stage cannot work at ``generation.temperature`` 0; empty where it can."""
    round: int = 1
    """Which round of sampling, labeling and training the stage belongs to."""
    before: Manifest | None = None
    """Manifest of the artifact that the run has in this slot; a stage that is built anew reports
    what changed since.
    """

    def parts(self) -> dict[str, Any]:
        """Configuration objects and values that determine the content."""
        raise NotImplementedError

    def build(self, work: Work, inputs: dict[str, Artifact]) -> object:
        """Write the artifact's files into ``work.folder`` and return its metrics: a dictionary, or
        a dataclass that ``artifacts.codec`` writes.
        """
        raise NotImplementedError

    def in_round(self, number: int) -> Self:
        """This stage in a round of training. After the first round its name has the number,
        ``ppo-2``; its slot keeps its name.
        """
        self.round = number
        if number > 1:
            self.name = f"{self.name}-{number}"
        return self

    def expand(self, run: Any) -> list[Stage]:
        """The stages to execute in this one's place; itself, unless it stands for several."""
        return [self]

    def identity(self, runtime: Runtime) -> dict[str, Any]:
        """Everything but the inputs that goes into the key."""
        who: dict[str, Any] = {
            "stage": self.name,
            "class": f"{type(self).__module__}.{type(self).__qualname__}",
            "code": digest(self.code()),
            "seed": runtime.seed,
            **own_code(type(self)),
            **content(self.parts()),
        }
        if "backbone" in self.uses:
            who["backbone"] = backbone_identity(runtime)
        if "generation" in self.uses:
            who["generation"] = generation_identity(runtime)
        if "temperature" in self.uses:
            who["temperature"] = runtime.generation.temperature
        return who

    def code(self) -> dict[str, str]:
        """Hashes of the package's modules that this stage runs, by name."""
        return code_of(type(self), self.uses)

    def check_temperature(self, temperature: float) -> None:
        """Raise ``ConfigError`` where a sampler at this temperature cannot be used."""
        if self.needs_temperature and temperature == 0:
            raise ConfigError(
                f"generation.temperature is 0, and {self.name} {self.needs_temperature}: give a"
                " temperature above 0, such as 0.7; for greedy answers in the comparison say"
                " evaluate.temperature: 0"
            )

    def check_names(self) -> None:
        """Raise ``ConfigError`` where a file cannot have the name of the stage or of a slot."""
        for name in (self.name, self.produces or self.name, *self.inputs):
            if not is_name(name):
                raise ConfigError(
                    f"a stage or slot cannot be called {name!r:.80}: take a name without '/' that"
                    " is not '.' or '..'"
                )

    def preflight(self) -> None:
        """Raise before anything runs when a file that this stage reads is missing or in no known
        layout.
        """
        parts = self.parts()
        content(parts)
        for source in parts.values():
            if isinstance(source, Source) and parts.get("layout") == "auto":
                detect_layout(source)

    def key(self, runtime: Runtime, inputs: dict[str, Artifact]) -> str:
        """The artifact's key."""
        return self._key(self.identity(runtime), inputs)

    def _key(self, identity: dict[str, Any], inputs: dict[str, Artifact]) -> str:
        return digest(identity | {"inputs": {slot: inputs[slot].key for slot in self.inputs}})

    def run(self, runtime: Runtime | None = None, **inputs: Artifact) -> Artifact:
        """Return the artifact: from the store if it is there, else built now, going on from a
        checkpoint if one is left.
        """
        check_interrupted()
        runtime = runtime or Runtime()
        missing = [slot for slot in self.inputs if slot not in inputs]
        if missing:
            raise ConfigError(
                f"stage {self.name} needs {', '.join(missing)}: put the stage that produces it"
                " before this one"
            )
        self.check_names()
        if self.uses & {"generation", "temperature"}:
            self.check_temperature(runtime.generation.temperature)
        # Once: an identity reads every file of the stage, and what is built is of the files as they
        # are now.
        identity = self.identity(runtime)
        key, found = self._key(identity, inputs), None
        try:
            found = runtime.store.find(self.name, key)
        except StoreError as error:  # a damaged one is reported and removed under its lock
            if runtime.store.closed:
                raise StoreError(
                    f"{self.name} in the store is damaged: {error}; and {runtime.store.closed}"
                ) from None
        if found is None:
            with runtime.store.lock(self.name, key):
                found = runtime.store.get(self.name, key)
                if found is None:
                    return self._build(runtime, identity, key, inputs)
        found = self._located(runtime, found)
        say(f"reused {self.name} {key[:8]} ({duration(found.seconds)} saved)", "green")
        return found

    def _located(self, runtime: Runtime, found: Artifact) -> Artifact:
        """Update the artifact's manifest with the experts' current paths.

        Paths are not part of the key, so a reused artifact may hold old ones.
        """
        experts = _experts(runtime) if "backbone" in self.uses else []
        if not experts or found.manifest.experts == experts:
            return found
        manifest = dataclasses.replace(found.manifest, experts=experts)
        with contextlib.suppress(DataError):  # a read-only store keeps the former paths
            write_sealed(found / MANIFEST, manifest.to_dict())
        return dataclasses.replace(found, manifest=manifest)

    def _difference(self, now: dict[str, Any], key: str, inputs: dict[str, Artifact]) -> str:
        """What changed since the run last built this stage, as the end of a log line; empty where
        nothing did or it is not known.
        """
        before = self.before
        if before is None or before.stage != self.name or before.key == key:
            return ""
        parts = [
            f"another {slot}"
            for slot, old in before.inputs.items()
            if slot in inputs and inputs[slot].key != old
        ]
        if now["code"] != before.identity.get("code"):
            files = changed(before.code, self.code())
            parts.append(
                f"code of {listed(files, 3)}" if before.code else "another version of prefloop"
            )
        was, is_ = (
            flat_without_secrets(
                {k: v for k, v in each.items() if k not in ("code", "class", "own_code")}
            )
            for each in (before.identity, now)
        )
        for name in sorted({*was, *is_}):
            if was.get(name) != is_.get(name):
                old, new = was.get(name), is_.get(name)
                file = _is_hash(old) and _is_hash(new)
                parts.append(
                    f"the content of {name}" if file else f"{name} {short(old)} → {short(new)}"
                )
        if now.get("own_code") != before.identity.get("own_code"):
            parts.append("the file that defines it")
        return (
            f" (changed: {'; '.join(parts[:4])}{'; …' if len(parts) > 4 else ''})" if parts else ""
        )

    def _build(
        self, runtime: Runtime, identity: dict[str, Any], key: str, inputs: dict[str, Artifact]
    ) -> Artifact:
        folder = runtime.store.work_folder(self.name, key)
        work = Work(self.name, folder, runtime, resumed=any((folder / "checkpoints").glob("*-*")))
        say(
            f"{'resuming' if work.resumed else 'running'} {self.name}"
            f" {key[:8]}{self._difference(identity, key, inputs)}",
            "bold",
        )
        before = seconds_before(folder / EVENTS) if work.resumed else 0.0
        started = time.monotonic()
        try:
            with runtime.events_to(folder / EVENTS):
                work.emit("stage", status="resumed" if work.resumed else "started")
                metrics = to_json(self.build(work, inputs))
        except AuditError:
            shutil.rmtree(
                folder / "checkpoints", ignore_errors=True
            )  # the next run must not go on from what failed
            raise
        seconds = before + time.monotonic() - started
        manifest = Manifest(
            self.name,
            key,
            identity=identity,
            inputs={slot: inputs[slot].key for slot in self.inputs},
            reads=files_read(self.parts()),
            metrics=metrics,
            seconds=round(seconds, 3),
            status="resumed" if work.resumed else "ran",
            prefloop=prefloop.__version__,
            experts=_experts(runtime) if "backbone" in self.uses else [],
            code=self.code(),
            sampling=(
                content(runtime.generation) | {"engine": runtime.rollout}
                if "temperature" in self.uses
                else {}
            ),
        )
        artifact = runtime.store.commit(manifest)
        with_before = f", {duration(before)} of it before it was resumed" if before else ""
        say(f"  {self.name}: {artifact.status} in {duration(seconds)}{with_before}", "dim")
        return artifact


def _is_hash(value: Any) -> bool:
    """Whether a value of an identity stands for the content of a file."""
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None


def backbone_identity(runtime: Runtime) -> dict[str, Any]:
    """The backbone's part of a key: its settings, all options of the adapter, and hashes of the
    experts' files.
    """
    config = runtime.backbone_config
    options = options_of(config.adapter)
    if experts := _experts(runtime):
        options["experts"] = [_expert_hash(expert_folder(name)) for name in experts]
    return content(config) | {
        "adapter": content(config.adapter) | {"options": options},
        "model": runtime.model_fingerprint,
        "compute": runtime.compute,
        "chat_template": _template(config.chat_template),
    }


def generation_identity(runtime: Runtime) -> dict[str, Any]:
    """The sampler's part of a key."""
    return content(runtime.generation) | {"engine": runtime.engine_name}


def _experts(runtime: Runtime) -> list[str]:
    """The adapters that backbone.adapter.options name, as they are written there."""
    return list(map(str, runtime.backbone_config.adapter.options.get("experts") or ()))


def _expert_hash(folder: Path) -> str:
    files = [folder / name for name in ("adapter_model.safetensors", "adapter_config.json")]
    return digest([_file_hash(file, "backbone.adapter.options.experts") for file in files])


def content(value: Any, name: str = "") -> Any:
    """The part of a configuration that determines content, ready for JSON. Fields marked
    ``content: False`` are left out; files stand as their hash.
    """
    if isinstance(value, Path | Source):
        return _file_hash(value, name)
    if is_config(value):
        out = {}
        for field in dataclasses.fields(value):
            if not field.metadata.get("content", True):
                continue
            item = getattr(value, field.name)
            out[field.name] = (
                _file_hash(item, field.name)
                if field.metadata.get("file")
                else content(item, field.name)
            )
        return out
    if isinstance(value, dict):
        return {k: content(v, k) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [content(v, name) for v in value]
    return value


def files_read(value: Any, name: str = "") -> dict[str, str]:
    """Names, without their folders, of the files in a configuration, by the field that names them;
    for people, not for the key.
    """
    if isinstance(value, Path | Source):
        return {name: value.name} if Source.of(value).exists() else {}
    if is_config(value):
        value = {
            f.name: getattr(value, f.name)
            for f in dataclasses.fields(value)
            if f.metadata.get("content", True)
        }
    if isinstance(value, list | tuple):
        value = {f"{name}[{i}]": item for i, item in enumerate(value)}
    if not isinstance(value, dict):
        return {}
    return {field: file for k, v in value.items() for field, file in files_read(v, str(k)).items()}


def _file_hash(path: Path | Source | None, name: str) -> str | None:
    if path is None:
        return None
    try:
        if isinstance(path, Source):
            if path.scheme or path.exists():
                return path.digest()
        elif path.is_file():
            return file_digest(path)
    except OSError as error:
        raise DataError(
            f"{name}: file '{str(path)[:200]}' cannot be read: {error.strerror or error}"
        ) from error
    raise DataError(
        f"{name}: file '{path}' does not exist: check the path (relative paths start at the current"
        " folder)"
    )


def _template(name: str) -> str:
    path = Path(name)
    return file_digest(path) if path.is_file() else name


def seconds_before(log: Path) -> float:
    """Seconds that a stage has worked so far, by its log: for each process since the last fresh
    start, from its first event to its last.

    Lines that a kill or a disk has damaged are skipped.
    """
    spans: list[list[float]] = []
    for line in log.read_bytes().splitlines() if log.is_file() else ():
        try:
            row = json.loads(line)
            moment = datetime.datetime.fromisoformat(row["at"]).timestamp()
        except (ValueError, LookupError, TypeError):
            continue
        if row.get("event") == "stage" and row.get("status") in ("started", "resumed"):
            spans = [*(spans if row["status"] == "resumed" else []), [moment, moment]]
        elif spans:
            spans[-1][1] = moment
    return sum(max(0.0, last - first) for first, last in spans)


def own_code(kind: type) -> dict[str, Any]:
    """The hash of the files that define a stage outside this package, by class: a changed ``build``
    builds anew. Nothing for stages of the package.

    A class that no file defines (in a console, say) counts by its compiled methods. What its file
    imports is not looked into.
    """
    found = {}
    for each in kind.__mro__[:-1]:
        if each.__module__.partition(".")[0] == prefloop.__name__ or each is Stage:
            continue
        file = getattr(sys.modules.get(each.__module__), "__file__", None)
        if file and Path(file).is_file():
            found[each.__qualname__] = file_digest(Path(file))
        else:
            code = [
                (n, marshal.dumps(v.__code__))
                for n, v in sorted(vars(each).items())
                if inspect.isfunction(v)
            ]
            found[each.__qualname__] = hashlib.sha256(repr(code).encode()).hexdigest()
    return {"own_code": found} if found else {}
