"""The command line, read by tyro. Its error messages are shown without secrets and without control
characters.
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
    """Read flags with ``tyro.cli``. An error quotes the arguments, so where they hold anything that
    must not be shown, the error is raised again on cleaned arguments.
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
            # The cleaned arguments are fine: what was wrong is their length, or a part that was
            # taken out.
            errors = io.StringIO()
            with contextlib.redirect_stderr(errors), contextlib.suppress(SystemExit):
                tyro.cli(kind, args=clean, registry=FLAGS, **options)
            changed = [
                after for after, before in zip(clean, arguments, strict=True) if after != before
            ]
            complain(
                errors.getvalue()
                or f"error: {listed(map(repr, changed))}: refused for a part that is not shown;"
                " take passwords, queries and control characters out"
            )
        raise
