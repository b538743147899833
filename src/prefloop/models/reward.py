"""A reward model as it is used: one adapter with its head, or several whose normalised scores are averaged.

Shape letters: B responses of a pack, K members.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from prefloop.console import progress
from prefloop.data.packing import Document, Pack, packs
from prefloop.models.backbone import Backbone
from prefloop.models.forward import hidden_N_H
from prefloop.models.heads import ScalarHead

_AT_ONCE = 256
"""Documents that are packed together."""


def role_of(member: int) -> str:
    """Name of a member's adapter."""
    return f"reward/{member}"


def member_folder(folder: Path, member: int) -> Path:
    """Where a member's adapter and head are: the first in the artifact itself, where PEFT looks, the others beside it."""
    return folder if member == 0 else folder / f"member-{member}"


class Reward:
    """Members on a backbone; scores have mean 0 and standard deviation 1 on the reference set of the stage that made them."""

    def __init__(self, backbone: Backbone, heads: list[ScalarHead], temperature: float = 1.0) -> None:
        self.backbone = backbone
        self.heads = heads
        self.temperature = temperature
        """σ(difference of scores / temperature) is the calibrated probability that a person prefers the first response."""

    @classmethod
    def load(cls, backbone: Backbone, folder: Path) -> Reward:
        """Put every member's adapter on the backbone, frozen. Raises ``ModelError`` for an adapter without its head."""
        saved = json.loads((folder / "reward.json").read_text(encoding="utf-8"))
        heads = []
        for k in range(saved["members"]):
            heads.append(ScalarHead.load(member_folder(folder, k)).to(backbone.device))
            backbone.add_role(role_of(k), start=member_folder(folder, k), frozen=True)
        return cls(backbone, heads, saved["temperature"])

    def save(self, folder: Path) -> None:
        """Write every member and ``reward.json``."""
        for k, head in enumerate(self.heads):
            self.backbone.save_role(role_of(k), member_folder(folder, k))
            head.save(member_folder(folder, k))
        content = {"members": len(self.heads), "temperature": self.temperature}
        (folder / "reward.json").write_text(json.dumps(content), encoding="utf-8")

    def drop(self) -> None:
        """Take the members off the backbone."""
        for k in range(len(self.heads)):
            self.backbone.drop_role(role_of(k))

    def raw_K_B(self, pack: Pack) -> Tensor:
        """Each member's raw score of each response."""
        return torch.stack([raw_B(self.backbone, head, pack, role_of(k)) for k, head in enumerate(self.heads)])

    def scores_K_B(self, pack: Pack) -> Tensor:
        """Each member's normalised score of each response."""
        raw_K_B = self.raw_K_B(pack)
        return torch.stack([head.normalized(raw) for head, raw in zip(self.heads, raw_K_B, strict=True)])

    def score(self, documents: Iterable[Document], what: str = "score", total: int = 0) -> dict[int, list[float]]:
        """Normalised scores of every response by key, one a member; ``total`` responses for the progress bar."""
        out: dict[int, list[float]] = {}
        stream = iter(documents)
        with progress(what, total, "response") as advance:
            while part := list(islice(stream, _AT_ONCE)):
                for pack in packs(part, self.backbone.scoring_tokens):
                    raw_K_B = self.raw_K_B(pack.to(self.backbone.device))
                    normal = [head.normalized(raw) for head, raw in zip(self.heads, raw_K_B, strict=True)]
                    out.update(zip(pack.keys, torch.stack(normal, 1).tolist(), strict=True))
                    advance(len(pack.keys))
        return out


def raw_B(backbone: Backbone, head: ScalarHead, pack: Pack, role: str) -> Tensor:
    """The head on each response's last token under ``role``, without gradient."""
    with backbone.role(role):
        return head(hidden_N_H(backbone, pack).index_select(0, pack.last_B))
