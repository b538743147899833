"""``prefloop presets``: the guide values of every preset with their sources."""

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
    """Print what each preset sets, and where the value comes from."""

    names: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[PRESET ...]")
    ] = NAMES
    """Presets to print; all when left out."""
    method: str = "lora"
    """Adapter method that the learning rates are for."""
    model: str = ""
    """Name or folder of the model: rates and dropout depend on the size that its name says, ranks
    on its layers.
    """
    rows: Annotated[str | None, tyro.conf.arg(metavar="N")] = None
    """Demonstrations: passes, warm-up and looks depend on their number."""

    def run(self) -> None:
        from prefloop.base.console import console, say
        from prefloop.config.adapters import card_of

        rows = None if self.rows is None else rows_of(self.rows)
        if self.model.startswith((".", "/", "~")) and not Path(self.model).expanduser().is_dir():
            raise ConfigError(f"--model: the folder '{self.model}' does not exist")
        smallest = smallest_side(self.model) if self.model else None
        facts = Facts(card_of(self.method).name, model=self.model, rows=rows, smallest=smallest)
        for name, found in [(name, guides(name, facts)) for name in self.names]:
            say(name, "bold")
            for line in table(found, min(console.width, WIDEST)):
                say(line)
        for line in open_questions(self.model, rows):
            for part in textwrap.wrap(line, min(console.width, WIDEST)):
                say(part, "yellow")


def table(found: list[Guide], width: int) -> list[str]:
    """Lines of at most ``width`` columns: field and value, under them the source."""
    wide = max(len(guide.field) for guide in found)
    lines = []
    for guide in found:
        lines.append(f"  {guide.field:{wide}}  {guide.value!s:>8}")
        lines += textwrap.wrap(guide.source, width, initial_indent=INDENT, subsequent_indent=INDENT)
    return lines


def open_questions(model: str, rows: int | None) -> list[str]:
    """What would change the values, and was not said."""
    out = []
    if model and billions(model) is None:
        out.append(
            f"The name '{model}' says no size such as 7B: rates and dropout are those below 30B."
        )
    if rows is None:
        out.append(
            "Without --rows there is no sft.eval_every, which depends on the number of"
            " demonstrations; sft.epochs and sft.eval_share are those of 2,000 to 100,000."
        )
    return out


def rows_of(text: str) -> int:
    """'6000' or '6_000' as a number of rows. Raises ``ConfigError``."""
    if (rows := count_in(text)) is None:
        raise ConfigError(f"--rows: {short(text)} is no number of demonstrations: say 1 or more")
    return rows
