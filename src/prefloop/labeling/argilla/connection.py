"""The Argilla server and its key; Argilla's own client for it, and its REST API for what the client
cannot do.

Both send their requests through one ``Http``, so that every failure has the same message. Only the
connection and the client hold the key: it is in no message, no ``repr`` and no artifact. It is sent
to the address that the user named, or to the server of a home once that has proved its identity
(``labeling.argilla.proof``), and nowhere else: redirects are not followed.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx

from prefloop.base.http import Client, TooLarge
from prefloop.base.json_object import parsed
from prefloop.base.redact import without_secrets
from prefloop.errors import LabelError
from prefloop.labeling.argilla.proof import NotOurs, Proving
from prefloop.labeling.server import default_home

if TYPE_CHECKING:
    import argilla as rg

URL_VARIABLE, KEY_VARIABLE = "ARGILLA_API_URL", "ARGILLA_API_KEY"
DEADLINE_S = 300.0
"""Seconds that a request may take in all. Argilla needs time for a page of long records."""
MOST_BYTES = 256 << 20
"""Most bytes of an answer. A page of records holds all their texts twice."""


@dataclasses.dataclass(frozen=True)
class Connection:
    """An Argilla server and a key for it."""

    url: str
    """Address without path, such as http://127.0.0.1:6900."""
    api_key: str = dataclasses.field(repr=False)
    """Key of an owner, or of an admin of the workspace. ``vote`` needs an owner's."""
    advice: str = "is the server up, and is the address right?"
    """What to do when nothing answers there."""
    home: Path | None = None
    """The home whose server it must be; ``None`` for an address that the user named."""

    @classmethod
    def find(
        cls,
        home: Path | str | None = None,
        url: str | None = None,
        api_key: str | None = None,
        environment: Mapping[str, str] = os.environ,
    ) -> Connection:
        """The connection to ``url`` if given, else to ``home``, else to ``ARGILLA_API_URL``, else
        to the user's own home.

        A key that is not given comes from ``ARGILLA_API_KEY``, or for a home from its
        ``credentials.json``. Raises ``LabelError`` saying what is missing and where to get it.
        """
        if home is not None and url:
            raise LabelError(
                "--home and --url are both given: a home has an address of its own, so name one of"
                " the two"
            )
        if url or (home is None and environment.get(URL_VARIABLE)):
            key = _key(api_key or environment.get(KEY_VARIABLE, ""))
            if not key:
                raise LabelError(
                    f"no API key: set {KEY_VARIABLE} to the key that Argilla shows under 'My"
                    " settings', or use --home with a home of `prefloop label up`"
                )
            return cls(_address(url or environment[URL_VARIABLE]), key)
        return cls.of_home(
            default_home() if home is None else Path(home), api_key and _key(api_key)
        )

    @classmethod
    def of_home(cls, home: Path, api_key: str | None = None) -> Connection:
        """The server of a home, with its owner's key unless another is given. Raises ``LabelError``
        where no server was ever started in it, as in a copy of a home.
        """
        home = home.expanduser()
        up = f"start it with `prefloop label up --home {home}`"
        try:
            owner = json.loads((home / "credentials.json").read_text())["owner"]
            last = json.loads((home / "server.json").read_text())
            address = _address(last["url"])
            if last.get("home") is None:  # its server could not answer the question of labels.proof
                raise LabelError(
                    f"an earlier version of prefloop started the labeling server of {home}: say"
                    f" `prefloop label down --home {home}`, then `prefloop label up --home {home}`"
                )
            if not _is_of(last["home"], home):
                raise LabelError(
                    f"no labeling server has run in {home}, a copy of {last['home']['path']} or a"
                    f" backup of it: {up}, which leaves that one alone"
                )
            advice = f"is the server up? {up}"
            return cls(address, _key(api_key or owner["api_key"]), advice, home.absolute())
        except FileNotFoundError as missing:
            if Path(missing.filename).name == "credentials.json" and (home / "argilla.db").exists():
                raise LabelError(
                    f"{home} is the home of a labeling server, and its credentials.json is"
                    " missing: restore a backup with `prefloop label restore`, or put the file"
                    " back"
                ) from None
            raise LabelError(
                f"no labeling server has run in {home} (there is no {missing.filename}): {up}"
            ) from None
        except OSError as error:
            raise LabelError(f"{error.filename} cannot be read: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise LabelError(
                f"{home} holds a damaged credentials.json or server.json: restore it, or {up}"
            ) from None


