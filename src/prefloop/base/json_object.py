"""JSON that other people wrote: bounded in depth, and in files as objects with checked fields."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from prefloop.base.console import neutral, shortened
from prefloop.errors import ModelError

T = TypeVar("T")
MOST_BYTES = 64 << 20
"""Largest file. The largest honest ones list the tensors of a model with thousands of experts."""
DEEPEST = 200
"""Most levels of JSON in an answer; a walk of deeper ones would overflow the stack."""
_DEEPEST = 64  # of a file


def parsed(content: bytes | str, deepest: int = DEEPEST) -> Any:
    """The JSON value of a text. Raises ``ValueError`` where the text is not JSON, or is nested more
    than ``deepest`` levels deep.
    """
    try:
        value = json.loads(content)
    except RecursionError:
        raise ValueError(f"nested more than {deepest} levels deep") from None
    level, depth = [value], 0
    while level := [item for each in level for item in _inside(each)]:
        depth += 1
        if depth > deepest:
            raise ValueError(f"nested more than {deepest} levels deep")
    return value


def _inside(value: Any) -> Iterable[Any]:
    """The lists and objects in a list or an object."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [item for item in items if isinstance(item, dict | list)]


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ``ModelError`` naming folder and file for a file that is
    not there, cannot be read, or holds no object.
    """
    where = f"'{path.parent.name}': {path.name}"
    try:
        require_end(path)
        with path.open("rb") as file:
            # The size is no guide: some files of the system report no bytes.
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ModelError(f"{where} has over {MOST_BYTES:,} bytes: it is no such file")
        value = parsed(content.decode("utf-8"), _DEEPEST)
    except FileNotFoundError:
        raise ModelError(f"{where} is missing: copy or make the folder again") from None
    except UnicodeDecodeError as error:
        raise ModelError(
            f"{where} is not UTF-8 (byte {error.start:,}): copy or make the folder again"
        ) from error
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{where} cannot be read ({_words(error)}): copy or make the folder again"
        ) from error
    if not isinstance(value, dict):
        raise ModelError(
            f"{where} holds {_named(value)} where an object belongs: copy or make the folder again"
        )
    return value


def require_end(path: Path) -> None:
    """Raise ``ModelError`` for a pipe, a socket or a device, or a link to one: reading it may never
    end.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ModelError(
            f"'{path.parent.name}': {path.name} is a pipe or a device: copy or make the folder"
            " again"
        )


def read_as(kind: type[T], path: Path) -> T:
    """The object in a JSON file as a dataclass or typed dictionary. Raises ``ModelError`` as
    ``read_object`` does, and for fields that do not fit.
    """
    return as_kind(kind, read_object(path), path)


def as_kind(kind: type[T], content: Any, path: Path) -> T:
    """``content``, which was read from ``path``, as a ``kind``. Raises ``ModelError`` naming the
    fields that do not fit.
    """
    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        raise ModelError(
            f"'{path.parent.name}': {path.name}: {problems(error)}: copy or make the folder again"
        ) from error


def problems(error: ValidationError, most: int = 3) -> str:
    """The first few fields that pydantic refuses, with its messages and the values."""
    lines = []
    for problem in error.errors(include_url=False)[:most]:
        field = shortened(".".join(str(part) for part in problem["loc"]), 60)
        lines.append(
            neutral(f"{field}: {shortened(problem['msg'], 80)} (found {_named(problem['input'])})")
        )
    more = error.error_count() - most
    return "; ".join(lines) + (f"; and {more} more" if more > 0 else "")


def _named(value: Any) -> str:
    """A value for a message: a short one as it is, a long one by its kind."""
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    if isinstance(value, int) and abs(value) >= 10**20:
        return "a very long number"
    return shortened(repr(value), 40)


def _words(error: Exception) -> str:
    return shortened(neutral(" ".join(str(error).split())) or type(error).__name__, 120)
