"""What stands before Argilla's own application: the server's proof, the names it answers to, and
slow password guesses.

Argilla takes any Host, so that a page of another site could reach it under a name of its own (DNS
rebinding), and lets passwords be guessed at full speed. Both matter once a proxy lets others in.
"""

import hashlib
import json
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request

from prefloop_labeling import proof
from prefloop_labeling.identity import Identity

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = ("localhost", "127.0.0.1", "::1")
SIGN_IN = "/api/v1/token"
LARGEST_SIGN_IN = 1 << 16  # bytes
FREE_GUESSES = 5
SLOWEST_SECONDS = 60.0
FORGET_SECONDS = 600.0
MOST_KEPT = 10_000


@dataclass
class _Guesses:
    wrong: int
    last: float
    before: float  # the one before the last


class Guesses:
    """Wrong passwords of late, by who was guessed and from where; the wait after them grows from
    one second to a minute.

    In memory and bounded: of a name its hash is kept, since a name may be as long as a request. A
    guess counts from its beginning, so that many at once are no way around.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kept: OrderedDict[bytes, _Guesses] = (
            OrderedDict()
        )  # those that have not guessed for longest first

    def wait(self, *keys: str) -> float:
        """Seconds until a guess under all these keys is heard; 0 when it is now."""
        now = self._clock()
        return max(0.0, *(self._ready(_hash(key)) - now for key in keys))

    def begin(self, *keys: str) -> None:
        """Count a guess as wrong until `right` or `none` says else."""
        now = self._clock()
        for key in map(_hash, keys):
            found = self._kept.pop(key, None)
            if found is None or now - found.last >= FORGET_SECONDS:
                found = _Guesses(0, -math.inf, -math.inf)
            self._kept[key] = _Guesses(found.wrong + 1, now, found.last)
        while len(self._kept) > MOST_KEPT:
            self._kept.popitem(last=False)

    def wrong(self, *keys: str) -> None:
        """It was not the password: the wait begins now, however long the look at it took."""
        for key in map(_hash, keys):
            if found := self._kept.get(key):
                found.last = self._clock()

    def right(self, user: str, address: str) -> None:
        """It was the password: the user's wrong guesses are over. Those of the address stay, which
        may guess others' passwords too.
        """
        self._kept.pop(_hash(user), None)
        self.none(address)

    def none(self, *keys: str) -> None:
        """It was no guess after all."""
        for key in map(_hash, keys):
            if found := self._kept.get(key):
                found.wrong, found.last = found.wrong - 1, found.before

    def _ready(self, key: bytes) -> float:
        found = self._kept.get(key)
        if found is None or found.wrong < FREE_GUESSES:
            return -math.inf
        return found.last + min(SLOWEST_SECONDS, 2.0 ** min(found.wrong - FREE_GUESSES, 30))


class Guard:
    """An ASGI application around another."""

    def __init__(
        self, app: App, secret: str, home: Identity, port: int, names: Collection[str]
    ) -> None:
        self.app, self.guesses = app, Guesses()
        self._secret, self._home, self._port = secret, home, port
        self._names = {name.lower() for name in (*LOOPBACK, *names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if not self._known(scope):
            return await _refuse(
                send,
                421,
                "This server does not go by that name: `label up --allow-host NAME` lets it.",
            )
        if scope["path"] == proof.PATH:
            nonce = scope["query_string"].decode("latin-1")[:64]
            answer = proof.proof(self._secret, nonce, self._home, self._port)
            headers = [(proof.HEADER.encode(), answer.encode())]
            await send({"type": "http.response.start", "status": 204, "headers": headers})
            return await send({"type": "http.response.body"})
        if scope["path"].rstrip("/") == SIGN_IN and scope["method"] == "POST":
            return await self._sign_in(scope, receive, send)
        return await self.app(scope, receive, send)

    def _known(self, scope: Scope) -> bool:
        """Whether the Host is one of our names, or the very address that was connected to."""
        hosts = Headers(scope=scope).getlist("host")
        if len(hosts) != 1:
            return False
        name = _without_port(hosts[0]).lower()
        return name in self._names or name == (scope.get("server") or ("",))[0]

    async def _sign_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await _body(receive)
        if body is None:
            return await _refuse(send, 413, "A name and a password are shorter than that.")
        try:
            username = (await Request(scope, _once(body)).form(max_files=4, max_fields=16)).get(
                "username"
            )
        except Exception:  # Argilla has other limits, so what is not read here is not passed on
            return await _refuse(
                send,
                400,
                "The form cannot be read: send a username and a password, and nothing else.",
            )
        # Whatever is passed on is counted: without a name, under the empty one that nobody has.
        name = username if isinstance(username, str) else ""
        keys = f"user {name}", f"address {(scope.get('client') or ('',))[0]}"
        wait = math.ceil(self.guesses.wait(*keys))
        if wait > 0:
            said = f"Too many wrong passwords: try again in {wait} s."
            return await _refuse(send, 429, said, [(b"retry-after", str(wait).encode())])
        self.guesses.begin(*keys)

        async def watched(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                status = message["status"]
                done = self.guesses.wrong if status == 401 else self.guesses.none
                (self.guesses.right if status < 300 else done)(*keys)
            await send(message)

        return await self.app(scope, _once(body, receive), watched)


def _hash(key: str) -> bytes:
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


async def _body(receive: Receive) -> bytes | None:
    """The body of a request; None for one that is too large, or whose sender has gone."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body, more = body + message.get("body", b""), message.get("more_body", False)
        if len(body) > LARGEST_SIGN_IN:
            return None
    return body


def _once(body: bytes, then: Receive | None = None) -> Receive:
    """What gives the body again, and after it what `then` gives."""
    given = False

    async def receive() -> MutableMapping[str, Any]:
        nonlocal given
        if given:
            return await then() if then else {"type": "http.disconnect"}
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


async def _refuse(
    send: Send, status: int, detail: str, headers: Collection[tuple[bytes, bytes]] = ()
) -> None:
    body = json.dumps({"detail": detail}).encode()
    all_headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *headers,
    ]
    await send({"type": "http.response.start", "status": status, "headers": all_headers})
    await send({"type": "http.response.body", "body": body})
