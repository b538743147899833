"""Step events of every training stage → TensorBoard, Weights & Biases or trackio, through
accelerate's tracker classes.

Each artifact that is trained is one run in the project of the pipeline's run: ``ppo-1a2b3c4d``,
``reward-5e6f7a8b-member-2``. How far a run was logged is kept beside its files, so a stage that
goes on after a kill goes on in the same run and no step is logged twice. All stay on this machine
unless told otherwise: TensorBoard's files and W&B's offline ones are in ``<run>/trackers``,
trackio's where trackio keeps them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefloop.artifacts.store import Artifact
from prefloop.base.console import say
from prefloop.base.redact import flat_without_secrets
from prefloop.base.sealed import read_sealed, write_sealed
from prefloop.errors import ConfigError, StoreError, nearest
from prefloop.runs.runtime import Runtime

if TYPE_CHECKING:
    from prefloop.pipeline.stage import Stage

PACKAGES = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "trackio": ("trackio",),
}
"""What each tracker needs: any one of these."""


def check_trackers(names: Sequence[str]) -> None:
    """Raise ``ConfigError`` naming each tracker that is not known or not installed, and the command
    that installs it.
    """
    for name in names:
        if name not in PACKAGES:
            raise ConfigError(f"trackers: '{name}' is not a tracker ({nearest(name, PACKAGES)})")
    if missing := [name for name in names if not any(map(_installed, PACKAGES[name]))]:
        raise ConfigError(
            f"trackers: {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not"
            f" installed: pip install {' '.join(missing)}"
        )


def _installed(package: str) -> bool:
    spec = importlib.util.find_spec(package)
    return (
        spec is not None and spec.origin is not None
    )  # wandb's folder of earlier runs is found too; it has no origin


def numbers(event: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numeric values of an event, nested ones as ``seconds/generate``."""
    out: dict[str, float] = {}
    for name, value in event.items():
        if isinstance(value, Mapping):
            out |= numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            out[prefix + name] = value
    return out


@dataclasses.dataclass
class Logged:
    """How far a run was logged, in a file that outlives a kill."""

    path: Path
    name: str
    id: str
    last: int = 0

    @classmethod
    def of(cls, path: Path, name: str, resumed: bool) -> Logged:
        """Go on where the file says if the stage does; one that starts anew gets a run of its own,
        ``name-2``.
        """
        try:
            known = read_sealed(path) if os.path.lexists(path) else None
        except StoreError as error:
            say(
                f"  how far {name} was logged is not known: {error}; it is logged as another run",
                "yellow",
            )
            known, resumed = {"name": name}, False
        if known is None:
            return cls(path, name, uuid.uuid4().hex[:12])
        if resumed:
            return cls(path, known["name"], known["id"], known["last"])
        attempt = int(known["name"].removeprefix(name).removeprefix("-") or 1) + 1
        return cls(path, f"{name}-{attempt}", uuid.uuid4().hex[:12])

    def write(self) -> None:
        """Keep it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_sealed(self.path, {"name": self.name, "id": self.id, "last": self.last})


def _tensorboard(
    tracker: Any, project: str, run: Logged, folder: Path, config: dict[str, Any]
) -> Any:
    opened = tracker(run.name, folder / "tensorboard")
    opened.start()
    if not run.last:
        # As text: accelerate's way for TensorBoard is two more folders a start, with no metric in
        # them.
        opened.log(
            {"config": "\n".join(f"    {name}: {value}" for name, value in config.items())}, step=0
        )
    return opened


def _wandb(tracker: Any, project: str, run: Logged, folder: Path, config: dict[str, Any]) -> Any:
    mode = os.environ.get("WANDB_MODE", "offline")
    opened = tracker(
        project, name=run.name, id=run.id, resume="allow", dir=folder, mode=mode, config=config
    )
    opened.start()
    return opened


def _trackio(tracker: Any, project: str, run: Logged, folder: Path, config: dict[str, Any]) -> Any:
    opened = tracker(project, name=run.name, resume="allow", config=config)
    opened.start()
    return opened


OPEN: dict[str, Callable[[Any, str, Logged, Path, dict[str, Any]], Any]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "trackio": _trackio,
}


class Tracking:
    """Sends the step events of one stage to its trackers; a tracker that fails is left out with a
    line, training goes on.
    """

    def __init__(
        self,
        names: Sequence[str],
        folder: Path,
        stage: Stage,
        runtime: Runtime,
        inputs: dict[str, Artifact],
    ) -> None:
        self.names = list(names)
        self.folder = folder / "trackers"
        self.project = folder.resolve().name
        self.stage = stage
        self.runtime = runtime
        self.inputs = inputs
        self._resumed = False
        self._member: int | None = None
        self._open: dict[str, tuple[Any, Logged]] = {}
        self._looked: dict[str, float] = {}
        """A look at the held-out loss, which comes just before the step that it belongs to."""

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Take an event of the run; all but the steps of this stage, and looks with them, change
        nothing that is logged.
        """
        if not self.names or event.get("stage") != self.stage.name:
            return
        if event["event"] == "stage":
            self._resumed = event["status"] == "resumed"
        elif event["event"] == "held_out":
            self._looked = {"held_out_loss": event["loss"]}
        elif event["event"] == "step":
            if (member := event.get("member", 0)) != self._member:
                self._close()
                self._begin(member)
            values = (
                numbers({k: v for k, v in event.items() if k not in ("step", "member")})
                | self._looked
            )
            self._looked = {}
            for name, (tracker, run) in list(self._open.items()):
                if event["step"] > run.last:
                    with self._left_out_when_it_fails(name):
                        tracker.log(values, step=event["step"])
                        run.last = event["step"]
                        run.write()

    def __enter__(self) -> Tracking:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._close()

    def _begin(self, member: int) -> None:
        """Open a run in every tracker; members of an ensemble count their steps apart, so each has
        its own.
        """
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        PartialState()  # accelerate's trackers ask it which process they are in
        self._member = member
        key = self.stage.key(self.runtime, self.inputs)[:8]
        name = f"{self.stage.name}-{key}" + (f"-member-{member + 1}" if member else "")
        config = flat_without_secrets(self.stage.identity(self.runtime))
        self.folder.mkdir(parents=True, exist_ok=True)
        for tracker in self.names:
            run = Logged.of(self.folder / ".logged" / f"{tracker}-{name}.json", name, self._resumed)
            with self._left_out_when_it_fails(tracker):
                opened = OPEN[tracker](
                    LOGGER_TYPE_TO_CLASS[tracker], self.project, run, self.folder, config
                )
                self._open[tracker] = (opened, run)

    def _close(self) -> None:
        for name, (tracker, run) in list(self._open.items()):
            with self._left_out_when_it_fails(name):
                tracker.finish()
                run.write()
        self._open.clear()

    @contextlib.contextmanager
    def _left_out_when_it_fails(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._open.pop(name, None)
            self.names = [kept for kept in self.names if kept != name]
            told = (str(error).splitlines() or [""])[0]
            say(
                f"  {name} failed ({type(error).__name__}: {told}); {self.stage.name} goes on"
                " without it",
                "yellow",
            )
