"""``prefloop adapters``: what every method can do; ``prefloop adapters merge``: several adapters as
one.
"""

from __future__ import annotations

import dataclasses
import json
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

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
    """List the adapter methods (backbone.adapter.method): the weights they train on, how vLLM gets
    them, what merges, options and defaults.
    """

    markdown: bool = False
    """As a Markdown table, with links to the papers."""

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
    "vLLM: adapter: as a LoRA adapter or merged into its weights; merged: merged alone; no: rollout"
    " transformers samples. merges: whether plain weights do what the adapter does (prefloop export"
    " --merge). Options go to backbone.adapter.options, with these defaults."
)


def lines(card: Card) -> list[str]:
    """A method in at most 80 columns: what it can do, below it what it is and its options."""
    merges = "yes" if card.merges else "no"
    more = [card.title, *([f"options: {', '.join(_options(card))}"] if card.options else [])]
    return [
        _LINE.format(
            card.name, " ".join(card.precisions), _HANDOVER[card.handover], merges, card.paper
        ),
        *(
            f"  {line}"
            for text in more
            for line in textwrap.wrap(text, WIDTH - 2, break_long_words=False)
        ),
    ]


def markdown() -> str:
    """The table of all methods."""
    from prefloop.config.adapters import CARDS

    rows = [
        "| method | what it is | paper | trains on | vLLM | merges | options and defaults |",
        "|---|---|---|---|---|---|---|",
    ]
    for card in CARDS.values():
        linked = card.paper[:4].isdigit()
        paper = f"[{card.paper}](https://arxiv.org/abs/{card.paper})" if linked else card.paper
        options = ", ".join(f"`{option}`" for option in _options(card)) or "-"
        cells = (
            f"`{card.name}`",
            card.title,
            paper,
            ", ".join(card.precisions),
            _HANDOVER[card.handover],
        )
        rows.append(f"| {' | '.join((*cells, 'yes' if card.merges else 'no', options))} |")
    return "\n".join(rows)


def _options(card: Card) -> list[str]:
    return [f"{name}: {_value(value)}" for name, value in card.options.items()]


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@dataclasses.dataclass
class Merge:
    """Combine LoRA adapters of one backbone into one, by arithmetic on what each adds to the
    weights; write it to a new folder.
    """

    words: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="ADAPTER ADAPTER [...] FOLDER")
    ]
    """Adapters such as runs/a:sft or exported folders, and last the new folder to write."""
    weights: tuple[Weight, ...] = ()
    """One for each adapter, negative ones forget. Default: equal shares of 1; with ties and
    dare_ties, which average by themselves, 1 each.
    """
    how: How = "linear"
    """linear: the weighted sum of the changes, exact (task arithmetic, 2212.04089); svd: that, cut
    to --rank; ties (2306.01708): small parts dropped, signs elected; dare_linear, dare_ties
    (2311.03099): parts dropped at random, the rest scaled up; magnitude_prune: small parts dropped.
    """
    density: SomeShare = 0.5
    """Share of each change that is kept, for ties, dare and magnitude_prune."""
    rank: Count | None = None
    """Of the result. Default: the sum of the adapters' ranks; with svd the largest of them."""
    seed: Seed = 0
    """What dare draws from."""
    model: str | None = None
    """The backbone, where its name of then no longer leads to it."""

    def run(self) -> None:
        from prefloop.base.console import say
        from prefloop.export.merge import merge_adapters

        if len(self.words) < 3:
            raise ConfigError(
                f"prefloop adapters merge: found {len(self.words)} names, expected two or more"
                " adapters and the folder to write"
            )
        *references, folder = self.words
        made = merge_adapters(
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
            f"{folder}: {len(references)} adapters by {self.how}, rank {made.rank}; it holds"
            f" {made.kept:.1%} of the combination"
        )
