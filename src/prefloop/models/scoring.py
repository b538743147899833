"""Scores of responses from an adapter with a scalar head, many at a time in packs."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from prefloop.console import progress
from prefloop.data.packing import Document, Pack, packs
from prefloop.models.backbone import Backbone
from prefloop.models.forward import hidden_N_H
from prefloop.models.heads import ScalarHead


def scores_B(backbone: Backbone, head: ScalarHead, pack: Pack, role: str) -> Tensor:
    """Raw score of each response of a pack: the head on its last token under ``role``, [B]."""
    with backbone.role(role):
        return head(hidden_N_H(backbone, pack)[pack.last_B])


def score(
    backbone: Backbone, head: ScalarHead, documents: Sequence[Document], role: str, what: str = "score"
) -> dict[int, float]:
    """Raw score of every response, by key."""
    out: dict[int, float] = {}
    work = packs(documents, backbone.config.pack_tokens)
    with progress(what, sum(len(p.keys) for p in work), "response") as advance:
        for pack in work:
            values = scores_B(backbone, head, pack.to(backbone.device), role).tolist()
            out.update(zip(pack.keys, values, strict=True))
            advance(len(values))
    return out
