"""A reward model of which it is known what it gets right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


class ByWords:
    """A reward model whose score is the number of words that start with g: what it gets right is
    known.
    """

    temperature = 2.0

    def __init__(self, folder: Path) -> None:
        from tiny import load

        self.backbone = load(folder)
        self.heads = [type("Head", (), {"std": torch.tensor(0.5)})()]

    def score(self, documents: Any, what: str = "", total: int = 0) -> dict[int, list[float]]:
        chat = self.backbone.chat
        return {
            key: [float(sum(word.startswith("g") for word in chat.decode(ids).split()))]
            for document in documents
            for key, ids in zip(document.keys, document.responses_ids, strict=True)
        }
