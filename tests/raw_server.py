"""A server on the loopback that answers with any bytes: what no HTTP library would send."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator

Answer = Iterable[bytes]
TRICKLE_S = 0.02


class Server:
    """Answers every request on the loopback with the pieces that ``answer()`` gives, then closes
    the connection.
    """

    def __init__(self, answer: Callable[[], Answer], tls: ssl.SSLContext | None = None) -> None:
        self.tls = tls
        self.answer, self.requests, self.closed = answer, list[bytes](), threading.Event()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self._listening.getsockname()[1]}/v1"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed.set()
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def trickle(self, start: bytes) -> Iterator[bytes]:
        """The start, then a byte now and then until the server is closed."""
        yield start
        while not self.closed.wait(TRICKLE_S):
            yield b"x"

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                threading.Thread(target=self._serve, args=[connection], daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.ExitStack() as held, contextlib.suppress(OSError):
            if self.tls:
                connection = self.tls.wrap_socket(connection, server_side=True)
            held.enter_context(connection)
            request = b""
            while b"\r\n\r\n" not in request:
                request += connection.recv(65536) or b"\r\n\r\n"
            head, _, body = request.partition(b"\r\n\r\n")
            length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            while len(body) < int(length or 0) and (more := connection.recv(65536)):
                body += more
            self.requests.append(head)
            for piece in self.answer():
                connection.sendall(piece)


def http(body: bytes, *headers: str, status: str = "200 OK", length: bool = True) -> bytes:
    """An answer as it goes over the wire."""
    lines = [f"HTTP/1.1 {status}", "Connection: close", *headers]
    lines += [f"Content-Length: {len(body)}"] if length else []
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body
