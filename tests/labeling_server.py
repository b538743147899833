"""A real Argilla for tests, in the environment of `make test` or one that is made on the first use,
and its users.
"""

import contextlib
import itertools
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
from ports import free_port

from prefloop.labeling import server
from prefloop.labeling.argilla.connection import Connection
from prefloop.labeling.argilla.records import Argilla
from prefloop.records import Comparison, Message, Rating, Response

ROOT = Path(__file__).resolve().parents[1]
_names = itertools.count(1)


def until(condition: Callable[[], Any], seconds: float = 300) -> Any:
    """What the condition gives once that is true; a condition that never comes true fails after
    minutes instead of hanging.
    """
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {condition}"
        time.sleep(0.02)
    return found


def comparisons(count: int, start: int = 0) -> list[Comparison]:
    """Pairs whose texts say which one they are."""
    return [
        Comparison(
            f"pair/{i}",
            [
                Message("system", "Be brief."),
                Message("user", f"Question {i}? <b>&amp;lt; & ünï 🌍</b>"),
            ],
            [Response(f"first {i}", "sft", {"n": i}), Response(f"second {i}", "base")],
            meta={"topic": ["a", None, 1.5]},
        )
        for i in range(start, start + count)
    ]


def ratings(count: int) -> list[Rating]:
    return [
        Rating(f"r{i}", [Message("user", f"Q {i}")], Response(f"answer {i}", "sft"))
        for i in range(count)
    ]


class Annotator:
    """A user who sees what Argilla's pages are given: the queue, without what is hidden."""

    def __init__(self, url: str, key: str, name: str, password: str) -> None:
        self.name, self.password = name, password
        self.client = httpx.Client(
            base_url=f"{url}/api/v1",
            headers={"X-Argilla-Api-Key": key},
            timeout=300,
            trust_env=False,
        )

    def queue(self, dataset_id: str) -> list[dict[str, Any]]:
        """All records, as the annotator's own queue shows them."""
        answer = self.client.post(
            f"/me/datasets/{dataset_id}/records/search", params={"limit": 1000}, json={}
        )
        assert answer.status_code == 200, answer.text
        return [item["record"] for item in answer.json()["items"]]

    def answer(self, record: str, status: str = "submitted", **values: str) -> httpx.Response:
        body = {
            "status": status,
            "values": {name: {"value": value} for name, value in values.items()} or None,
        }
        return self.client.post(f"/records/{record}/responses", json=body)


class Labeling:
    """A running server with its owner's eyes."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.connection = Connection.find(home=home)
        self.argilla = Argilla(self.connection)
        self.url = self.connection.url

    @staticmethod
    def name() -> str:
        """A dataset name or user name that no other test has."""
        return f"n{next(_names)}"

    def user(self, name: str | None = None, role: str = "annotator") -> Annotator:
        """An account as `label users add` makes it, without the seconds that a command takes."""
        name, rest = name or self.name(), self.argilla.rest
        account = {
            "username": name,
            "first_name": name,
            "role": role,
            "password": secrets.token_urlsafe(18),
        }
        made = rest.post("/users", account)
        (workspace,) = (
            found["id"]
            for found in rest.get("/me/workspaces")["items"]
            if found["name"] == "default"
        )
        rest.post(f"/workspaces/{workspace}/users", {"user_id": made["id"]})
        return Annotator(self.url, made["api_key"], name, account["password"])

    def pid(self, process: str = "server") -> int:
        return int(
            json.loads(server.run(["status", "--home", str(self.home)])[1])["processes"][process]
        )


def environment() -> None:
    """Name the server's environment: the one of `make test`, else one that is made once in an
    ignored folder of the checkout.
    """
    ready = ROOT / ".venv-labeling" / "bin" / "python"
    if server.PYTHON_VARIABLE not in os.environ and ready.exists():
        os.environ[server.PYTHON_VARIABLE] = str(ready)
    elif server.PYTHON_VARIABLE not in os.environ:
        os.environ["XDG_DATA_HOME"] = str(ROOT / "runs" / ".labeling")


def up(home: Path, *options: str) -> Labeling:
    server.run(["up", "--home", str(home), "--port", str(free_port()), *options])
    return Labeling(home)


@contextlib.contextmanager
def running(home: Path) -> Iterator[Labeling]:
    environment()
    try:
        yield up(home)
    finally:
        server.run(["down", "--home", str(home)])
