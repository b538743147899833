"""``prefloop presets``: the values of every preset with their sources."""

from __future__ import annotations

import dataclasses
import textwrap
from pathlib import Path
from typing import Annotated

import tyro

from prefloop.base.redact import short
from prefloop.config.presets import NAMES, Facts, Guide, billions, guides, smallest_side
from prefloop.config.ranges import count_in
from prefloop.errors import ConfigError

WIDEST = 120
INDENT = " " * 6


@dataclasses.dataclass
class Presets:
    """Print the values that each preset sets, and the source of each value."""

    names: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[PRESET ...]")
    ] = NAMES
    """Presets to print. Default: all."""
    method: str = "lora"
    """Adapter method to choose learning rates for."""
    model: str = ""
    """Name or folder of the model. Learning rates and dropout depend on the size in its name, ranks
    on its layers.
    """
    rows: Annotated[str | None, tyro.conf.arg(metavar="N")] = None
    """Number of demonstrations. Epochs, warm-up and evaluation intervals depend on it."""

    def run(self) -> None:
        from prefloop.base.console import console, say
        from prefloop.config.adapters import card_of

        rows = None if self.rows is None else rows_of(self.rows)
        if self.model.startswith((".", "/", "~")) and not Path(self.model).expanduser().is_dir():
            raise ConfigError(f"--model: the folder '{self.model}' does not exist")
        smallest = smallest_side(self.model) if self.model else None
        facts = Facts(card_of(self.method).name, model=self.model, rows=rows, smallest=smallest)
        # All presets are computed before the first is printed: an unknown name prints no half list.
        for name, values in [(name, guides(name, facts)) for name in self.names]:
            say(name, "bold")
            for line in table(values, min(console.width, WIDEST)):
                say(line)
        for line in open_questions(self.model, rows):
            for part in textwrap.wrap(line, min(console.width, WIDEST)):
                say(part, "yellow")


def table(values: list[Guide], width: int) -> list[str]:
    """Lines of at most ``width`` columns: each field with its value, followed by its source."""
    longest = max(len(guide.field) for guide in values)
    lines = []
    for guide in values:
        lines.append(f"  {guide.field:{longest}}  {guide.value!s:>8}")
        lines += textwrap.wrap(guide.source, width, initial_indent=INDENT, subsequent_indent=INDENT)
    return lines


def open_questions(model: str, rows: int | None) -> list[str]:
    """Notes about missing facts that would change the values."""
    out = []
    if model and billions(model) is None:
        out.append(
            f"The name '{model}' contains no size such as 7B, so the learning rates and dropout are"
            " those for models below 30B."
        )
    if rows is None:
        out.append(
            "sft.eval_every depends on the number of demonstrations: set --rows to get it."
            " sft.epochs and sft.eval_share are those for 2,000 to 100,000 demonstrations."
        )
    return out


def rows_of(text: str) -> int:
    """Parse a number of rows such as '6000' or '6_000'. Raises ``ConfigError`` for anything
    else.
    """
    if (rows := count_in(text)) is None:
        raise ConfigError(
            f"--rows: {short(text)} is not a number of demonstrations: give 1 or more"
        )
    return rows
