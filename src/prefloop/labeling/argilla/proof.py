"""Make the server of a home prove its identity before a key is sent, since any program could listen
on its port.

Every connection begins with a challenge that only a process with the home's secret can answer.
``prefloop_labeling.proof`` is the other side. After a wrong answer nothing else is sent over the
connection. A connection that is opened again is challenged again.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

import httpcore

PATH, HEADER = "/prefloop/proof", "prefloop-proof"
_LONGEST_ANSWER = 4096  # bytes


class NotOurs(httpcore.ConnectError):
    """Another program listens, and not the home's own server."""


class Proving(httpcore.NetworkBackend):
    """Opens connections as ``backend`` does, and asks for the proof on each. Raises ``NotOurs``
    where it is not given.
    """

    def __init__(self, backend: httpcore.NetworkBackend, home: Path) -> None:
        self._backend, self._home = backend, home

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: object = None,
    ) -> httpcore.NetworkStream:
        """Open a connection to the home's own server."""
        options = {
            "timeout": timeout,
            "local_address": local_address,
            "socket_options": socket_options,
        }
        stream = self._backend.connect_tcp(host, port, **options)  # type: ignore[arg-type]
        try:
            nonce = secrets.token_hex(32)
            if not hmac.compare_digest(
                _answer(stream, host, port, nonce, timeout), self._expected(nonce, port)
            ):
                raise NotOurs(f"it is not the server of home {self._home}")
        except BaseException:
            stream.close()
            raise
        return stream

    def _expected(self, nonce: str, port: int) -> bytes:
        try:
            secret = (self._home / "auth-secret").read_text().strip()
            home = os.stat(self._home)
        except (OSError, UnicodeDecodeError) as error:
            raise NotOurs(f"{self._home}/auth-secret cannot be read ({error})") from None
        # The home and the port are part of the challenge: a copy of the home has the same secret,
        # and a stranger could pass the challenge on.
        asked = f"prefloop proof\n{nonce}\n{home.st_dev}:{home.st_ino}\n{port}"
        return hmac.new(secret.encode(), asked.encode(), hashlib.sha256).hexdigest().encode()


def _answer(
    stream: httpcore.NetworkStream, host: str, port: int, nonce: str, timeout: float | None
) -> bytes:
    """The proof in the answer's header; empty where there is none."""
    named = f"[{host}]" if ":" in host else host
    stream.write(
        f"GET {PATH}?{nonce} HTTP/1.1\r\nHost: {named}:{port}\r\n\r\n".encode("ascii"), timeout
    )
    received = b""
    while b"\r\n\r\n" not in received and len(received) < _LONGEST_ANSWER:
        part = stream.read(_LONGEST_ANSWER, timeout)
        if not part:
            break
        received += part
    for line in received.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == HEADER.encode():
            return value.strip()
    return b""
