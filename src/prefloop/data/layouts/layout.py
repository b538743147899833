"""What a layout is: how it is recognised, what its rows hold and who reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from prefloop.data.layouts.rated import ScoredAnswer
from prefloop.data.layouts.recognise import Columns
from prefloop.data.row import Row
from prefloop.records import Record


@dataclass(frozen=True)
class Layout:
    """A layout: the keys to look for, the kinds of record a row can hold, how to recognise and how
    to read one.
    """

    name: str
    keys: str
    kinds: tuple[type, ...]
    matches: Callable[[Columns], bool]
    read: Callable[[Row], Record | list[Record] | ScoredAnswer] | None
    tells: tuple[str, ...] = ()
    """The columns that tell it, of which a file has some; the words of ``keys`` unless given."""
    several: bool = False
    """Rows may share an id, which is then the prompt's."""
    joins: bool = False
    """Its rows are single answers with a number; neighbours with one prompt make comparisons."""
    way_out: str = ""
    """Of a layout that cannot be read: what to do."""

    def reason(self, row: Columns) -> str:
        """Why a row was taken for this layout."""
        words = self.tells or tuple(self.keys.replace(",", " ").split())
        found = dict.fromkeys(word for word in words if word in row)
        return f"columns {', '.join(found)}" if found else "as named"
