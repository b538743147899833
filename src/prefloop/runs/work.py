"""What a stage has at hand while it builds its artifact."""

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
        """Training checkpoints live here until the artifact is complete."""
        return self.folder / "checkpoints"

    @property
    def scratch(self) -> Path:
        """Files that the stage needs while it works and the artifact does not keep."""
        folder = self.checkpoints / "scratch"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def emit(self, event: str, **fields: Any) -> None:
        """Log an event of this stage."""
        self.runtime.emit(stage=self.stage, event=event, **fields)
