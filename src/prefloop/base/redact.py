"""Takes keys, and the secrets that addresses carry, out of everything that goes into logs, reports,
trackers and messages.
"""

from __future__ import annotations

import json
import re
import reprlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

# A password may hold anything, so it ends at the last @ of a word: an address may lose too much,
# but no secret stays.
_QUOTED = re.compile(r"""(?P<kept>(?P<quote>['"])[\w+.-]+://)[^\s/@:]*:(?:(?!(?P=quote)).)*@""")
_WHOLE = re.compile(r"\A(?P<kept>\s*(?:--[\w.-]+=)?[\w+.-]+://)[^\s/@:]*:.*@", re.DOTALL)
_WHOLE_QUERY = re.compile(
    r"\A(?P<kept>\s*(?:--[\w.-]+=)?[\w+.-]+://[^\s?#;]*)(?:[?#]|;\w+=).*", re.DOTALL
)
_ADDRESS = re.compile(
    r"(?P<scheme>\w[\w+.-]{0,20}://)(?:[^\s/@:]*:\S*@|[^\s/@'\"]*@)?(?P<rest>[^\s?#;'\",\]}]*)"
    # punctuation at the end belongs to the sentence
    r"(?:(?:[?#]|;\w+=)[^\s'\"]*?(?=[)\]}.,;:!?]{0,3}(?:[\s'\"]|\Z)))?"
)
# An address that is whole before the first blank, where a sentence may go on; after a colon only a
# port is no password.
_OPENING = re.compile(
    r"\A\s*(?:--[\w.-]+=)?[\w+.-]+://[^\s/@:?#;]+(?::\d{1,5})?(?:[/?#;]\S*|[.,:)])?\s"
)
_WORD = re.compile(r"\b[^\W\d_]{2,}\b")
_SENTENCE = 3
_NAMED = re.compile(
    r"\b(api[_-]?key|password|passwd|secret|(?:access[_-])?token|authorization)=(?:(?:Bearer|Basic)\s+)?[^\s&;'\",]+",
    re.IGNORECASE,
)
_KEYS = re.compile(
    r"(?P<kept>\bBearer\s+)(?=\S*\d)[\w.~+/=-]{8,}"
    r"|\b(?:sk-[\w-]{16,}|hf_[A-Za-z0-9]{16,}|AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{30,}|xox[abprs]-[\w-]{10,})"
)


def without_secrets(text: str) -> str:
    """The text without user, password, query and fragment of every address in it, and without
    everything that is surely a key.
    """
    text = _ADDRESS.sub(r"\g<scheme>\g<rest>", _QUOTED.sub(r"\g<kept>", text))
    return _KEYS.sub(lambda match: (match["kept"] or "") + "***", _NAMED.sub(r"\1=***", text))


def value_without_secrets(text: str) -> str:
    """The same for the value of a setting, which may be a single address whose password holds
    blanks and quotes.

    A text with three words after its first address is a sentence, such as a note.
    """
    opening = _OPENING.match(text)
    if opening and len(_WORD.findall(text, opening.end())) >= _SENTENCE:
        return without_secrets(text)
    return without_secrets(_WHOLE_QUERY.sub(r"\g<kept>", _WHOLE.sub(r"\g<kept>", text)))


def command_without_secrets(words: Sequence[str]) -> str:
    """A command line as a shell takes it."""
    return shlex.join(map(value_without_secrets, words))


def tree_without_secrets(value: Any) -> Any:
    """The same for every text in nested lists and dictionaries, names of fields included."""
    if isinstance(value, str):
        return value_without_secrets(value)
    if isinstance(value, list):
        return [tree_without_secrets(item) for item in value]
    if isinstance(value, dict):
        return {
            tree_without_secrets(key): tree_without_secrets(item) for key, item in value.items()
        }
    return value


def flat_without_secrets(
    values: Mapping[str, Any], prefix: str = ""
) -> dict[str, str | int | float | bool]:
    """Nested settings as one level of names with slashes, as trackers take them: addresses stand
    without user, password and query.
    """
    out: dict[str, str | int | float | bool] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            out |= flat_without_secrets(value, f"{prefix}{name}/")
        else:
            clean = tree_without_secrets(value)
            out[prefix + without_secrets(name)] = (
                clean if isinstance(clean, str | int | float | bool) else json.dumps(clean)
            )
    return out


class _Short(reprlib.Repr):
    """Shortens values and takes secrets out of their texts."""

    def repr_str(self, x: str, level: int) -> str:
        return super().repr_str(value_without_secrets(x), level)


_SHORT = _Short()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 160, 160


def short(value: Any) -> str:
    """The start of a value as Python writes it, for messages: a file of a few bytes can hold a
    large value, and a name may be endless.
    """
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "a number of thousands of digits"
