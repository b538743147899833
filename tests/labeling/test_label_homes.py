"""Homes beside each other: a copy is never taken for the original, a backup holds every vote, a key
goes to no stranger.
"""

import hashlib
import hmac
import http.server
import json
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from labeling_server import Annotator, Labeling, comparisons, up

from prefloop.cli import _main, guarded
from prefloop.errors import LabelError
from prefloop.labeling import server
from prefloop.labeling.argilla import connection as connections
from prefloop.labeling.argilla.connection import Connection, Rest, Unreachable
from prefloop.labeling.argilla.records import Argilla


def label(*arguments: object) -> int:
    return guarded(_main, ["label", *map(str, arguments)])


def accounts(home: Path) -> dict[str, Any]:
    return json.loads((home / "credentials.json").read_text())


def test_a_home_that_lost_its_accounts_is_not_called_new(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="no labeling server has run in"):
        Connection.of_home(tmp_path)
    (tmp_path / "argilla.db").touch()
    with pytest.raises(LabelError, match=r"its credentials\.json is missing: restore a backup"):
        Connection.of_home(tmp_path)


@pytest.mark.slow
def test_what_is_done_to_a_copy_of_a_running_home_is_not_done_to_the_home(
    labeling: Labeling, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, copy = labeling.name(), tmp_path / "copy"
    labeling.argilla.push(comparisons(3), dataset)
    shutil.copytree(
        labeling.home,
        copy,
        ignore=lambda _, names: [name for name in names if name.endswith(".sock")],
    )
    pid = labeling.pid()
    (tmp_path / "pairs.jsonl").write_text(
        json.dumps({"prompt": "Q?", "responses": ["yes", "no"]}) + "\n"
    )
    push = ("push", tmp_path / "pairs.jsonl", "--dataset", dataset, "--home", copy)
    assert label(*push) == 2
    assert f"no labeling server has run in {copy}, a copy of {labeling.home}" in " ".join(
        capsys.readouterr().err.split()
    )
    assert label("down", "--home", copy) == 0 and "nothing runs" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="1"):
        label("status", "--home", copy)
    try:
        assert label("up", "--home", copy) == 0
        assert label(*push) == 0, capsys.readouterr().err
        beside = Labeling(copy)
        assert beside.url != labeling.url
        assert (
            beside.argilla.progress(dataset).total == 4
            and labeling.argilla.progress(dataset).total == 3
        )
        assert label("users", "add", "only-in-the-copy", "--home", copy) == 0
        assert "only-in-the-copy" not in accounts(labeling.home)["users"]
    finally:
        label("down", "--home", copy)
    assert labeling.pid() == pid and labeling.argilla.progress(dataset).total == 3


@pytest.mark.slow
def test_a_backup_amid_submits_restores_every_vote_acknowledged_before_it(
    labeling: Labeling, tmp_path: Path
) -> None:
    dataset, home, before = labeling.name(), tmp_path / "restored", tmp_path / "before.jsonl"
    labeling.argilla.push(comparisons(60), dataset)
    person = labeling.user()
    shown = person.queue(labeling.argilla.datasets.find(dataset).id)
    for record in shown[:20]:
        assert person.answer(record["id"], preferred="A", why=f"b{record['id']}").status_code == 201
    assert label("pull", "--dataset", dataset, "--home", labeling.home, "--output", before) == 0
    done = threading.Event()

    def go_on(person: Annotator) -> None:
        for record in shown[20:]:
            assert person.answer(record["id"], preferred="B").status_code == 201
        done.set()

    thread = threading.Thread(target=go_on, args=[person])
    thread.start()
    assert label("backup", tmp_path / "b.tar", "--home", labeling.home) == 0
    thread.join()
    assert done.is_set(), "nobody had to wait for the backup"
    try:
        assert label("restore", tmp_path / "b.tar", "--home", home) == 0
        assert accounts(home) == accounts(labeling.home)
        restored = up(home, "--no-worker")
        after = tmp_path / "after.jsonl"
        assert label("pull", "--dataset", dataset, "--home", home, "--output", after) == 0
        assert set(before.read_bytes().splitlines()) <= set(after.read_bytes().splitlines())
        account = {"username": person.name, "password": person.password}
        assert (
            httpx.post(f"{restored.url}/api/v1/token", data=account, trust_env=False).status_code
            == 201
        )
    finally:
        label("down", "--home", home)
    assert labeling.argilla.pull(dataset).votes == 60


class Stranger:
    """Listens where a home's server did, keeps every byte that it hears, and answers what it is
    told to.
    """

    def __init__(self, home: Path) -> None:
        self.home, self.heard, self.proves, self.closes = home, b"", False, False
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.heard += f"{self.path}\n{self.headers}".encode()
                proof = outer.proof(self.path.partition("?")[2]) if outer.proves else "0" * 64
                body = b"" if self.path.startswith("/prefloop") else b'{"items": []}'
                self.send_response(200)
                self.send_header("Prefloop-Proof", proof)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                if outer.closes and body:
                    self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def proof(self, nonce: str) -> str:
        """What the server's own package would answer (labeling/tests/test_guard.py holds the two to
        each other by a real server).
        """
        status = os.stat(self.home)
        asked = f"prefloop proof\n{nonce}\n{status.st_dev}:{status.st_ino}\n{self.port}"
        return hmac.new(b"s" * 64, asked.encode(), hashlib.sha256).hexdigest()


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[Stranger]:
    home = tmp_path / "home"
    home.mkdir()
    (home / "auth-secret").write_text("s" * 64)
    (home / "credentials.json").write_text(json.dumps({"owner": {"api_key": "key-of-the-owner"}}))
    listening = Stranger(home)
    there = os.stat(home)
    of = {"path": os.path.realpath(home), "device": there.st_dev, "inode": there.st_ino}
    (home / "server.json").write_text(
        json.dumps({"url": f"http://127.0.0.1:{listening.port}", "home": of})
    )
    yield listening
    listening.server.shutdown()
    listening.server.server_close()