def _is_of(written: Mapping[str, Any], home: Path) -> bool:
    """Whether the directory that a server wrote into its ``server.json`` is this one. See
    ``prefloop_labeling.identity``.
    """
    stat = os.stat(home)
    same_disk = written["device"] == stat.st_dev or written["path"] == os.path.realpath(home)
    return bool(written["inode"] == stat.st_ino and same_disk)


def _key(given: str) -> str:
    """The key without the blanks that copying adds around it. Raises ``LabelError`` for a key that
    no header can carry; the key is not in the message.
    """
    key = given.strip()
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise LabelError(
            "the API key holds blanks or characters that no key has: copy it again from 'My"
            " settings'"
        )
    return key


def _address(url: str) -> str:
    """The address without a trailing slash, user or password. Raises ``LabelError`` for a text that
    is no address.
    """
    try:
        parts = urlsplit(url.strip())
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise LabelError(
            f"'{without_secrets(url)}' is no address: it should look like http://127.0.0.1:6900"
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise LabelError(
            f"the address {without_secrets(url)} carries a user, a query or a fragment: leave them"
            f" out, and put the key into {KEY_VARIABLE}"
        )
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/api/v1')}"


def place(home: Path | None, url: str | None, environment: Mapping[str, str] = os.environ) -> str:
    """A text that identifies the server which ``Connection.find`` would choose, without a request
    to it.
    """
    if url or (home is None and environment.get(URL_VARIABLE)):
        return _address(url or environment[URL_VARIABLE])
    return str((default_home() if home is None else home).expanduser().resolve())


class Refused(LabelError):
    """The server answered with an error status. ``status`` is its number, ``detail`` the server's
    reason.
    """

    def __init__(self, message: str, status: int, detail: Any) -> None:
        super().__init__(message)
        self.status, self.detail = status, detail


class Unreachable(LabelError):
    """Nothing answered, or not in time."""


def is_away(error: LabelError) -> bool:
    """Whether a later attempt may succeed: nothing answers, or the server has failed."""
    return isinstance(error, Unreachable) or (isinstance(error, Refused) and error.status >= 500)


class TooMuch(LabelError):
    """An answer of more than ``MOST_BYTES``. Whoever asked for a page should ask for a smaller
    one.
    """


class Http(Client):
    """Requests with one key. Each raises ``LabelError`` when there is no usable answer, and
    ``Refused`` for an error status.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        headers = {"X-Argilla-Api-Key": connection.api_key}
        home = connection.home
        opening = (
            functools.partial(Proving, home=home) if home is not None else lambda network: network
        )
        super().__init__(connection.url, DEADLINE_S, headers, most=MOST_BYTES, opening=opening)

    def request(self, method: str, url: httpx.URL | str, **options: Any) -> httpx.Response:
        """Send one request. The answer is JSON or empty."""
        path, at = str(url).partition("/api/v1")[2], self.connection.url
        body = options.pop("json", None)
        if body is not None:
            # ASCII escapes, so that half an emoji in a response that was cut can be sent.
            options["content"] = json.dumps(body)
            options["headers"] = {"Content-Type": "application/json"}
        try:
            answer = super().request(method, url, **options)
        except httpx.TimeoutException:
            raise Unreachable(
                f"Argilla at {at} did not answer {method} {path} within {DEADLINE_S:.0f} s: look"
                " into its log"
            ) from None
        except TooLarge as error:
            raise TooMuch(f"Argilla at {at}, {method} {path}: {error}") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            if isinstance(error.__cause__, NotOurs):
                raise Unreachable(
                    f"another program listens at {at}, and no key was sent to it:"
                    f" {error.__cause__}; {self.connection.advice}"
                ) from None
            reason = str(error).replace(self.connection.api_key, "***")
            raise Unreachable(
                f"nothing answers at {at} ({type(error).__name__}: {reason:.400}):"
                f" {self.connection.advice}"
            ) from None
        if not answer.is_success:
            raise self._refusal(method, path, answer)
        kind = answer.headers.get("content-type", "no type")
        if answer.content and not kind.startswith("application/json"):
            raise LabelError(
                f"this is not Argilla: {at} answered {method} {path} with {kind}; check the address"
            )
        try:
            # Argilla's client would parse JSON of any depth.
            value = parsed(answer.content or b"null")
        except ValueError:
            raise LabelError(
                f"this is not Argilla: {at} answered {method} {path} with what is no JSON; check"
                " the address"
            ) from None
        if answer.content:
            answer.json = lambda **_: value  # type: ignore[method-assign]  # a page is large: it is read once
        return answer

    def _refusal(self, method: str, path: str, answer: httpx.Response) -> Refused:
        try:
            detail = parsed(answer.content)["detail"]
        except (ValueError, KeyError, TypeError):
            detail = None
        at, status = self.connection.url, answer.status_code
        reason = _reason(detail) or _line(answer) or "(no reason given)"
        reason = reason.replace(self.connection.api_key, "***")
        # Accounts belong to the whole server, everything else to a workspace.
        admin = "" if path.startswith("/users") else ", or of an admin of the workspace"
        known = {
            401: (
                f"Argilla at {at} does not know this API key: copy it again from 'My settings'"
                f" there into {KEY_VARIABLE}, or name the --home that the server runs in"
            ),
            403: (
                f"Argilla at {at} does not let this key {method} {path}: use the key of an"
                f" owner{admin}"
            ),
        }
        message = known.get(
            status, f"Argilla at {at} refused {method} {path} ({status}): {reason:.600}"
        )
        if (detail is None and not _line(answer)) or detail == "Not Found":
            kind = answer.headers.get("content-type", "no type").partition(";")[0]
            message = (
                f"this is not Argilla: {at} answered {method} {path} with status {status} and"
                f" {kind}; check the address"
            )
            message += ", and what stands before Argilla there" if status >= 500 else ""
        if answer.has_redirect_location:
            to = without_secrets(answer.headers["location"])
            message = (
                f"{at} points to {to:.200}, and redirects are not followed: name the final address"
            )
        return Refused(message, answer.status_code, detail)


class Rest:
    """Calls to one server with one key: ``get``, ``post`` and ``call`` for paths of ``/api/v1``,
    ``client`` for Argilla's own client.

    Every call, also of the client, raises ``LabelError`` when there is no usable answer, and
    ``Refused`` for an error status.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._http = Http(connection)

    @functools.cached_property
    def client(self) -> rg.Argilla:
        """Argilla's own client. Its import takes a second, and it sends no request before it is
        used.
        """
        from prefloop.labeling.argilla.client import client

        return client(self._http, self.connection.url, self.connection.api_key)

    def get(self, path: str, **query: Any) -> Any:
        """The JSON at ``path``."""
        return self.call("GET", path, query=query)

    def post(self, path: str, body: Any, **query: Any) -> Any:
        """The JSON that answers ``body``."""
        return self.call("POST", path, body, query)

    def call(
        self, method: str, path: str, body: Any = None, query: Mapping[str, Any] | None = None
    ) -> Any:
        """Send one request and return its JSON; ``None`` for an empty answer."""
        answer = self._http.request(method, f"/api/v1{path}", json=body, params=query or None)
        return answer.json() if answer.content else None

    def __enter__(self) -> Rest:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()


def _reason(detail: Any) -> str:
    """The reason of an error in words. For a failed validation, each field with its problem,
    without the value that was sent.
    """
    if isinstance(detail, str):
        return detail
    try:
        errors = detail["params"]["errors"]
        return "; ".join(
            f"{'.'.join(map(str, error['loc'][1:]))}: {error['msg']}" for error in errors
        )
    except (TypeError, KeyError):
        return "" if detail is None else json.dumps(detail, ensure_ascii=False)


def _line(answer: httpx.Response) -> str:
    """The body of a plain-text answer as one line; empty for a web page."""
    plain = answer.headers.get("content-type", "").startswith("text/plain")
    return " ".join(answer.text[:200].split()) if plain else ""
