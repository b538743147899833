"""A dataset on an Argilla server as a file would be: rows in prefloop's own layout, and a digest of
them.

The address is ``argilla://WORKSPACE/DATASET``; what ``--questions`` takes may follow,
``argilla://default/x?preferred=better&prompt=ask``. Which server it is and the key for it come from
where every command takes them (``Connection.find``): never from the address.
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
from prefloop.data.copies import cache_home, write_copy
from prefloop.errors import ConfigError, DataError
from prefloop.labeling.argilla.connection import Connection
from prefloop.labeling.argilla.records import Argilla
from prefloop.records import to_dict

SCHEME = "argilla://"
_UNSAFE = re.compile(r"[^\w.-]+")


@dataclasses.dataclass(frozen=True)
class Address:
    """Where a dataset is, on a server that the address does not name."""

    workspace: str
    dataset: str
    questions: tuple[str, ...] = ()

    @classmethod
    def parse(cls, address: str) -> Address:
        """Raises ``ConfigError`` for what is no such address."""
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
    """What a dataset holds now."""

    rows: list[dict[str, Any]]
    """Records as ``records.to_dict`` writes them: ``id``, ``prompt``, ``responses`` or
    ``response``, ``votes``, ``meta``. All of them, those without a vote too, in the order in which
    they were logged.
    """
    digest: str
    """SHA-256 of the rows: another vote is another digest."""
    said: str
    """How the dataset was understood, and what was left out."""


def read(address: str, connection: Connection | None = None) -> Rows:
    """The rows of a dataset. Raises ``LabelError`` for a server that does not answer or has no such
    dataset, ``DataError`` for a dataset that holds nothing or leaves a doubt what its questions
    mean.
    """
    where = Address.parse(address)
    with Argilla(connection or Connection.find()) as argilla:
        found = argilla.pull(
            where.dataset, where.workspace, questions=where.questions, unvoted=True
        )
    if not found.records:
        raise DataError(
            f"{without_secrets(address)} holds no record that can be used: {found.describe()}"
        )
    rows = [to_dict(record) for record in found.records]
    said = [found.describe(), *([found.reading.describe()] if found.reading else [])]
    return Rows(rows, digest(rows), "; ".join(said))


_FETCHED: dict[str, Path] = {}
"""Copies that this process has fetched, by address."""


def copy_of(address: str, fetch: bool) -> Path | None:
    """A local copy of a dataset's rows, fetched once by every process: a run sees one state of the
    votes, the next run the newer ones.

    Without ``fetch`` only a copy that this process has. Raises as ``Address.parse`` and ``read``
    do.
    """
    where = Address.parse(address)
    if fetch and address not in _FETCHED:
        found = read(address)
        folder = cache_home() / "argilla"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        place = (
            folder
            / f"{_UNSAFE.sub('-', f'{where.workspace}-{where.dataset}')}-{found.digest[:16]}.jsonl"
        )
        write_copy(place, found.rows)
        say(f"  {without_secrets(address)}: {found.said}", "dim")
        _FETCHED[address] = place
    return _FETCHED.get(address)


def digest(rows: Iterable[dict[str, Any]]) -> str:
    """SHA-256 of rows in their order."""
    found = hashlib.sha256()
    for row in rows:
        found.update(json.dumps(row, sort_keys=True).encode("ascii") + b"\n")
    return found.hexdigest()