def test_whoever_listens_on_the_port_of_a_home_gets_no_key(
    stranger: Stranger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pairs.jsonl").write_text(
        json.dumps({"prompt": "Q?", "responses": ["yes", "no"]}) + "\n"
    )
    where = ("--dataset", "d", "--home", stranger.home)
    for command in (
        ("push", tmp_path / "pairs.jsonl", *where),
        ("pull", *where, "--output", tmp_path / "out.jsonl"),
        ("pull", *where, "--output", tmp_path / "out.jsonl", "--every", 60),
        ("pull", *where, "--output", tmp_path / "out.jsonl", "--api-key", "key-of-the-owner"),
    ):
        assert label(*command) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert (
            "another program listens at" in said
            and "no key was sent to it" in said
            and "label up --home" in said
        )
    assert (
        stranger.heard.count(b"/prefloop/proof?") == 4 and b"key-of-the-owner" not in stranger.heard
    )


def test_a_run_that_waits_takes_a_stranger_for_a_server_that_is_away(stranger: Stranger) -> None:
    with pytest.raises(Unreachable), Rest(Connection.find(stranger.home)) as rest:
        rest.get("/me")


@pytest.mark.parametrize("closes", [False, True])
def test_a_connection_that_is_opened_again_is_asked_again(stranger: Stranger, closes: bool) -> None:
    stranger.proves, stranger.closes = True, closes
    with Rest(Connection.find(stranger.home)) as rest:
        assert rest.get("/workspaces") == {"items": []} and b"key-of-the-owner" in stranger.heard
        asked = stranger.heard.count(b"/prefloop/proof?")
        stranger.proves, stranger.heard = False, b""
        if closes:
            with pytest.raises(Unreachable, match="no key was sent"):
                rest.get("/workspaces")
            assert b"key-of-the-owner" not in stranger.heard
        else:
            assert rest.get("/workspaces") == {"items": []} and asked == 1


def test_an_answer_is_parsed_once(stranger: Stranger, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[bytes] = []
    loads = json.loads

    def counted(content: Any, **options: Any) -> Any:
        read.append(content)
        return loads(content, **options)

    stranger.proves = True
    with Rest(Connection.find(stranger.home)) as rest:
        monkeypatch.setattr(json, "loads", counted)
        assert rest.get("/workspaces") == {"items": []} and len(read) == 1
        # Argilla's own client asks the answer itself.
        assert (
            rest._http.request("GET", "/api/v1/workspaces").json() == {"items": []}
            and len(read) == 2
        )


def test_an_address_that_the_user_names_is_the_users_decision(stranger: Stranger) -> None:
    with Rest(Connection.find(url=f"http://127.0.0.1:{stranger.port}", api_key="my-own")) as rest:
        assert rest.get("/workspaces") == {"items": []}
    assert b"/prefloop/proof" not in stranger.heard and b"my-own" in stranger.heard


def test_a_simulated_annotators_connection_is_of_the_home_too(
    labeling: Labeling, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Connection] = []
    made = Rest.__init__

    def noted(self: Rest, connection: Connection) -> None:
        opened.append(connection)
        made(self, connection)

    monkeypatch.setattr(Rest, "__init__", noted)
    dataset = labeling.name()
    labeling.argilla.push(comparisons(1), dataset)
    labeling.argilla.vote(dataset, labeling.name(), {})
    assert [one.home for one in opened] == [labeling.home]


@pytest.mark.parametrize("body", [b"[" * 200_000, b'{"items": ' + b"[" * 300 + b"]" * 300 + b"}"])
def test_an_answer_without_end_in_depth_is_no_json(body: bytes) -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()  # noqa: E501

    def serve(listener: socket.socket) -> None:
        client, _ = listener.accept()
        with client:
            client.recv(65536)
            client.sendall(head + body)
            client.recv(65536)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=[listener], daemon=True).start()
        argilla = Argilla(Connection(f"http://127.0.0.1:{listener.getsockname()[1]}", "k"))
        with pytest.raises(LabelError, match="with what is no JSON"), argilla:
            argilla.check()


def test_pages_that_are_too_large_are_asked_for_in_smaller_ones(
    labeling: Labeling, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = labeling.name()
    labeling.argilla.push(comparisons(12), dataset)
    labeling.argilla.vote(dataset, labeling.name(), {})
    found = labeling.argilla.datasets.find(dataset)  # among those of all other tests on this server
    whole = list(labeling.argilla.datasets.all(found))
    monkeypatch.setattr(
        connections, "MOST_BYTES", max(len(json.dumps(item)) for item in whole) * 4 + 2_000
    )
    with Argilla(Connection.find(labeling.home)) as small:
        asked: list[int] = []
        search = small.datasets._search
        monkeypatch.setattr(
            small.datasets,
            "_search",
            lambda d, f, limit, **q: asked.append(limit) or search(d, f, limit, **q),
        )
        assert list(small.datasets.all(found)) == whole
        assert asked[0] == 500 and min(asked) < 12
        monkeypatch.setattr(small.rest._http, "most", 500)
        with pytest.raises(LabelError, match="more than 500 bytes"):
            list(small.datasets.all(found))


def test_the_help_names_backup_and_restore(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _main(["label", "--help"])
    assert {"backup", "restore"} <= set(capsys.readouterr().out.split())
    assert server.run(["status", "--home", "/nowhere/at/all"], build=False)[0] == 1
