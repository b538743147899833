"""One row as a file holds it, and values of tables made plain: what JSON could hold, and nothing
else.

A null is no key: Arrow fills up what a row does not have, and people export empty columns. It goes
at every depth inside objects and stays as an element of a list, where leaving it out would move its
neighbors.
"""

from __future__ import annotations

import datetime
import decimal
import math
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

LONGEST = 1 << 27
"""Bytes of a line, characters of an element or a cell: what is longer is no row of texts, and must
not fill the memory.
"""
MOST_KEYS = 4_000
"""Columns of a row: an object with more of them is no row, but a table by id or a whole file."""


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as it stands: its number from 1, its value (the row's text when that is not JSON) and
    what is wrong.
    """

    number: int
    value: Any
    problem: str | None = None


class RefusedValue(ValueError):
    """A value that no row may hold; the message says what it is, ``where`` the keys that lead to
    it, the innermost first.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.where: list[str] = []


def table_row(number: int, row: dict[str, Any]) -> RawRow:
    """A row of a table with plain values; one that has no JSON counterpart, such as bytes, is the
    row's problem.
    """
    try:
        return RawRow(number, plain(row))
    except RefusedValue as refused:
        place = ".".join(reversed(refused.where))
        return RawRow(number, _shown(row), f"its '{place}' {refused}" if place else str(refused))


def plain(value: Any) -> Any:
    """The value as JSON has it, without nulls in objects. Raises ``Refused`` for bytes, infinite
    numbers and objects of programs.
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
    """A value of another type as the one that stands for it in JSON."""
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
"""In this order: a date and time is a date, True an int."""


def _shown(value: Any) -> Any:
    """The row of a refused value, for a quarantine file: what JSON lacks stands as a text about
    it.
    """
    if isinstance(value, dict):
        return {str(key): _shown(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(item) for item in value]
    try:
        return plain(value)
    except RefusedValue as refused:
        return f"<{refused}>"


def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object without its nulls. Raises ``Refused`` for a key that is given twice: which of
    the two is meant, nobody knows.
    """
    found = {key: value for key, value in pairs if value is not None}
    if len(found) != len(pairs) and (twice := repeated(key for key, _ in pairs)) is not None:
        raise RefusedValue(f"has the key '{twice}' twice in one object; keep one of them")
    return found


def repeated(names: Iterable[str]) -> str | None:
    """The first name that comes a second time."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def finite(text: str) -> float:
    """A JSON number with a fraction or an exponent. Raises ``Refused`` for one beyond what a float
    holds.
    """
    value = float(text)
    if math.isinf(value):
        raise RefusedValue(f"holds {text[:40]}, a number too large to be one")
    return value


def no_constant(name: str) -> float:
    """Raises ``Refused``: NaN and Infinity are no JSON."""
    raise RefusedValue(f"holds {name}, which is no JSON: write null, or leave the key out")
