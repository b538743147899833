"""Checks for texts of a configuration that become names of files and folders."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, TypeVar

import tyro
from pydantic import AfterValidator

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
