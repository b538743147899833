"""Content-addressed artifacts that are complete or not there at all.

An artifact is a folder with a manifest; its name ends in a hash of everything that determines its
content. A stage works in a folder of its own (where its checkpoints survive ``kill -9``) and
renames it into place when it is done. Two processes that want the same artifact take turns on a
lock that the operating system frees when its holder dies.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from prefloop.artifacts.manifest import MANIFEST, Manifest, read_manifest
from prefloop.base.atomic import settle
from prefloop.base.console import say
from prefloop.base.sealed import check_files, files_in, hashes_of, remove, write_sealed
from prefloop.errors import StoreError

_NOT_FOR_US = (errno.EROFS, errno.EACCES, errno.EPERM)
"""Errors of the system for a place that may be read and not written."""


EVENTS = "events.jsonl"
"""The log of a stage in its artifact, and of all of them in the folder of a run."""


def artifact_name(stage: str, key: str) -> str:
    """What the folder of an artifact is called."""
    return f"{stage}-{key[:16]}"


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A finished stage's output: a folder of files and their manifest."""

    path: Path
    manifest: Manifest
    status: str = "reused"
    """ran, resumed or reused, in this process."""

    @property
    def stage(self) -> str:
        return self.manifest.stage

    @property
    def key(self) -> str:
        return self.manifest.key

    @property
    def metrics(self) -> dict[str, Any]:
        return dict(self.manifest.metrics)

    @property
    def seconds(self) -> float:
        return self.manifest.seconds

    def __truediv__(self, name: str) -> Path:
        return self.path / name


class Store:
    """Artifacts under one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.closed = ""
        """Why nothing may be built; empty where it may."""

    def find(self, stage: str, key: str) -> Artifact | None:
        """The artifact, or ``None``; needs no lock and no right to write.

        Raises ``StoreError`` where its files differ from its manifest, or its manifest is damaged.
        """
        path = self.root / artifact_name(stage, key)
        if not os.path.lexists(path / MANIFEST) and (path.is_dir() or not os.path.lexists(path)):
            return None
        manifest = read_manifest(path)
        if (manifest.stage, manifest.key) != (stage, key):
            raise StoreError(
                f"{path / MANIFEST}: damaged, it belongs to {manifest.stage} {manifest.key[:16]}"
            )
        check_files(path, manifest.files)
        if (
            path / "checkpoints"
        ).exists():  # of a process that was killed before it could remove them
            shutil.rmtree(path / "checkpoints", ignore_errors=True)
        return Artifact(path, manifest)

    def get(self, stage: str, key: str) -> Artifact | None:
        """The artifact, or ``None``. One that is damaged is reported and removed, so that it can be
        built again; hold its lock.
        """
        try:
            return self.find(stage, key)
        except StoreError as error:
            say(
                f"{stage}: the stored artifact is damaged: {error}; building {stage} again",
                "yellow",
            )
        with self._writing():
            remove(self.root / artifact_name(stage, key))
        return None

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"the store '{self.root}' cannot be written: {error.filename or self.root}:"
                f" {error.strerror or error}. Make it writable, or name another place with --output"
            ) from error

    @contextlib.contextmanager
    def lock(self, stage: str, key: str) -> Iterator[None]:
        """Hold the right to build an artifact; waits, with a line, while another process builds the
        same one.
        """
        if self.closed:
            raise StoreError(f"{stage} is not in the store '{self.root}', and {self.closed}")
        with contextlib.ExitStack() as held:
            with self._writing():
                folder = self.root / "locks"
                folder.mkdir(parents=True, exist_ok=True)
                handle = held.enter_context((folder / artifact_name(stage, key)).open("a"))
                if not try_lock(handle):
                    say(f"{stage}: another process is building this artifact; waiting for it")
                    fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def work_folder(self, stage: str, key: str) -> Path:
        """Where the stage writes; the same folder after a kill, with the checkpoints in it."""
        folder = self.root / "work" / artifact_name(stage, key)
        with self._writing():
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def commit(self, manifest: Manifest) -> Artifact:
        """Turn a finished work folder into an artifact in one rename, once all of it is on disk.
        Raises ``StoreError`` for a link in it.
        """
        work = self.work_folder(manifest.stage, manifest.key)
        target = self.root / work.name
        checkpoints = work / "checkpoints"
        with self._writing():
            for leftover in (
                work / MANIFEST,
                *work.rglob(".*.part"),
            ):  # of a process that was killed: they would be listed
                remove(leftover)
            manifest = dataclasses.replace(
                manifest, files=hashes_of(work, files_in(work, checkpoints))
            )
            write_sealed(work / MANIFEST, manifest.to_dict())
            remove(target)  # what a killed removal of a damaged artifact left
            settle(work, target, besides=checkpoints)
        shutil.rmtree(
            target / "checkpoints", ignore_errors=True
        )  # only now: a kill before the rename may need them
        return Artifact(target, manifest, status=manifest.status)


def lineage(root: Path, manifest: Manifest) -> list[Manifest]:
    """Manifests of everything that the artifact was made from, oldest first, as far as the store
    ``root`` still has them.

    Raises ``StoreError`` for a damaged one: without it a card would leave out what it has to
    disclose.
    """
    ancestors: list[Manifest] = []
    seen: set[str] = set()

    def visit(of: Manifest) -> None:
        for key in of.inputs.values():
            place = next(iter(sorted(root.glob(f"*-{key[:16]}/{MANIFEST}"))), None)
            if place is None or key in seen:
                continue
            seen.add(key)
            made = read_manifest(place.parent, required=False)
            visit(made)
            ancestors.append(made)

    visit(manifest)
    return ancestors


def try_lock(handle: IO[str]) -> bool:
    """Take an exclusive lock on an open file if it is free."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[bool]:
    """Only one process may work on a run folder; a second one is refused with the first one's
    process id.

    Gives whether the folder may be written: one that may not can still be read. Raises
    ``StoreError`` where no folder can be.
    """
    with contextlib.ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle = held.enter_context((folder / ".lock").open("a+"))
        except OSError as error:
            # A lock of another user in a folder that may be written is in the way of every run.
            if error.errno not in _NOT_FOR_US or os.access(folder, os.W_OK | os.X_OK):
                raise StoreError(
                    f"'{folder}' cannot be the folder of a run: {error.filename}: {error.strerror}."
                    " Name another place with --output or --run"
                ) from error
            yield False
            return
        if not try_lock(handle):
            handle.seek(0)
            holder = handle.read().strip() or "unknown"
            raise StoreError(
                f"run '{folder.name}' is in progress (process {holder}): wait for it to end, stop"
                " it, or choose another name with --run"
            )
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield os.access(folder, os.W_OK | os.X_OK)
