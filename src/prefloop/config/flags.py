"""The command line as tyro reads it; what it refuses is shown without secrets and power over the
terminal.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import tyro

from prefloop.base.console import complain, listed, neutral, shortened
from prefloop.base.redact import value_without_secrets
from prefloop.config.ranges import FLAGS

_MOST_OF_A_FLAG = 300


def flags(kind: Any, arguments: Sequence[str], **options: Any) -> Any:
    """``tyro.cli``. A refusal quotes what was given, so it is made once more with arguments that
    can be shown.
    """
    clean = [neutral(value_without_secrets(argument)) for argument in arguments]
    short = [shortened(argument, _MOST_OF_A_FLAG) for argument in clean]
    if short == list(arguments):
        return tyro.cli(kind, args=short, registry=FLAGS, **options)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return tyro.cli(kind, args=list(arguments), registry=FLAGS, **options)
    except SystemExit as refused:
        if refused.code:
            tyro.cli(kind, args=short, registry=FLAGS, **options)
            # Nothing is wrong with them: the fault is their length, or what was taken out.
            said = io.StringIO()
            with contextlib.redirect_stderr(said), contextlib.suppress(SystemExit):
                tyro.cli(kind, args=clean, registry=FLAGS, **options)
            changed = [
                after for after, before in zip(clean, arguments, strict=True) if after != before
            ]
            complain(
                said.getvalue()
                or f"error: {listed(map(repr, changed))}: refused for a part that is not shown;"
                " take passwords, queries and control characters out"
            )
        raise
