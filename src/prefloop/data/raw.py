"""A row as its file holds it, values of tables turned into plain JSON values, and local copies of
rows that were fetched.

A null counts as an absent key, because Arrow fills in what a row does not have, and people export
empty columns. Nulls are dropped from objects at every depth. In a list a null stays, because
dropping it would move its neighbors.
"""

from __future__ import annotations

import datetime
import decimal
import json
import math
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefloop.base.atomic import replacing
from prefloop.errors import DataError

LONGEST = 1 << 27
"""Longest line in bytes, longest element or cell in characters. Anything longer is no row of texts,
and must not fill the memory.
"""
MOST_KEYS = 4_000
"""Most keys of a row. An object with more is a table by id, or a whole file."""


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row: its number from 1, its value (the row's text when that is not JSON), and what is
    wrong with it.
    """

    number: int
    value: Any
    problem: str | None = None


class RefusedValue(ValueError):
    """A value that no row may hold. The message says what it is; ``where`` holds the keys that lead
    to it, the innermost first.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.where: list[str] = []


def table_row(number: int, row: dict[str, Any]) -> RawRow:
    """A row of a table with plain values. A value without a JSON counterpart, such as bytes,
    becomes the row's problem.
    """
    try:
        return RawRow(number, plain(row))
    except RefusedValue as refused:
        place = ".".join(reversed(refused.where))
        return RawRow(number, _shown(row), f"its '{place}' {refused}" if place else str(refused))


def plain(value: Any) -> Any:
    """The value as JSON holds it, without nulls in objects. Raises ``RefusedValue`` for bytes,
    infinite numbers and Python objects.
    """
    kind = type(value)
    if kind is str or kind is int or kind is bool or value is None:
        return value
    if kind is float:
        if math.isinf(value):
            raise RefusedValue("is an infinite number")
        return None if math.isnan(value) else value
    if kind is dict:
        return {
            _key(key): item
            for key, item in ((key, _within(str(key), item)) for key, item in value.items())
            if item is not None
        }
    if kind is list or kind is tuple:
        return [_within(str(index), item) for index, item in enumerate(value)]
    return plain(_converted(value))


def _within(key: str, value: Any) -> Any:
    try:
        return plain(value)
    except RefusedValue as refused:
        refused.where.append(key)
        raise


def _key(key: Any) -> str:
    return key if isinstance(key, str) else str(key)


def _converted(value: Any) -> Any:
    """The JSON value that stands for a value of another type."""
    for kinds, convert in _CONVERSIONS:
        if isinstance(value, kinds):
            return convert(value)
    if hasattr(value, "tolist") and type(value).__module__.partition(".")[0] == "numpy":
        return value.tolist()
    raise RefusedValue(f"is a {type(value).__name__}, which is no text, number, list or object")


def _refuse_bytes(value: Any) -> Any:
    raise RefusedValue(f"is {len(value):,} bytes (a picture, a sound?), expected text")


def _duration(value: datetime.timedelta) -> float:
    return value.total_seconds()


def _decimal(value: decimal.Decimal) -> int | float:
    return int(value) if value.is_finite() and value == value.to_integral_value() else float(value)


_CONVERSIONS: tuple[tuple[Any, Callable[[Any], Any]], ...] = (
    ((bytes, bytearray, memoryview), _refuse_bytes),
    (dict, dict),
    ((list, tuple), list),
    (str, str),
    (bool, bool),
    (int, int),
    (float, float),
    ((datetime.date, datetime.time), lambda value: value.isoformat()),
    (datetime.timedelta, _duration),
    (decimal.Decimal, _decimal),
    (uuid.UUID, str),
)
"""The order matters: a date and time is a date, and True is an int."""


def _shown(value: Any) -> Any:
    """A row with a refused value, for a quarantine file: a text describes what JSON cannot hold."""
    if isinstance(value, dict):
        return {str(key): _shown(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(item) for item in value]
    try:
        return plain(value)
    except RefusedValue as refused:
        return f"<{refused}>"


def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object without its nulls. Raises ``RefusedValue`` for a key that is given twice, since
    nobody can tell which of the two is meant.
    """
    values = {key: value for key, value in pairs if value is not None}
    if len(values) != len(pairs) and (twice := repeated(key for key, _ in pairs)) is not None:
        raise RefusedValue(f"has the key '{twice}' twice in one object; keep one of them")
    return values


def repeated(names: Iterable[str]) -> str | None:
    """The first name that occurs a second time."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def finite(text: str) -> float:
    """Read a JSON number with a fraction or an exponent. Raises ``RefusedValue`` for one beyond the
    range of a float.
    """
    value = float(text)
    if math.isinf(value):
        raise RefusedValue(f"holds {text[:40]}, a number too large to be one")
    return value


def no_constant(name: str) -> float:
    """Raises ``RefusedValue``: NaN and Infinity are not JSON."""
    raise RefusedValue(f"holds {name}, which is no JSON: write null, or leave the key out")


def cache_home() -> Path:
    """The folder for copies, next to the caches of the hub's own tools (``HF_HOME``). Each kind of
    address has a subfolder.
    """
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "prefloop"


def write_copy(place: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write rows to ``place``, as a whole or not at all, and return their number. Values become
    plain JSON (``plain``). Raises ``DataError``.
    """
    count = 0
    with replacing(place) as file:
        for count, row in enumerate(rows, start=1):
            raw = table_row(count, row)
            entry = raw.value if raw.problem is None else [raw.value, raw.problem]
            file.write(json.dumps(entry).encode("ascii") + b"\n")
    return count


def read_copy(place: Path) -> Iterator[RawRow]:
    """The rows of a copy. Raises ``DataError`` for a damaged one."""
    try:
        with place.open("rb") as file:
            for number, line in enumerate(file, start=1):
                value = json.loads(line)
                yield RawRow(number, value) if isinstance(value, dict) else RawRow(number, *value)
    except (OSError, ValueError, TypeError):
        raise DataError(
            f"the copy {place} is damaged: delete it, and it is fetched again"
        ) from None
