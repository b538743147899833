"""What the settings of all stages share: strictness, and the mark of fields that do not enter an
artifact's key.
"""

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
    """Return a source whose name the file system accepts. Raises ``ValueError``."""
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
"""A source of rows: a path, or an address such as ``hf:org/name:split``."""


def file(**kwargs: Any) -> Any:
    """A field for a file or source. Its contents, not its name, enter the artifact's key."""
    return field(metadata={"file": True}, **kwargs)


def aside(**kwargs: Any) -> Any:
    """A field that does not change what a stage produces. It stays out of the artifact's key."""
    return field(metadata={"content": False}, **kwargs)


def is_config(value: object) -> bool:
    """True for an instance of a configuration dataclass."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type)
