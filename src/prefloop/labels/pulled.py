"""What comes back from a dataset: records with votes, and what was left out.

Votes of simulated annotators stand in for those of people and are never mixed with them unasked: where people have voted, theirs alone are
taken. Only a dataset that programs alone have voted in gives the programs' votes.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from prefloop.console import counted
from prefloop.labels.datasets import Person
from prefloop.labels.forms import of_prefloop, to_record
from prefloop.records import Comparison, Rating


@dataclasses.dataclass(frozen=True)
class Pulled:
    """Records with at least one vote, in the order in which they were pushed, and what was left out."""

    records: list[Comparison] | list[Rating]
    votes: int
    drafts: int
    """Answers that an annotator has begun and not submitted."""
    discards: int
    """Records that an annotator has skipped."""
    foreign: int
    """Answered records that another hand has added to the dataset."""
    simulated: int = 0
    """Of ``votes``, those of simulated annotators."""
    set_aside: int = 0
    """Votes of simulated annotators that are left out because people have voted."""

    def describe(self) -> str:
        """What came, and what was left out."""
        left = [f"{counted(self.drafts, 'draft')} and {counted(self.discards, 'discard')} left out"]
        if self.set_aside:
            left.append(
                f"{counted(self.set_aside, 'vote')} of simulated annotators left out, as people have voted: --simulated takes them"
            )
        if self.simulated:
            of = "all" if self.simulated == self.votes else f"{self.simulated:,}"
            left.append(f"{of} of simulated annotators")
        if self.foreign:
            left.append(f"{counted(self.foreign, 'answered record')} that prefloop did not push left out")
        return f"{counted(len(self.records), 'record')} with {counted(self.votes, 'vote')} ({'; '.join(left)})"


def pulled(items: Iterable[Mapping[str, Any]], people: Mapping[str, Person], simulated: bool = False) -> Pulled:
    """Records with votes out of the server's records, in their order; ``people`` maps user ids. See ``Argilla.pull`` for ``simulated``."""
    names = {id: person.name for id, person in people.items()}
    machines = {person.name for person in people.values() if person.simulated}
    records: list[Any] = []
    counts: Counter[str] = Counter()
    foreign = 0
    for item in items:
        if not of_prefloop(item):
            foreign += 1
            continue
        counts.update(answer["status"] for answer in item["responses"])
        records.append(to_record(item, names))
    votes = sum(len(record.votes) for record in records)
    of_machines = sum(vote.annotator in machines for record in records for vote in record.votes)
    set_aside = of_machines if of_machines < votes and not simulated else 0
    if set_aside:
        records = [
            dataclasses.replace(record, votes=[vote for vote in record.votes if vote.annotator not in machines])
            for record in records
        ]
    records = [record for record in records if record.votes]
    kept = of_machines - set_aside
    return Pulled(records, votes - set_aside, counts["draft"], counts["discarded"], foreign, kept, set_aside)
