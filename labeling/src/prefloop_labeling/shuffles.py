"""Annotators' shuffles of a dataset, kept in memory: a page of the queue is read where it starts,
not sorted out of all records.

What is kept is only which records there are and each user's order of them, and every search checks
the former. SQLite gives a new row a number above all others: while the last record known is still
there, newer ones have larger numbers, and as many records as before means that none has gone.
"""

import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar
from uuid import UUID

import numpy as np

from prefloop_labeling.filters import stored_uuid
from prefloop_labeling.ordering import PRIME, seeds

K = TypeVar("K")
V = TypeVar("V")

MAX_DATASETS = 16
MAX_USERS = 64  # of one dataset: four bytes a record each

# by a covering index, and so in no order
ALL = "SELECT r.rowid, r.id FROM records r WHERE r.dataset_id = ?"
COUNT = "SELECT count(*) FROM records r WHERE r.dataset_id = ?"
LAST = "SELECT r.id FROM records r WHERE r.rowid = ? AND +r.dataset_id = ?"
SINCE = (
    "SELECT r.rowid, r.id FROM records r WHERE r.dataset_id = ? AND r.rowid > ? ORDER BY r.rowid"
)


class _Recent(OrderedDict[K, V]):
    """A few values that are made when missing; the least recently used go."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def put(self, key: K, value: V) -> V:
        self[key] = value
        self.move_to_end(key)
        if len(self) > self.size:
            self.popitem(last=False)
        return value

    def seen(self, key: K) -> V | None:
        if key in self:
            self.move_to_end(key)
        return self.get(key)


class Known:
    """The records of a dataset at a moment, in the order in which they were logged, and users'
    shuffles of them.
    """

    def __init__(self, rowids: np.ndarray, ids: np.ndarray) -> None:
        self.rowids, self.ids = rowids, ids
        self._orders: _Recent[UUID, np.ndarray] = _Recent(MAX_USERS)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.rowids)

    def shuffled(self, user_id: UUID, start: int, stop: int) -> list[str]:
        """Ids of the records from place `start` to `stop` of the user's order, as the database
        holds them.
        """
        with self._lock:
            order = self._orders.seen(user_id)
        if order is None:
            order = np.argsort(shuffle_keys(user_id, self.rowids), kind="stable").astype(np.uint32)
            with self._lock:
                self._orders.put(user_id, order)
        return [stored.decode() for stored in self.ids[order[start:stop]].tolist()]


def shuffle_keys(user_id: UUID, rowids: np.ndarray) -> np.ndarray:
    """What `ordering.shuffle` sorts by, for many rows at once."""

    def cube(x: np.ndarray) -> np.ndarray:
        return x * x % PRIME * x % PRIME

    first, second = seeds(user_id)
    return cube((cube((rowids + first) % PRIME) + second) % PRIME)


_datasets: _Recent[UUID, Known] = _Recent(MAX_DATASETS)
_lock = threading.Lock()
_reading = threading.Lock()


def known_records(connection: sqlite3.Connection, dataset_id: UUID) -> Known:
    """The records of a dataset as the connection's transaction sees them."""
    found = _from_memory(connection, dataset_id)
    if found is None:
        with _reading:  # annotators who come all at once wait for the first one's reading
            found = _from_memory(connection, dataset_id) or _read(connection, dataset_id)
            _keep(dataset_id, found)
    return found


def forget(dataset_id: UUID) -> None:
    """Free what is kept of a dataset."""
    with _lock:
        _datasets.pop(dataset_id, None)


def _keep(dataset_id: UUID, known: Known) -> None:
    with _lock:
        _datasets.put(dataset_id, known)


def _from_memory(connection: sqlite3.Connection, dataset_id: UUID) -> Known | None:
    """What is kept of a dataset, with the records that have come since; None where it does not hold
    any more.
    """
    with _lock:
        known = _datasets.seen(dataset_id)
    if known is None or not len(known):
        return None
    last, dataset = int(known.rowids[-1]), stored_uuid(dataset_id)
    if connection.execute(LAST, (last, dataset)).fetchone() != (known.ids[-1].decode(),):
        return None
    newer = connection.execute(SINCE, (dataset, last)).fetchall()
    if connection.execute(COUNT, (dataset,)).fetchone()[0] != len(known) + len(newer):
        return None
    if newer:
        rowids, ids = _arrays(newer)
        known = Known(np.concatenate([known.rowids, rowids]), np.concatenate([known.ids, ids]))
        _keep(dataset_id, known)
    return known


def _read(connection: sqlite3.Connection, dataset_id: UUID) -> Known:
    rowids, ids = _arrays(connection.execute(ALL, (stored_uuid(dataset_id),)).fetchall())
    logged = np.argsort(rowids)
    return Known(rowids[logged], ids[logged])


def _arrays(rows: list[tuple[int, str]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([row[0] for row in rows], dtype=np.int64), np.array(
        [row[1] for row in rows], dtype="S32"
    )


def first_matches(
    known: Known, user_id: UUID, count: int, matching: Callable[[list[str]], list[Any]], budget: int
) -> list[Any] | None:
    """The first `count` matches in the user's order; None when `budget` records hold fewer and
    there are more records.

    `matching` gives those of some records that match, in order.
    """
    found: list[Any] = []
    start, size = 0, max(64, 2 * count)
    while len(found) < count and start < len(known):
        if start >= budget:
            return None
        found += matching(known.shuffled(user_id, start, start + size))
        start, size = start + size, size * 2
    return found[:count]
