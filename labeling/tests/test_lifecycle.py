"""Start, find, refuse, stop, start again."""

import contextlib
import os
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import psutil
import pytest
from prefloop_labeling import __main__ as command_line
from prefloop_labeling import server as labeling_server
from prefloop_labeling.home import SOCKET_PATH_BYTES, Home, LabelingError
from prefloop_labeling.processes import Process, recorded, start, started_at

from .conftest import Server, client_of, free_port


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_second_start_finds_the_running_server(server: Server) -> None:
    port = int(server.url.rpartition(":")[2])
    for asked in (None, port):
        again = labeling_server.up(server.home.path, port=asked)
        assert (again.started, again.url) == (False, server.url)
    state = labeling_server.status(server.home.path)
    assert state["answers"] and all(state["processes"].values())


def test_a_running_server_is_not_moved_without_a_word(server: Server) -> None:
    asked = free_port()
    with pytest.raises(
        LabelingError,
        match=rf"runs at {server.url}, and you asked for port {asked}: `.* down --home",
    ):
        labeling_server.up(server.home.path, port=asked)
    with pytest.raises(LabelingError, match=r"you asked for 0\.0\.0\.0"):
        labeling_server.up(server.home.path, host="0.0.0.0")
    with pytest.raises(LabelingError, match="99999 is no port"):
        labeling_server.up(server.home.path, port=99999)


def test_secrets_are_private_and_in_no_log_or_command_line(server: Server) -> None:
    home = server.home
    assert mode(home.path) == 0o700
    assert mode(home.credentials_file) == mode(home.secret_file) == 0o600
    assert stat.S_ISSOCK(home.redis_socket().stat().st_mode) and mode(home.redis_socket()) == 0o700
    owner = home.credentials()["owner"]
    account = server.user()
    kept = home.credentials()["users"][account.username]
    secrets = [
        owner["password"],
        owner["api_key"],
        kept["password"],
        kept["api_key"],
        home.secret_file.read_text(),
    ]
    texts = [path.read_text(errors="replace") for path in home.path.glob("*.log")]
    texts += [
        " ".join(psutil.Process(pid).cmdline())
        for pid in labeling_server.status(home.path)["processes"].values()
    ]
    assert not [secret for secret in secrets for text in texts if secret in text]


def test_redis_listens_on_no_port(server: Server) -> None:
    redis = psutil.Process(labeling_server.status(server.home.path)["processes"]["redis"])
    assert not redis.connections("inet")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "home"
    labeling_server.down(tmp_path / "home")


def test_data_and_keys_survive_a_restart_in_a_home_with_a_long_path(tmp_path: Path) -> None:
    home = tmp_path / ("long-" * 20) / "home"
    assert len(os.fsencode(home / "redis.sock")) > SOCKET_PATH_BYTES
    try:
        first = Server(labeling_server.up(home, port=free_port(), worker=False))
        assert first.running.started and mode(first.home.redis_socket().parent) == 0o700
        dataset = first.dataset()
        dataset.log({"fields": {"prompt": "kept"}, "external_id": "r"})
        form = {"username": "owner", "password": first.home.credentials()["owner"]["password"]}
        token = first.owner.post("/token", data=form).json()["access_token"]
        assert labeling_server.down(home) == ["server", "redis"]
        assert labeling_server.down(home) == []
        assert not labeling_server.status(home)["answers"]

        second = Server(labeling_server.up(home, worker=False))
        assert second.url == first.url, "bookmarks stay good"
        dataset.owner = second.owner
        assert dataset.text("kept") == ["r"]
        client = client_of(second.url, None)
        assert client.get("/me", headers={"Authorization": f"Bearer {token}"}).status_code == 200
    finally:
        labeling_server.down(home)


