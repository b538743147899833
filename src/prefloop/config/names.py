"""What the texts of a configuration may be that become names of files and folders."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, TypeVar

import tyro
from pydantic import AfterValidator

Text = TypeVar("Text", str, Path)

LONGEST = 100
"""Bytes of a run's name."""
_RUN = re.compile(r"(?![.\-\s])[^/\\:]+(?<!\s)")
_PART, _WHOLE = 255, 4000
"""Bytes that Linux allows for one name, and a little less than for a whole path, as more is put
behind it.
"""


def _run_name(text: str) -> str:
    """A name that is a folder of its own below the output. Raises ``ValueError``."""
    if not _RUN.fullmatch(text) or not text.isprintable() or len(os.fsencode(text)) > LONGEST:
        raise ValueError(
            f"expected a plain name without / \\ : and control characters, up to {LONGEST} bytes"
            " and not beginning with a dot or dash: the run's folder is made below --output"
        )
    return text


def usable(text: Text) -> Text:
    """A text that the system may be asked about as a path. Raises ``ValueError``."""
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
