"""Argilla's sessions: a statement is one trip to its connection's thread, and connections are kept.

SQLAlchemy's aiosqlite takes four trips for a SELECT (cursor, execute, fetch, close), and Argilla
some fifty statements for a vote: eight annotators spent more time on the way than in SQLite. Its
pool keeps five connections and closes the others after each use, and a vote holds one while it
waits for a second.
"""

import sqlite3
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import aiosqlite
from argilla_server.database import AsyncSessionLocal
from argilla_server.settings import settings
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from prefloop_labeling.database import database_path

POOL_CONNECTIONS = 64


class OneTripCursor:
    """What SQLAlchemy uses of a cursor: the rows have come with the statement."""

    def __init__(self, connection: "OneTripConnection") -> None:
        self._connection = connection
        self._rows: deque[Any] = deque()
        self.description: Any = None
        self.lastrowid: int | None = -1
        self.rowcount = -1

    async def execute(self, statement: str, parameters: Iterable[Any] = ()) -> "OneTripCursor":
        await self._run("execute", statement, parameters)
        return self

    async def executemany(
        self, statement: str, parameters: Iterable[Iterable[Any]]
    ) -> "OneTripCursor":
        await self._run("executemany", statement, parameters)
        return self

    async def _run(self, method: str, *arguments: Any) -> None:
        def run() -> None:
            cursor = self._connection._conn.cursor()
            try:
                getattr(cursor, method)(*arguments)
                self._rows = deque(cursor.fetchall()) if cursor.description else deque()
                self.description, self.lastrowid, self.rowcount = (
                    cursor.description,
                    cursor.lastrowid,
                    cursor.rowcount,
                )
            finally:
                cursor.close()

        await self._connection._execute(run)

    async def fetchone(self) -> Any:
        return self._rows.popleft() if self._rows else None

    async def fetchmany(self, size: int = 1) -> Sequence[Any]:
        return [self._rows.popleft() for _ in range(min(size, len(self._rows)))]

    async def fetchall(self) -> Sequence[Any]:
        rows, self._rows = list(self._rows), deque()
        return rows

    async def close(self) -> None:
        self._rows.clear()


class OneTripConnection(aiosqlite.Connection):
    """A connection in a thread of its own, whose end of a transaction that never began costs
    nothing.
    """

    async def cursor(self) -> OneTripCursor:  # type: ignore[override]
        return OneTripCursor(self)

    async def commit(self) -> None:
        if self._conn.in_transaction:
            await super().commit()

    async def rollback(self) -> None:
        if self._conn.in_transaction:
            await super().rollback()


async def connect() -> OneTripConnection:
    """Open a connection to Argilla's database as Argilla would."""

    def open_database() -> sqlite3.Connection:
        return sqlite3.connect(
            database_path(), timeout=settings.database_sqlite_timeout, check_same_thread=False
        )

    connection = OneTripConnection(open_database, iter_chunk_size=64)
    connection.daemon = True
    return await connection


def engine() -> AsyncEngine:
    """An engine like Argilla's own, with these connections."""
    return create_async_engine(
        settings.database_url,
        async_creator=connect,
        pool_size=POOL_CONNECTIONS,
        max_overflow=0,
        pool_use_lifo=True,
        # an error that Argilla answers with would repeat keys and passwords' hashes
        hide_parameters=True,
    )


def use() -> None:
    """Let Argilla's sessions of this process take their connections from `engine`."""
    AsyncSessionLocal.configure(bind=engine())
