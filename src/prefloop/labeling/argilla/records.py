"""Records to Argilla and votes back.

Datasets, users and records go there through Argilla's own client; answers come and go over its REST
API: that client loses when an answer was given and the ranks of a ranking, and fails at a discard
without values (docs/design.md). A push sends what is not there yet, batch by batch; Argilla takes a
batch whole or not at all and keeps record ids unique within a dataset, so a push that was killed is
repeated, not repaired. A pull reads every record that has an answer. Dropped on purpose: asking
only for what changed since the last pull. Argilla cannot say: a changed vote leaves its record's
``updated_at`` alone, and answers logged in bulk leave the dataset's ``last_activity_at`` alone.
"""

from __future__ import annotations

import dataclasses
import re
import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal

from prefloop.base.console import counted, progress
from prefloop.data.argilla_votes import HIDDEN
from prefloop.errors import DataError, LabelError
from prefloop.labeling.argilla.connection import Connection, Refused, Rest
from prefloop.labeling.argilla.datasets import BATCH, MARK, Dataset, Datasets, batches
from prefloop.labeling.argilla.forms import (
    Kind,
    digest,
    kind_of,
    of_prefloop,
    to_rg,
    to_values,
    untakeable,
)
from prefloop.labeling.argilla.pulled import Pulled, pulled
from prefloop.labeling.argilla.questions import reading_of
from prefloop.records import Comparison, Rating, Thumb, Vote

ANSWERS = 100  # as many as one request takes
LISTED = 20  # records named one by one in a message


