"""Homes that lost something are refused before anything starts, and a start that fails leaves
nothing running.
"""

import contextlib
import json
import os
import shutil
import socket
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from prefloop_labeling import server as labeling_server
from prefloop_labeling.home import Home, LabelingError
from prefloop_labeling.identity import Identity
from prefloop_labeling.processes import recorded, start, started_at

from .conftest import Server, free_port


def database(file: Path, revision: str | None) -> None:
    with contextlib.closing(sqlite3.connect(file)) as made:
        made.execute("CREATE TABLE filler (words TEXT)")
        made.executemany("INSERT INTO filler VALUES (?)", [["w" * 3000]] * 20)
        if revision:
            made.execute("CREATE TABLE alembic_version (version_num TEXT)")
            made.execute("INSERT INTO alembic_version VALUES (?)", [revision])
        made.commit()


def overwritten(file: Path) -> None:
    database(file, "45a12f74448b")
    with open(file, "r+b") as pages:
        pages.seek(4096 * 3)
        pages.write(b"\xff" * 4096 * 8)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda file: None, r"argilla\.db is missing, and this home has been used"),
        (lambda file: file.touch(), r"argilla\.db is empty, and this home has been used"),
        (
            lambda file: file.write_bytes(b"x"),
            "holds no tables of Argilla, and this home has been used",
        ),
        (
            lambda file: file.write_text("no database, and long enough to be looked at" * 20),
            "file is not a database",
        ),
        (overwritten, "is damaged"),
        (lambda file: database(file, None), "holds no tables of Argilla"),
        (lambda file: database(file, "ffffffffffff"), r"newer Argilla \(schema ffffffffffff\)"),
    ],
)
def test_a_lost_or_damaged_database_is_refused_and_nothing_runs(
    tmp_path: Path, make: Callable, said: str
) -> None:
    place = Home(tmp_path / "home")
    place.create()
    database(place.text_index_file, None)  # it has run before
    make(place.database_file)
    there = place.database_file.read_bytes() if place.database_file.exists() else None
    with pytest.raises(LabelingError, match=said) as error:
        labeling_server.up(place.path, port=free_port(), worker=False)
    assert "restore FILE --home NEW" in str(error.value) and "Traceback" not in str(error.value)
    assert not any(labeling_server.status(place.path)["processes"].values())
    assert not place.redis_socket().exists() and not place.log_file("redis").exists()
    assert (place.database_file.read_bytes() if place.database_file.exists() else None) == there


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("auth-secret", "x", "holds 1 characters, and a secret has at least 32"),
        ("auth-secret", "", "holds 0 characters"),
        ("auth-secret", b"\xff" * 64, "cannot be read"),
        ("credentials.json", "{", "is no JSON"),
        ("credentials.json", "[]", "lacks an owner"),
        ("credentials.json", '{"owner": {"username": "owner"}}', "lacks an owner"),
        ("credentials.json", None, r"credentials\.json is missing, and there is a database"),
    ],
)
def test_damaged_secrets_are_refused(
    tmp_path: Path, name: str, content: str | bytes | None, said: str
) -> None:
    place = Home(tmp_path / "home")
    place.create()
    database(place.database_file, "45a12f74448b")
    if content is None:
        (place.path / name).unlink()
    else:
        (place.path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(LabelingError, match=said):
        labeling_server.up(place.path, port=free_port(), worker=False)
    assert not any(labeling_server.status(place.path)["processes"].values())


def test_a_start_that_fails_ends_what_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []

    def other(command: list[str], *rest: object) -> object:
        if "prefloop_labeling.serve" in command:
            command = [
                sys.executable,
                "-c",
                (
                    "print('a first line\\nthe last words\\nINFO:     Shutting down'); raise"
                    " SystemExit(1)"
                ),
            ]
        process = start(command, *rest)
        started.append(process.pid)
        return process

    monkeypatch.setattr(labeling_server, "start", other)
    with pytest.raises(
        LabelingError, match="server ended at its start: the last words; see "
    ) as error:
        labeling_server.up(tmp_path / "home", port=free_port())
    assert "a first line" not in str(error.value)
    assert len(started) == 2, "redis and the server"
    assert not any(
        psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        for pid in started
    )
    assert not list((tmp_path / "home").glob("*.pid"))


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def test_pid_files_are_private_and_name_home_and_start(tmp_path: Path) -> None:
    process = start(["sleep", "60"], os.environ, tmp_path / "log", tmp_path / "a.pid", tmp_path)
    try:
        file = tmp_path / "a.pid"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert json.loads(file.read_text()) == {
            "pid": process.pid,
            "started": started_at(process.pid),
            "home": Identity.of(tmp_path).to_json(),
        }
        assert recorded(file) == process
        shutil.copytree(tmp_path, tmp_path / "copy")
        assert recorded(tmp_path / "copy" / "a.pid") is None
        link = tmp_path.parent / f"{tmp_path.name}-link"
        link.symlink_to(tmp_path)
        assert recorded(link / "a.pid") == process
        moved = tmp_path.rename(tmp_path.with_name("moved"))
        assert recorded(moved / "a.pid") == process, "a home that was moved can still be stopped"
    finally:
        process.stop(1)


def test_a_pid_file_of_an_earlier_version_is_good_where_its_process_works(
    tmp_path: Path, sleeper: subprocess.Popen
) -> None:
    old = json.dumps({"pid": sleeper.pid, "started": started_at(sleeper.pid)})
    (tmp_path / "a.pid").write_text(old)
    assert recorded(tmp_path / "a.pid") is None
    here = Path.cwd() / f"test-{os.getpid()}.pid"
    here.write_text(old)
    try:
        assert recorded(here) is not None
    finally:
        here.unlink()


def test_a_copied_home_takes_a_port_of_its_own(tmp_path: Path) -> None:
    place = Home(tmp_path / "home")
    place.create()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        last = labeling_server.Last(
            f"http://127.0.0.1:{port - 1}", "127.0.0.1", port - 1, (), place.identity()
        )
        place.server_file.write_text(json.dumps(labeling_server.asdict(last)))
        assert labeling_server._port(place, labeling_server._last(place)) == port - 1
        copy = Home(shutil.copytree(place.path, tmp_path / "copy"))
        found = labeling_server._last(copy)
        assert not found.is_of(copy) and labeling_server._port(copy, found) > port
        moved = Home(place.path.rename(tmp_path / "moved"))
        assert labeling_server._last(moved).is_of(moved), "bookmarks stay good"


def test_a_home_that_was_moved_while_its_server_runs_is_told_to_stop_first(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = json.loads(server.home.server_file.read_text())
    last["home"]["path"] = "/elsewhere"
    monkeypatch.setattr(labeling_server, "_last", lambda place: labeling_server.Last(
        last["url"], last["host"], last["port"], (), Identity.read(last["home"])
    ))  # fmt: skip
    with pytest.raises(
        LabelingError, match=r"home /elsewhere was moved to .* while its server runs.*down --home"
    ):
        labeling_server.up(server.home.path)


def test_a_server_of_an_earlier_version_is_told_to_stop_first(tmp_path: Path) -> None:
    place = Home(tmp_path / "home")
    place.create()
    last = {"url": "http://127.0.0.1:1", "host": "127.0.0.1", "port": 1}
    place.server_file.write_text(json.dumps(last))
    start(
        ["sleep", "3600"],
        os.environ,
        place.log_file("server"),
        place.pid_file("server"),
        place.path,
    )
    try:
        with pytest.raises(
            LabelingError, match=r"started by an earlier version .*down --home .*, then .*up --home"
        ):
            labeling_server.up(place.path)
    finally:
        assert labeling_server.down(place.path) == ["server"]


def test_a_port_that_is_let_go_of_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a server that was killed a moment ago lets go of its own."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen(1)
        port = held.getsockname()[1]
        with pytest.raises(LabelingError, match="cannot be used"):
            labeling_server._check_port("127.0.0.1", port)
        monkeypatch.setattr(labeling_server.time, "sleep", lambda _: held.close())
        labeling_server._check_port("127.0.0.1", port, patience_s=300)
