"""What stands before Argilla: its name, its proof, slow guesses, and a log without what people
sent.
"""

import asyncio
import http.client
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from prefloop_labeling import proof
from prefloop_labeling import server as labeling_server
from prefloop_labeling.guard import FORGET_SECONDS, MOST_KEPT, Guard, Guesses
from prefloop_labeling.home import LabelingError
from prefloop_labeling.identity import Identity

from .conftest import Server, client_of


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:6900", "127.0.0.1.evil.example", "", "localhost.", "[::2]"],
)
def test_a_name_that_is_not_the_servers_is_refused(server: Server, host: str) -> None:
    for path in ("/api/v1/version", "/", proof.PATH):
        answer = httpx.get(f"{server.url}{path}", headers={"Host": host}, trust_env=False)
        assert answer.status_code in (400, 421), answer.text
    if host:
        assert "--allow-host NAME" in answer.text


def test_names_of_the_loopback_and_those_that_were_asked_for_are_known() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        passed.append(dict(scope["headers"])[b"host"].decode())

    async def nobody() -> Any:
        return {"type": "http.disconnect"}

    async def sent(message: Any) -> None:
        pass

    passed: list[str] = []
    guard = Guard(app, "s" * 64, Identity("/h", 1, 2), 6900, ["0.0.0.0", "labels.example"])
    hosts = [
        "localhost:1",
        "LOCALHOST",
        "127.0.0.1",
        "[::1]:6900",
        "labels.example",
        "192.0.2.7:6900",
        "192.0.2.8",
    ]
    for host in hosts:
        scope = {
            "type": "http",
            "path": "/",
            "method": "GET",
            "headers": [(b"host", host.encode())],
            "server": ("192.0.2.7", 6900),
        }
        asyncio.run(guard(scope, nobody, sent))
    assert passed == hosts[:-1], "the address that was connected to is a name too, another is none"
    scope["headers"] = [(b"host", b"localhost"), (b"host", b"evil.example")]
    asyncio.run(guard(scope, nobody, sent))
    assert len(passed) == len(hosts) - 1


def test_other_sites_may_not_read_answers(server: Server) -> None:
    headers = {"Origin": "http://evil.example", "Access-Control-Request-Method": "GET"}
    for answer in (
        httpx.get(f"{server.url}/api/v1/version", headers=headers, trust_env=False),
        httpx.options(f"{server.url}/api/v1/me", headers=headers, trust_env=False),
    ):
        assert "access-control-allow-origin" not in answer.headers


def test_a_running_server_gets_no_new_name_without_a_word(server: Server) -> None:
    with pytest.raises(
        LabelingError, match=r"you asked for --allow-host labels\.example: .*down --home"
    ):
        labeling_server.up(server.home.path, allow_hosts=["labels.example"])


def test_the_server_proves_itself_to_its_own_home_alone(server: Server, tmp_path: Any) -> None:
    proof.connect(server.home, server.url).close()
    with pytest.raises(proof.Unproved):  # a copy has the secret; the directory is another
        copy = labeling_server.Home(tmp_path / "copy")
        copy.create()
        copy.secret_file.write_text(server.home.secret())
        proof.connect(copy, server.url)


@pytest.fixture
def stranger(server: Server) -> Iterator[tuple[str, list[bytes]]]:
    """Listens on a port of its own and passes every byte on to the real server and back."""
    heard: list[bytes] = []

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with (
                client,
                socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as real,
            ):
                while part := client.recv(65536):
                    heard.append(part)
                    real.sendall(part)
                    client.sendall(real.recv(65536))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=[listener], daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", heard
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(300)


