"""The manifest of an artifact: its inputs and settings, its metrics, and the hashes of its
files.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from prefloop.base.sealed import read_sealed
from prefloop.errors import StoreError

MANIFEST = "manifest.json"
_KEY = re.compile(r"\w[\w.-]*", re.ASCII)
"""Keys become patterns and names of files."""


def is_name(text: str) -> bool:
    """Whether a stage or a slot can have this name: it becomes the name of a file inside a
    folder.
    """
    return text not in ("", ".", "..") and not {"/", "\0"} & set(text)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The content of ``manifest.json``; fields that an earlier version did not write are empty."""

    stage: str
    key: str
    identity: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Everything but the inputs that the key was made from."""
    inputs: dict[str, str] = dataclasses.field(default_factory=dict)
    """The key of the artifact in each slot that the stage needed."""
    reads: dict[str, str] = dataclasses.field(default_factory=dict)
    """Names of the user's files by the field that named them."""
    metrics: dict[str, Any] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    status: str = "ran"
    """ran or resumed."""
    prefloop: str = ""
    """The version that made it."""
    experts: list[str] = dataclasses.field(default_factory=list)
    """Folders of the adapters that an adapter mixes."""
    code: dict[str, str] = dataclasses.field(default_factory=dict)
    """The hashes of the package's modules that the stage ran, by name."""
    sampling: dict[str, Any] = dataclasses.field(default_factory=dict)
    """How the run samples, of a policy whose key does not hold it."""
    files: dict[str, str] = dataclasses.field(default_factory=dict)
    """The hash of every file by its name in the artifact."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


_CHECKED = TypeAdapter(Manifest)


def read_manifest(folder: Path, required: bool = True) -> Manifest:
    """The manifest of the artifact in ``folder``. Raises ``StoreError`` for one that is missing or
    damaged.

    ``required``: refuse one of an earlier version too, which has no digest of its own.
    """
    path = folder / MANIFEST
    content = read_sealed(path, required)
    try:
        manifest = _CHECKED.validate_python(content)
    except (ValidationError, RecursionError) as error:
        what = "nested too deep"
        if isinstance(error, ValidationError):
            first = error.errors(include_url=False)[0]
            what = f"field '{'.'.join(map(str, first['loc']))}': {first['msg']}"
        raise StoreError(f"{path}: damaged, {what[:200]}") from None
    wrong = [name for name in (manifest.stage, *manifest.inputs) if not is_name(name)]
    wrong += [key for key in (manifest.key, *manifest.inputs.values()) if not _KEY.fullmatch(key)]
    if wrong:
        raise StoreError(
            f"{path}: damaged, {wrong[0][:80]!r} is no name of a stage, a slot or an artifact"
        )
    return manifest
