"""One row while it is read, and what is said about the rows of a file.

A reader takes columns from a :class:`Row`. What it leaves goes into the record's ``meta`` and is
named once per file, so that no column vanishes without a word. What it does to texts (parsing,
unwrapping, cutting) it says to the row, and the file's :class:`Notes` count it once the row is
accepted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prefloop.base.console import counted, listed
from prefloop.data.check import BadRow, check_text, field_of, json_type
from prefloop.data.markers import begin_cut, end_cut

_MISSING = ("nan", "NaN", "None", "<NA>", "NaT", "NULL")
_TABLE = re.compile(r"\.(?:csv|tsv)(?:\.\w+)?\Z")
_OWN_META = frozenset({"id", "meta"})


@dataclass(frozen=True)
class Habits:
    """What the first rows of a file tell about all of them. ``None`` while that is being found
    out.
    """

    repeats_prompt: bool | None = False
    """Responses begin with their prompt."""
    marks_ends: bool | None = False
    """Responses end with an end-of-turn marker."""
    named: bool = False
    """Somebody has named the layout."""
    measured: frozenset[str] = frozenset()
    """Columns of scores that hold more than 0, 1 and -1."""
    signed: frozenset[str] = frozenset()
    """Columns of thumbs that write down as -1."""


@dataclass
class Notes:
    """What was done to the rows of a file."""

    rows: Counter[str] = field(default_factory=Counter)
    """By what was done, how many rows."""
    unused: dict[str, None] = field(default_factory=dict)
    repeated: dict[str, None] = field(default_factory=dict)
    message_keys: dict[str, None] = field(default_factory=dict)
    begins: int = 0
    """Responses that began with their prompt, of ``responses``."""
    responses: int = 0

    def add(self, row: Row) -> None:
        """Count an accepted row in."""
        self.rows.update(list(row.done))
        self.unused |= dict.fromkeys(row.unused)
        self.repeated |= dict.fromkeys(row.repeated)
        self.message_keys |= dict.fromkeys(row.message_keys)
        if row.habits.repeats_prompt:
            self.begins += sum(map(bool, row.begins))
            self.responses += len(row.begins)

    def lines(self) -> list[str]:
        """A line for each thing there is to say."""
        said = [f"{what} (in {counted(number, 'row')})" for what, number in self.rows.items()]
        if self.begins:
            said.append(
                f"{self.begins:,} of {counted(self.responses, 'response')} began with their prompt,"
                " which was taken off"
            )
        if self.repeated:
            said.append(f"columns left out, they repeat the conversation: {listed(self.repeated)}")
        if self.unused:
            said.append(f"columns kept in meta, not used: {listed(self.unused)}")
        if self.message_keys:
            said.append(f"message keys not used: {listed(self.message_keys)}")
        return said


class Row(dict[str, Any]):
    """The columns of a row that hold something (a null is no key), and what was made of them."""

    def __init__(
        self,
        values: Mapping[str, Any],
        id: str = "",
        source: str = "",
        habits: Habits | None = None,
    ) -> None:
        super().__init__((key, value) for key, value in values.items() if value is not None)
        self.id, self.source = id, source
        self.habits = habits or Habits()
        self.done: dict[str, None] = {}
        self.repeated: dict[str, None] = {}
        self.message_keys: dict[str, None] = {}
        self.begins: list[int] = []
        """Of every answer given as text: how many words of its prompt it begins with, 0 where it
        does not.
        """
        self.offered: dict[str, list[dict[str, Any]]] = {}
        """Tools that turns of the row offer themselves, by where they stand."""
        self.tools: list[dict[str, Any]] | None = None
        """The tools of the row's prompt, once it was read."""
        self.transcript = False
        """Whether one of its texts was a transcript, whose markers may stand before other texts as
        well.
        """
        self.templated = False
        """Whether control tokens stood around one of its texts, so that an end marker after an
        answer is one.
        """
        self.thinks = False
        """Whether its prompt is open within the assistant's thoughts."""
        self.ended: list[bool] = []
        """Of every answer, whether an end-of-turn marker stands after it."""
        self._used: set[str] = set()
        self._kept: set[str] = set()

    def take(self, key: str) -> Any:
        """What stands under ``key``, which is thereby used; ``BadRow`` where there is nothing."""
        self._used.add(key)
        return field_of(self, key)

    def text(self, key: str) -> str:
        """The text under ``key``; ``BadRow`` for anything else and for an empty one."""
        return check_text(self.take(key), key)

    def optional(self, key: str) -> str | None:
        """The text under ``key``; ``None`` where it is absent or empty, ``BadRow`` where it is no
        text.
        """
        if key not in self:
            return None
        value = self.take(key)
        if not isinstance(value, str):
            raise BadRow(key, f"is {json_type(value)}, expected text")
        return value if value.strip() else None

    def use(self, *keys: str) -> None:
        """Columns that the record holds in another form."""
        self._used.update(keys)

    def repeats(self, *keys: str) -> None:
        """Columns that are left out because the record says the same."""
        present = [key for key in keys if key in self]
        self._used.update(present)
        self.repeated |= dict.fromkeys(present)

    def evidence(self, *keys: str) -> None:
        """Columns that were used and stay in ``meta`` beside what was made of them."""
        self._used.update(keys)
        self._kept.update(keys)

    def offer(self, tools: list[dict[str, Any]], name: str) -> None:
        """A turn offers tools. ``BadRow`` where the prompt, already read, offers others."""
        if self.tools is not None and tools != self.tools:
            raise BadRow(
                name, "offers other tools than the prompt: write them into a column 'tools'"
            )
        self.offered[name] = tools

    def say(self, what: str) -> None:
        """Something was done to this row."""
        self.done[what] = None

    def check_cell(self, text: str, name: str) -> str:
        """A text of the row. ``BadRow`` for what pandas writes into a CSV in the place of a text
        that is missing.
        """
        if text.strip() in _MISSING and _TABLE.search(self.source):
            raise BadRow(
                name,
                f"is {text.strip()!r}, which stands for a missing text in CSV: leave the row out,"
                " or write the text",
            )
        return text

    def without_begin(self, text: str) -> str:
        """A text without the tokens that begin a sequence: the model's own tokenizer or template
        writes them.
        """
        cut, markers = begin_cut(text, html=True)
        for marker in markers:
            self.say(f"tokens that begin a sequence ({marker}) taken off texts")
        return cut if markers else text

    def without_end(self, text: str) -> str:
        """An answer without the end-of-turn markers after it, where the file writes them: the
        model's own template writes one.

        Where most answers of the file have none, they are words of this one. An answer of nothing
        else is empty either way.
        """
        text = self.without_begin(text)
        cut, markers = end_cut(text)
        self.ended.append(bool(markers))
        if not markers or self.habits.marks_ends is None:
            return text
        if not self.habits.marks_ends and not self.templated and cut.strip():
            self.say(
                f"answers that end with {markers[0]} kept as they are: most answers of this file"
                " do not"
            )
            return text
        for marker in markers:
            self.say(f"end-of-turn markers ({marker}) taken off answers")
        return cut

    def also(self, inner: Row) -> None:
        """What was done to a row that this one holds was done to this one."""
        self.done |= inner.done
        self.repeated |= inner.repeated
        self.message_keys |= inner.message_keys
        self.begins += inner.begins
        self.ended += inner.ended

    def first(self, *keys: str) -> str | None:
        """The first of ``keys`` that the row has."""
        return next((key for key in keys if key in self), None)

    def left(self, key: str) -> bool:
        """Whether there is such a column and no reader took it."""
        return key in self and key not in self._used and key not in _OWN_META

    @property
    def unused(self) -> list[str]:
        """Columns that no reader took."""
        return [key for key in self if self.left(key)]

    def meta(self, *also: str) -> dict[str, Any]:
        """The record's ``meta``: its own, every column that was not taken, and ``also``."""
        own = self.get("meta", {})
        if not isinstance(own, dict):
            own = {"meta": own}
        kept = {*self.unused, *also, *self._kept}
        return own | {key: self[key] for key in self if key in kept}
