"""What the settings of every stage share: strictness, and which fields enter an artifact's key."""

from __future__ import annotations

import dataclasses
from dataclasses import field
from typing import Any

from pydantic import ConfigDict

STRICT = ConfigDict(extra="forbid")


def file(**kwargs: Any) -> Any:
    """A field whose file's bytes, not its name, decide what a stage produces."""
    return field(metadata={"file": True}, **kwargs)


def aside(**kwargs: Any) -> Any:
    """A field that does not change what a stage produces; it stays out of the artifact's key."""
    return field(metadata={"content": False}, **kwargs)


def is_config(value: object) -> bool:
    """True for an instance of a configuration dataclass."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type)
