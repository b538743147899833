"""Argilla's sessions: one trip to the connection's thread for a statement, and transactions that
end as they should.
"""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from argilla_server.database import AsyncSessionLocal
from prefloop_labeling import sessions
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine


@pytest.fixture
def trips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The database is an empty one; what its threads are sent is noted."""
    sent: list[str] = []
    execute = sessions.OneTripConnection._execute

    async def noted(
        self: sessions.OneTripConnection, work: Callable[..., Any], *rest: Any, **named: Any
    ) -> Any:
        sent.append(work.__name__)
        return await execute(self, work, *rest, **named)

    monkeypatch.setattr(sessions, "database_path", lambda: tmp_path / "argilla.db")
    monkeypatch.setattr(sessions.OneTripConnection, "_execute", noted)
    return sent


def with_engine(work: Callable[[AsyncEngine], Awaitable[None]]) -> None:
    async def run() -> None:
        engine = sessions.engine()
        try:
            await work(engine)
        finally:
            await engine.dispose()

    asyncio.run(run())


def test_a_statement_is_one_trip_and_reading_ends_without_one(trips: list[str]) -> None:
    async def work(engine: AsyncEngine) -> None:
        async with engine.begin() as connection:
            await connection.execute(text("CREATE TABLE t (n INTEGER UNIQUE)"))
            await connection.execute(
                text("INSERT INTO t VALUES (:n)"), [{"n": n} for n in range(5)]
            )
        trips.clear()
        async with engine.connect() as connection:
            rows = await connection.execute(text("SELECT n FROM t ORDER BY n"))
            assert rows.scalars().all() == [0, 1, 2, 3, 4]
            assert (await connection.execute(text("SELECT n FROM t WHERE n > 9"))).first() is None
        assert trips == ["run", "run"]
        trips.clear()
        async with engine.begin() as connection:
            written = await connection.execute(text("INSERT INTO t VALUES (7), (8) RETURNING n"))
            assert written.scalars().all() == [7, 8]
            assert (await connection.execute(text("DELETE FROM t WHERE n < 3"))).rowcount == 3
        assert trips == ["run", "run", "commit"]

    with_engine(work)


def test_a_failed_transaction_leaves_nothing_and_its_connection_usable(
    trips: list[str], tmp_path: Path
) -> None:
    async def work(engine: AsyncEngine) -> None:
        async with engine.begin() as connection:
            await connection.execute(text("CREATE TABLE t (n INTEGER UNIQUE)"))
        with pytest.raises(IntegrityError):
            async with engine.begin() as connection:
                await connection.execute(text("INSERT INTO t VALUES (1)"))
                await connection.execute(text("INSERT INTO t VALUES (1)"))
        assert trips[-1] == "rollback"
        async with engine.begin() as connection:
            assert (await connection.execute(text("SELECT count(*) FROM t"))).scalar() == 0
            await connection.execute(text("INSERT INTO t VALUES (2)"))

    with_engine(work)
    with sqlite3.connect(tmp_path / "argilla.db") as connection:
        assert connection.execute("SELECT n FROM t").fetchall() == [(2,)]


def test_connections_are_set_up_like_argillas(trips: list[str]) -> None:
    async def work(engine: AsyncEngine) -> None:
        async with engine.connect() as connection:
            pragmas = ("journal_mode", "synchronous", "busy_timeout", "foreign_keys")
            values = [
                (await connection.execute(text(f"PRAGMA {name}"))).scalar() for name in pragmas
            ]
        assert values == ["wal", 1, 30_000, 1]

    with_engine(work)


def test_more_votes_than_argillas_pool_has_connections_can_be_underway(trips: list[str]) -> None:
    async def work(engine: AsyncEngine) -> None:
        both = asyncio.Barrier(20)

        async def vote() -> None:  # holds a connection while it waits for a second, as Argilla does
            async with engine.connect() as first:
                await first.execute(text("SELECT 1"))
                await both.wait()
                async with engine.connect() as second:
                    await second.execute(text("SELECT 1"))

        await asyncio.wait_for(asyncio.gather(*(vote() for _ in range(20))), timeout=300)

    with_engine(work)


def test_the_server_takes_its_sessions_from_here() -> None:
    before = dict(AsyncSessionLocal.kw)
    try:
        sessions.use()
        assert AsyncSessionLocal.kw["bind"].pool.size() == sessions.POOL_CONNECTIONS
    finally:
        AsyncSessionLocal.configure(bind=before["bind"])
