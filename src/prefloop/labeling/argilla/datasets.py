"""Look up Argilla's datasets, make them with prefloop's forms, and search them.

Workspaces, users, fields, questions and progress use Argilla's own client. docs/design.md says what
cannot, and why.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar
from uuid import UUID

from prefloop.base.console import counted
from prefloop.data.argilla_votes import ArgillaQuestion
from prefloop.errors import ConfigError, LabelError, nearest
from prefloop.labeling.argilla.connection import Refused, Rest, TooMuch
from prefloop.labeling.argilla.forms import KINDS, Kind, describe, settings

BATCH = 250  # as many values as one filter takes
PAGE = 500
LONGEST_NAME = 200
MARK = "(simulated by prefloop)"  # last name of simulated annotators
ANSWERED = ("submitted", "draft", "discarded")
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A dataset on the server."""

    id: str
    name: str
    workspace_id: str
    kind: Kind | None
    """The one of prefloop's forms that it has; ``None`` for a dataset that was made elsewhere."""
    guidelines: str | None = None
    """The annotators' guidelines."""
    fields: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Name → type, such as ``text`` and ``chat``."""
    questions: tuple[ArgillaQuestion, ...] = ()


@dataclasses.dataclass(frozen=True)
class ArgillaUser:
    """A user who may have answered."""

    name: str
    simulated: bool = False
    """Whether a program votes under this name."""


class Datasets:
    """The datasets of one server. Every method raises ``LabelError`` with the reason of a
    failure.
    """

    def __init__(self, rest: Rest) -> None:
        self.rest = rest

    def find(self, name: str, workspace: str = "default") -> Dataset:
        """The dataset of that name. Raises ``LabelError`` with the nearest name for an unknown
        one.
        """
        workspace_id = self.workspace(workspace)
        datasets = self.rest.get("/me/datasets", workspace_id=workspace_id)["items"]
        ready = {dataset["name"]: dataset for dataset in datasets if dataset["status"] == "ready"}
        if name in ready:
            return self._dataset(ready[name], workspace_id)
        names = list(ready)
        hint = nearest(name, names) if names else "it holds none; `prefloop label push` makes one"
        raise LabelError(
            f"workspace '{workspace}' at {self.rest.connection.url} holds no dataset '{name}';"
            f" {hint}"
        )

    def ensure(
        self,
        name: str,
        workspace: str,
        kind: Kind,
        guidelines: str | None,
        min_submitted: int | None,
    ) -> tuple[Dataset, bool]:
        """The published dataset, which is made or completed where needed, and whether it holds no
        record yet.

        ``guidelines`` are for a dataset that is made here. ``guide`` changes those of an existing
        one.
        """
        if not name.strip() or len(name) > LONGEST_NAME:
            raise ConfigError(
                f"the dataset's name is {name[:80]!r}; it takes 1 to {LONGEST_NAME} characters, not"
                " all blank"
            )
        if min_submitted is not None and min_submitted < 1:
            raise ConfigError(f"min_submitted is {min_submitted}; a record needs at least 1 answer")
        workspace_id = self.workspace(workspace)
        datasets = self.rest.get("/me/datasets", workspace_id=workspace_id, name=name)["items"]
        raw = next((dataset for dataset in datasets if dataset["name"] == name), None)
        if raw is None:
            body = {
                "name": name,
                "workspace_id": workspace_id,
                "guidelines": guidelines,
                "distribution": {"strategy": "overlap", "min_submitted": min_submitted or 1},
            }
            raw = self.rest.post("/datasets", body)
        id, api = str(raw["id"]), self.rest.client.api
        form = settings(kind, self.rest.client)
        has, wants = self._described(id), _wants(form)
        # A draft with part of the form is left from a push that was killed.
        draft = raw["status"] == "draft"
        partial = draft and has.items() <= wants.items()
        if not wants.items() <= has.items() and not partial:
            raise LabelError(
                f"dataset '{name}' is there with {_listed(has) or 'no fields'}, but {kind} need"
                f" {_listed(wants)}: name another dataset"
            )
        asked = raw["distribution"]["min_submitted"]
        if min_submitted not in (None, asked):
            raise LabelError(
                f"dataset '{name}' asks for {counted(asked, 'answer')} to a record, not"
                f" {min_submitted}: leave --min-submitted out, or name another dataset"
            )
        if draft:
            for what, parts, create in (
                ("field", form.fields, api.fields.create),
                ("question", form.questions, api.questions.create),
            ):
                for model in (part.api_model() for part in parts):
                    if f"{what} {model.name}" not in has:
                        model.dataset_id = UUID(id)
                        create(model)
            api.datasets.publish(id)
        dataset = Dataset(id, name, workspace_id, kind, raw.get("guidelines"))
        return dataset, draft or not self.counts(dataset)["total"]

    def guide(self, dataset: Dataset, guidelines: str) -> bool:
        """Set the annotators' guidelines. Returns whether there were others before."""
        if dataset.guidelines == guidelines:
            return False
        self.rest.call("PATCH", f"/datasets/{dataset.id}", {"guidelines": guidelines})
        return bool(dataset.guidelines)

    def counts(self, dataset: Dataset) -> dict[str, int]:
        """The number of records in ``total``, ``completed`` (with the minimum of submitted answers)
        and ``pending``.
        """
        return dict(self.rest.client.api.datasets.get_progress(dataset.id).model_dump())

    def each(self, dataset: Dataset) -> dict[str, dict[str, int]]:
        """Name → number of that person's answers by status."""
        return {
            user.username: {
                status: getattr(user.completed, status) + getattr(user.pending, status)
                for status in ANSWERED
            }
            for user in self.rest.client.api.datasets.list_users_progress(dataset.id)
        }

    def answered(self, dataset: Dataset) -> Iterator[dict[str, Any]]:
        """The server's records that have an answer of any status, with all their answers, each
        once.
        """
        yield from self._all(dataset, [_terms("response", "status", ANSWERED)])

    def all(self, dataset: Dataset) -> Iterator[dict[str, Any]]:
        """All records of the server with their answers, each once."""
        yield from self._all(dataset, [])

    def _all(self, dataset: Dataset, only: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        last: str | None = None
        seen: set[str] = set()
        limit = PAGE
        while True:
            # Pages are by id and not by offset, so that an answer which arrives or goes meanwhile
            # moves no other record to a page that was read.
            since: list[dict[str, Any]] = []
            if last is not None:
                since = [{"type": "range", "scope": _scope("record", "id"), "ge": last}]
            try:
                page = self._search(dataset, [*only, *since], limit, include="responses")
            except TooMuch:
                if limit <= 2:
                    raise
                limit = max(2, limit // 4)  # one of a page is the last of the page before
                continue
            fresh = [item for item in page if item["id"] not in seen]
            seen.update(item["id"] for item in fresh)
            yield from fresh
            if len(page) < limit or not fresh:
                return
            last = page[-1]["id"]

    def lookup(self, dataset: Dataset, ids: Sequence[str]) -> Iterator[dict[str, Any]]:
        """The server's records with these external ids."""
        for batch in batches(ids, BATCH):
            yield from self._search(dataset, [_terms("record", "external_id", batch)], BATCH)

    def _search(
        self, dataset: Dataset, filters: Sequence[Mapping[str, Any]], limit: int, **query: Any
    ) -> list[dict[str, Any]]:
        body: dict[str, Any] = {"sort": [{"scope": _scope("record", "id"), "order": "asc"}]}
        if filters:
            body["filters"] = {"and": filters}
        path = f"/datasets/{dataset.id}/records/search"
        items = self.rest.post(path, body, limit=limit, **query)["items"]
        return [item["record"] for item in items]

    def people(self, dataset: Dataset) -> dict[str, ArgillaUser]:
        """User id → user, of everyone who may have answered."""
        api = self.rest.client.api.users
        try:
            users = api.list()
        except Refused as refused:
            if refused.status != 403:
                raise
            users = api.list_by_workspace_id(dataset.workspace_id)  # what an admin may see
        return {str(user.id): ArgillaUser(user.username, user.last_name == MARK) for user in users}

    def workspace(self, name: str) -> str:
        """The id of a workspace. Raises ``LabelError`` with the nearest name for an unknown one."""
        ids = {workspace.name: workspace.id for workspace in self.rest.client.api.workspaces.list()}
        if name not in ids:
            hint = nearest(name, ids) if ids else "this key sees none"
            raise LabelError(
                f"there is no workspace '{name}' at {self.rest.connection.url};"
                f" {hint}{'' if hint.endswith('?') else '.'} `prefloop label users add NAME"
                f" --workspace {name or 'WORKSPACE'} --new-workspace` makes it on a server of"
                " your own"
            )
        return str(ids[name])

    def _dataset(self, raw: Mapping[str, Any], workspace_id: str) -> Dataset:
        api, id = self.rest.client.api, str(raw["id"])
        fields, asked = api.fields.list(id), api.questions.list(id)
        has = describe(fields, asked)
        # An owner may have added a question.
        kind = next(
            (k for k in KINDS if _wants(settings(k, self.rest.client)).items() <= has.items()), None
        )
        questions = tuple(
            ArgillaQuestion(
                q.name,
                q.settings.type,
                tuple(o["value"] for o in getattr(q.settings, "options", ())),
            )
            for q in asked
        )
        types = {field.name: str(field.settings.type) for field in fields}
        name, guidelines = str(raw["name"]), raw.get("guidelines")
        return Dataset(id, name, workspace_id, kind, guidelines, types, questions)

    def _described(self, id: str) -> dict[str, str]:
        api = self.rest.client.api
        return describe(api.fields.list(id), api.questions.list(id))


def _wants(form: Any) -> dict[str, str]:
    parts = ([part.api_model() for part in parts] for parts in (form.fields, form.questions))
    return describe(*parts)


def batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """The items in order, in batches of ``size``."""
    return (items[start : start + size] for start in range(0, len(items), size))


def _scope(entity: str, property: str) -> dict[str, str]:
    return {"entity": entity, "property": property}


def _terms(entity: str, property: str, values: Iterable[str]) -> dict[str, Any]:
    return {"type": "terms", "scope": _scope(entity, property), "values": list(values)}


def _listed(settings: Mapping[str, str]) -> str:
    return ", ".join(f"{name} ({type})" for name, type in settings.items())
