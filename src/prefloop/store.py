"""Content-addressed artifacts that are complete or not there at all.

An artifact is a folder with a manifest; its name ends in a hash of everything that determines its content. A stage works in a folder of
its own (where its checkpoints survive ``kill -9``) and renames it into place when it is done. Two processes that want the same artifact
take turns on a lock that the operating system frees when its holder dies.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from prefloop.atomic import replacing
from prefloop.console import say
from prefloop.errors import StoreError

MANIFEST = "manifest.json"


def digest(value: Any) -> str:
    """SHA-256 of a JSON-serialisable value, independent of dictionary order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of it."""
    with replacing(path) as file:
        file.write(json.dumps(value, indent=2, ensure_ascii=False).encode())


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A finished stage's output: a folder of files and the manifest that says how they came to be."""

    path: Path
    manifest: dict[str, Any]
    status: str = "reused"
    """ran, resumed or reused, as this process came by it."""

    @property
    def stage(self) -> str:
        return str(self.manifest["stage"])

    @property
    def key(self) -> str:
        return str(self.manifest["key"])

    @property
    def metrics(self) -> dict[str, Any]:
        return dict(self.manifest["metrics"])

    @property
    def seconds(self) -> float:
        return float(self.manifest["seconds"])

    def __truediv__(self, name: str) -> Path:
        return self.path / name


class Store:
    """Artifacts under one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def _name(self, stage: str, key: str) -> str:
        return f"{stage}-{key[:16]}"

    def get(self, stage: str, key: str) -> Artifact | None:
        """The artifact, or ``None``. One whose files do not match their recorded hashes is removed and reported."""
        path = self.root / self._name(stage, key)
        if not (path / MANIFEST).is_file():
            return None
        try:
            manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
            files = dict(manifest["files"])
        except (ValueError, KeyError, TypeError):
            say(f"{stage}: the stored manifest is damaged (not the JSON it was); building {stage} again", "yellow")
            shutil.rmtree(path)
            return None
        for name, expected in files.items():
            if not (path / name).is_file() or file_digest(path / name) != expected:
                say(
                    f"{stage}: stored file '{name}' is damaged (hash differs from its manifest); building {stage} again",
                    "yellow",
                )
                shutil.rmtree(path)
                return None
        return Artifact(path, manifest)

    @contextlib.contextmanager
    def lock(self, stage: str, key: str) -> Iterator[None]:
        """Hold the right to build an artifact; waits, with a line, while another process builds the same one."""
        folder = self.root / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / self._name(stage, key)).open("a") as handle:
            if not try_lock(handle):
                say(f"{stage}: another process is building this artifact; waiting for it")
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def work_folder(self, stage: str, key: str) -> Path:
        """Where the stage writes; the same folder after a kill, with the checkpoints in it."""
        folder = self.root / "work" / self._name(stage, key)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def commit(self, stage: str, key: str, manifest: dict[str, Any]) -> Artifact:
        """Turn a finished work folder into an artifact in one rename."""
        work = self.work_folder(stage, key)
        target = self.root / self._name(stage, key)
        for leftover in (work / MANIFEST, *work.rglob(".*.part")):  # of a process that was killed: they would be listed
            leftover.unlink(missing_ok=True)
        checkpoints = work / "checkpoints"
        contents = [p for p in sorted(work.rglob("*")) if p.is_file() and checkpoints not in p.parents]
        files = {str(p.relative_to(work)): file_digest(p) for p in contents}
        manifest = {**manifest, "stage": stage, "key": key, "files": files}
        write_json(work / MANIFEST, manifest)
        shutil.rmtree(target, ignore_errors=True)  # what a killed removal of a damaged artifact left
        work.rename(target)
        shutil.rmtree(target / "checkpoints", ignore_errors=True)  # only now: a kill before the rename may need them
        return Artifact(target, manifest, status=str(manifest["status"]))


def try_lock(handle: IO[str]) -> bool:
    """Take an exclusive lock on an open file if it is free."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Only one process may work on a run folder; a second one is refused with the first one's process id."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as handle:
        if not try_lock(handle):
            handle.seek(0)
            holder = handle.read().strip() or "unknown"
            raise StoreError(
                f"run '{folder.name}' is in progress (process {holder}): wait for it to end, stop it, or choose another name with --run"
            )
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write JSON lines into an artifact under construction."""
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Read an artifact's JSON lines."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)
