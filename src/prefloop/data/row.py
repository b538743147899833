"""One row while it is read, and the notes about the rows of a file.

A reader takes columns from a :class:`Row`. The columns that it leaves go into the record's ``meta``
and are named once per file, so that no column vanishes silently. A reader also notes what it does
to texts (parsing, unwrapping, cutting), and the file's :class:`Notes` count that once the row is
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
from prefloop.records import ToolSchema

_MISSING = ("nan", "NaN", "None", "<NA>", "NaT", "NULL")
_TABLE = re.compile(r"\.(?:csv|tsv)(?:\.\w+)?\Z")
_OWN_META = frozenset({"id", "meta"})


@dataclass(frozen=True)
class Habits:
    """What the first rows of a file show about all of its rows. ``None`` while it is not known
    yet.
    """

    repeats_prompt: bool | None = False
    """Responses begin with their prompt."""
    marks_ends: bool | None = False
    """Responses end with an end-of-turn marker."""
    named: bool = False
    """The user has named the layout."""
    measured: frozenset[str] = frozenset()
    """Columns of scores with values other than 0, 1 and -1."""
    signed: frozenset[str] = frozenset()
    """Columns of thumbs in which -1 means down."""


@dataclass
class Notes:
    """What was done to the rows of a file, for the log."""

    rows: Counter[str] = field(default_factory=Counter)
    """Number of rows by what was done to them."""
    unused: dict[str, None] = field(default_factory=dict)
    repeated: dict[str, None] = field(default_factory=dict)
    message_keys: dict[str, None] = field(default_factory=dict)
    begins: int = 0
    """Responses that began with their prompt, out of ``responses``."""
    responses: int = 0

    def add(self, row: Row) -> None:
        """Add an accepted row to the counts."""
        self.rows.update(list(row.done))
        self.unused |= dict.fromkeys(row.unused)
        self.repeated |= dict.fromkeys(row.repeated)
        self.message_keys |= dict.fromkeys(row.message_keys)
        if row.habits.repeats_prompt:
            self.begins += sum(map(bool, row.begins))
            self.responses += len(row.begins)

    def lines(self) -> list[str]:
        """One line for each kind of note."""
        lines = [f"{what} (in {counted(number, 'row')})" for what, number in self.rows.items()]
        if self.begins:
            lines.append(
                f"{self.begins:,} of {counted(self.responses, 'response')} began with their prompt,"
                " which was taken off"
            )
        if self.repeated:
            lines.append(f"columns left out, they repeat the conversation: {listed(self.repeated)}")
        if self.unused:
            lines.append(f"columns kept in meta, not used: {listed(self.unused)}")
        if self.message_keys:
            lines.append(f"message keys not used: {listed(self.message_keys)}")
        return lines


class Row(dict[str, Any]):
    """The columns of a row that are not null, and notes of what was done to them."""

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
        """For every answer given as text, how many words of its prompt it begins with; 0 where it
        does not.
        """
        self.offered: dict[str, list[ToolSchema]] = {}
        """Tools that turns of the row offer themselves, by the place of the turn."""
        self.tools: list[ToolSchema] | None = None
        """The tools of the row's prompt, once the prompt is read."""
        self.transcript = False
        """Whether one of its texts was a transcript, whose markers may occur in other texts as
        well.
        """
        self.templated = False
        """Whether one of its texts was inside control tokens, so that an end marker after an answer
        is one.
        """
        self.thinks = False
        """Whether its prompt ends inside the assistant's thoughts."""
        self.ended: list[bool] = []
        """For every answer, whether an end-of-turn marker follows it."""
        self._used: set[str] = set()
        self._kept: set[str] = set()

    def take(self, key: str) -> Any:
        """The value under ``key``, which is marked as used. Raises ``BadRow`` where there is
        none.
        """
        self._used.add(key)
        return field_of(self, key)

    def text(self, key: str) -> str:
        """The text under ``key``. Raises ``BadRow`` for an empty text and for another type."""
        return check_text(self.take(key), key)

    def optional(self, key: str) -> str | None:
        """The text under ``key``; ``None`` where it is absent or empty. Raises ``BadRow`` for
        another type.
        """
        if key not in self:
            return None
        value = self.take(key)
        if not isinstance(value, str):
            raise BadRow(key, f"is {json_type(value)}, expected text")
        return value if value.strip() else None

    def use(self, *keys: str) -> None:
        """Mark columns as used: the record holds them in another form."""
        self._used.update(keys)

    def repeats(self, *keys: str) -> None:
        """Leave out columns that repeat what the record says."""
        present = [key for key in keys if key in self]
        self._used.update(present)
        self.repeated |= dict.fromkeys(present)

    def evidence(self, *keys: str) -> None:
        """Mark columns as used, and keep them in ``meta`` as well."""
        self._used.update(keys)
        self._kept.update(keys)

    def offer(self, tools: list[ToolSchema], name: str) -> None:
        """Note the tools that a turn offers. Raises ``BadRow`` where the prompt, already read,
        offers others.
        """
        if self.tools is not None and tools != self.tools:
            raise BadRow(
                name, "offers other tools than the prompt: write them into a column 'tools'"
            )
        self.offered[name] = tools

    def say(self, what: str) -> None:
        """Note that something was done to this row."""
        self.done[what] = None

    def check_cell(self, text: str, name: str) -> str:
        """Return a text of the row. Raises ``BadRow`` for what pandas writes into a CSV for a
        missing text.
        """
        if text.strip() in _MISSING and _TABLE.search(self.source):
            raise BadRow(
                name,
                f"is {text.strip()!r}, which stands for a missing text in CSV: leave the row out,"
                " or write the text",
            )
        return text

    def without_begin(self, text: str) -> str:
        """A text without the tokens that begin a sequence. The model's own tokenizer or template
        writes them.
        """
        cut, markers = begin_cut(text, html=True)
        for marker in markers:
            self.say(f"tokens that begin a sequence ({marker}) taken off texts")
        return cut if markers else text

    def without_end(self, text: str) -> str:
        """An answer without the end-of-turn markers after it, where the file writes them. The
        model's own template writes one.

        Where most answers of the file have none, the markers are words of this answer. An answer
        that consists of markers only is empty either way.
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
        """Take over the notes of a row inside this one."""
        self.done |= inner.done
        self.repeated |= inner.repeated
        self.message_keys |= inner.message_keys
        self.begins += inner.begins
        self.ended += inner.ended

    def first(self, *keys: str) -> str | None:
        """The first of ``keys`` that the row has."""
        return next((key for key in keys if key in self), None)

    def left(self, key: str) -> bool:
        """Whether the row has this column and no reader used it."""
        return key in self and key not in self._used and key not in _OWN_META

    @property
    def unused(self) -> list[str]:
        """Columns that no reader used."""
        return [key for key in self if self.left(key)]

    def meta(self, *also: str) -> dict[str, Any]:
        """The record's ``meta``: the row's own, every unused column, and the columns ``also``."""
        own = self.get("meta", {})
        if not isinstance(own, dict):
            own = {"meta": own}
        kept = {*self.unused, *also, *self._kept}
        return own | {key: self[key] for key in self if key in kept}