@dataclasses.dataclass(frozen=True)
class Pushed:
    """What a push did: records ``sent``, and those ``present`` before with the same content."""

    sent: int
    present: int
    replaced: bool = False
    """Whether the dataset had other guidelines before."""


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far the labelling of a dataset is."""

    total: int
    completed: int
    """Records with the minimum of submitted answers."""
    pending: int
    annotators: dict[str, dict[str, int]]
    """Name → answers ``submitted``, ``draft`` and ``discarded``."""


class Argilla:
    """One server, as the user whose key the connection holds. Every method raises ``LabelError``
    saying what is in the way.

    As a context manager it lets go of its connections at the end.
    """

    def __init__(self, connection: Connection) -> None:
        self.rest = Rest(connection)
        self.datasets = Datasets(self.rest)

    def __enter__(self) -> Argilla:
        return self

    def __exit__(self, *_: object) -> None:
        self.rest.close()

    def check(self, workspace: str = "default") -> None:
        """Whether the server answers, knows the key and has the workspace."""
        self.datasets.workspace(workspace)

    def push(
        self,
        records: Iterable[Comparison] | Iterable[Rating],
        dataset: str,
        workspace: str = "default",
        guidelines: str | None = None,
        min_submitted: int | None = None,
    ) -> Pushed:
        """Send what the dataset does not hold yet; it is made when missing, for comparisons or for
        ratings as the records are.

        ``guidelines`` (Markdown) replace those of a dataset that is there; ``min_submitted`` (1
        unless given) completes a record. Raises ``DataError`` naming records that Argilla does not
        take, or that are there with other content; then nothing was sent or changed.
        """
        by_id = by_id_of(records)
        kind = one_kind(by_id.values(), dataset)
        require_takeable(by_id.values())
        found, fresh = self.datasets.ensure(dataset, workspace, kind, guidelines, min_submitted)
        present = set() if fresh else self._present(found, by_id)
        missing = [record for id, record in by_id.items() if id not in present]
        if missing:
            with progress(
                f"pushing to {dataset}", len(by_id), "records", done=len(present)
            ) as advance:
                for batch in batches(missing, BATCH):
                    self._send(found, batch)
                    advance(len(batch))
        replaced = guidelines is not None and self.datasets.guide(found, guidelines)
        return Pushed(len(missing), len(present), replaced)

    def pull(
        self,
        dataset: str,
        workspace: str = "default",
        ids: Collection[str] | None = None,
        simulated: bool = False,
        questions: Sequence[str] = (),
        unvoted: bool = False,
    ) -> Pulled:
        """Every record with a submitted answer, as it was pushed and with a vote for each. ``ids``:
        of these alone.

        Where people have voted, votes of simulated annotators are left out and counted, unless
        ``simulated`` asks for them. A dataset that prefloop has not made is read as its fields and
        questions are understood, or as ``questions`` say; see ``questions.reading_of``.
        ``unvoted``: records without an answer too.
        """
        found = self.datasets.find(dataset, workspace)
        reading = reading_of(found, questions, votes=not unvoted)
        items = self.datasets.all(found) if unvoted else self.datasets.answered(found)
        ordered = sorted(items, key=lambda item: (item["inserted_at"], item["id"]))
        if ids is not None:
            wanted = set(ids)
            ordered = [item for item in ordered if item.get("external_id") in wanted]
        source = f"argilla:{workspace}/{dataset}"
        # Who names records has them: what was sampled into them, such as a NUL, is no reason to
        # lose their votes.
        return pulled(
            ordered,
            self.datasets.people(found),
            simulated,
            reading,
            source,
            unvoted,
            loadable=ids is None,
        )

    def simulated(self, dataset: str, workspace: str = "default") -> set[str]:
        """Names of the accounts that ``vote`` has made, of those that may have answered in the
        dataset.
        """
        people = self.datasets.people(self.datasets.find(dataset, workspace))
        return {person.name for person in people.values() if person.simulated}

    def progress(self, dataset: str, workspace: str = "default") -> Progress:
        """Records in all, completed and pending, and every annotator's answers."""
        found = self.datasets.find(dataset, workspace)
        counts = self.datasets.counts(found)
        return Progress(
            counts["total"], counts["completed"], counts["pending"], self.datasets.each(found)
        )

    def states(
        self, dataset: str, ids: Sequence[str], workspace: str = "default"
    ) -> dict[str, bool]:
        """Which of these records are there, and whether each has the minimum of submitted
        answers.
        """
        found = self.datasets.find(dataset, workspace)
        return {
            item["external_id"]: item["status"] == "completed"
            for item in self.datasets.lookup(found, ids)
        }

    def vote(
        self,
        dataset: str,
        annotator: str,
        votes: Mapping[str, Vote] | Mapping[str, Thumb],
        workspace: str = "default",
        status: Literal["submitted", "draft", "discarded"] = "submitted",
    ) -> int:
        """Answer as ``annotator`` would on screen, record id → vote on the record as it was pushed;
        the number of answers.

        For simulated annotators, with an owner's key: the account is made when missing, carries a
        mark, and answers with a key of its own; an account without the mark is a person's and a
        ``LabelError``. An answer given before is replaced. ``at`` and the vote's own annotator are
        not sent. Raises ``DataError`` for an unknown record and for a strength that the form does
        not have; then nothing was sent.
        """
        found = self.datasets.find(dataset, workspace)
        key = self._account(annotator, found.workspace_id)
        with Rest(dataclasses.replace(self.rest.connection, api_key=key)) as rest:
            there = self.datasets.lookup(found, list(votes))
            items = {item["external_id"]: item for item in there if of_prefloop(item)}
            unknown = [id for id in votes if id not in items]
            if unknown:
                raise DataError(
                    f"dataset '{dataset}' holds no record {_some(unknown)}: push it before it is"
                    " voted on"
                )
            answers = [
                {
                    "record_id": items[id]["id"],
                    "status": status,
                    "values": to_values(vote, items[id]["metadata"][HIDDEN].get("swapped", False)),
                }
                for id, vote in votes.items()
            ]
            for batch in batches(answers, ANSWERS):
                for answer in rest.post("/me/responses/bulk", {"items": batch})["items"]:
                    if answer.get("error"):
                        raise LabelError(
                            f"Argilla did not take an answer of {annotator}:"
                            f" {answer['error']['detail']}"
                        )
        return len(answers)

    def _present(self, dataset: Dataset, records: Mapping[str, Comparison | Rating]) -> set[str]:
        """Ids that the dataset holds; another content under one of them is a ``DataError``."""
        present: set[str] = set()
        other: list[str] = []
        for item in self.datasets.lookup(dataset, list(records)):
            id = item["external_id"]
            present.add(id)
            if not of_prefloop(item) or item["metadata"][HIDDEN]["digest"] != digest(records[id]):
                other.append(id)
        if other:
            raise DataError(
                f"dataset '{dataset.name}' holds {_some(other)} with other content, and answers may"
                " refer to it: give the changed records ids of their own, or push to another"
                " dataset. Nothing was sent or changed"
            )
        return present

    def _send(self, dataset: Dataset, batch: Sequence[Comparison | Rating]) -> None:
        client = self.rest.client
        try:
            # Made, never replaced: ``Dataset.records.log`` would put new texts under answers that
            # are there.
            client.api.records.bulk_create(
                dataset.id, [to_rg(record, dataset.name).api_model() for record in batch]
            )
        except Refused as refused:
            if refused.status != 422:
                raise
            if "same external ids" in str(refused.detail):
                raise LabelError(
                    f"another push is at work on dataset '{dataset.name}': wait for its end, then"
                    " push again"
                ) from None
            at, why = _refused_item(refused.detail)
            where = (
                f"one of the records from {batch[0].id!r} on"
                if at is None
                else f"record {batch[at].id!r}"
            )
            raise DataError(f"Argilla does not take {where}: {why:.600}") from None

    def _account(self, name: str, workspace_id: str) -> str:
        """The API key of a user, who is made and let into the workspace when need be."""
        users = {user["username"]: user for user in self.rest.get("/users")["items"]}
        password = secrets.token_urlsafe(18)
        user = users.get(name) or self.rest.post(
            "/users",
            {
                "username": name,
                "first_name": name,
                "last_name": MARK,
                "role": "annotator",
                "password": password,
            },
        )
        if user["last_name"] != MARK:
            raise LabelError(
                f"'{name}' is an account of a person at {self.rest.connection.url}, and a simulated"
                " annotator is to vote under that name: rename the annotator"
            )
        members = {
            member["id"] for member in self.rest.get(f"/workspaces/{workspace_id}/users")["items"]
        }
        if user["id"] not in members:
            self.rest.post(f"/workspaces/{workspace_id}/users", {"user_id": user["id"]})
        return str(user["api_key"])


