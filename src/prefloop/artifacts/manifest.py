"""An artifact's ``manifest.json``: how the artifact was made, its metrics, its files' hashes."""

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
"""Keys become glob patterns and file names."""


def is_name(text: str) -> bool:
    """Whether a stage or slot may have this name, which becomes a file name in its folder."""
    return text not in ("", ".", "..") and not {"/", "\0"} & set(text)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The content of ``manifest.json``. Fields that an older version did not write are empty."""

    stage: str
    key: str
    identity: dict[str, Any] = dataclasses.field(default_factory=dict)
    """The key's ingredients except the inputs."""
    inputs: dict[str, str] = dataclasses.field(default_factory=dict)
    """Slot → key of each artifact that the stage used."""
    reads: dict[str, str] = dataclasses.field(default_factory=dict)
    """Config field → the user's file that the stage read."""
    metrics: dict[str, Any] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    status: str = "ran"
    """ran or resumed."""
    prefloop: str = ""
    """The version of prefloop that made the artifact."""
    experts: list[str] = dataclasses.field(default_factory=list)
    """Folders of the adapters that a mixture of adapters (mole) uses."""
    code: dict[str, str] = dataclasses.field(default_factory=dict)
    """Module name → hash, for the package's modules that the stage ran."""
    sampling: dict[str, Any] = dataclasses.field(default_factory=dict)
    """The run's sampling settings, for a policy whose key does not include them."""
    files: dict[str, str] = dataclasses.field(default_factory=dict)
    """File name in the artifact → hash."""

    def to_dict(self) -> dict[str, Any]:
        """The content as JSON."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


_CHECKED = TypeAdapter(Manifest)


def read_manifest(folder: Path, required: bool = True) -> Manifest:
    """The manifest of the artifact in ``folder``.

    Raises ``StoreError`` for a missing or changed manifest; with ``required`` also for one of an
    older version, which has no digest of its own.
    """
    path = folder / MANIFEST
    content = read_sealed(path, required)
    try:
        manifest = _CHECKED.validate_python(content)
    except (ValidationError, RecursionError) as error:
        problem = "nested too deep"
        if isinstance(error, ValidationError):
            first = error.errors(include_url=False)[0]
            problem = f"field '{'.'.join(map(str, first['loc']))}': {first['msg']}"
        raise StoreError(f"{path}: damaged, {problem[:200]}") from None
    wrong = [name for name in (manifest.stage, *manifest.inputs) if not is_name(name)]
    wrong += [key for key in (manifest.key, *manifest.inputs.values()) if not _KEY.fullmatch(key)]
    if wrong:
        raise StoreError(
            f"{path}: damaged, {wrong[0][:80]!r} is not a name of a stage, a slot or an artifact"
        )
    return manifest
