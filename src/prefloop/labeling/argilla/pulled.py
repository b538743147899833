"""The result of a pull: records with votes, and counts of what was left out.

Records that prefloop has pushed come back as they were (``data.argilla_own``). Those of a dataset
that was made elsewhere are read by the meaning of its fields and questions
(``data.argilla_votes.ArgillaReading``).

Votes of simulated annotators replace those of people, and are never mixed with them unasked: where
people have voted, only their votes are taken. The votes of programs are taken from a dataset in
which only programs have voted.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from prefloop.base.console import counted, neutral
from prefloop.data.argilla_own import own_record
from prefloop.data.argilla_votes import ArgillaReading, Item, records_of, row_of
from prefloop.data.check import DEEPEST, BadRow, check_record, check_shown, check_strings
from prefloop.data.row import Notes
from prefloop.labeling.argilla.datasets import ArgillaUser
from prefloop.labeling.argilla.forms import id_of, of_prefloop, to_answers
from prefloop.records import Demonstration, Prompt, Record, to_dict


@dataclasses.dataclass(frozen=True)
class Pulled:
    """Records with at least one vote, in the order in which they were pushed, and counts of what
    was left out.
    """

    records: list[Any]
    """Comparisons or ratings, and prompts too where records without votes were asked for."""
    votes: int
    drafts: int
    """Answers that an annotator has begun and not submitted."""
    discards: int
    """Records that an annotator has skipped."""
    foreign: int
    """Answered records that somebody else has added to the dataset."""
    simulated: int = 0
    """How many of ``votes`` are by simulated annotators."""
    set_aside: int = 0
    """Votes of simulated annotators that are left out because people have voted."""
    refused: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    """Ids of records that cannot be used, with the reason."""
    reading: ArgillaReading | None = None
    """How a dataset that was made elsewhere is read."""
    notes: list[str] = dataclasses.field(default_factory=list)
    """What was done to the texts of such a dataset, a line each."""

    def describe(self) -> str:
        """A summary for the log."""
        left = [f"{counted(self.drafts, 'draft')} and {counted(self.discards, 'discard')} left out"]
        if self.set_aside:
            left.append(
                f"{counted(self.set_aside, 'vote')} of simulated annotators left out, as people"
                " have voted: --simulated takes them"
            )
        if self.simulated:
            of = "all" if self.simulated == self.votes else f"{self.simulated:,}"
            left.append(f"{of} of simulated annotators")
        if self.foreign:
            left.append(
                f"{counted(self.foreign, 'answered record')} that prefloop did not push left out"
            )
        if self.refused:
            id, why = self.refused[0]
            left.append(
                f"{counted(len(self.refused), 'record')} that cannot be used left out, the first"
                f" '{id}': {why}"
            )
        left += self.notes
        return (
            f"{counted(len(self.records), 'record')} with {counted(self.votes, 'vote')}"
            f" ({'; '.join(left)})"
        )


def pulled(
    items: Iterable[Mapping[str, Any]],
    people: Mapping[str, ArgillaUser],
    simulated: bool = False,
    reading: ArgillaReading | None = None,
    source: str = "",
    unvoted: bool = False,
    loadable: bool = True,
) -> Pulled:
    """The records with votes, in the order of the server's records. ``people`` maps user ids to
    users. See ``Argilla.pull`` for ``simulated``.

    ``reading`` is for a dataset that prefloop has not made, whose responses get ``source``.
    ``unvoted`` takes records without votes too. ``loadable`` leaves out what the loader would
    refuse once it is in a file.
    """
    names = {id: person.name for id, person in people.items()}
    machines = {person.name for person in people.values() if person.simulated}
    records: list[Any] = []
    refused: list[tuple[str, str]] = []
    counts: Counter[str] = Counter()
    notes = Notes()
    foreign = mended = 0
    ids: set[str] = set()
    for raw in items:
        if reading is None and not of_prefloop(raw):
            foreign += 1
            continue
        (item, changed), id = to_answers(raw, names).mended(), id_of(raw)
        try:
            read: list[Record] = (
                _of_others(item, id, reading, source, notes) if reading else [own_record(item, id)]
            )
            if loadable:
                check_loadable(read, ids)
        except BadRow as bad:
            refused.append((neutral(id), neutral(f"{bad.field} {bad.problem}".strip())))
        else:
            records += read
            ids.update(record.id for record in read)
            mended += changed
            counts.update(answer.status for answer in item.answers)
    votes = _voters(records)
    of_machines = sum(name in machines for name in votes)
    set_aside = of_machines if of_machines < len(votes) and not simulated else 0
    if set_aside:
        by_people = ([v for v in record.votes if v.annotator not in machines] for record in records)
        records = [
            dataclasses.replace(record, votes=votes)
            for record, votes in zip(records, by_people, strict=True)
        ]
    if not unvoted:
        records = [record for record in records if record.votes]
    return Pulled(
        records,
        votes=len(votes) - set_aside,
        drafts=counts["draft"],
        discards=counts["discarded"],
        foreign=foreign,
        simulated=of_machines - set_aside,
        set_aside=set_aside,
        refused=refused,
        reading=reading,
        notes=[*notes.lines(), *said_mended(mended)],
    )


def check_loadable(records: Iterable[Record], ids: Collection[str] = ()) -> None:
    """Raise ``BadRow`` for a record that the loader would refuse once it is in a file, after
    records with ``ids``.
    """
    for record in records:
        if record.id in ids:
            raise BadRow("id", f"is {record.id[:80]!r}, which another record has")
        check_strings(to_dict(record), deepest=DEEPEST + 2)
        check_record(record)
        if not isinstance(record, Prompt | Demonstration):
            check_shown(record.meta)


def said_mended(answers: int) -> list[str]:
    """A line about answers in which characters were replaced, if there are any."""
    what = "with characters that no file can carry, such as NUL: each is now \ufffd"
    return [f"{counted(answers, 'answer')} {what}"] if answers else []


def _of_others(
    item: Item, id: str, reading: ArgillaReading, source: str, notes: Notes
) -> list[Record]:
    row = row_of(item, reading, id, source)
    records = records_of(item, reading, row)
    notes.add(row)
    return records


def _voters(records: Iterable[Any]) -> list[str]:
    return [vote.annotator for record in records for vote in getattr(record, "votes", ())]
