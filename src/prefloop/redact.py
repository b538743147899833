"""What goes into logs, reports and trackers holds no secret that an address may carry."""

from __future__ import annotations

import re

_ADDRESS = re.compile(r"(?P<scheme>\w+://)(?:[^\s/@'\"]*@)?(?P<rest>[^\s?#'\",\]}]*)(?:[?#][^\s'\",\]}]*)?")


def without_secrets(text: str) -> str:
    """The text with user, password, query and fragment taken out of every address in it."""
    return _ADDRESS.sub(r"\g<scheme>\g<rest>", text)
