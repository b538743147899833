"""JSON files and folders that prefloop writes and reads back, each with hashes that show whether it
is unchanged.

A disk, a power cut or another program may have damaged them, so they are read here alone: every
damage is a ``StoreError`` that names the file and the problem.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from prefloop.base.atomic import replacing, settle
from prefloop.errors import StoreError

DIGEST = "digest"
"""Key in a sealed file: the hash of everything else in it."""
SEAL = "sealed.json"
"""File in a sealed folder: the hashes of its other files, and its content."""
_CHUNK = 1 << 20


def digest(value: Any) -> str:
    """SHA-256 of a JSON-serializable value, independent of dictionary order."""
    return hashlib.sha256(
        json.dumps(value, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")
    ).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of it."""
    with replacing(path) as file:
        # Names of files may hold bytes that are not UTF-8, as lone surrogates: backslashreplace
        # writes them as JSON's own escapes.
        file.write(
            json.dumps(value, indent=2, ensure_ascii=False).encode("utf-8", "backslashreplace")
        )


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object as JSON with its own digest in it. Raises ``ValueError`` where the content
    uses the digest's key.
    """
    if DIGEST in content:
        raise ValueError(f"{path}: '{DIGEST}' is the key of the digest itself")
    plain = json.loads(json.dumps(content))  # as it is read: keys are text, tuples are lists
    write_json(path, plain | {DIGEST: digest(plain)})


def read_sealed(path: Path, required: bool = True) -> dict[str, Any]:
    """The object in a file of ``write_sealed``, without its digest.

    Raises ``StoreError`` where the file has changed. A file without a digest, from an earlier
    version, is refused if ``required``.
    """
    if path.exists() and not path.is_file():
        raise StoreError(f"{path}: is no regular file")
    try:
        content = json.loads(path.read_bytes().decode("utf-8"))
        stored = content.pop(DIGEST, None) if isinstance(content, dict) else None
        expected = digest(content)
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path}: damaged, not valid JSON ({str(error)[:200]})") from None
    if not isinstance(content, dict):
        raise StoreError(f"{path}: damaged, an object was written and something else is there")
    if stored is None and required:
        raise StoreError(
            f"{path}: holds no digest of its content; it is damaged or of an earlier version"
        )
    if stored is not None and stored != expected:
        raise StoreError(f"{path}: damaged, its content is not what its digest says")
    return content


def inside(folder: Path, name: str) -> Path:
    """The regular file ``name`` in ``folder``. Raises ``StoreError`` for a name that leaves the
    folder, for a link and for a missing file.
    """
    parts = PurePosixPath(name).parts
    if name != PurePosixPath(name).as_posix():  # one file could have two names
        raise StoreError(f"file '{name}' is not named as we name files")
    if not parts or parts[0] == "/" or ".." in parts or "\0" in name:
        raise StoreError(f"file '{name}' would lie outside of {folder}")
    place = folder
    try:
        for part in parts:
            place /= part
            if place.is_symlink():
                raise StoreError(f"file '{name}' is a link or behind one, and a file was written")
        if not place.is_file():
            raise StoreError(f"file '{name}' is missing")
    except OSError as error:
        raise StoreError(f"file '{name}' cannot be read ({error.strerror})") from None
    return place


def check_files(folder: Path, hashes: Any) -> None:
    """Raise ``StoreError`` for the first file that is not in ``folder`` with its hash; ``hashes``
    is JSON that anyone may have written.
    """
    if not isinstance(hashes, dict):
        raise StoreError("the list of its files is no object")
    for name, expected in hashes.items():
        place = inside(folder, name)
        try:
            now = file_digest(place)
        except OSError as error:
            raise StoreError(f"file '{name}' cannot be read ({error.strerror})") from None
        if now != expected:
            raise StoreError(f"file '{name}' is damaged (its hash differs)")


def hashes_of(folder: Path, files: Iterable[Path]) -> dict[str, str]:
    """The hashes of files under ``folder``, by their names relative to it."""
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in sorted(files)}


def files_in(folder: Path, besides: Path) -> list[Path]:
    """The files under a folder, except ``besides`` and the files in it. Raises ``StoreError`` for a
    link, which would not be read back.
    """
    paths = [path for path in folder.rglob("*") if path != besides and besides not in path.parents]
    for path in paths:
        if path.is_symlink():
            raise StoreError(
                f"{path}: is a link, and what it leads to would not be kept: write a file in its"
                " place"
            )
    return [path for path in paths if path.is_file()]


def seal_folder(draft: Path, target: Path, content: Mapping[str, Any] | None = None) -> None:
    """Give a finished folder its seal and its name, so that a power cut leaves the whole of it or
    nothing.

    ``read_folder`` returns ``content``. Anything at ``target`` is replaced.
    """
    files = hashes_of(draft, files_in(draft, draft / SEAL))
    write_sealed(draft / SEAL, {**(content or {}), "files": files})
    remove(target)
    settle(draft, target)


def read_folder(folder: Path) -> dict[str, Any]:
    """The content of a folder's seal. Raises ``StoreError`` unless all its files are unchanged."""
    content = read_sealed(folder / SEAL)
    check_files(folder, content.get("files"))
    return content


def copy_file(folder: Path, name: str, expected: str, target: Path) -> None:
    """Copy the regular file ``name`` of ``folder``. Raises ``StoreError`` where its hash is not
    ``expected``.
    """
    place, hashed = inside(folder, name), hashlib.sha256()
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        open(os.open(place, os.O_RDONLY | os.O_NOFOLLOW), "rb") as source,
        target.open("xb") as copy,
    ):
        while chunk := source.read(_CHUNK):
            hashed.update(chunk)
            copy.write(chunk)
    if hashed.hexdigest() != expected:
        raise StoreError(f"file '{name}' is damaged (its hash differs)")


def remove(place: Path) -> None:
    """Remove a folder, a file or a link (not its target); a missing one is no error."""
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)
