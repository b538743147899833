"""JSON to a user's server and back: retries, waits, and a key that is sent to no other address.

The OpenAI-compatible judge, the rewards over HTTP and a vLLM server's rollouts make all their
requests here. Redirects are not followed: the key is for the address that was named, and the error
says where that address points.
"""

from __future__ import annotations

import email.utils
import json
import math
import os
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from prefloop.base.console import say
from prefloop.base.http import MOST_BYTES, Client, TooLarge
from prefloop.base.json_object import parsed
from prefloop.errors import ConfigError, RequestError

_MAX_WAIT_S = 120.0
_QUIET_S = 30.0
"""Between two lines about a failing server."""
_JITTER = random.Random()  # not the global one, whose state belongs to seeded runs
_KEPT_OF_A_REFUSAL = 100_000
"""Characters of an error's body that callers may search. Thousands of failures may be kept."""


class RequestFailed(RequestError):
    """A request that failed after all retries."""

    def __init__(self, message: str, status: int | None = None, body: str = "") -> None:
        super().__init__(message)
        self.status = status
        """Of the last answer; ``None`` when there was none."""
        self.body = body
        """Start of the last answer's text, without the key."""


class Pace:
    """A limit of requests a minute, evenly spread. Shared by the threads of an endpoint."""

    def __init__(
        self, requests_per_minute: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._gap, self._clock = 60.0 / requests_per_minute, clock
        self._next = -math.inf
        self._lock = threading.Lock()

    def turn(self) -> float:
        """Reserve the next free moment. Returns the seconds until it."""
        with self._lock:
            now = self._clock()
            mine = max(now, self._next)
            self._next = mine + self._gap
            return mine - now


class Reply:
    """A server's answer of status 2xx. The key of the request is blotted out of every excerpt."""

    def __init__(self, response: httpx.Response, key: str | None) -> None:
        self._response, self._key = response, key
        self.status = response.status_code

    def json(self) -> Any:
        """The parsed body; raises ``ValueError`` when it is not JSON, or nested too deep."""
        return parsed(self._response.content)

    def excerpt(self) -> str:
        """The start of the body, for messages."""
        return self.without_key(self._response.text)[:200] or "(empty body)"

    def without_key(self, text: str) -> str:
        """The text with the key blotted out."""
        return _blotted(text, self._key)


@dataclass
class Endpoint:
    """One address that takes JSON by POST, or gives it by GET.

    The key is read from the environment for each request and is held nowhere else. ``post`` raises
    ``RequestFailed``, with the status and the start of the body, when the server cannot be used,
    and ``RequestError`` when there is no key to ask with.
    """

    url: httpx.URL
    """Full address, from ``parsed_url``."""
    who: str
    """Start of every message about a request, such as
    ``judge http://localhost:8000/v1/chat/completions``.
    """
    setting: str
    """Name of the setting that holds the address, for messages."""
    key_env: str | None
    """Environment variable that holds the key; ``None`` sends no key."""
    key_required: bool
    """Whether it is an error when the variable is not set; otherwise no key is sent."""
    timeout: float
    """Seconds that a request may take, from connecting to the last byte of its answer."""
    max_retries: int
    """Further attempts after 408, 429, 5xx and connection errors."""
    backoff: float
    """Seconds before the first retry, doubled for each next one; a ``Retry-After`` header takes
    precedence.
    """
    advice: Mapping[int, str]
    """Advice on each status."""
    max_connections: int = 1
    """Requests in flight at a time."""
    pace: Pace | None = None
    """Limit of requests a minute, retries included."""
    most_bytes: int = MOST_BYTES
    """Largest answer, in bytes after decompression."""

    def __post_init__(self) -> None:
        self.n_sent = self.n_retried = 0
        """Requests sent, and how many of them were further attempts."""
        self._counting = threading.Lock()
        self._reported = -math.inf
        self._client = Client(
            self.url, self.timeout, connections=self.max_connections, most=self.most_bytes
        )

    def post(self, body: Mapping[str, Any], stop: threading.Event | None = None) -> Reply:
        """Send ``body``; retries errors that may pass by themselves, until ``stop`` is set."""
        # As ASCII, so that half an emoji in a cut-off response can be sent.
        return self._ask("POST", json.dumps(body), stop)

    def get(self) -> Reply:
        """Ask for the address's content; retries errors that may pass by themselves."""
        return self._ask("GET", None)

    def close(self) -> None:
        """Close the connections. Requests on their way fail, and no request can follow."""
        self._client.close()

    def _ask(self, method: str, content: str | None, stop: threading.Event | None = None) -> Reply:
        stop = stop or threading.Event()
        key = self._key()
        headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {key}"} if key else {}
        )
        for attempt in range(self.max_retries + 1):
            retry_after = None
            if self.pace and (pause := self.pace.turn()):
                _wait(pause, stop)
            if stop.is_set():
                raise RequestFailed(f"{self.who}: the evaluation was stopped before this request")
            with self._counting:
                self.n_sent += 1
                self.n_retried += attempt > 0
            status, body = None, ""
            try:
                response = self._client.request(method, self.url, content=content, headers=headers)
            except TooLarge as error:  # a retry would be as large
                raise RequestFailed(f"{self.who}: {error}; check {self.setting}") from None
            except httpx.RequestError as error:
                failure, advice = self._transport_failure(error, key)
            else:
                if response.is_success:
                    return Reply(response, key)
                status, body = (
                    response.status_code,
                    _blotted(response.text, key)[:_KEPT_OF_A_REFUSAL],
                )
                failure = f"HTTP {status}: {Reply(response, key).excerpt()}"
                passing = response.status_code in (408, 429) or response.status_code >= 500
                advice = self._advice(response, key, passing)
                if not passing:
                    raise RequestFailed(f"{self.who}: {failure}; {advice}", status, body)
                retry_after = _retry_after(response.headers.get("retry-after"))
            if attempt < self.max_retries:
                self._report(
                    f"{failure}; asking again, {self.max_retries - attempt} more"
                    f" time{'' if attempt + 1 == self.max_retries else 's'}"
                )
                pause = (
                    self.backoff * 2**attempt * _JITTER.uniform(0.75, 1.25)
                    if retry_after is None
                    else retry_after
                )
                _wait(min(pause, _MAX_WAIT_S), stop)
                if stop.is_set():
                    break
        raise RequestFailed(
            f"{self.who}: {failure} ({attempt + 1} attempts); {advice}", status, body
        )

    def _report(self, failure: str) -> None:
        """Report the first failure, and then one in ``_QUIET_S`` seconds."""
        with self._counting:
            if time.monotonic() - self._reported < _QUIET_S:
                return
            self._reported = time.monotonic()
        say(f"  {self.who}: {failure}", "yellow")

    def _advice(self, response: httpx.Response, key: str | None, passing: bool) -> str:
        if response.has_redirect_location:
            target = (
                Reply(response, key).without_key(response.headers["location"]).partition("?")[0]
            )
            return (
                f"it points to {target:.200}, and redirects are not followed: put the final address"
                f" into {self.setting}"
            )
        fallback = "the server failed; look into its log" if passing else f"check {self.setting}"
        return self.advice.get(response.status_code, fallback)

    def _transport_failure(self, error: httpx.RequestError, key: str | None) -> tuple[str, str]:
        if isinstance(error, httpx.ReadTimeout | httpx.WriteTimeout):
            advice = "look whether the server is stuck or has too much to do"
            return f"no answer within {self.timeout:g} s", advice
        # The network layer quotes what the server sent, which may be a line of 100 KB.
        quoted = _blotted(str(error), key)[:200]
        return (
            f"{type(error).__name__}: {quoted}",
            f"is the server up, and is {self.setting} right?",
        )

    def _key(self) -> str | None:
        if self.key_env is None:
            return None
        key = os.environ.get(self.key_env, "").strip()
        if not key and self.key_required:
            raise RequestError(
                f"{self.who}: environment variable {self.key_env} is not set; set it to the key"
            )
        if not (key.isascii() and key.isprintable()):
            raise RequestError(
                f"{self.who}: the key in {self.key_env} holds characters that cannot be sent; copy"
                " it again"
            )
        return key or None


def parsed_url(text: str, setting: str, key: str, query: bool = False) -> httpx.URL:
    """The address in ``setting``. Raises ``ConfigError``, which repeats no part that may be a
    password; ``key`` is its advice on where the key goes.
    """
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise ConfigError(f"{setting} is not a URL ({error})") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigError(f"{setting} must look like http://localhost:8000/... or https://host/...")
    if url.userinfo or (url.query and not query):
        what = "user or password" if query else "user, password or query"
        raise ConfigError(f"{setting} must hold no {what}: {key}")
    return url


def _blotted(text: str, key: str | None) -> str:
    """The text without the key: a server may echo what it was sent, as it is or as JSON."""
    for form in (key, json.dumps(key)[1:-1]) if key else ():
        text = text.replace(form, "***")
    return text


def _retry_after(value: str | None) -> float | None:
    """Seconds that a ``Retry-After`` header asks for, given as seconds or as a date."""
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _wait(seconds: float, stop: threading.Event) -> None:
    stop.wait(seconds)