def test_a_port_in_use_is_refused_before_anything_starts(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert command_line.main(["up", "--home", str(home), "--port", str(port)]) == 2
    assert f"port {port}" in (message := capsys.readouterr().err) and "--port" in message
    assert not any(labeling_server.status(home)["processes"].values())


def test_impossible_places_are_refused_with_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for home in (tmp_path / "file" / "home", Path("/proc/nowhere")):
        assert command_line.main(["up", "--home", str(home)]) == 2
        assert "cannot be written" in (message := capsys.readouterr().err) and "--home" in message
    assert command_line.main(["up", "--home", str(tmp_path / "100%")]) == 2
    assert command_line.main(["up", "--home", str(tmp_path / "home"), "--port", "99999"]) == 2
    assert command_line.main(["users", "add", "a", "--home", str(tmp_path / "home")]) == 2
    assert (
        f"start it with `python -m prefloop_labeling up --home {tmp_path / 'home'}`"
        in capsys.readouterr().err
    )


def test_a_server_that_cannot_start_says_why(home: Path) -> None:
    place = Home(home)
    place.create()
    (home / "argilla.db").write_text(
        "this is no database, and long enough to be looked at as one" * 20
    )
    with pytest.raises(LabelingError, match="file is not a database"):
        labeling_server.up(home, port=free_port(), worker=False)


def test_a_pid_of_another_process_is_left_alone(tmp_path: Path) -> None:
    bystander = subprocess.Popen(["sleep", "3600"])
    try:
        pid_file = tmp_path / "server.pid"
        Process(bystander.pid, started_at(os.getpid())).stop(1)
        assert bystander.poll() is None
        pid_file.write_text(f'{{"pid": {bystander.pid}, "started": "earlier"}}')
        assert recorded(pid_file) is None
        labeling_server.down(tmp_path)
        assert bystander.poll() is None
        pid_file.write_text("rubbish")
        assert recorded(pid_file) is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_process_that_ignores_sigterm_is_killed_with_its_children(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    code = (
        "import os, signal, subprocess, pathlib; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        f" child = subprocess.Popen(['sleep', '3600']); p = pathlib.Path({str(ready)!r});"
        " p.with_suffix('.new').write_text(str(child.pid)); p.with_suffix('.new').replace(p);"
        " signal.pause()"
    )
    process = start(
        [sys.executable, "-c", code], os.environ, tmp_path / "log", tmp_path / "pid", tmp_path
    )
    while not ready.exists():
        assert process.running()
    child = int(ready.read_text())
    process.stop(0.5)
    assert not process.running()
    with contextlib.suppress(psutil.NoSuchProcess):  # whoever adopted it has taken its exit code
        assert psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_a_process_has_ended_though_its_parent_takes_no_note_of_it() -> None:
    code = (
        "import signal, subprocess; print(subprocess.Popen(['sleep', '3600']).pid, flush=True);"
        " signal.pause()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    ) as parent:
        try:
            assert parent.stdout is not None
            child = int(parent.stdout.readline())
            Process(child, started_at(child)).stop(3600)  # else this waits for an hour
            assert psutil.Process(child).status() == psutil.STATUS_ZOMBIE
        finally:
            parent.kill()


def test_closing_the_terminal_does_not_reach_the_server(server: Server) -> None:
    for pid in labeling_server.status(server.home.path)["processes"].values():
        assert os.getsid(pid) == pid != os.getsid(0)


def test_old_pythons_are_told(tmp_path: Path) -> None:
    code = (
        "import sys; sys.version_info = (3, 10, 0); "
        "import runpy; runpy.run_module('prefloop_labeling', run_name='__main__')"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 1 and "3.11, 3.12 or 3.13" in ended.stderr


def test_the_worker_delivers_a_signed_webhook(server: Server) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(300)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/hook"
        body = {"url": url, "events": ["response.created"], "description": "test"}
        webhook = server.owner.post("/webhooks", json=body)
        assert webhook.status_code == 201, webhook.text
        try:
            account = server.user()
            dataset = server.dataset()
            [record] = dataset.log({"fields": {"prompt": "p"}})
            assert account.respond(record, choice="a").status_code == 201
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(300)
                received = b""
                while b'"type": "response.created"' not in received:
                    part = connection.recv(65536)
                    assert part, received
                    received += part
                connection.sendall(
                    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                )
            assert b"webhook-signature" in received.lower()
        finally:
            server.owner.delete(f"/webhooks/{webhook.json()['id']}")


def test_the_workers_jobs_find_the_engine(server: Server) -> None:
    """Record states are recomputed in the worker, which looks the engine up by name in its own
    process.
    """
    import redis
    from argilla_server.jobs.dataset_jobs import update_dataset_records_status_job
    from rq import Queue

    account = server.user()
    dataset = server.dataset(min_submitted=1)
    [record] = dataset.log({"fields": {"prompt": "p"}})
    assert account.respond(record, choice="a").status_code == 201
    with sqlite3.connect(server.home.path / "argilla.db") as database:
        database.execute(
            "UPDATE records SET status = 'pending' WHERE id = ?", [record.replace("-", "")]
        )
    connection = redis.Redis(unix_socket_path=str(server.home.redis_socket()))
    job = Queue("default", connection=connection).enqueue(
        update_dataset_records_status_job, UUID(dataset.id)
    )
    result = job.latest_result(timeout=300)
    assert result is not None and result.type == result.Type.SUCCESSFUL, (
        result and result.exc_string
    )
    assert server.owner.get(f"/datasets/{dataset.id}/progress").json()["completed"] == 1


def test_signals_of_other_homes_do_not_matter(server: Server, home: Path) -> None:
    other = labeling_server.up(home, port=free_port(), worker=False)
    os.kill(labeling_server.status(home)["processes"]["server"], signal.SIGKILL)
    labeling_server.down(home)
    assert other.url != server.url
    assert labeling_server.status(server.home.path)["answers"]


def test_argillas_own_command_line_knows_the_engine(server: Server) -> None:
    dataset = server.dataset()
    dataset.log({"fields": {"prompt": "gecko"}, "external_id": "r"})
    assert dataset.text("gecko") == ["r"]
    for arguments in (
        ["database", "migrate"],
        ["search-engine", "reindex", "--dataset-id", dataset.id],
    ):
        command = [sys.executable, "-m", "prefloop_labeling.cli", *arguments]
        ended = subprocess.run(
            command,
            env=server.home.environment(),
            cwd=server.home.path,
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
    assert dataset.text("gecko") == ["r"]


@pytest.mark.parametrize(
    ("step", "ready_after", "given_up"),
    [(0.5, 100, False), (0.0, 100, True), (0.1, 100, True), (0.5, 1_000, True)],
    ids=["busy machine", "does nothing", "does next to nothing", "works without end"],
)
def test_a_server_is_waited_for_by_what_it_does_and_not_by_the_clock(
    step: float, ready_after: int, given_up: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each look the clock has gone on by 20 s and the process has worked for `step` seconds; 60
    s is the limit of both.
    """
    looks, at = iter(range(10_000)), {"clock": 0.0, "worked": 5.0}

    class Slow(Process):
        def running(self) -> bool:
            return True

        def worked(self) -> float:
            at["clock"] += 20
            at["worked"] += step
            return at["worked"]

    monkeypatch.setattr(labeling_server.time, "monotonic", lambda: at["clock"])
    monkeypatch.setattr(labeling_server.time, "sleep", lambda seconds: None)
    with (
        pytest.raises(LabelingError, match="did not answer within 60 s")
        if given_up
        else contextlib.nullcontext()
    ):
        labeling_server._wait(
            Home(tmp_path), "server", Slow(1, ""), 60, lambda: next(looks) >= ready_after
        )


def test_the_processor_time_of_a_process_is_counted() -> None:
    assert Process(os.getpid(), "").worked() > 0 and Process(2**22 + 1, "").worked() == 0
