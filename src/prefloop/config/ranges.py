"""The permitted numbers of configuration fields and flags, as a few named types that check YAML,
flags and Python alike.

pydantic refuses a value out of range with the field's name; ``FLAGS`` makes tyro do the same with
the flag's name. Upper ends are where a larger number can only be a slip, or would overflow; floats
below ``TINY`` turn into 0 or infinity in float32.
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
    """The numbers from ``least`` to ``most``, both included. ``zero`` permits 0 as well, which then
    switches something off or means none.
    """

    def __init__(self, kind: type, least: float, most: float, zero: bool = False) -> None:
        # The parent is a frozen dataclass, so our own fields cannot be assigned as usual.
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
        """Whether a value is in the range. NaN never is."""
        return self.least <= value <= self.most or (self.zero and value == 0)

    def __str__(self) -> str:
        ends = f"from {_shown(self.least)} to {_shown(self.most)}"
        return (
            f"a{' whole' if self.kind is int else ''} number {'0 or ' if self.zero else ''}{ends}"
        )

    def read(self, word: str) -> Any:
        """Read a flag's value. Raises ``ValueError``, which tyro shows under the flag's name."""
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
"""A count of at least 1."""
Few = Annotated[int, Range(int, 1, 1000)]
"""A count of things that are work of their own: rounds, members, requests at once."""
Whole = Annotated[int, Range(int, 0, MOST)]
"""A count whose 0 has a documented meaning."""
Retries = Annotated[int, Range(int, 0, 100)]
Seed = Annotated[int, Range(int, 0, MOST)]
Port = Annotated[int, Range(int, 1, 65_535)]
Draws = Annotated[int, Range(int, 1, 1_000_000)]
"""Resamples of a bootstrap."""
Positive = Annotated[float, Range(float, TINY, LARGE)]
NotNegative = Annotated[float, Range(float, TINY, LARGE, zero=True)]
"""A number whose 0 has a documented meaning."""
Weight = Annotated[float, Range(float, -LARGE, LARGE)]
"""A factor of either sign."""
Rate = Annotated[float, Range(float, TINY, 100.0)]
"""A learning rate."""
Pause = Annotated[float, Range(float, 1.0, LARGE)]
"""Seconds between two pulls. A server must not be asked without a break."""
PerMinute = Annotated[float, Range(float, 0.001, 1e6)]
"""A rate per minute."""
Epochs = Annotated[float, Range(float, TINY, 10_000.0)]
Ratio = Annotated[float, Range(float, 1.000_001, LARGE)]
"""A factor above 1."""
Stretch = Annotated[float, Range(float, 1.0, 1000.0)]
"""A factor of 1 or more."""
Share = Annotated[float, Range(float, 0.0, 1.0)]
SomeShare = Annotated[float, Range(float, TINY, 1.0)]
"""A share above 0."""
PartShare = Annotated[float, Range(float, 0.0, 0.999)]
"""A share below 1."""
MinorShare = Annotated[float, Range(float, 0.0, 0.499)]
"""A share below one half."""
Sigmas = Annotated[float, Range(float, 0.0, 8.0)]
"""Standard errors beyond a limit. Beyond 8 the probability is 0 in float64."""


def count_in(text: str) -> int | None:
    """A count written in a text, such as 6_000 or 6,000; None where the text is no count."""
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
"""The rules by which the pipeline and all commands read flags."""


@FLAGS.primitive_rule
def _optional(
    info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
    """Read a number or none. tyro's own rule for unions would answer an error with the reasons of
    all their types.
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
    """Read any number of numbers. tyro's own rule would only say that there is no valid parse."""
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
