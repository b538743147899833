"""Send records to Argilla and get votes back.

Datasets, users and records are sent with Argilla's own client. Answers use its REST API, because
the client loses the time of an answer and the ranks of a ranking, and fails at a discard without
values (docs/design.md). A push sends what the server does not hold yet, batch by batch. Argilla
takes a batch whole or not at all and keeps record ids unique within a dataset, so a push that was
killed is repeated and needs no repair. A pull reads every record that has an answer. It cannot ask
only for what changed since the last pull: a changed vote does not change its record's
``updated_at``, and answers logged in bulk do not change the dataset's ``last_activity_at``.
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
    """The result of a push: the number of records ``sent``, and of those ``present`` before with
    the same content.
    """

    sent: int
    present: int
    replaced: bool = False
    """Whether other guidelines were replaced."""


@dataclasses.dataclass(frozen=True)
class Progress:
    """The progress of a dataset's labeling."""

    total: int
    completed: int
    """Records with the minimum of submitted answers."""
    pending: int
    annotators: dict[str, dict[str, int]]
    """Name → number of answers ``submitted``, ``draft`` and ``discarded``."""


class Argilla:
    """One server, used with the key of the connection. Every method raises ``LabelError`` with the
    reason of a failure.

    As a context manager it closes its connections at the end.
    """

    def __init__(self, connection: Connection) -> None:
        self.rest = Rest(connection)
        self.datasets = Datasets(self.rest)

    def __enter__(self) -> Argilla:
        return self

    def __exit__(self, *_: object) -> None:
        self.rest.close()

    def check(self, workspace: str = "default") -> None:
        """Check that the server answers, knows the key and has the workspace."""
        self.datasets.workspace(workspace)

    def push(
        self,
        records: Iterable[Comparison] | Iterable[Rating],
        dataset: str,
        workspace: str = "default",
        guidelines: str | None = None,
        min_submitted: int | None = None,
    ) -> Pushed:
        """Send the records that the dataset does not hold yet. A missing dataset is made, for
        comparisons or for ratings as the records are.

        ``guidelines`` (Markdown) replace those of an existing dataset. ``min_submitted`` answers
        (default 1) complete a record. Raises ``DataError`` naming records that Argilla does not
        take, or that the dataset holds with other content; then nothing was sent or changed.
        """
        by_id = by_id_of(records)
        kind = one_kind(by_id.values(), dataset)
        require_takeable(by_id.values())
        target, fresh = self.datasets.ensure(dataset, workspace, kind, guidelines, min_submitted)
        present = set() if fresh else self._present(target, by_id)
        missing = [record for id, record in by_id.items() if id not in present]
        if missing:
            what = f"pushing to {dataset}"
            with progress(what, len(by_id), "records", done=len(present)) as advance:
                for batch in batches(missing, BATCH):
                    self._send(target, batch)
                    advance(len(batch))
        replaced = guidelines is not None and self.datasets.guide(target, guidelines)
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
        """Every record with a submitted answer, as it was pushed, with a vote for each answer.
        ``ids`` limits it to these records.

        Where people have voted, votes of simulated annotators are left out and counted, unless
        ``simulated`` asks for them. A dataset that prefloop has not made is read as ``questions``
        say, or by the names of its fields and questions; see ``questions.reading_of``. ``unvoted``
        takes records without an answer too.
        """
        pulled_from = self.datasets.find(dataset, workspace)
        reading = reading_of(pulled_from, questions, votes=not unvoted)
        read = self.datasets.all if unvoted else self.datasets.answered
        ordered = sorted(read(pulled_from), key=lambda item: (item["inserted_at"], item["id"]))
        if ids is not None:
            wanted = set(ids)
            ordered = [item for item in ordered if item.get("external_id") in wanted]
        source = f"argilla:{workspace}/{dataset}"
        # A caller who names records gets them. A character such as NUL that was sampled into one is
        # no reason to lose its votes.
        people = self.datasets.people(pulled_from)
        loadable = ids is None
        return pulled(ordered, people, simulated, reading, source, unvoted, loadable)

    def simulated(self, dataset: str, workspace: str = "default") -> set[str]:
        """Names of the accounts that ``vote`` has made, among those that may have answered in the
        dataset.
        """
        people = self.datasets.people(self.datasets.find(dataset, workspace))
        return {person.name for person in people.values() if person.simulated}

    def progress(self, dataset: str, workspace: str = "default") -> Progress:
        """The number of records in all, completed and pending, and every annotator's answers."""
        labeled = self.datasets.find(dataset, workspace)
        counts, each = self.datasets.counts(labeled), self.datasets.each(labeled)
        return Progress(counts["total"], counts["completed"], counts["pending"], each)

    def states(
        self, dataset: str, ids: Sequence[str], workspace: str = "default"
    ) -> dict[str, bool]:
        """For each of these records that exists, whether it has the minimum of submitted
        answers.
        """
        items = self.datasets.lookup(self.datasets.find(dataset, workspace), ids)
        return {item["external_id"]: item["status"] == "completed" for item in items}

    def vote(
        self,
        dataset: str,
        annotator: str,
        votes: Mapping[str, Vote] | Mapping[str, Thumb],
        workspace: str = "default",
        status: Literal["submitted", "draft", "discarded"] = "submitted",
    ) -> int:
        """Answer as ``annotator`` would on screen. ``votes`` maps record ids to votes on the
        records as they were pushed. Returns the number of answers.

        This is for simulated annotators and needs an owner's key. A missing account is made; it
        carries a mark, and answers with a key of its own. An account without the mark is a person's
        and raises ``LabelError``. An earlier answer is replaced. ``at`` and the vote's own
        annotator are not sent. Raises ``DataError`` for an unknown record, and for a strength that
        the form does not have; then nothing was sent.
        """
        target = self.datasets.find(dataset, workspace)
        key = self._account(annotator, target.workspace_id)
        with Rest(dataclasses.replace(self.rest.connection, api_key=key)) as rest:
            known = self.datasets.lookup(target, list(votes))
            items = {item["external_id"]: item for item in known if of_prefloop(item)}
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
        """Ids that the dataset holds. Raises ``DataError`` for an id with other content."""
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
            # Records are made and never replaced: ``Dataset.records.log`` would put new texts under
            # existing answers.
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
            where = f"one of the records from {batch[0].id!r} on"
            where = where if at is None else f"record {batch[at].id!r}"
            raise DataError(f"Argilla does not take {where}: {why:.600}") from None

    def _account(self, name: str, workspace_id: str) -> str:
        """The API key of a user, who is made and added to the workspace where needed."""
        users = {user["username"]: user for user in self.rest.get("/users")["items"]}
        password = secrets.token_urlsafe(18)
        account = {"username": name, "first_name": name, "last_name": MARK}
        account |= {"role": "annotator", "password": password}
        user = users.get(name) or self.rest.post("/users", account)
        if user["last_name"] != MARK:
            raise LabelError(
                f"'{name}' is an account of a person at {self.rest.connection.url}, and a simulated"
                " annotator is to vote under that name: rename the annotator"
            )
        members = f"/workspaces/{workspace_id}/users"
        if user["id"] not in {member["id"] for member in self.rest.get(members)["items"]}:
            self.rest.post(members, {"user_id": user["id"]})
        return str(user["api_key"])


