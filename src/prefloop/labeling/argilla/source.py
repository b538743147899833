"""Read a dataset on an Argilla server like a file: rows in prefloop's own layout, and a digest of
them.

The address is ``argilla://WORKSPACE/DATASET``. It may be followed by what ``--questions`` takes:
``argilla://default/x?preferred=better&prompt=ask``. The server and its key come from where every
command takes them (``Connection.find``), never from the address.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from prefloop.base.console import say
from prefloop.base.redact import without_secrets
from prefloop.data.raw import cache_home, write_copy
from prefloop.errors import ConfigError, DataError
from prefloop.labeling.argilla.connection import Connection
from prefloop.labeling.argilla.records import Argilla
from prefloop.records import to_dict

SCHEME = "argilla://"
_UNSAFE = re.compile(r"[^\w.-]+")


@dataclasses.dataclass(frozen=True)
class Address:
    """The address of a dataset, without its server."""

    workspace: str
    dataset: str
    questions: tuple[str, ...] = ()

    @classmethod
    def parse(cls, address: str) -> Address:
        """Parse an address. Raises ``ConfigError`` for a text that is none."""
        place, _, query = address.removeprefix(SCHEME).partition("?")
        parts = [unquote(part) for part in place.split("/")]
        if not address.startswith(SCHEME) or len(parts) != 2 or not all(parts) or "@" in place:
            raise ConfigError(
                f"'{without_secrets(address)}' is no address of a dataset: it should look like"
                f" {SCHEME}workspace/dataset. The server and the key come from ARGILLA_API_URL and"
                " ARGILLA_API_KEY, or from the home of `prefloop label up`"
            )
        return cls(parts[0], parts[1], tuple(unquote(part) for part in query.split("&") if part))


@dataclasses.dataclass(frozen=True)
class Rows:
    """The contents of a dataset at one moment."""

    rows: list[dict[str, Any]]
    """Records as ``records.to_dict`` writes them: ``id``, ``prompt``, ``responses`` or
    ``response``, ``votes``, ``meta``. All records in the order in which they were logged, also
    those without votes.
    """
    digest: str
    """SHA-256 of the rows. It changes with every vote."""
    summary: str
    """How the dataset was read, and what was left out."""


def read(address: str, connection: Connection | None = None) -> Rows:
    """The rows of a dataset. Raises ``LabelError`` for a server that does not answer or has no such
    dataset, and ``DataError`` for a dataset that is empty or whose questions cannot be understood.
    """
    where = Address.parse(address)
    with Argilla(connection or Connection.find()) as argilla:
        pulled = argilla.pull(
            where.dataset, where.workspace, questions=where.questions, unvoted=True
        )
    if not pulled.records:
        raise DataError(
            f"{without_secrets(address)} holds no record that can be used: {pulled.describe()}"
        )
    rows = [to_dict(record) for record in pulled.records]
    summary = [pulled.describe(), *([pulled.reading.describe()] if pulled.reading else [])]
    return Rows(rows, digest(rows), "; ".join(summary))


_FETCHED: dict[str, Path] = {}
"""Copies that this process has fetched, by address."""


def copy_of(address: str, fetch: bool) -> Path | None:
    """A local copy of a dataset's rows, fetched once in every process: a run sees one state of the
    votes, and the next run the newer one.

    Without ``fetch`` only a copy that this process has fetched, else ``None``. Raises as
    ``Address.parse`` and ``read`` do.
    """
    where = Address.parse(address)
    if fetch and address not in _FETCHED:
        fetched = read(address)
        folder = cache_home() / "argilla"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        name = _UNSAFE.sub("-", f"{where.workspace}-{where.dataset}")
        copy = folder / f"{name}-{fetched.digest[:16]}.jsonl"
        write_copy(copy, fetched.rows)
        say(f"  {without_secrets(address)}: {fetched.summary}", "dim")
        _FETCHED[address] = copy
    return _FETCHED.get(address)


def digest(rows: Iterable[dict[str, Any]]) -> str:
    """SHA-256 of rows, in order."""
    hash = hashlib.sha256()
    for row in rows:
        hash.update(json.dumps(row, sort_keys=True).encode("ascii") + b"\n")
    return hash.hexdigest()
