"""What stages that learn from votes need to know about them."""

from __future__ import annotations

from pathlib import Path

from prefloop.artifacts.codec import read_metrics
from prefloop.artifacts.labels import Labels
from prefloop.artifacts.store import Artifact
from prefloop.data.quarantine import TOO_LONG, Unusable
from prefloop.errors import DataError


def unusable_of(comparisons: Artifact, folder: Path) -> Unusable:
    """What a stage does with rows that it cannot use: they go into ``folder`` when the labels were
    read with ``bad_rows: quarantine``.
    """
    quarantine = read_metrics(Labels, comparisons.metrics, "comparisons").bad_rows == "quarantine"
    return Unusable(folder / f"{TOO_LONG}.quarantine.jsonl" if quarantine else None)


def has_pairs(comparisons: Artifact) -> bool:
    """Whether the votes are on pairs or form pairs: thumbs do where a prompt has a response with a
    thumb up and one with a thumb down.
    """
    labels = read_metrics(Labels, comparisons.metrics, "comparisons")
    return not labels.thumbs or labels.comparisons > 0


def require_pairs(comparisons: Artifact, who: str) -> None:
    """Raise ``DataError`` where ``who`` would learn from pairs and there are thumbs that form
    none.
    """
    if not has_pairs(comparisons):
        file = comparisons.manifest.reads.get("comparisons", "the file")
        raise DataError(
            f"'{file}' holds thumbs that form no pairs (no prompt has a response with a thumb up"
            f" and one with a thumb down), and {who} learns from pairs: learn from the thumbs with"
            " --algo kto, or add such responses"
        )
