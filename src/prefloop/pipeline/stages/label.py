"""Votes on pairs: of simulated annotators or of people in Argilla on sampled candidates, or from a
file of comparisons (``label_sources``).
"""

from __future__ import annotations

import dataclasses
from typing import Any, Self

from prefloop.artifacts.labels import Labels
from prefloop.artifacts.store import Artifact
from prefloop.base.console import counted, say
from prefloop.config import DataConfig, LabelConfig
from prefloop.labeling.show import alpha_line
from prefloop.pipeline.stage import Stage
from prefloop.pipeline.stages.label_sources import (
    ArgillaVotes,
    FileVotes,
    LabelSource,
    SimulatedVotes,
)
from prefloop.runs.work import Work
from prefloop.stats.annotator_agreement import AnnotatorAgreement, measure
from prefloop.stats.votes import FILE, Votes


class Label(Stage):
    """Candidates or a file → ``comparisons.jsonl`` with raw votes. Produces ``comparisons``.

    In rounds after the first the pairs are those of the stage ``choose``, and the comparisons of
    the rounds before are kept.
    """

    name = "label"
    produces = "comparisons"

    def __init__(
        self,
        config: LabelConfig | None = None,
        data: DataConfig | None = None,
        gold: str | None = None,
        simulate: bool = False,
    ) -> None:
        """``gold``: the scorer that simulated annotators vote by. ``simulate``: they vote in
        Argilla.
        """
        self.config = config or LabelConfig()
        self.source = _source(self.config, data or DataConfig(), gold, simulate)
        self.inputs = () if self.config.source == "file" else ("candidates",)

    def in_round(self, number: int) -> Self:
        if number > 1:
            self.inputs = ("candidates", "pairs", "comparisons")
        return super().in_round(number)

    def parts(self) -> dict[str, Any]:
        return self.source.parts()

    def preflight(self) -> None:
        super().preflight()
        self.source.preflight()

    def build(self, work: Work, inputs: dict[str, Artifact]) -> Labels:
        labels, votes = self.source.collect(work, inputs, self.round)
        agreement = _agreement(votes)
        pairs = counted(labels.comparisons, "comparison")
        if labels.thumbs:
            say(f"  {counted(labels.thumbs, 'thumb')}, which form {pairs}")
        else:
            say(f"  {pairs} with {counted(labels.votes, 'vote')}")
        return dataclasses.replace(labels, agreement=agreement)


def _source(config: LabelConfig, data: DataConfig, gold: str | None, simulate: bool) -> LabelSource:
    if config.source == "file":
        return FileVotes(data)
    simulated = SimulatedVotes(config, gold)
    if config.source == "simulated":
        return simulated
    return ArgillaVotes(config, simulated if simulate else None)


def _agreement(votes: Votes) -> AnnotatorAgreement | None:
    """How far annotators agree; ``None`` where a file holds its own choices alone."""
    if all(name.startswith(FILE) for name in votes.annotators):
        return None
    agreement = measure(votes)
    if agreement.alpha.items:
        say(f"  {alpha_line(agreement)}")
    return agreement
