"""Convert records to Argilla's own objects and back, for programs that use its SDK together with
prefloop.

``to_argilla`` returns the settings and records that ``prefloop label push`` would make, so that
datasets of both are the same. ``from_argilla`` takes a dataset on a server, records of the SDK, or
rows that Argilla has exported.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefloop.base.console import say
from prefloop.data.argilla_own import own_record
from prefloop.data.argilla_rows import item_of
from prefloop.data.argilla_votes import HIDDEN, ArgillaQuestion, Item, records_of, row_of
from prefloop.data.check import BadRow
from prefloop.data.row import Notes
from prefloop.errors import DataError, LabelError
from prefloop.labeling.argilla.connection import Connection
from prefloop.labeling.argilla.datasets import Dataset
from prefloop.labeling.argilla.forms import settings, to_rg, to_values
from prefloop.labeling.argilla.pulled import check_loadable, said_mended
from prefloop.labeling.argilla.questions import reading_of
from prefloop.labeling.argilla.records import Argilla, by_id_of, one_kind, require_takeable
from prefloop.records import Comparison, Rating, Record, Thumb, Vote

if TYPE_CHECKING:
    import argilla as rg


@dataclasses.dataclass(frozen=True)
class Converted:
    """The arguments of ``rg.Dataset(name, settings=…)`` and ``dataset.records.log(…)``."""

    settings: rg.Settings
    records: list[rg.Record]


def to_argilla(
    records: Iterable[Comparison] | Iterable[Rating],
    dataset: str,
    *,
    client: rg.Argilla | None = None,
    users: Mapping[str, UUID | str] | None = None,
) -> Converted:
    """Convert pairs or ratings for a dataset of the name ``dataset``. The name decides which
    response is shown left.

    Votes are kept in the records' hidden metadata and come back unchanged. Votes of annotators in
    ``users`` (name → id of a user of the server) become submitted answers instead, which Argilla's
    pages show; these come back without ``at``, which the server sets. ``client`` defaults to the
    SDK's default client. Raises ``DataError`` for records that Argilla does not take, for two kinds
    at once, and for a strength in an answer that is not 1, 2 or 3; ``LabelError`` without a client.
    """
    import argilla as rg

    client = client or getattr(rg.Argilla, "_default_client", None)
    if client is None:
        raise LabelError(
            "Argilla's SDK makes fields and questions for a client: make one first,"
            " rg.Argilla(api_url=…, api_key=…)"
        )
    by_id = by_id_of(records)
    kind = one_kind(by_id.values(), dataset)
    require_takeable(by_id.values())
    ids = {name: UUID(str(id)) for name, id in (users or {}).items()}
    return Converted(
        settings(kind, client), [_with_votes(record, dataset, ids) for record in by_id.values()]
    )


def _with_votes(record: Comparison | Rating, dataset: str, users: Mapping[str, UUID]) -> rg.Record:
    import argilla as rg

    made = to_rg(record, dataset)
    hidden = made.metadata[HIDDEN]
    answered: set[str] = set()
    carried: list[Vote | Thumb] = []
    for vote in record.votes:
        if vote.annotator not in users or vote.annotator in answered:
            carried.append(vote)  # Argilla keeps one answer of each user to a record
            continue
        answered.add(vote.annotator)
        for name, value in to_values(vote, hidden.get("swapped", False)).items():
            made.responses.add(
                rg.Response(name, value["value"], users[vote.annotator], status="submitted")
            )
    if carried:
        hidden["votes"] = [dataclasses.asdict(vote) for vote in carried]
    return made


def from_argilla(
    source: rg.Dataset | Iterable[rg.Record] | Iterable[Mapping[str, Any]],
    *,
    questions: Sequence[str] = (),
    users: Mapping[str, str] | None = None,
    simulated: bool = False,
) -> list[Record]:
    """The records of a dataset, with a vote for every submitted answer, and also those without
    votes.

    An ``rg.Dataset`` is read from its server, with everything that the SDK's own records leave out
    (ranks, times, names). ``rg.Record`` objects and rows of an export name annotators by id:
    ``users`` maps ids to names. ``questions`` is as ``--questions`` of ``prefloop label pull``.
    Raises ``DataError`` naming records that cannot be used, and where it is not clear what a
    question means.
    """
    if hasattr(source, "settings") and hasattr(source, "records"):
        return _of_server(source, questions, simulated)
    items = [_item(one, users or {}) for one in source]
    of_others = {id: (item, asked) for id, item, asked in items if HIDDEN not in item.meta}
    if len({id for id, _, _ in items}) < len(items):
        raise DataError("two records have one id: convert the records of one dataset at a time")
    reading = None
    if of_others:
        values = (pair for item, _ in of_others.values() for pair in item.fields.items())
        fields = {name: "text" for name, value in values if _is_text(value)}
        asked = _joined(question for _, each in of_others.values() for question in each)
        dataset = Dataset("", "of these records", "", None, None, fields, asked)
        reading = reading_of(dataset, questions, votes=False)
    records: list[Record] = []
    notes = Notes()
    mended = 0
    for id, typed, _ in items:
        item, changed = typed.mended()
        mended += changed
        try:
            if reading is None or HIDDEN in item.meta:
                made: list[Record] = [own_record(item, id)]
            else:
                row = row_of(item, reading, id, "argilla")
                made = records_of(item, reading, row)
                notes.add(row)
            check_loadable(made)
            records += made
        except BadRow as bad:
            raise DataError(f"record '{id}': {bad.field} {bad.problem}") from None
    for line in [*notes.lines(), *said_mended(mended)]:
        say(f"  {line}", "dim")
    return records


def _of_server(dataset: Any, questions: Sequence[str], simulated: bool) -> list[Record]:
    client = dataset._client
    connection = Connection.find(url=client.api_url, api_key=client.api_key)
    with Argilla(connection) as argilla:
        name, workspace = str(dataset.name), str(dataset.workspace.name)
        pulled = argilla.pull(
            name, workspace, simulated=simulated, questions=questions, unvoted=True
        )
    if pulled.refused:
        id, why = pulled.refused[0]
        raise DataError(
            f"dataset '{name}': {len(pulled.refused)} records cannot be used, the first '{id}':"
            f" {why}"
        )
    return list(pulled.records)


def _item(one: Any, users: Mapping[str, str]) -> tuple[str, Item, Sequence[ArgillaQuestion]]:
    """The id, fields and answers of an ``rg.Record`` or of an exported row, and its questions as
    far as they are known.
    """
    if isinstance(one, Mapping):
        ids = (one.get(key) for key in ("id", "external_id", "_server_id"))
        id = next((str(value) for value in ids if value is not None), "")
        row = {key: value for key, value in one.items() if value is not None}
    else:
        id, row = str(one.id), _row(one)
    try:
        item, asked = item_of(row, "argilla")
    except BadRow as bad:
        raise DataError(f"record '{id}': {bad.field} {bad.problem}") from None
    answers = [
        dataclasses.replace(answer, annotator=users.get(answer.annotator, answer.annotator))
        for answer in item.answers
    ]
    return id, dataclasses.replace(item, answers=answers), _questions(one) or asked


def _row(record: rg.Record) -> dict[str, Any]:
    """An ``rg.Record`` as the SDK exports it, with the status of every answer. An answer without a
    status is a draft, as in the SDK.
    """
    by_question: dict[str, list[dict[str, Any]]] = {}
    for response in record.responses:
        status = str(getattr(response.status, "value", response.status) or "draft")
        by_question.setdefault(response.question_name, []).append(
            {"value": response.value, "user_id": str(response.user_id), "status": status}
        )
    return {
        "fields": record.fields.to_dict(),
        "metadata": dict(record.metadata),
        "responses": by_question,
    }


def _questions(one: Any) -> list[ArgillaQuestion]:
    """The questions of the dataset to which an ``rg.Record`` belongs, with all their values."""
    dataset = None if isinstance(one, Mapping) else one.dataset
    if dataset is None:
        return []
    models = [question.api_model() for question in dataset.settings.questions]
    return [
        ArgillaQuestion(
            m.name, m.settings.type, tuple(o["value"] for o in getattr(m.settings, "options", ()))
        )
        for m in models
    ]


def _joined(questions: Iterable[ArgillaQuestion]) -> tuple[ArgillaQuestion, ...]:
    """Each question once, with the values from all records."""
    questions_by_name: dict[str, ArgillaQuestion] = {}
    for question in questions:
        known = questions_by_name.setdefault(question.name, question)
        type = known.type if known.type == question.type else "text"
        options = tuple(dict.fromkeys([*known.options, *question.options]))
        questions_by_name[question.name] = dataclasses.replace(known, type=type, options=options)
    return tuple(questions_by_name.values())


def _is_text(value: Any) -> bool:
    return isinstance(value, str | list)
