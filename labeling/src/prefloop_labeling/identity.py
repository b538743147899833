"""Which directory a file that names a running thing was written for, so that a copy of the
directory is not taken for it.
"""

import contextlib
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Identity:
    """A directory as the file system knows it."""

    path: str  # with all links followed
    device: int
    inode: int

    @classmethod
    def of(cls, directory: Path | str) -> "Identity":
        """The identity of a directory that is there; raises OSError."""
        status = os.stat(directory)
        return cls(os.path.realpath(directory), status.st_dev, status.st_ino)

    @classmethod
    def read(cls, written: Any) -> "Identity | None":
        """What `written` gives as JSON, else None."""
        with contextlib.suppress(TypeError, KeyError, ValueError):
            return cls(str(written["path"]), int(written["device"]), int(written["inode"]))
        return None

    def to_json(self) -> dict[str, Any]:
        """For a file."""
        return asdict(self)

    def same(self, other: "Identity") -> bool:
        """Whether both are one directory. It may have been moved, and a disk may have another
        number after a restart; not both.
        """
        return self.inode == other.inode and (
            self.device == other.device or self.path == other.path
        )
