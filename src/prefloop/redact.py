"""What goes into logs, reports and trackers holds no secret that an address may carry."""

from __future__ import annotations

import re
from typing import Any

_ADDRESS = re.compile(r"(?P<scheme>\w+://)(?:[^\s/@'\"]*@)?(?P<rest>[^\s?#'\",\]}]*)(?:[?#][^\s'\",\]}]*)?")


def without_secrets(text: str) -> str:
    """The text with user, password, query and fragment taken out of every address in it."""
    return _ADDRESS.sub(r"\g<scheme>\g<rest>", text)


def tree_without_secrets(value: Any) -> Any:
    """The same for every text in nested lists and dictionaries, names of fields included."""
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, list):
        return [tree_without_secrets(item) for item in value]
    if isinstance(value, dict):
        return {tree_without_secrets(key): tree_without_secrets(item) for key, item in value.items()}
    return value