def by_id_of(records: Iterable[Comparison] | Iterable[Rating]) -> dict[str, Comparison | Rating]:
    """The records by id; equal ones are taken once. Raises ``DataError`` for two with one id."""
    by_id: dict[str, Comparison | Rating] = {}
    for record in records:
        if record.id in by_id and digest(by_id[record.id]) != digest(record):
            raise DataError(
                f"two records with other content have the id {record.id!r}: ids must be unique"
            )
        by_id[record.id] = record
    return by_id


def one_kind(records: Collection[Comparison | Rating], dataset: str) -> Kind:
    """The kind of the records. Raises ``DataError`` for no records, and for records of both
    kinds.
    """
    kinds = {kind_of(record) for record in records}
    if len(kinds) != 1:
        raise DataError(
            f"{'comparisons and ratings' if kinds else 'no records'} for dataset '{dataset}': push"
            " records of one kind"
        )
    return kinds.pop()


def require_takeable(records: Collection[Comparison | Rating]) -> None:
    """Raise ``DataError`` naming records that Argilla does not take."""
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
    """The place in a batch that an error is about, and what is wrong there."""
    if isinstance(detail, str):
        match = re.match(r"Record at position (\d+) is not valid because (.*)", detail, re.DOTALL)
        return (int(match[1]), match[2]) if match else (None, detail)
    try:
        error = detail["params"]["errors"][0]
        return int(error["loc"][2]), str(error["msg"])
    except (TypeError, KeyError, IndexError, ValueError):
        return None, str(detail)


def _some(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - 5} more" if len(ids) > 5 else ""
    return ", ".join(map(repr, ids[:5])) + more
