"""Errors a user can cause. The command line prints their message alone and exits with their
code.
"""

import difflib
from collections.abc import Iterable


class PrefloopError(Exception):
    """An error the user can fix. The message says what is wrong, where, and what to do."""

    exit_code = 2


class ConfigError(PrefloopError):
    """A configuration file or flag is wrong."""


class DataError(PrefloopError):
    """A data file is missing, unreadable, empty or holds rows that cannot be used."""


class TooLongError(DataError):
    """A row leaves no room in the model's context."""


class ModelError(PrefloopError):
    """A model or tokenizer cannot be found or cannot be used for this stage."""


class StoreError(PrefloopError):
    """The artifact store cannot be written, or a run is already in progress."""


class AuditError(PrefloopError):
    """A check before the first step failed. Training on would give wrong results without notice."""


class EngineError(PrefloopError):
    """A rollout engine is missing or failed to start."""


class RequestError(PrefloopError):
    """A server cannot be asked, cannot be reached or answers in an unusable way."""


class JudgeError(PrefloopError):
    """A judge cannot be reached or does not answer in a usable way."""


class RewardError(PrefloopError):
    """A reward source cannot be reached or gives no usable scores."""


class LabelError(PrefloopError):
    """The labeling server cannot be started, reached or used as asked."""


def among(name: str, known: Iterable[str]) -> str:
    """All known names in order, after a ``did you mean`` clause where one of them is near."""
    known = list(known)
    near = nearest(name, known)
    return ("" if near.startswith("known:") else f"{near}; ") + f"one of {', '.join(known)}"


def nearest(name: str, known: Iterable[str]) -> str:
    """A ``did you mean`` clause for ``name``, or the list of known names when none is near."""
    known = sorted(known)
    close = [one for one in known if one.casefold() == name.casefold()]
    close = close or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}"
