"""A reward model as it is used: one adapter with its head, or several whose normalised scores are
averaged.

Shape letters: B responses of a pack, K members, H hidden size.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from prefloop.base.console import progress
from prefloop.base.json_object import read_as
from prefloop.data.packing import Document, Pack, packs
from prefloop.errors import ModelError
from prefloop.models.backbone import Backbone
from prefloop.models.forward import hidden_N_H
from prefloop.models.heads import ScalarHead

_AT_ONCE = 256
"""Documents that are packed together."""


@dataclasses.dataclass(frozen=True)
class Saved:
    """The content of reward.json."""

    members: Annotated[int, Field(strict=True, ge=1, le=1000)]
    temperature: Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]

    @classmethod
    def read(cls, folder: Path) -> Saved:
        """That of a reward model's folder. Raises ``ModelError`` where it is damaged."""
        return read_as(cls, folder / "reward.json")


def role_of(member: int) -> str:
    """Name of a member's adapter."""
    return f"reward/{member}"


def member_folder(folder: Path, member: int) -> Path:
    """Where a member's adapter and head are: the first in the artifact itself, where PEFT looks,
    the others beside it.
    """
    return folder if member == 0 else folder / f"member-{member}"


class Reward:
    """Members on a backbone; scores have mean 0 and standard deviation 1 on the reference set of
    the stage that made them.
    """

    def __init__(
        self, backbone: Backbone, heads: list[ScalarHead], temperature: float = 1.0
    ) -> None:
        self.backbone = backbone
        self.heads = heads
        self.temperature = temperature
        """σ(difference of scores / temperature) is the calibrated probability that a person prefers
        the first response.
        """

    @classmethod
    def load(cls, backbone: Backbone, folder: Path) -> Reward:
        """Put every member's adapter on the backbone, frozen. Raises ``ModelError`` for an adapter
        without its head, and for damaged files.
        """
        saved = Saved.read(folder)
        heads = []
        for k in range(saved.members):
            heads.append(ScalarHead.load(member_folder(folder, k)).to(backbone.device))
            if (size := heads[-1].linear.in_features) != backbone.hidden_size:
                raise ModelError(
                    f"'{folder.name}': its head reads hidden states of {size:,} numbers, and the"
                    f" model's have {backbone.hidden_size:,}"
                )
            backbone.add_role(role_of(k), start=member_folder(folder, k), frozen=True)
        return cls(backbone, heads, saved.temperature)

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
        return torch.stack(
            [raw_B(self.backbone, head, pack, role_of(k)) for k, head in enumerate(self.heads)]
        )

    def scores_K_B(self, pack: Pack) -> Tensor:
        """Each member's normalised score of each response."""
        raw_K_B = self.raw_K_B(pack)
        return torch.stack(
            [head.normalized(raw) for head, raw in zip(self.heads, raw_K_B, strict=True)]
        )

    def score(
        self, documents: Iterable[Document], what: str = "score", total: int = 0
    ) -> dict[int, list[float]]:
        """Normalised scores of every response by key, one a member; ``total`` responses for the
        progress bar.
        """
        out: dict[int, list[float]] = {}
        for pack in self._packs(documents, what, total):
            out.update(zip(pack.keys, self.scores_K_B(pack).T.tolist(), strict=True))
        return out

    @torch.no_grad()
    def score_and_embed(
        self, documents: Iterable[Document], what: str = "score", total: int = 0
    ) -> tuple[dict[int, list[float]], dict[int, NDArray[np.float16]]]:
        """``score``, and by key each response's last hidden state [H] under the first member, what
        its head reads, at length 1.
        """
        out: dict[int, list[float]] = {}
        hidden: dict[int, NDArray[np.float16]] = {}
        for pack in self._packs(documents, what, total):
            states = [last_B_H(self.backbone, pack, role_of(k)) for k in range(len(self.heads))]
            normal = [
                head.normalized(head(last)) for head, last in zip(self.heads, states, strict=True)
            ]
            out.update(zip(pack.keys, torch.stack(normal, 1).tolist(), strict=True))
            hidden.update(
                zip(
                    pack.keys,
                    F.normalize(states[0].float(), dim=-1).half().cpu().numpy(),
                    strict=True,
                )
            )
        return out, hidden

    def _packs(self, documents: Iterable[Document], what: str, total: int) -> Iterator[Pack]:
        stream = iter(documents)
        with progress(what, total, "response") as advance:
            while part := list(islice(stream, _AT_ONCE)):
                for pack in packs(part, self.backbone.scoring_tokens):
                    yield pack.to(self.backbone.device)
                    advance(len(pack.keys))


def raw_B(backbone: Backbone, head: ScalarHead, pack: Pack, role: str) -> Tensor:
    """The head on each response's last token under ``role``, without gradient."""
    with backbone.role(role):
        return head(hidden_N_H(backbone, pack).index_select(0, pack.last_B))


def last_B_H(backbone: Backbone, pack: Pack, role: str) -> Tensor:
    """Each response's last hidden state under ``role``, without gradient."""
    with backbone.role(role):
        return hidden_N_H(backbone, pack).index_select(0, pack.last_B)
