"""``prefloop adapters`` lists the adapter methods; ``prefloop adapters merge`` combines
adapters.
"""

from __future__ import annotations

import dataclasses
import json
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from prefloop.config.ranges import Count, Seed, SomeShare, Weight
from prefloop.errors import ConfigError

if TYPE_CHECKING:
    from prefloop.config.adapters import Card

How = Literal["linear", "svd", "ties", "dare_linear", "dare_ties", "magnitude_prune"]
WIDTH = 80
_LINE = "{:<13}{:<15}{:<9}{:<7}{}"
_HANDOVER = {"adapter": "adapter", "merged": "merged", "none": "no"}


@dataclasses.dataclass
class AdaptersCommand:
    """List the adapter methods (backbone.adapter.method) with their options and defaults.

    For each method: the precisions it trains on, how vLLM runs it, and whether it can be merged.
    """

    markdown: bool = False
    """Print a Markdown table with links to the papers."""

    def run(self) -> None:
        from prefloop.base.console import say
        from prefloop.config.adapters import CARDS

        if self.markdown:
            say(markdown())
            return
        say(_LINE.format("method", "weights", "vLLM", "merges", "paper"), "bold")
        for card in CARDS.values():
            for line in lines(card):
                say(line)
        say("")
        for line in textwrap.wrap(LEGEND, WIDTH):
            say(line)


LEGEND = (
    "vLLM: 'adapter' runs as a LoRA adapter or merged into the weights; 'merged' runs merged only;"
    " 'no' needs rollout transformers. merges: whether prefloop export --merge can write plain"
    " weights. Options are set under backbone.adapter.options; the values shown are the defaults."
)


def lines(card: Card) -> list[str]:
    """A method in at most 80 columns: one line of the table, then its title and its options."""
    merges, precisions = "yes" if card.merges else "no", " ".join(card.precisions)
    texts = [card.title, *([f"options: {', '.join(_options(card))}"] if card.options else [])]
    wrapped = [textwrap.wrap(text, WIDTH - 2, break_long_words=False) for text in texts]
    return [
        _LINE.format(card.name, precisions, _HANDOVER[card.handover], merges, card.paper),
        *(f"  {line}" for text_lines in wrapped for line in text_lines),
    ]


def markdown() -> str:
    """The table of all methods in Markdown."""
    from prefloop.config.adapters import CARDS

    rows = [
        "| method | what it is | paper | trains on | vLLM | merges | options and defaults |",
        "|---|---|---|---|---|---|---|",
    ]
    for card in CARDS.values():
        linked = card.paper[:4].isdigit()
        paper = f"[{card.paper}](https://arxiv.org/abs/{card.paper})" if linked else card.paper
        options = ", ".join(f"`{option}`" for option in _options(card)) or "-"
        precisions, merges = ", ".join(card.precisions), "yes" if card.merges else "no"
        row = (f"`{card.name}`", card.title, paper, precisions, _HANDOVER[card.handover], merges)
        rows.append(f"| {' | '.join((*row, options))} |")
    return "\n".join(rows)


def _options(card: Card) -> list[str]:
    return [
        f"{name}: {value if isinstance(value, str) else json.dumps(value)}"
        for name, value in card.options.items()
    ]


@dataclasses.dataclass
class Merge:
    """Combine LoRA adapters of one base model into a single adapter, written to a new folder.

    The combination is computed on the weight changes that the adapters make.
    """

    words: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="ADAPTER ADAPTER [...] FOLDER")
    ]
    """Two or more adapters, such as runs/a:sft or exported folders, then the folder to write."""
    weights: tuple[Weight, ...] = ()
    """One weight per adapter; a negative weight subtracts it. Default: equal weights that sum to 1,
    or 1 each for ties and dare_ties, which average themselves.
    """
    how: How = "linear"
    """linear: the exact weighted sum of the changes (task arithmetic, 2212.04089). svd: that sum
    reduced to --rank. ties (2306.01708): drop small entries and elect a sign. dare_linear and
    dare_ties (2311.03099): drop random entries and scale up the rest. magnitude_prune: drop small
    entries.
    """
    density: SomeShare = 0.5
    """Share of each change's entries to keep, for ties, dare and magnitude_prune."""
    rank: Count | None = None
    """Rank of the result. Default: the sum of the adapters' ranks, or the largest for svd."""
    seed: Seed = 0
    """Seed of dare's random choice."""
    model: str | None = None
    """Path or name of the base model, if it has moved since training."""

    def run(self) -> None:
        from prefloop.base.console import say
        from prefloop.export.merge import merge_adapters

        if len(self.words) < 3:
            raise ConfigError(
                f"prefloop adapters merge got {len(self.words)} names, but needs two or more"
                " adapters and the folder to write"
            )
        *references, folder = self.words
        merged = merge_adapters(
            references,
            Path(folder),
            self.weights,
            self.how,
            self.density,
            self.rank,
            self.seed,
            self.model,
        )
        say(
            f"{folder}: {len(references)} adapters combined by {self.how}, rank {merged.rank};"
            f" {merged.kept:.1%} of the combination is kept"
        )
