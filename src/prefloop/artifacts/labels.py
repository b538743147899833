"""The votes of a run in numbers, as the stage ``label`` measures them."""

from __future__ import annotations

import dataclasses

from pydantic.dataclasses import dataclass

from prefloop.artifacts.codec import FILE, Number, Stored
from prefloop.stats.annotator_agreement import AnnotatorAgreement


@dataclass(frozen=True, config=FILE)
class Annotator(Stored):
    """Who voted, and how well."""

    name: str
    simulated: bool | None = None
    noise: Number = None
    agreement_with_gold: Number = None
    """Share of votes for the response with the higher gold score, ties left out."""
    votes: int | None = None


@dataclass(frozen=True, config=FILE)
class Labels(Stored):
    """The votes of all rounds: what the stage ``label`` measures. Counts that its source does not
    have are ``None``.
    """

    comparisons: int = 0
    votes: int = 0
    thumbs: int | None = None
    """Of a file: rated responses, from which the comparisons were formed."""
    annotators: list[Annotator] = dataclasses.field(default_factory=list)
    agreement: AnnotatorAgreement | None = None
    of_this_round: int | None = None
    """Comparisons that a round after the first added."""
    unlabelled: int | None = None
    drafts: int | None = None
    discards: int | None = None
    refused: int | None = None
    votes_of_others: int | None = None
    bad_rows: str = ""
    """Of a file: what became of rows that cannot be read."""
