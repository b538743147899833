"""What the settings of every stage share: strictness, and which fields enter an artifact's key."""

from __future__ import annotations

import dataclasses
from dataclasses import field
from typing import Annotated, Any

import tyro
from pydantic import AfterValidator, ConfigDict

from prefloop.config.names import usable
from prefloop.data.source import Source

STRICT = ConfigDict(extra="forbid")


def _findable(source: Source) -> Source:
    """A source that the system may be asked about. Raises ``ValueError``."""
    usable(source.text)
    return source


DataSource = Annotated[
    Source,
    AfterValidator(_findable),
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="FILE",
        instance_from_str=lambda words: _findable(Source.parse(words[0])),
        is_instance=lambda value: isinstance(value, Source),
        str_from_instance=lambda source: [str(source)],
    ),
]
"""A source of rows that a flag names: a path, or an address such as ``hf:org/name:split``."""


def file(**kwargs: Any) -> Any:
    """A field whose file's or source's bytes, not its name, decide what a stage produces."""
    return field(metadata={"file": True}, **kwargs)


def aside(**kwargs: Any) -> Any:
    """A field that does not change what a stage produces; it stays out of the artifact's key."""
    return field(metadata={"content": False}, **kwargs)


def is_config(value: object) -> bool:
    """True for an instance of a configuration dataclass."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type)
