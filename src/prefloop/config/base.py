"""What the settings of all stages share: strictness, the marks of fields that do not enter an
artifact's key as they are, and the types of texts that become names of files and folders.
"""

from __future__ import annotations

import dataclasses
import os
import re
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
from pydantic import AfterValidator, ConfigDict

from prefloop.data.source import Source

STRICT = ConfigDict(extra="forbid")

Text = TypeVar("Text", str, Path)

LONGEST = 100
"""Longest name of a run, in bytes."""
_RUN = re.compile(r"(?![.\-\s])[^/\\:]+(?<!\s)")
_PART, _WHOLE = 255, 4000
"""Bytes that Linux allows for one name, and for a whole path less a margin for what is appended to
it.
"""


def _run_name(text: str) -> str:
    """Return a name that can be a folder below the output. Raises ``ValueError``."""
    if not _RUN.fullmatch(text) or not text.isprintable() or len(os.fsencode(text)) > LONGEST:
        raise ValueError(
            f"expected a plain name without / \\ : and control characters, up to {LONGEST} bytes"
            " and not beginning with a dot or dash: the run's folder is made below --output"
        )
    return text


def usable(text: Text) -> Text:
    """Return a text that the file system accepts as a path. Raises ``ValueError``."""
    name = os.fsencode(text)
    if b"\0" in name:
        raise ValueError("expected a path or name, found a NUL character in it")
    if len(name) > _WHOLE or max(map(len, name.split(b"/"))) > _PART:
        raise ValueError(
            f"expected a path or name, found one longer than files have ({_PART} bytes for each"
            " part)"
        )
    return text


RunName = Annotated[
    str,
    AfterValidator(_run_name),
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="STR",
        instance_from_str=lambda words: _run_name(words[0]),
        is_instance=lambda value: isinstance(value, str),
        str_from_instance=lambda name: [name],
    ),
]
"""A run's name."""
Place = Annotated[Path, AfterValidator(usable)]
Named = Annotated[str, AfterValidator(usable)]
"""A text that may be the path of a file."""


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
