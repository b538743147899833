"""The one HTTP client for other people's servers: a deadline for the whole answer, a cap on its
bytes, and one address.

A server may send a byte now and then, never stop, pack gigabytes into kilobytes, or redirect. None
of that may cost more than the deadline and the cap. Redirects are not followed and no request goes
to another address than the named one, because requests carry keys.

Left out on purpose: a deadline for the look-up of a host name, which the system's resolver bounds.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
import threading
import time
import urllib.request
import weakref
import zlib
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from http.client import HTTPResponse
from http.cookiejar import CookieJar
from typing import Any

import httpcore
import httpx

MOST_BYTES = 16 << 20
"""Bytes of an answer after decompression."""
_PIECE = 1 << 16
_ENDS: ContextVar[float] = ContextVar("_ENDS")
"""Deadline of this thread's request, by ``time.monotonic``."""


class TooLarge(httpx.TransportError):
    """An answer with more bytes than the cap, or packed in another way than gzip."""


class Client(httpx.Client):
    """Requests to one server, each over within ``deadline_s`` and answered with at most ``most``
    bytes.

    Answers are read whole before they are returned. ``text`` is UTF-8, whatever encoding the server
    names. A caller that expects a larger answer, such as a page of long records, sets ``most``.
    Raises ``httpx.TimeoutException`` at the deadline, ``TooLarge`` past the cap,
    ``httpx.UnsupportedProtocol`` for an address that is not the server's, and other
    ``httpx.RequestError`` where no usable answer came.
    """

    def __init__(
        self,
        server: httpx.URL | str,
        deadline_s: float,
        headers: Mapping[str, str] | None = None,
        connections: int = 1,
        most: int = MOST_BYTES,
        opening: Callable[[httpcore.NetworkBackend], httpcore.NetworkBackend] = lambda network: (
            network
        ),
    ) -> None:
        """``opening`` may wrap the backend that opens connections, to check each connection before
        anything is sent over it.
        """
        self.server, self.deadline_s, self.most = httpx.URL(server), deadline_s, most
        super().__init__(
            base_url=self.server,
            cookies=_Forgetful(),
            headers={"Accept-Encoding": "gzip", **(headers or {})},
            timeout=deadline_s,
            # A proxy named in the environment cannot reach this machine's own loopback.
            trust_env=not is_loopback(self.server.host),
            limits=httpx.Limits(max_connections=connections),
        )
        self._network = _Network()
        backend = opening(self._network)
        for transport in (self._transport, *self._mounts.values()):
            if isinstance(transport, httpx.HTTPTransport):
                # httpx has no argument for a network backend; its own time-outs are between bytes.
                transport._pool._network_backend = backend

    def send(self, request: httpx.Request, **_: Any) -> httpx.Response:
        """``get``, ``post``, ``request`` and ``stream`` of httpx all end here."""
        if _origin(request.url) != _origin(self.server):
            raise httpx.UnsupportedProtocol("the address is not the server's own", request=request)
        ends = _ENDS.set(time.monotonic() + self.deadline_s)
        try:
            answer = super().send(request, stream=True, follow_redirects=False)
            try:
                content = self._content(answer)
            finally:
                answer.close()
        finally:
            _ENDS.reset(ends)
        packed = (b"content-encoding", b"content-length", b"transfer-encoding")
        headers = [
            (name, value) for name, value in answer.headers.raw if name.lower() not in packed
        ]
        whole = httpx.Response(
            answer.status_code, headers=headers, content=content, request=request
        )
        whole.encoding = "utf-8"  # a server may name any codec of Python, such as zlib
        return whole

    def close(self) -> None:
        """Close the connections; requests of other threads fail at once instead of at their
        deadline.

        A connection that is still being made fails as soon as it is made.
        """
        self._network.hang_up()
        super().close()

    def _content(self, answer: httpx.Response) -> bytes:
        """The body, unpacked. Raises ``TooLarge`` past the cap."""
        packing = answer.headers.get("content-encoding", "identity").strip().lower()
        if packing in ("identity", ""):
            return self._joined(answer.iter_raw(_PIECE), answer.request)
        if packing not in ("gzip", "x-gzip"):
            raise TooLarge(
                f"the answer is packed with {packing:.40}, asked for was gzip",
                request=answer.request,
            )
        return self._joined(_unpacked(answer), answer.request)

    def _joined(self, pieces: Iterable[bytes], request: httpx.Request) -> bytes:
        content = bytearray()
        for piece in pieces:
            content += piece
            if len(content) > self.most:
                raise TooLarge(f"the answer has more than {self.most:,} bytes", request=request)
        return bytes(content)


def is_loopback(host: str) -> bool:
    """Whether an address never leaves this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _unpacked(answer: httpx.Response) -> Iterable[bytes]:
    """The unpacked body in pieces of at most ``_PIECE`` bytes: a kilobyte may hold a megabyte."""
    gzip, some = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16), False
    for piece in answer.iter_raw(_PIECE):
        some = True
        while piece and not gzip.eof:
            try:
                yield gzip.decompress(piece, _PIECE)
            except zlib.error as error:
                raise httpx.DecodingError(
                    f"the answer is no gzip: {error}", request=answer.request
                ) from None
            piece = gzip.unconsumed_tail
    if some and not gzip.eof:
        raise httpx.DecodingError("the gzipped answer is cut short", request=answer.request)


class _Forgetful(CookieJar):
    """Keeps no cookie: none is needed, and a server's would be parsed and sent back."""

    def extract_cookies(self, response: HTTPResponse, request: urllib.request.Request) -> None:
        """Keep nothing."""


class _Network(httpcore.SyncBackend):
    """Sockets on which no wait goes past the deadline."""

    def __init__(self) -> None:
        self._lines: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._lock, self._ended = threading.Lock(), False

    def connect_tcp(self, *args: Any, **options: Any) -> httpcore.NetworkStream:
        options["timeout"] = _left(httpcore.ConnectTimeout)
        stream = super().connect_tcp(*args, **options)
        # A second handle on the connection: TLS takes the first one over, and its state may not be
        # touched from another thread.
        line = stream.get_extra_info("socket").dup()
        with self._lock:
            if not self._ended:
                self._lines.add(line)
                return _Stream(stream, line)
        line.close()
        stream.close()
        raise httpcore.ConnectError("the client was closed")

    def hang_up(self) -> None:
        """Wake every waiting thread; closing a socket alone would not."""
        with self._lock:
            self._ended, lines = True, list(self._lines)
        for each in lines:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


class _Stream(httpcore.NetworkStream):
    def __init__(self, stream: httpcore.NetworkStream, line: socket.socket) -> None:
        self._stream, self._line = stream, line

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), _PIECE):
            self._stream.write(buffer[start : start + _PIECE], _left(httpcore.WriteTimeout))

    def close(self) -> None:
        self._line.close()
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        try:
            secured = self._stream.start_tls(
                ssl_context, server_hostname, _left(httpcore.ConnectTimeout)
            )
        except BaseException:
            self.close()
            raise
        return _Stream(secured, self._line)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _left(late: type[Exception]) -> float:
    """Seconds until the deadline. Raises ``late`` when there are none."""
    left = _ENDS.get() - time.monotonic()
    if left <= 0:
        raise late("the deadline is over")
    return left
