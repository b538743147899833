"""The one codec of results: dataclasses to JSON and back.

A number that is not known is ``None`` and left out of the file. NaN and infinity count as not
known, because they cannot be drawn.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, ConfigDict, model_validator

from prefloop.errors import ConfigError
from prefloop.records import SampledConversation, from_dict, to_dict

FILE = ConfigDict(extra="ignore")
"""Fields of a newer version are passed over."""
T = TypeVar("T")


def to_json(value: Any) -> Any:
    """A result ready for JSON. A part that nobody measured (``None``, an empty text or an empty
    dataclass by default) is left out.
    """
    if isinstance(value, SampledConversation):
        return to_dict(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        row = {}
        for field in dataclasses.fields(value):
            item = getattr(value, field.name)
            empty = item is None or item == "" or dataclasses.is_dataclass(item)
            if not (empty and item == field.default):
                row[field.name] = to_json(item)
        return row
    if isinstance(value, Mapping):
        return {name: to_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return value


def read(kind: type[T], row: dict[str, Any]) -> T:
    """The result of ``kind`` that ``to_json`` wrote as ``row``. Raises ``ValueError`` naming the
    field and its value.
    """
    return from_dict(kind, row)


def read_metrics(kind: type[T], row: dict[str, Any], slot: str) -> T:
    """The metrics of the artifact in ``slot`` as ``kind``. Raises ``ConfigError`` naming the field:
    the stage may be a user's own.
    """
    try:
        return read(kind, row)
    except ValueError as error:
        raise ConfigError(
            f"the stage that fills slot {slot} returned a metric of another type than prefloop's"
            f" own of that name: {error}. Rename it"
        ) from None


def finite(value: float | None) -> float | None:
    """The number, or ``None`` for NaN and infinity."""
    return value if value is not None and math.isfinite(value) else None


Number = Annotated[float | None, AfterValidator(finite)]


class Stored:
    """Reads ``null`` as a field that is absent."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: item for name, item in value.items() if item is not None}
