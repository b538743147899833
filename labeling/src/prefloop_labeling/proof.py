"""How a server shows that it is the one of a home, before anybody tells it a key.

Whoever listens on a port may be anybody: the server is down, and another user's program has taken
its place. So every connection begins with a question that only a process with the home's secret can
answer. The answer names the home and the port as well: a copy of the home has the same secret, and
a stranger could pass the question on. `prefloop.labeling.argilla.proof` asks the same.
"""

import hashlib
import hmac
import http.client
import secrets
import socket
import time
from urllib.parse import urlsplit

from prefloop_labeling.home import Home
from prefloop_labeling.identity import Identity

PATH = "/prefloop/proof"
HEADER = "prefloop-proof"
LONGEST_ANSWER = 4096  # bytes
SECONDS = 10


class Unproved(OSError):
    """Somebody listens, and it is not the home's own server."""


def proof(secret: str, nonce: str, home: Identity, port: int) -> str:
    """What the server of a home answers to `nonce`. No token can be made of it: it signs none with
    a line break in it.
    """
    asked = f"prefloop proof\n{nonce}\n{home.device}:{home.inode}\n{port}"
    return hmac.new(secret.encode(), asked.encode(), hashlib.sha256).hexdigest()


def connect(place: Home, url: str, seconds: float = SECONDS) -> http.client.HTTPConnection:
    """A connection to the home's server, which has shown that it is. It is never opened again by
    itself, since another might answer then.

    Raises OSError when nothing listens there, Unproved when somebody else does.
    """
    parts = urlsplit(url)
    host, port = str(parts.hostname), parts.port or 80
    connection = http.client.HTTPConnection(host, port, timeout=seconds)
    connection.auto_open = 0
    connection.connect()
    try:
        nonce = secrets.token_hex(32)
        expected = proof(place.secret(), nonce, place.identity(), port)
        if not hmac.compare_digest(
            _answer(connection.sock, parts.netloc, nonce, seconds), expected
        ):
            raise Unproved(f"another program than this home's server listens at {url}")
    except BaseException:
        connection.close()
        raise
    return connection


def _answer(sock: socket.socket, host: str, nonce: str, seconds: float) -> str:
    """The proof in the answer's header; empty when there is none."""
    deadline, received = time.monotonic() + seconds, b""
    sock.sendall(f"GET {PATH}?{nonce} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    while b"\r\n\r\n" not in received and len(received) < LONGEST_ANSWER:
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        part = sock.recv(LONGEST_ANSWER)
        if not part:
            break
        received += part
    sock.settimeout(seconds)
    for line in received.decode("latin-1").split("\r\n")[1:]:
        name, _, value = line.partition(":")
        if name.strip().lower() == HEADER:
            return value.strip() if value.isascii() else ""
    return ""