def by_id_of(records: Iterable[Comparison] | Iterable[Rating]) -> dict[str, Comparison | Rating]:
    """The records by id, equal ones once. Raises ``DataError`` for two with one id."""
    found: dict[str, Comparison | Rating] = {}
    for record in records:
        if record.id in found and digest(found[record.id]) != digest(record):
            raise DataError(
                f"two records with other content have the id {record.id!r}: ids must be unique"
            )
        found[record.id] = record
    return found


def one_kind(records: Collection[Comparison | Rating], dataset: str) -> Kind:
    """What the records are. Raises ``DataError`` for none, and for both kinds at once."""
    kinds = {kind_of(record) for record in records}
    if len(kinds) != 1:
        raise DataError(
            f"{'comparisons and ratings' if kinds else 'no records'} for dataset '{dataset}': push"
            " records of one kind"
        )
    return kinds.pop()


def require_takeable(records: Collection[Comparison | Rating]) -> None:
    """Raises ``DataError`` naming records that Argilla does not take."""
    refused = untakeable(records)
    if refused:
        lines = [f"  {record.id!r}: {why}" for record, why in refused[:LISTED]]
        lines += [f"  and {len(refused) - LISTED:,} more"] if len(refused) > LISTED else []
        raise DataError(
            f"Argilla does not take {len(refused):,} of {counted(len(records), 'record')}, and"
            " nothing was sent. Shorten them, or leave them out with --bad-rows quarantine:\n"
            + "\n".join(lines)
        )


def _refused_item(detail: Any) -> tuple[int | None, str]:
    """The place in a batch that a refusal is about, and what is wrong there."""
    if isinstance(detail, str):
        found = re.match(r"Record at position (\d+) is not valid because (.*)", detail, re.DOTALL)
        return (int(found[1]), found[2]) if found else (None, detail)
    try:
        error = detail["params"]["errors"][0]
        return int(error["loc"][2]), str(error["msg"])
    except (TypeError, KeyError, IndexError, ValueError):
        return None, str(detail)


def _some(ids: Sequence[str]) -> str:
    return ", ".join(repr(id) for id in ids[:5]) + (
        f" and {len(ids) - 5} more" if len(ids) > 5 else ""
    )