def test_a_stranger_that_passes_the_question_on_gets_no_key(
    server: Server, stranger: tuple[str, list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, heard = stranger
    with pytest.raises(proof.Unproved):
        proof.connect(server.home, url)
    monkeypatch.setattr(
        "prefloop_labeling.users.status", lambda home: {"url": url, "answers": True}
    )
    from prefloop_labeling.users import list_users

    with pytest.raises(LabelingError, match="another program than this home's server listens"):
        list_users(server.home.path)
    assert heard and b"rgilla" not in b"".join(heard)


def test_a_proved_connection_is_never_opened_again_unasked(server: Server) -> None:
    connection = proof.connect(server.home, server.url)
    connection.close()
    with pytest.raises(http.client.NotConnected):
        connection.request("GET", "/api/v1/me", headers={"X-Argilla-Api-Key": "key"})


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_waits_double_up_to_a_minute_and_end_with_the_right_password() -> None:
    clock = Clock()
    guesses, waits = Guesses(clock), []
    for _ in range(13):
        waits.append(guesses.wait("user a", "address x"))
        clock.now += waits[-1]
        guesses.begin("user a", "address x")
    assert waits == [0, 0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 60, 60]
    assert guesses.wait("user b", "address x") == 60 and guesses.wait("user a", "address y") == 60
    assert guesses.wait("user b", "address y") == 0
    clock.now += 60
    guesses.begin("user a", "address x")
    guesses.right("user a", "address x")
    assert guesses.wait("user a", "address x") == 0
    guesses.begin("user b", "address x")
    assert guesses.wait("user b", "address x") == 60, (
        "an account of one's own does not make others' quicker to guess"
    )
    assert guesses.wait("user b", "address y") == 0
    clock.now += FORGET_SECONDS
    guesses.begin("user b", "address x")
    assert guesses.wait("user b", "address x") == 0


def test_many_guesses_at_once_are_no_way_around_and_memory_is_bounded() -> None:
    guesses = Guesses(Clock())
    heard = 0
    for _ in range(50):  # none has an answer yet
        if not guesses.wait("user a", "address x"):
            guesses.begin("user a", "address x")
            heard += 1
    assert heard == 5
    for number in range(2 * MOST_KEPT):
        guesses.begin(f"user {number}", f"address {number}")
    guesses.begin("user " + "x" * 60_000, "user \ud800")
    assert len(guesses._kept) == MOST_KEPT and max(map(sys.getsizeof, guesses._kept)) < 100


def test_password_guesses_are_slowed_whatever_form_they_come_in(server: Server) -> None:
    account = server.user()
    forms: list[dict[str, Any]] = [
        {"data": {"username": account.username, "password": "wrong"}},
        {"files": {"username": (None, account.username), "password": (None, "wrong")}},
    ]
    with client_of(server.url, None) as client:
        answers = []
        while not answers or answers[-1].status_code == 401:
            number = len(answers)
            assert number < 20, "guesses are heard at full speed"
            path = "/token/" if number > 5 else "/token"  # Argilla points from the one to the other
            address = {"X-Forwarded-For": f"192.0.2.{number}"}
            answers.append(
                client.post(path, **forms[number % 2], headers=address, follow_redirects=True)
            )
        assert len(answers) > 5, "five are free"
        assert answers[-1].status_code == 429 and 1 <= int(answers[-1].headers["retry-after"]) <= 60
        assert "Too many wrong passwords" in answers[-1].json()["detail"]
        other = server.user()
        free = {
            "username": other.username,
            "password": server.home.credentials()["users"][other.username]["password"],
        }
        answer = client.post("/token", data=free, headers={"X-Forwarded-For": "192.0.2.99"})
        assert answer.status_code == 201, "another user from another address is not held up"
        assert (
            client.get(
                "/me", headers={"X-Argilla-Api-Key": server.home.credentials()["owner"]["api_key"]}
            ).status_code
            == 200
        )
        assert client.post("/token", data={"username": "x" * 70_000}).status_code == 413
        assert client.post("/token", data={"username": "nobody"}).status_code == 422


HOST = (b"host", b"localhost")


def signed_in(
    guard: Guard, fields: list[tuple[str, str | tuple[str, str]]], address: str = "192.0.2.1"
) -> int:
    """The status that answers a multipart form; a pair as value is a file's name and content."""
    files = [(name, (None, value) if isinstance(value, str) else value) for name, value in fields]
    request = httpx.Request("POST", "http://localhost/api/v1/token", files=files)
    headers = [HOST, (b"content-type", request.headers["content-type"].encode())]
    scope = {
        "type": "http",
        "path": "/api/v1/token",
        "method": "POST",
        "headers": headers,
        "client": (address, 1),
    }
    body, statuses = request.read(), []

    async def receive() -> Any:
        return {"type": "http.request", "body": body}

    async def send(message: Any) -> None:
        statuses.append(message.get("status"))

    asyncio.run(guard(scope, receive, send))
    return statuses[0]


def refusing(status: int) -> tuple[Guard, list[Any]]:
    """A guard around a server that refuses every sign-in, and the requests that reached it."""
    heard: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        heard.append(await receive())
        await send({"type": "http.response.start", "status": status, "headers": []})

    return Guard(app, "s" * 64, Identity("/h", 1, 2), 6900, []), heard


@pytest.mark.parametrize("dummy", ["x", ("x.txt", "x")], ids=["fields", "files"])
def test_a_form_that_argilla_alone_would_read_does_not_reach_it(dummy: Any) -> None:
    guard, heard = refusing(401)
    form = [
        ("username", "a"),
        ("password", "wrong"),
        *((f"dummy{number}", dummy) for number in range(20)),
    ]
    assert [signed_in(guard, form) for _ in range(12)] == [400] * 12 and not heard


def test_guesses_without_a_name_that_can_be_read_are_slowed_by_address() -> None:
    guard, heard = refusing(401)
    for form in ([("password", "wrong")], [("username", ("name.txt", "a")), ("password", "wrong")]):
        heard.clear()
        address = f"192.0.2.{len(form)}"
        statuses = [signed_in(guard, form, address) for _ in range(7)]
        assert 429 in statuses and len(heard) == statuses.count(401) <= 5
        assert signed_in(guard, [("username", "a"), ("password", "wrong")], address) in (401, 429)


def test_the_log_holds_nothing_of_what_was_refused(server: Server) -> None:
    words = ["pass-wörd-1", "tiny-pw", "secret-of-a-vote", "first-name-of-somebody"]
    owner = server.owner
    body = {"username": "a b \x00", "first_name": words[3], "password": words[1], "role": "none"}
    assert owner.post("/users", json=body).status_code == 422
    assert (
        owner.post("/users", json={**body, "password": words[0] * 2, "username": "x"}).status_code
        == 422
    )
    dataset = server.dataset()
    [record] = dataset.log({"fields": {"prompt": "p"}})
    assert server.user().respond(record, "submitted", choice=words[2]).status_code == 422
    assert (
        owner.post(
            f"/datasets/{dataset.id}/records/bulk", json={"items": [{"fields": words[2]}]}
        ).status_code
        == 422
    )
    account = {
        "username": "taken",
        "first_name": words[3],
        "password": "long-enough-password",
        "role": "annotator",
    }
    assert [owner.post("/users", json=account).status_code for _ in range(2)] == [201, 409]
    log = server.home.log_file("server").read_text()
    assert not [word for word in [*words, "long-enough-password"] if word in log]
    assert "string_too_short at body.password" in " ".join(log.split())
