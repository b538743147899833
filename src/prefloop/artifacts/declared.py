"""The fields of a manifest, or of an exported folder's ``prefloop.json``, that are read from
folders of other people. Their types are checked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NotRequired

from pydantic import ConfigDict
from typing_extensions import TypedDict

from prefloop.base.json_object import as_kind
from prefloop.base.sealed import read_sealed
from prefloop.errors import ModelError, StoreError

_OPEN = ConfigDict(extra="allow", strict=True)


class _Rope(TypedDict, total=False):
    __pydantic_config__ = _OPEN  # type: ignore[misc]

    type: str
    factor: int | float


class _Adapter(TypedDict, total=False):
    __pydantic_config__ = _OPEN  # type: ignore[misc]

    method: str
    options: dict[str, Any]


class _Backbone(TypedDict, total=False):
    __pydantic_config__ = _OPEN  # type: ignore[misc]

    model: str
    precision: str
    chat_template: str
    max_length: int
    rope: _Rope
    adapter: _Adapter


class _Generation(TypedDict, total=False):
    __pydantic_config__ = _OPEN  # type: ignore[misc]

    engine: str


class _Identity(TypedDict, total=False):
    __pydantic_config__ = _OPEN  # type: ignore[misc]

    backbone: _Backbone
    generation: _Generation | None
    config: Any


class DeclaredFields(TypedDict):
    """The checked fields of a manifest or of ``prefloop.json``."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]

    files: dict[str, str]
    key: NotRequired[str]
    identity: NotRequired[_Identity]
    experts: NotRequired[list[str]]
    metrics: NotRequired[dict[str, Any]]
    sampling: NotRequired[dict[str, Any]]


def read_declared(path: Path) -> DeclaredFields:
    """Read the file and compare its digest, if it has one.

    Raises ``ModelError`` for a changed file or a field of the wrong type.
    """
    try:
        return as_kind(DeclaredFields, read_sealed(path, required=False), path)
    except StoreError as error:
        raise ModelError(str(error)) from error
