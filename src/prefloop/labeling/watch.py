"""Votes as they arrive: Argilla's signed webhooks keep a file up to date.

An event only says which record to ask for again, so that its content needs no trust beyond its signature, and events may come twice, late
or in any order. Every vote is in the file when ``Watch`` starts (the webhook is registered first, then everything is pulled), and a pull
every few minutes brings what an event was lost for. Standard Webhooks: HMAC-SHA256 of ``id.timestamp.body``.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import dataclasses
import hashlib
import hmac
import json
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from prefloop.base.console import say
from prefloop.data.sources import write_jsonl
from prefloop.errors import LabelError
from prefloop.labeling.argilla.datasets import Dataset, Person
from prefloop.labeling.argilla.pulled import Pulled, pulled
from prefloop.labeling.argilla.questions import reading_of
from prefloop.labeling.argilla.records import Argilla

EVENTS = ("response.created", "response.updated", "response.deleted")
TOLERANCE_S = 300
LARGEST_BODY = 32 << 20
MOST_AT_ONCE = 250
BEAT_S = 10  # between two looks whether Argilla is still there


@dataclasses.dataclass(frozen=True)
class News:
    """What the file holds now, and how far the dataset is."""

    found: Pulled
    completed: int
    """Records with the answers that they need, of ``total``."""
    total: int
    written: bool
    """False as long as nobody has answered: a file of before is left as it is."""


class Signature:
    """Whether a request comes from the webhook with ``secret`` (base64, with or without ``whsec_``), now and for the first time."""

    def __init__(self, secret: str, clock: Callable[[], float] = time.time) -> None:
        self._key = base64.b64decode(secret.removeprefix("whsec_"))
        self._clock = clock
        self._seen: dict[str, float] = {}
        self._lock = threading.Lock()

    def verify(self, headers: Mapping[str, str], body: bytes) -> str | None:
        """``None`` for a good request, else what is wrong with it. A message id counts as seen once its signature was good."""
        id, stamp, given = (headers.get(f"webhook-{name}", "") for name in ("id", "timestamp", "signature"))
        if not (id and given and stamp.isascii() and stamp.isdigit()):
            return "signature headers missing"
        now = self._clock()
        if abs(now - int(stamp)) > TOLERANCE_S:
            return "timestamp too old or too new"
        expected = hmac.new(self._key, f"{id}.{stamp}.".encode() + body, hashlib.sha256).digest()
        if not any(hmac.compare_digest(expected, one) for one in _versions(given)):
            return "wrong signature"
        with self._lock:
            # An id can be forgotten once its timestamp alone would be refused.
            self._seen = {old: at for old, at in self._seen.items() if now - at <= 2 * TOLERANCE_S}
            if id in self._seen:
                return "seen before"
            self._seen[id] = now
        return None


def _versions(header: str) -> Iterator[bytes]:
    for part in header.split():
        version, _, encoded = part.partition(",")
        with contextlib.suppress(binascii.Error, ValueError):
            if version == "v1":
                yield base64.b64decode(encoded)


class Watch:
    """Keeps ``output`` at the votes of a dataset while it is open; needs an owner's key. Use it as a context manager.

    Listens on the loopback of this machine, where Argilla must be too. Raises ``LabelError`` when Argilla cannot reach it. ``simulated``
    and ``questions``: see ``Argilla.pull``.
    """

    def __init__(
        self,
        argilla: Argilla,
        dataset: str,
        output: Path,
        workspace: str = "default",
        port: int = 0,
        every_s: float = 300,
        beat_s: float = BEAT_S,
        simulated: bool = False,
        questions: Sequence[str] = (),
    ) -> None:
        self.argilla, self.output, self.simulated = argilla, output, simulated
        self.every_s, self.beat_s = every_s, beat_s
        self.dataset: Dataset = argilla.datasets.find(dataset, workspace)
        self.reading = reading_of(self.dataset, questions)
        self.source = f"argilla:{workspace}/{dataset}"
        self._changed: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._items: dict[str, dict[str, Any]] = {}
        self._people: dict[str, Person] = {}
        self._written = False
        self._signature: Signature | None = None
        self._webhook: str | None = None
        self._port = port
        self._server: ThreadingHTTPServer | None = None

    def __enter__(self) -> Watch:
        try:
            self._listen()
            self._register()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._changed.put("")  # wakes who waits for news
        if self._webhook is not None:
            with contextlib.suppress(
                LabelError
            ):  # the server is gone, and its webhook with it or found at the next start
                self.argilla.rest.call("DELETE", f"/webhooks/{self._webhook}")
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def updates(self) -> Iterator[News]:
        """The file's content each time it was written: at once, after votes have come, and after a pull with news; until closed.

        An Argilla that goes away is said once, and once that it is back, when a pull brings what was missed.
        """
        yield self._pull()
        due, away = time.monotonic() + self.every_s, False
        while True:
            changed = self._wait(min(due - time.monotonic(), self.beat_s))
            if self._closed.is_set():
                return
            try:
                if away or not changed:
                    self.argilla.datasets.counts(self.dataset)
                if away:
                    say(f"{clock()} Argilla answers again")
                    due, away = time.monotonic(), False
                if changed:
                    yield self._refresh(changed)
                if time.monotonic() >= due:
                    due = time.monotonic() + self.every_s
                    before = self._items, self._people
                    news = self._pull()
                    if (self._items, self._people) != before:
                        yield news
            except LabelError as error:  # a restart of Argilla, perhaps
                if not away:
                    say(f"{clock()} {error}. Asking again every {self.beat_s:g} s", "yellow")
                away = True

    def _wait(self, seconds: float) -> set[str]:
        """Ids of records with news: all there are, after the first has come; none when the time is over."""
        changed: set[str] = set()
        with contextlib.suppress(queue.Empty):
            changed.add(self._changed.get(timeout=max(0.0, seconds)))
            while len(changed) < MOST_AT_ONCE:
                changed.add(self._changed.get_nowait())
        return changed

    def _pull(self) -> News:
        self._people = self.argilla.datasets.people(self.dataset)
        self._items = {item["id"]: item for item in self.argilla.datasets.answered(self.dataset)}
        return self._write()

    def _refresh(self, ids: set[str]) -> News:
        found = {item["id"]: item for item in self.argilla.datasets.answered(self.dataset, ids)}
        self._items = {id: item for id, item in self._items.items() if id not in ids} | found
        people = {answer["user_id"] for item in found.values() for answer in item["responses"]}
        if not people <= self._people.keys():
            self._people = self.argilla.datasets.people(self.dataset)
        return self._write()

    def _write(self) -> News:
        items = sorted(self._items.values(), key=lambda item: (item["inserted_at"], item["id"]))
        found = pulled(items, self._people, self.simulated, self.reading, self.source)
        counts = self.argilla.datasets.counts(self.dataset)
        self._written = self._written or bool(found.records)
        if self._written:
            write_jsonl(self.output, found.records)
        return News(found, counts["completed"], counts["total"], self._written)

    def _listen(self) -> None:
        try:
            self._server = ThreadingHTTPServer(("127.0.0.1", self._port), _handler(self))
        except OSError as error:
            raise LabelError(
                f"port {self._port} on 127.0.0.1 cannot be used ({error.strerror}): choose another with --port"
            ) from None
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _register(self) -> None:
        assert self._server is not None
        mark = f"prefloop watch of {self.dataset.name} into {self.output.absolute()}"[-1000:]
        for old in self.argilla.rest.get("/webhooks")["items"]:
            if old["description"] == mark:  # of a watch that was killed
                self.argilla.rest.call("DELETE", f"/webhooks/{old['id']}")
        url = f"http://127.0.0.1:{self._server.server_port}/"
        made = self.argilla.rest.post("/webhooks", {"url": url, "events": EVENTS, "description": mark})
        self._webhook, self._signature = made["id"], Signature(made["secret"])

    def receive(self, headers: Mapping[str, str], body: bytes) -> int:
        """Take one request; the status to answer with."""
        problem = self._signature.verify(headers, body) if self._signature else "not ready"
        if problem == "seen before":
            return 204  # it has been taken: the sender should not try again
        if problem:
            return 401
        try:
            record = json.loads(body)["data"]["record"]
            if record["dataset"]["id"] == self.dataset.id:
                self._changed.put(str(record["id"]))
        except (ValueError, KeyError, TypeError, RecursionError):
            return 400
        return 204


def clock() -> str:
    """The time of day, for a line about what has just happened."""
    return time.strftime("%H:%M:%S")


def _handler(watch: Watch) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 30

        def do_POST(self) -> None:
            length = self.headers.get("content-length", "")
            if not (length.isascii() and length.isdigit()) or int(length) > LARGEST_BODY:
                status = 413 if length.isdigit() else 411
            else:
                headers = {name.lower(): value for name, value in self.headers.items()}
                status = watch.receive(headers, self.rfile.read(int(length)))
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Requests are no news; their effect is."""

    return Handler
