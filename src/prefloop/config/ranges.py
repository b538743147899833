"""What each number of a configuration or of a flag may be: a few named types, which YAML, flags and
Python are all checked by.

pydantic refuses a value out of range with the field's name; ``FLAGS`` makes tyro do so with the
flag's. Upper ends are where a larger number can only be a slip, or would overflow; floats below
``TINY`` turn into 0 or infinity in float32.
"""

from __future__ import annotations

import math
import types
from typing import Annotated, Any, Union, get_args, get_origin

import tyro
from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

MOST, TINY, LARGE = 2**31 - 1, 1e-9, 1e9


class Range(tyro.constructors.PrimitiveConstructorSpec[Any]):
    """The numbers from ``least`` to ``most``, both included; ``zero``: 0 as well, which then
    switches something off or means none.
    """

    def __init__(self, kind: type, least: float, most: float, zero: bool = False) -> None:
        # The parent is a frozen dataclass: what is ours is kept beside its fields.
        for name, value in (("kind", kind), ("least", least), ("most", most), ("zero", zero)):
            object.__setattr__(self, name, value)
        super().__init__(
            nargs=1,
            metavar=kind.__name__.upper(),
            instance_from_str=lambda words: self.read(words[0]),
            is_instance=lambda value: isinstance(value, int | kind) and not isinstance(value, bool),
            str_from_instance=lambda value: [str(value)],
        )

    kind: type
    least: float
    most: float
    zero: bool

    def holds(self, value: float) -> bool:
        """Whether a value is in the range; NaN is in none."""
        return self.least <= value <= self.most or (self.zero and value == 0)

    def __str__(self) -> str:
        ends = f"from {_shown(self.least)} to {_shown(self.most)}"
        return (
            f"a{' whole' if self.kind is int else ''} number {'0 or ' if self.zero else ''}{ends}"
        )

    def read(self, word: str) -> Any:
        """A flag's value. Raises ``ValueError``, which tyro shows under the flag's name."""
        try:
            value = self.kind(word)
        except ValueError:
            value = math.nan
        if not self.holds(value):
            raise ValueError(f"expected {self}, found '{word[:80]}'")
        return value

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        def check(value: Any, inner: core_schema.ValidatorFunctionWrapHandler) -> Any:
            # True would pass for 1.
            number = math.nan if isinstance(value, bool) else inner(value)
            if not self.holds(number):
                raise PydanticCustomError("range", "expected {range}", {"range": str(self)})
            return number

        return core_schema.no_info_wrap_validator_function(check, handler(source))


def _shown(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.12g}"


Count = Annotated[int, Range(int, 1, MOST)]
"""How many, where none makes no sense."""
Few = Annotated[int, Range(int, 1, 1000)]
"""A count whose every unit is work of its own: rounds, members, requests at once."""
Whole = Annotated[int, Range(int, 0, MOST)]
"""How many, with a documented meaning of 0."""
Retries = Annotated[int, Range(int, 0, 100)]
Seed = Annotated[int, Range(int, 0, MOST)]
Port = Annotated[int, Range(int, 1, 65_535)]
Draws = Annotated[int, Range(int, 1, 1_000_000)]
"""Resamples of a bootstrap."""
Positive = Annotated[float, Range(float, TINY, LARGE)]
NotNegative = Annotated[float, Range(float, TINY, LARGE, zero=True)]
"""With a documented meaning of 0."""
Weight = Annotated[float, Range(float, -LARGE, LARGE)]
"""A factor of either sign."""
Rate = Annotated[float, Range(float, TINY, 100.0)]
"""A learning rate."""
Pause = Annotated[float, Range(float, 1.0, LARGE)]
"""Seconds between two pulls: a server is not asked without a break."""
PerMinute = Annotated[float, Range(float, 0.001, 1e6)]
"""How many a minute."""
Epochs = Annotated[float, Range(float, TINY, 10_000.0)]
Ratio = Annotated[float, Range(float, 1.000_001, LARGE)]
"""A factor that makes larger."""
Stretch = Annotated[float, Range(float, 1.0, 1000.0)]
"""A factor that leaves things as they are at 1."""
Share = Annotated[float, Range(float, 0.0, 1.0)]
SomeShare = Annotated[float, Range(float, TINY, 1.0)]
"""A share that is not 0."""
PartShare = Annotated[float, Range(float, 0.0, 0.999)]
"""A share that leaves something."""
MinorShare = Annotated[float, Range(float, 0.0, 0.499)]
"""Less than half."""
Sigmas = Annotated[float, Range(float, 0.0, 8.0)]
"""Standard errors of a limit; beyond 8 the probability is 0 in float64."""


def count_in(text: str) -> int | None:
    """A count that stands in a text, such as 6_000 or 6,000; None where there is none."""
    plain = text.replace("_", "").replace(",", "")
    span = range_of(Count)
    try:
        return span.read(plain) if span and plain.isdecimal() else None
    except ValueError:
        return None


def range_of(kind: Any) -> Range | None:
    """The range in an annotation such as ``Count``."""
    return next(
        (part for part in getattr(kind, "__metadata__", ()) if isinstance(part, Range)), None
    )


FLAGS = tyro.constructors.ConstructorRegistry()
"""How flags are read, of the pipeline and of every command."""


@FLAGS.primitive_rule
def _optional(
    info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
    """A number or none. tyro's own rule for unions would answer with the reasons of all their
    types.
    """
    kinds = [kind for kind in get_args(info.type) if kind is not type(None)]
    if (
        get_origin(info.type) not in (Union, types.UnionType)
        or len(kinds) != 1
        or (span := range_of(kinds[0])) is None
    ):
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=f"{{None}}|{span.metavar}",
        instance_from_str=lambda words: None if words[0].lower() == "none" else span.read(words[0]),
        is_instance=lambda value: value is None or span.is_instance(value),
        str_from_instance=lambda value: [str(value)],
    )


@FLAGS.primitive_rule
def _several(
    info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
    """Any number of numbers. tyro's own rule would say that there is no valid parse."""
    span = range_of(next(iter(get_args(info.type)), None)) if info.type_origin is tuple else None
    if span is None:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar=f"[{span.metavar} [{span.metavar} ...]]",
        instance_from_str=lambda words: tuple(map(span.read, words)),
        is_instance=lambda value: isinstance(value, tuple) and all(map(span.is_instance, value)),
        str_from_instance=lambda value: list(map(str, value)),
    )
