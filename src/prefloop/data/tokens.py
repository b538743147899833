"""Token ids with marks of those that are learnt."""

from __future__ import annotations

import dataclasses
import itertools


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Token ids, and which of them are learnt. ``joined``: the thoughts were joined to a generation
    prompt that opens them.
    """

    ids: list[int]
    learn: list[bool]
    joined: bool = False

    @property
    def turns(self) -> int:
        """Number of learnt stretches, one for each assistant turn."""
        return sum(learnt for learnt, _ in itertools.groupby(self.learn))

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.learn):
            raise ValueError(f"{len(self.ids)} ids but {len(self.learn)} marks")
