"""Files and folders that are whole or missing: written next to their place, put on disk and
renamed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from prefloop.errors import DataError

_BLOCK = 1 << 16


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file that replaces ``path`` once the block has ended and all is on disk. After an error
    the old file is unchanged.

    A link stays, and the file that it points to is replaced. Raises ``DataError`` where nothing can
    be written, and for devices and pipes: renaming a file over ``/dev/stdout`` would remove it for
    every program.
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
        sync(place.parent)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def sync(place: Path) -> None:
    """Put a file's bytes, or the names in a folder, on disk."""
    try:
        descriptor = os.open(place, os.O_RDONLY)
    except PermissionError:  # a folder may be writable and not readable
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)


def settle(draft: Path, target: Path, besides: Path | None = None) -> None:
    """Rename a file or folder to its place once all of it is on disk: after a power cut it is whole
    or missing.

    ``besides`` is a folder in it that may be lost, because the caller removes it next.
    """
    for place in (*draft.rglob("*"), draft):
        if (
            place != besides
            and besides not in place.parents
            and not place.is_symlink()
            and (place.is_dir() or place.is_file())
        ):
            sync(place)
    draft.rename(target)
    sync(target.parent)


def cut_torn_line(path: Path) -> None:
    """Cut off the text after the last line break, which a kill or a power cut left unfinished. A
    missing file is left missing.
    """
    if not path.is_file():
        return
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - _BLOCK)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                start += newline + 1
                break
            end = start
        else:
            start = 0
        file.truncate(start)


def link(path: Path, target: Path) -> None:
    """Point a symbolic link at an artifact, replacing an older one in one step."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(os.path.relpath(target, path.parent))
    fresh.replace(path)
