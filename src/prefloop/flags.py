"""The command line as tyro reads it; what it refuses is shown without secrets and power over the terminal."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import tyro

from prefloop.console import neutral, shortened
from prefloop.redact import value_without_secrets

_MOST_OF_A_FLAG = 300


def flags(kind: Any, arguments: Sequence[str], **options: Any) -> Any:
    """``tyro.cli``. A refusal quotes what was given, so it is made once more with arguments that can be shown."""
    clean = [shortened(neutral(value_without_secrets(argument)), _MOST_OF_A_FLAG) for argument in arguments]
    if clean == list(arguments):
        return tyro.cli(kind, args=clean, **options)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return tyro.cli(kind, args=list(arguments), **options)
    except SystemExit as refused:
        if refused.code:
            tyro.cli(kind, args=clean, **options)
        raise
