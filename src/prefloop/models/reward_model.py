"""A reward model: one adapter with a scalar head, or an ensemble of several.

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
"""Documents that are sorted into packs together."""


@dataclasses.dataclass(frozen=True)
class Saved:
    """The content of reward.json."""

    members: Annotated[int, Field(strict=True, ge=1, le=1000)]
    temperature: Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]

    @classmethod
    def read(cls, folder: Path) -> Saved:
        """Read reward.json of a folder. Raises ``ModelError`` for a damaged file."""
        return read_as(cls, folder / "reward.json")


def role_of(member: int) -> str:
    """The role of a member's adapter."""
    return f"reward/{member}"


def member_folder(folder: Path, member: int) -> Path:
    """The folder of a member's adapter and head.

    The first member is in the artifact's folder itself, where PEFT looks; others have subfolders.
    """
    return folder if member == 0 else folder / f"member-{member}"


class Reward:
    """The members of a reward model on a backbone.

    Normalized scores have mean 0 and standard deviation 1 on the training stage's reference set.
    """

    def __init__(
        self, backbone: Backbone, heads: list[ScalarHead], temperature: float = 1.0
    ) -> None:
        self.backbone = backbone
        self.heads = heads
        self.temperature = temperature
        """The calibrated probability that people prefer the first response is
        σ(difference of scores / temperature).
        """

    @classmethod
    def load(cls, backbone: Backbone, folder: Path) -> Reward:
        """Load every member's adapter onto the backbone, frozen.

        Raises ``ModelError`` for an adapter without its head, for a head of another hidden size,
        and for damaged files.
        """
        saved = Saved.read(folder)
        heads = []
        for k in range(saved.members):
            heads.append(ScalarHead.load(member_folder(folder, k)).to(backbone.device))
            if (size := heads[-1].linear.in_features) != backbone.hidden_size:
                raise ModelError(
                    f"'{folder.name}': its head reads hidden states of {size:,} numbers, but the"
                    f" model's have {backbone.hidden_size:,}"
                )
            backbone.add_role(role_of(k), start=member_folder(folder, k), frozen=True)
        return cls(backbone, heads, saved.temperature)

    def save(self, folder: Path) -> None:
        """Write every member and ``reward.json``."""
        for k, head in enumerate(self.heads):
            self.backbone.save_role(role_of(k), member_folder(folder, k))
            head.save(member_folder(folder, k))
        content = json.dumps(dataclasses.asdict(Saved(len(self.heads), self.temperature)))
        (folder / "reward.json").write_text(content, encoding="utf-8")

    def drop(self) -> None:
        """Remove the members from the backbone."""
        for k in range(len(self.heads)):
            self.backbone.drop_role(role_of(k))

    def raw_K_B(self, pack: Pack) -> Tensor:
        """Each member's raw score of each response, [K, B], without gradient."""
        members = enumerate(self.heads)
        return torch.stack([raw_B(self.backbone, head, pack, role_of(k)) for k, head in members])

    def scores_K_B(self, pack: Pack) -> Tensor:
        """Each member's normalized score of each response, [K, B], without gradient."""
        members = zip(self.heads, self.raw_K_B(pack), strict=True)
        return torch.stack([head.normalized(raw_B) for head, raw_B in members])

    def score(
        self, documents: Iterable[Document], what: str = "score", total: int = 0
    ) -> dict[int, list[float]]:
        """Each response's key → its normalized scores, one per member.

        Args:
            documents: prompts with their responses.
            what: label of the progress bar.
            total: number of responses, for the progress bar.
        """
        out: dict[int, list[float]] = {}
        for pack in self._packs(documents, what, total):
            out.update(zip(pack.keys, self.scores_K_B(pack).T.tolist(), strict=True))
        return out

    @torch.no_grad()
    def score_and_embed(
        self, documents: Iterable[Document], what: str = "score", total: int = 0
    ) -> tuple[dict[int, list[float]], dict[int, NDArray[np.float16]]]:
        """``score``, and each response's key → its last hidden state [H].

        The hidden state is the first member's, which its head reads, scaled to length 1.
        """
        out: dict[int, list[float]] = {}
        hidden: dict[int, NDArray[np.float16]] = {}
        for pack in self._packs(documents, what, total):
            states = [last_B_H(self.backbone, pack, role_of(k)) for k in range(len(self.heads))]
            members = zip(self.heads, states, strict=True)
            score_B_K = torch.stack([head.normalized(head(last)) for head, last in members], 1)
            unit_B_H = F.normalize(states[0].float(), dim=-1).half().cpu().numpy()
            out.update(zip(pack.keys, score_B_K.tolist(), strict=True))
            hidden.update(zip(pack.keys, unit_B_H, strict=True))
        return out, hidden

    def _packs(self, documents: Iterable[Document], what: str, total: int) -> Iterator[Pack]:
        stream = iter(documents)
        with progress(what, total, "response") as advance:
            while part := list(islice(stream, _AT_ONCE)):
                for pack in packs(part, self.backbone.scoring_tokens):
                    yield pack.to(self.backbone.device)
                    advance(len(pack.keys))


def raw_B(backbone: Backbone, head: ScalarHead, pack: Pack, role: str) -> Tensor:
    """The head's raw score of each response [B], from its last token under ``role``; no
    gradient.
    """
    with backbone.role(role):
        return head(hidden_N_H(backbone, pack).index_select(0, pack.last_B))


def last_B_H(backbone: Backbone, pack: Pack, role: str) -> Tensor:
    """Each response's last hidden state [B, H] under ``role``, without gradient."""
    with backbone.role(role):
        return hidden_N_H(backbone, pack).index_select(0, pack.last_B)
