"""One real server for all tests of a session, and short names for calls of its REST API."""

import itertools
import os
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Argilla makes its home when it is imported; the tests that import it must not touch the user's.
os.environ["ARGILLA_HOME_PATH"] = tempfile.mkdtemp(prefix="prefloop-labeling-tests-")
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import httpx
import pytest
from prefloop_labeling import server as labeling_server
from prefloop_labeling.home import Home
from prefloop_labeling.users import add_user

_names = itertools.count()


def free_port() -> int:
    """A port that nobody else is given for a minute: its last connection waits out, and only a
    server that asks for reuse may bind it.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", 0))
        probe.listen(1)
        with (
            socket.create_connection(probe.getsockname()) as client,
            probe.accept()[0],
        ):  # left first, so here it waits
            return int(client.getpeername()[1])


def client_of(url: str, api_key: str | None) -> httpx.Client:
    headers = {"X-Argilla-Api-Key": api_key} if api_key else {}
    return httpx.Client(base_url=f"{url}/api/v1", headers=headers, timeout=300, trust_env=False)


@dataclass
class Account:
    """A user with a client that calls as them."""

    id: str
    username: str
    client: httpx.Client

    def respond(self, record_id: str, status: str = "submitted", **values: Any) -> httpx.Response:
        body = {
            "status": status,
            "values": {name: {"value": value} for name, value in values.items()} or None,
        }
        return self.client.post(f"/records/{record_id}/responses", json=body)


@dataclass
class Dataset:
    """A published dataset, seen with the owner's eyes unless an account is given."""

    id: str
    owner: httpx.Client

    def log(self, *records: dict[str, Any]) -> list[str]:
        """Log records; returns their ids in order."""
        answer = self.owner.post(f"/datasets/{self.id}/records/bulk", json={"items": list(records)})
        assert answer.status_code == 201, answer.text
        return [record["id"] for record in answer.json()["items"]]

    def post_search(
        self, account: Account | None = None, offset: int = 0, limit: int = 1000, **body: Any
    ) -> httpx.Response:
        client, prefix = (account.client, "/me") if account else (self.owner, "")
        path = f"{prefix}/datasets/{self.id}/records/search"
        return client.post(path, params={"offset": offset, "limit": limit}, json=body)

    def search(self, account: Account | None = None, **rest: Any) -> dict[str, Any]:
        answer = self.post_search(account, **rest)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def found(self, account: Account | None = None, **rest: Any) -> list[str]:
        """External ids of what a search finds, in order."""
        result = self.search(account, **rest)
        return [item["record"]["external_id"] for item in result["items"]]

    def filtered(self, *filters: dict[str, Any], account: Account | None = None) -> list[str]:
        """Sorted external ids of the records that pass all filters."""
        return sorted(self.found(account, filters={"and": list(filters)}))

    def text(self, query: str, field: str | None = None) -> list[str]:
        """Sorted external ids of the records that a text query finds."""
        return sorted(
            self.found(query={"text": {"q": query, **({"field": field} if field else {})}})
        )


def terms(scope: dict[str, Any], *values: Any) -> dict[str, Any]:
    return {"type": "terms", "scope": scope, "values": list(values)}


def between(scope: dict[str, Any], ge: Any = None, le: Any = None) -> dict[str, Any]:
    return {"type": "range", "scope": scope, "ge": ge, "le": le}


def record_scope(property: str) -> dict[str, Any]:
    return {"entity": "record", "property": property}


def response_scope(question: str | None = None) -> dict[str, Any]:
    return (
        {"entity": "response", "question": question}
        if question
        else {"entity": "response", "property": "status"}
    )


def suggestion_scope(question: str, property: str = "value") -> dict[str, Any]:
    return {"entity": "suggestion", "question": question, "property": property}


def metadata_scope(name: str) -> dict[str, Any]:
    return {"entity": "metadata", "metadata_property": name}


class Server:
    """A running server with its owner's client."""

    def __init__(self, running: labeling_server.Running) -> None:
        self.running, self.home, self.url = running, Home(running.home), running.url
        self.owner = client_of(self.url, self.home.credentials()["owner"]["api_key"])
        self.workspace_id = self.owner.get("/me/workspaces").json()["items"][0]["id"]

    def user(self, role: str = "annotator") -> Account:
        account = add_user(self.home.path, f"{role}-{next(_names)}", role).account
        client = client_of(self.url, account["api_key"])
        return Account(client.get("/me").json()["id"], account["username"], client)

    def draft(self, min_submitted: int = 1) -> Dataset:
        body = {"name": f"dataset-{next(_names)}", "workspace_id": self.workspace_id}
        distribution = {"strategy": "overlap", "min_submitted": min_submitted}
        answer = self.owner.post("/datasets", json={**body, "distribution": distribution})
        assert answer.status_code == 201, answer.text
        return Dataset(answer.json()["id"], self.owner)

    def dataset(
        self,
        fields: dict[str, str] | None = None,
        questions: dict[str, dict[str, Any]] | None = None,
        metadata: dict[str, str] | None = None,
        vectors: dict[str, int] | None = None,
        min_submitted: int = 1,
    ) -> Dataset:
        """A published dataset: field name → type, question name → settings, metadata name → type,
        vector name → length.
        """
        dataset = self.draft(min_submitted)
        kinds = {kind: {"type": kind} for kind in ("text", "chat", "image")}
        kinds["custom"] = {"type": "custom", "template": "<p></p>", "advanced_mode": False}
        parts = [
            (
                "fields",
                {"name": name, "title": name, "required": number == 0, "settings": kinds[kind]},
            )
            for number, (name, kind) in enumerate((fields or {"prompt": "text"}).items())
        ]
        parts += [
            ("questions", {"name": name, "title": name, "required": True, "settings": settings})
            for name, settings in (questions or {"choice": labels("a", "b", "tie")}).items()
        ]
        parts += [
            ("metadata-properties", {"name": name, "title": name, "settings": {"type": kind}})
            for name, kind in (metadata or {}).items()
        ]
        parts += [
            ("vectors-settings", {"name": name, "title": name, "dimensions": length})
            for name, length in (vectors or {}).items()
        ]
        for path, body in parts:
            answer = self.owner.post(f"/datasets/{dataset.id}/{path}", json=body)
            assert answer.status_code == 201, answer.text
        answer = self.owner.put(f"/datasets/{dataset.id}/publish")
        assert answer.status_code == 200, answer.text
        return dataset

    def question_id(self, dataset: Dataset, name: str) -> str:
        questions = self.owner.get(f"/datasets/{dataset.id}/questions").json()["items"]
        return next(question["id"] for question in questions if question["name"] == name)


def labels(*values: str, type: str = "label_selection") -> dict[str, Any]:
    options = {"options": [{"value": value, "text": value} for value in values]}
    return {"type": type, **options}


def rating(largest: int = 10) -> dict[str, Any]:
    return {"type": "rating", "options": [{"value": value} for value in range(largest + 1)]}


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home: Path = tmp_path_factory.mktemp("home")
    running = labeling_server.up(home, port=free_port())
    try:
        yield Server(running)
    finally:
        labeling_server.down(home)


@pytest.fixture(scope="session")
def ann(server: Server) -> Account:
    return server.user()


@pytest.fixture(scope="session")
def ben(server: Server) -> Account:
    return server.user()
