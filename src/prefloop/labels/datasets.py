"""Argilla's datasets of prefloop's forms: found, made, and searched."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from prefloop.console import counted
from prefloop.errors import ConfigError, LabelError, nearest
from prefloop.labels.connection import Refused, Rest
from prefloop.labels.forms import FORMS, Kind, describe

BATCH = 250  # as many values as one filter takes
PAGE = 500
LONGEST_NAME = 200
MARK = "(simulated by prefloop)"  # last name of simulated annotators
ANSWERED = ("submitted", "draft", "discarded")
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A dataset on the server that holds prefloop's form."""

    id: str
    name: str
    workspace_id: str
    kind: Kind
    guidelines: str | None = None
    """What annotators are told."""


@dataclasses.dataclass(frozen=True)
class Person:
    """Who may have answered."""

    name: str
    simulated: bool = False
    """A program votes under this name."""


class Datasets:
    """The datasets of one server. Every method raises ``LabelError`` saying what is in the way."""

    def __init__(self, rest: Rest) -> None:
        self.rest = rest

    def find(self, name: str, workspace: str = "default") -> Dataset:
        """The dataset; an unknown one is a ``LabelError`` that says the nearest name."""
        place = self.workspace(workspace)
        there = self.rest.get("/me/datasets", workspace_id=place)["items"]
        for dataset in there:
            if dataset["name"] == name and dataset["status"] == "ready":
                kind = self._kind_of(dataset["id"], name)
                return Dataset(dataset["id"], name, place, kind, dataset.get("guidelines"))
        names = [dataset["name"] for dataset in there if dataset["status"] == "ready"]
        hint = nearest(name, names) if names else "it holds none; `prefloop label push` makes one"
        raise LabelError(f"workspace '{workspace}' at {self.rest.connection.url} holds no dataset '{name}'; {hint}")

    def ensure(
        self, name: str, workspace: str, kind: Kind, guidelines: str | None, min_submitted: int | None
    ) -> tuple[Dataset, bool]:
        """The published dataset, made or completed when need be, and whether it holds no record yet.

        ``guidelines`` are those of one that is made; ``guide`` changes those of another.
        """
        if not name.strip() or len(name) > LONGEST_NAME:
            raise ConfigError(
                f"the dataset's name is {name[:80]!r}; it takes 1 to {LONGEST_NAME} characters, not all blank"
            )
        if min_submitted is not None and min_submitted < 1:
            raise ConfigError(f"min_submitted is {min_submitted}; a record needs at least 1 answer")
        place = self.workspace(workspace)
        there = self.rest.get("/me/datasets", workspace_id=place, name=name)["items"]
        found = next((dataset for dataset in there if dataset["name"] == name), None)
        if found is None:
            distribution = {"strategy": "overlap", "min_submitted": min_submitted or 1}
            body = {"name": name, "workspace_id": place, "guidelines": guidelines, "distribution": distribution}
            found = self.rest.post("/datasets", body)
        id, form = str(found["id"]), FORMS[kind]
        has = self._settings(id)
        wants = form.describe()
        # A draft with a part of the form is what a push that was killed has left.
        if not wants.items() <= has.items() and not (found["status"] == "draft" and has.items() <= wants.items()):
            raise LabelError(
                f"dataset '{name}' is there with {_listed(has) or 'no fields'}, but {kind} need {_listed(wants)}: name another dataset"
            )
        asked = found["distribution"]["min_submitted"]
        if min_submitted not in (None, asked):
            raise LabelError(
                f"dataset '{name}' asks for {counted(asked, 'answer')} to a record, not {min_submitted}: "
                "leave --min-submitted out, or name another dataset"
            )
        if found["status"] == "draft":
            for part, path in ((form.fields, "fields"), (form.questions, "questions")):
                for body in part:
                    if f"{path[:-1]} {body['name']}" not in has:
                        self.rest.post(f"/datasets/{id}/{path}", body)
            self.rest.call("PUT", f"/datasets/{id}/publish")
        dataset = Dataset(id, name, place, kind, found.get("guidelines"))
        return dataset, found["status"] == "draft" or not self.counts(dataset)["total"]

    def guide(self, dataset: Dataset, guidelines: str) -> bool:
        """Give annotators these guidelines; whether they had others before."""
        if dataset.guidelines == guidelines:
            return False
        self.rest.call("PATCH", f"/datasets/{dataset.id}", {"guidelines": guidelines})
        return bool(dataset.guidelines)

    def counts(self, dataset: Dataset) -> dict[str, int]:
        """Records in ``total``, ``completed`` by the minimum of submitted answers, and ``pending``."""
        found = self.rest.get(f"/datasets/{dataset.id}/progress")
        return {name: int(found[name]) for name in ("total", "completed", "pending")}

    def answered(self, dataset: Dataset, ids: Collection[str] | None = None) -> Iterator[dict[str, Any]]:
        """The server's records that have an answer of any status, with all answers, each once; ``ids`` (at most 250) are Argilla's own."""
        only: list[dict[str, Any]] = [_terms("response", "status", ANSWERED)]
        if ids is not None:
            only.append(_terms("record", "id", ids))
        last: str | None = None
        seen: set[str] = set()
        while True:
            # Pages by id rather than by offset: an answer that arrives or goes meanwhile moves no other record to a page that was read.
            since = [] if last is None else [{"type": "range", "scope": _scope("record", "id"), "ge": last}]
            page = self._search(dataset, [*only, *since], PAGE, include="responses")
            fresh = [item for item in page if item["id"] not in seen]
            seen.update(item["id"] for item in fresh)
            yield from fresh
            if len(page) < PAGE or not fresh:
                return
            last = page[-1]["id"]

    def lookup(self, dataset: Dataset, ids: Sequence[str]) -> Iterator[dict[str, Any]]:
        """The server's records with these external ids."""
        for batch in batches(ids, BATCH):
            yield from self._search(dataset, [_terms("record", "external_id", batch)], BATCH)

    def _search(
        self, dataset: Dataset, filters: Sequence[Mapping[str, Any]], limit: int, **query: Any
    ) -> list[dict[str, Any]]:
        body = {"filters": {"and": filters}, "sort": [{"scope": _scope("record", "id"), "order": "asc"}]}
        found = self.rest.post(f"/datasets/{dataset.id}/records/search", body, limit=limit, **query)
        return [item["record"] for item in found["items"]]

    def people(self, dataset: Dataset) -> dict[str, Person]:
        """User id → everyone who may have answered."""
        try:
            users = self.rest.get("/users")["items"]
        except Refused as refused:
            if refused.status != 403:
                raise
            users = self.rest.get(f"/workspaces/{dataset.workspace_id}/users")["items"]  # what an admin may see
        return {user["id"]: Person(user["username"], user["last_name"] == MARK) for user in users}

    def workspace(self, name: str) -> str:
        """Id of a workspace; an unknown one is a ``LabelError`` that says the nearest name."""
        ids = {workspace["name"]: workspace["id"] for workspace in self.rest.get("/me/workspaces")["items"]}
        if name not in ids:
            hint = nearest(name, ids) if ids else "this key sees none"
            raise LabelError(
                f"there is no workspace '{name}' at {self.rest.connection.url}; {hint}{'' if hint.endswith('?') else '.'} "
                f"`prefloop label users add NAME --workspace {name or 'WORKSPACE'} --new-workspace` makes it on a server of your own"
            )
        return str(ids[name])

    def _settings(self, id: str) -> dict[str, str]:
        fields = self.rest.get(f"/datasets/{id}/fields")["items"]
        return describe(fields, self.rest.get(f"/datasets/{id}/questions")["items"])

    def _kind_of(self, id: str, name: str) -> Kind:
        found = self._settings(id)
        for kind, form in FORMS.items():
            if form.describe().items() <= found.items():  # an owner may have added a question
                return kind
        raise LabelError(
            f"dataset '{name}' was not made by `prefloop label push`: it has {_listed(found)}; name another dataset"
        )


def batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """The items in order, ``size`` at a time."""
    return (items[start : start + size] for start in range(0, len(items), size))


def _scope(entity: str, property: str) -> dict[str, str]:
    return {"entity": entity, "property": property}


def _terms(entity: str, property: str, values: Iterable[str]) -> dict[str, Any]:
    return {"type": "terms", "scope": _scope(entity, property), "values": list(values)}


def _listed(settings: Mapping[str, str]) -> str:
    return ", ".join(f"{name} ({type})" for name, type in settings.items())
