"""What a layout is: how it is recognized, what its rows hold, and who reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from prefloop.data.layouts.rated import ScoredAnswer
from prefloop.data.layouts.recognise import Columns
from prefloop.data.row import Row
from prefloop.records import Record


@dataclass(frozen=True)
class Layout:
    """A layout: its name, its keys for messages, the kinds of record that a row can hold, and how
    to recognize and to read a row.
    """

    name: str
    keys: str
    kinds: tuple[type, ...]
    matches: Callable[[Columns], bool]
    read: Callable[[Row], Record | list[Record] | ScoredAnswer] | None
    tells: tuple[str, ...] = ()
    """The columns by which it is recognized, of which a file has some. Default: the words of
    ``keys``.
    """
    several: bool = False
    """Rows may share an id, which is then the prompt's."""
    joins: bool = False
    """Its rows are single answers with a number. Neighboring rows with one prompt make comparisons.
    """
    way_out: str = ""
    """What to do instead, for a layout that cannot be read."""

    def reason(self, row: Columns) -> str:
        """Why a row was recognized as this layout, for the log."""
        words = self.tells or tuple(self.keys.replace(",", " ").split())
        columns = dict.fromkeys(word for word in words if word in row)
        return f"columns {', '.join(columns)}" if columns else "as named"
