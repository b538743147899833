"""Token ids with what of them is learnt."""

from __future__ import annotations

import dataclasses
import itertools


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Token ids, and which of them are learnt; ``joined`` where thoughts met a generation prompt
    that opens them.
    """

    ids: list[int]
    learn: list[bool]
    joined: bool = False

    @property
    def turns(self) -> int:
        """How many stretches are learnt, one an assistant turn."""
        return sum(learnt for learnt, _ in itertools.groupby(self.learn))

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.learn):
            raise ValueError(f"{len(self.ids)} ids but {len(self.learn)} marks")
