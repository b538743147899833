"""The part of the report on annotators: how far they agree, who to look at, which items divide
them.

What the label stage measured stands in its metrics under ``agreement``; where it is missing or not
of that shape the part is left out.
"""

from typing import NamedTuple

from prefloop.artifacts.codec import read
from prefloop.artifacts.labels import Labels
from prefloop.labeling.show import alpha_line, flags, position_line
from prefloop.report.page import MISSING, Cell, decimal, percent
from prefloop.report.summary import StageRun, Summary
from prefloop.stats.annotator_agreement import AnnotatorAgreement, Disputed, Position

_MOST_PEOPLE = 40
_MOST_FLAGGED = 5
_MOST_PAIRS = 10


class PersonRow(NamedTuple):
    """A row of the table of annotators."""

    name: str
    votes: str
    ties: str
    agree: str
    first: Cell
    seconds: str
    flags: str


class Pair(NamedTuple):
    """A row of the table of kappas."""

    names: str
    items: str
    agree: str
    kappa: str


class AgreementSection(NamedTuple):
    """The part of the report."""

    alpha: str
    cautions: list[str]
    people: list[PersonRow]
    more_people: int
    preferences: bool
    pairs: list[Pair]
    more_pairs: int
    disputed: list[Disputed]


def section(summary: Summary) -> AgreementSection | None:
    """What the label stage found about its annotators; ``None`` when nothing could be compared."""
    labels = [
        stage for stage in summary.stages if stage.name.partition("-")[0] == "label"
    ]  # the last round's hold all votes
    found = _measured(labels[-1]) if labels else None
    if found is None:
        return None
    flagged = [
        f"{person.name} {' and '.join(flags(person))}" for person in found.people if flags(person)
    ]
    more = (
        f"; {len(flagged) - _MOST_FLAGGED} more in the table"
        if len(flagged) > _MOST_FLAGGED
        else ""
    )
    cautions = [f"{'; '.join(flagged[:_MOST_FLAGGED])}{more}."] if flagged else []
    if found.position and found.position.biased:
        cautions.append(f"Over all items {position_line(found.position)}.")
    return AgreementSection(
        alpha=alpha_line(found),
        cautions=cautions,
        people=[
            PersonRow(
                person.name,
                f"{person.votes:,}",
                percent(person.shares.get("tie", person.shares.get("up"))),
                percent(person.agree),
                _wins(person.position),
                MISSING if person.speed is None else decimal(person.speed.median, 1),
                "; ".join(flags(person)),
            )
            for person in found.people[:_MOST_PEOPLE]
        ],
        more_people=max(0, len(found.people) - _MOST_PEOPLE),
        preferences=any(person.position for person in found.people),
        pairs=[
            Pair(f"{pair.a}, {pair.b}", f"{pair.items:,}", percent(pair.agree), decimal(pair.value))
            for pair in found.pairs[:_MOST_PAIRS]
        ],
        more_pairs=max(0, len(found.pairs) - _MOST_PAIRS),
        disputed=found.disputed,
    )


def _measured(stage: StageRun) -> AnnotatorAgreement | None:
    try:
        return read(Labels, stage.metrics).agreement
    except ValueError:  # an earlier version measured something else
        return None


def _wins(position: Position | None) -> Cell:
    if position is None or position.low is None or position.high is None:
        return Cell(MISSING)
    return Cell(percent(position.share), f"[{percent(position.low)}, {percent(position.high)}]")
