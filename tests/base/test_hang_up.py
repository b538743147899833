"""Closing a client ends what waits for its server, over TLS and in a handshake too; a failed
rollout closes its client.
"""

from __future__ import annotations

import datetime
import itertools
import json
import socket
import ssl
import threading
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from raw_server import Answer, Server, http

from prefloop.base.http import Client
from prefloop.config import BackboneConfig, GenerationConfig
from prefloop.errors import EngineError
from prefloop.rollouts.server import ServerEngine


@pytest.fixture(scope="module")
def self_signed(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    """A server's side of TLS, with a certificate of its own for the loopback."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "loopback")])
    made = x509.CertificateBuilder(
        name, name, key.public_key(), 1, now - datetime.timedelta(1), now + datetime.timedelta(1)
    )
    content = made.sign(key, hashes.SHA256()).public_bytes(
        serialization.Encoding.PEM
    ) + key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    path.write_bytes(content)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


def trusting(client: Client) -> Client:
    """The client, which takes any certificate from here on."""
    assert isinstance(client._transport, httpx.HTTPTransport)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    client._transport._pool._ssl_context = context
    return client


def closed_while_waiting(client: Client, reached: threading.Event) -> list[type]:
    """What a request fails with that waits for the server when the client is closed."""
    failed: list[type] = []

    def ask() -> None:
        try:
            client.get("/")
        except httpx.TransportError as error:
            failed.append(type(error))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    assert reached.wait(300)
    client.close()
    thread.join(300)
    return failed


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_closing_a_client_ends_what_another_thread_waits_for(
    scheme: str, request: pytest.FixtureRequest
) -> None:
    asked = threading.Event()

    def answer() -> Answer:
        asked.set()
        return server.trickle(http(b"", "Content-Length: 9999", length=False))

    tls = request.getfixturevalue("self_signed") if scheme == "https" else None
    with Server(answer, tls) as server:
        failed = closed_while_waiting(trusting(Client(server.url, deadline_s=600.0)), asked)
        assert failed in ([httpx.RemoteProtocolError], [httpx.ReadError])


def test_closing_a_client_ends_a_handshake_that_nobody_answers() -> None:
    reached = threading.Event()

    def listen() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(1)
            reached.set()
            while connection.recv(65536):
                pass

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=listen, daemon=True).start()
        client = Client(f"https://127.0.0.1:{listening.getsockname()[1]}", deadline_s=600.0)
        assert closed_while_waiting(client, reached) == [httpx.ConnectError]


def test_a_connection_that_is_made_after_the_end_is_refused_unused() -> None:
    with Server(lambda: [http(b"{}")]) as server, Client(server.url, deadline_s=600.0) as client:
        client._network.hang_up()
        with pytest.raises(httpx.ConnectError, match="the client was closed"):
            client.get("/")
        assert not any(server.requests)


def test_after_an_error_no_other_rollout_is_waited_for_and_the_next_can_begin() -> None:
    others_in, numbers = threading.Barrier(3, timeout=300), itertools.count()
    choice = {"index": 0, "token_ids": [5, 7], "logprobs": {"token_logprobs": [-0.1, -0.2]}}

    def answer() -> Answer:
        number = next(numbers)
        if number == 0:
            return [http(json.dumps({"data": [{"id": "model"}]}).encode())]
        if number > 3:
            return [http(json.dumps({"choices": [choice]}).encode())]
        others_in.wait()
        if number == 1:
            return [http(b"no such adapter", status="400 B")]
        return server.trickle(http(b"", "Content-Length: 9999", length=False))

    model = SimpleNamespace(
        config=SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=1024))
    )
    backbone: Any = SimpleNamespace(
        config=BackboneConfig(max_length=512), causal_lm=model, chat=SimpleNamespace(stop_id=7)
    )
    before = set(threading.enumerate())
    with Server(answer) as server:
        generation = GenerationConfig(
            server=server.url.removesuffix("/v1"), max_new_tokens=8, max_num_seqs=3
        )
        engine = ServerEngine(backbone, generation)
        with pytest.raises(EngineError, match="no such adapter"):
            engine.generate([[1], [2], [3]], n=1, seed=0)
        for thread in set(threading.enumerate()) - before:
            if thread.name.startswith("ThreadPoolExecutor"):
                thread.join(300)
                assert not thread.is_alive(), "it waits for the deadline"
        assert [rollout.token_ids for rollout in engine.generate([[1]], n=1, seed=0)] == [[5, 7]]
        engine.close()
