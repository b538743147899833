"""``prefloop label agree`` and ``prefloop label next``: how far annotators agree, and which pairs to have labelled next."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import tyro


@dataclasses.dataclass
class Agree:
    """How far annotators agree: Krippendorff's alpha, Cohen's kappa, position bias, votes cast too fast, the most disputed items."""

    path: tyro.conf.Positional[Path]
    """Comparisons or thumbs with votes, in any layout that `prefloop check` reads."""
    layout: str = "auto"
    """Layout of the file; detected when 'auto'."""
    output: Path | None = None
    """Also write everything as JSON."""
    seed: int = 0
    """Seed of the bootstrap."""

    def run(self) -> None:
        from prefloop.data.sources import holds, load_comparisons, load_ratings
        from prefloop.errors import DataError
        from prefloop.labels.agreement import measure
        from prefloop.labels.show import show
        from prefloop.labels.votes import collect, collect_thumbs
        from prefloop.records import Rating
        from prefloop.store import write_json

        if holds(Rating, self.path, self.layout):
            votes = collect_thumbs(load_ratings(self.path, layout=self.layout).records)
        else:
            votes = collect(load_comparisons(self.path, layout=self.layout).records)
        if not len(votes.item_V):
            raise DataError(f"'{self.path}': none of {len(votes.ids)} records has a vote: label some first")
        found = measure(votes, seed=self.seed)
        show(found)
        if self.output:
            write_json(self.output, found.to_dict())
