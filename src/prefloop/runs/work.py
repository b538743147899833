"""What a stage works with while it builds its artifact."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from prefloop.runs.runtime import Runtime


@dataclasses.dataclass
class Work:
    """A folder to write to, the shared runtime, and the stage's log."""

    stage: str
    folder: Path
    runtime: Runtime
    resumed: bool = False

    @property
    def checkpoints(self) -> Path:
        """Folder of the training checkpoints, until the artifact is complete."""
        return self.folder / "checkpoints"

    @property
    def scratch(self) -> Path:
        """Folder of temporary files that the artifact does not keep."""
        folder = self.checkpoints / "scratch"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def emit(self, event: str, **fields: Any) -> None:
        """Log an event of this stage."""
        self.runtime.emit(stage=self.stage, event=event, **fields)
