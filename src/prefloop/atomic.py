"""Files that are whole or not there: written beside their place and renamed into it."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from prefloop.errors import DataError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of ``path`` once the block has ended and all is on disk; after an error the old one is as it was.

    A link stays, and what it points to is replaced. Raises ``DataError`` where nothing can be written, and for devices and pipes: renaming
    a file over ``/dev/stdout`` would put an end to it for every program.
    """
    place = Path(os.path.realpath(path))
    if place.exists() and not place.is_file():
        kind = "a folder" if place.is_dir() else "no regular file"
        raise DataError(f"cannot write {path}: it is {kind}; name a file")
    part = place.with_name(f".{place.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with part.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, place)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
