"""A run in progress: a folder of links into the store, and the log of what happened."""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from prefloop.artifacts.manifest import MANIFEST, Manifest, read_manifest
from prefloop.artifacts.results import Evaluation
from prefloop.artifacts.store import EVENTS, Artifact
from prefloop.base.atomic import link
from prefloop.base.console import duration, say
from prefloop.base.sealed import digest
from prefloop.config.algorithms import POLICIES
from prefloop.errors import StoreError
from prefloop.pipeline.code import PACKAGE, code_of
from prefloop.pipeline.stage import Stage, backbone_identity, generation_identity, own_code
from prefloop.pipeline.trackers import Tracking
from prefloop.report.summary import StageRun
from prefloop.runs.runtime import Runtime

_IN_SUMMARY = {field.name for field in dataclasses.fields(Evaluation)} - {"pearson_gold"} | {
    "annotators"
}
"""Metrics of stages that stand at the head of the summary."""


class Run:
    """A run in progress: its folder and the artifacts that have filled slots so far."""

    def __init__(self, folder: Path, runtime: Runtime, writable: bool = True) -> None:
        self.folder = folder
        self.runtime = runtime
        self.writable = writable
        """Whether links and events may go into the folder; where not, the run is served from the
        store or refused.
        """
        self._told: set[str] = set()
        """Slots whose damaged artifact was spoken of."""
        self.artifacts: dict[str, Artifact] = {}
        self.stages: list[StageRun] = []

    def policies(self) -> list[str]:
        """Aligned policies to compare: of this process, and of earlier commands in this run that
        started from the same artifacts under the same code, model, sampling and seed. Their own
        settings (``ppo.*``, ``preference.*``) are what they were then.
        """
        for slot in POLICIES:
            if not self.has(slot) and self._linked(slot) is not None:
                say(
                    f"left out {slot}: this run no longer has what it was trained on; run it again"
                    " to compare",
                    "yellow",
                )
        return [slot for slot in POLICIES if slot in self.artifacts]

    def has(self, slot: str) -> bool:
        """Whether a slot is filled: by this process, or by an earlier command in this run whose
        artifact still fits.
        """
        if slot in self.artifacts:
            return True
        manifest = self._linked(slot)
        if manifest is None or not self._fits(manifest):
            return False
        try:
            found = self.runtime.store.find(manifest.stage, manifest.key)
        except StoreError as error:
            self._leave_out(slot, error)
            return False
        if found is None:
            return False
        self.artifacts[slot] = found
        self._record(manifest.stage, found)
        say(
            f"reused {slot} {found.key[:8]} of an earlier command in this run"
            f" ({duration(found.seconds)} saved)",
            "green",
        )
        return True

    def _linked(self, slot: str) -> Manifest | None:
        """What an earlier command left in a slot; nothing, and a line, where that is damaged."""
        place = self.folder / "artifacts" / slot
        if slot in self._told or not os.path.lexists(place / MANIFEST):
            return None
        try:
            return read_manifest(place)
        except StoreError as error:
            self._leave_out(slot, error)
            return None

    def _leave_out(self, slot: str, error: StoreError) -> None:
        say(f"left out {slot} of an earlier command: {error}", "yellow")
        self._told.add(slot)

    def _fits(self, manifest: Manifest, above: frozenset[str] = frozenset()) -> bool:
        now = {slot: self._key(slot, above) for slot in manifest.inputs}
        reference, identity = self._shared_identity(), manifest.identity
        # A reward model does not sample, and DPO reads the temperature alone.
        shared = ("seed", *({"backbone", "generation", "temperature"} & set(identity)))
        return (
            now == manifest.inputs
            and all(identity.get(k) == reference.get(k) for k in shared)
            and _same_code(identity)
        )

    def _key(self, slot: str, above: frozenset[str]) -> str | None:
        """Key of what fills a slot now: of this process, or of an earlier command when its own
        inputs are still the run's.

        ``above``: slots on the way here, of which none can be made from itself.
        """
        if slot in self.artifacts:
            return self.artifacts[slot].key
        manifest = None if slot in above else self._linked(slot)
        return manifest.key if manifest and self._fits(manifest, above | {slot}) else None

    def _shared_identity(self) -> dict[str, Any]:
        return {
            "seed": self.runtime.seed,
            "backbone": backbone_identity(self.runtime),
            "generation": generation_identity(self.runtime),
            "temperature": self.runtime.generation.temperature,
        }

    def execute(self, stage: Stage) -> None:
        """Run one stage, link its artifact and put its events into the run's log."""
        inputs = {slot: self.artifacts[slot] for slot in stage.inputs if slot in self.artifacts}
        if not self.writable:
            self.artifacts[stage.produces] = artifact = stage.run(self.runtime, **inputs)
            self._record(stage.name, artifact)
            return
        stage.before = self._linked(stage.produces)
        log, place = self.folder / EVENTS, self.folder / "artifacts" / stage.produces
        logged = place.resolve()
        tracking = Tracking(self.runtime.trackers, self.folder, stage, self.runtime, inputs)
        with self.runtime.events_to(log), tracking, self.runtime.watched(tracking):
            artifact = stage.run(self.runtime, **inputs)
        if (
            artifact.status == "reused"
            and logged != artifact.path.resolve()
            and (artifact / EVENTS).is_file()
        ):
            with log.open(
                "a", encoding="utf-8"
            ) as file:  # built in another run: its curve belongs to this one too
                file.write((artifact / EVENTS).read_text(encoding="utf-8"))
        with self.runtime.events_to(log):
            self.runtime.emit(stage=stage.name, event="stage", status=artifact.status)
        self.artifacts[stage.produces] = artifact
        self._record(stage.name, artifact)
        link(place, artifact.path)

    def _record(self, name: str, artifact: Artifact) -> None:
        reused = artifact.status == "reused"
        self.stages.append(
            StageRun(
                name,
                artifact.key,
                artifact.status,
                0.0 if reused else artifact.seconds,
                artifact.seconds if reused else 0.0,
                {k: v for k, v in artifact.metrics.items() if k not in _IN_SUMMARY},
            )
        )


def _same_code(identity: Mapping[str, Any]) -> bool:
    """Whether a stage of this identity would run the same code now."""
    module, _, name = str(identity.get("class", "")).rpartition(".")
    if module.partition(".")[0] == PACKAGE:
        try:
            importlib.import_module(module)
        except ImportError:  # a version of prefloop whose stage lay elsewhere
            return False
    kind = getattr(sys.modules.get(module), name, None)
    if not isinstance(kind, type) or own_code(kind).get("own_code") != identity.get("own_code"):
        return False
    return identity.get("code") == digest(code_of(kind, {"backbone", "generation"} & set(identity)))


def require_links(artifacts: Path, slots: Collection[str]) -> None:
    """Make the folder of links. Raises ``StoreError`` where something else is in the place of one:
    a copy may be all there is of a result.

    Files that no slot is named like, such as a file manager's own, are left alone.
    """
    try:
        artifacts.mkdir(exist_ok=True)
        there = [place for place in sorted(artifacts.iterdir()) if not place.is_symlink()]
    except OSError as error:
        raise StoreError(
            f"'{artifacts}' cannot be a run's folder of links ({error.strerror}): move it away"
        ) from error
    others = [place for place in there if place.is_dir() or place.name in slots]
    if others:
        raise StoreError(
            f"'{others[0]}' is no link into the store: it may be a copy of a result. Move it away,"
            " or choose another name with --run"
        )
