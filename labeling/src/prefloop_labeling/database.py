"""Argilla's SQLite file: how connections are set up, the covering indexes of the queue, threads
that read for the engine.

WAL lets annotators read while somebody writes. `synchronous=NORMAL` then means: a commit is in the
kernel before it is acknowledged, so it survives `kill -9` of the server; it is on the disk at the
next checkpoint, so a power cut may take the last moments (never the file's integrity).
`PREFLOOP_LABELING_SYNCHRONOUS=FULL` waits for the disk at every vote.

The engine reads through connections of its own. Argilla's request handlers hold one connection of
its pool while they call the engine: an engine that took its second connection from there would
deadlock as soon as all were held.
"""

import asyncio
import logging
import os
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from argilla_server.database import ALEMBIC_CONFIG_FILE, sync_engine
from argilla_server.settings import settings
from sqlalchemy import event
from sqlalchemy.engine import Engine

T = TypeVar("T")

_attaching = threading.Lock()

TEXT_INDEX_FILE = "text-index.db"
READER_THREADS = 4
BUSY_SECONDS = 30

# What the annotator's queue and the progress bars read, so that no query walks through the records'
# long JSON columns.
INDEXES = {
    "ix_prefloop_records": "records (dataset_id, id, status)",
    "ix_prefloop_records_updated": "records (dataset_id, updated_at, id)",
    "ix_prefloop_responses": "responses (user_id, record_id, status)",
}


def synchronous() -> str:
    """The value of `PRAGMA synchronous`; raises ValueError for one that would lose acknowledged
    votes or does not exist.
    """
    value = os.environ.get("PREFLOOP_LABELING_SYNCHRONOUS", "NORMAL").upper()
    if value not in ("NORMAL", "FULL"):
        raise ValueError(f"PREFLOOP_LABELING_SYNCHRONOUS is {value!r}: set it to NORMAL or FULL")
    return value


@event.listens_for(Engine, "connect")
def _set_up_connection(connection: Any, _record: Any) -> None:
    if not settings.database_is_sqlite:
        return
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute(f"PRAGMA synchronous = {synchronous()}")
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")
    cursor.close()


def database_path() -> Path:
    """The SQLite file that Argilla uses; raises RuntimeError when its database is something
    else.
    """
    if not settings.database_is_sqlite or not sync_engine.url.database:
        raise RuntimeError(
            "the embedded search engine reads Argilla's SQLite file, but ARGILLA_DATABASE_URL names"
            " another database: unset it, or use Elasticsearch with it"
        )
    return Path(sync_engine.url.database).absolute()


def text_index_path() -> Path:
    """The file of the text index: beside the database, and safe to delete while the server is
    stopped.
    """
    return database_path().with_name(TEXT_INDEX_FILE)


def migrate() -> None:
    """Bring the database to Argilla's newest schema and add the engine's indexes."""
    from alembic import command
    from alembic.config import Config

    # Without the file's name alembic leaves logging alone; with it, every logger made before is
    # switched off.
    config = Config()
    config.set_main_option("script_location", str(Path(ALEMBIC_CONFIG_FILE).with_name("alembic")))
    command.upgrade(config, "head")
    create_indexes()


def create_indexes() -> None:
    """Create the engine's covering indexes in Argilla's database where they are missing."""
    with sync_engine.begin() as connection:
        for name, columns in INDEXES.items():
            connection.exec_driver_sql(f"CREATE INDEX IF NOT EXISTS {name} ON {columns}")


def connect_reader(database: Path, text_index: Path) -> sqlite3.Connection:
    """A connection that cannot write Argilla's tables (`main`) and may write the text index
    (`text`).
    """
    connection = sqlite3.connect(
        f"file:{quote(str(database))}?mode=ro",
        uri=True,
        isolation_level=None,
        timeout=BUSY_SECONDS,
        check_same_thread=False,
    )
    with _attaching:
        _attach_text_index(connection, text_index)
    return connection


def _attach_text_index(
    connection: sqlite3.Connection, text_index: Path, again: bool = False
) -> None:
    """Attach the text index as `text`; a damaged file must not stop the queue, so it is deleted and
    made again.
    """
    try:
        connection.execute("ATTACH DATABASE ? AS text", [f"file:{quote(str(text_index))}?mode=rwc"])
        connection.execute("PRAGMA text.journal_mode = WAL")
        connection.execute("PRAGMA text.synchronous = NORMAL")
    except sqlite3.DatabaseError as error:
        if again or error.sqlite_errorcode not in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            raise
        logging.getLogger("argilla").warning(
            "%s is damaged (%s): it is made again", text_index, error
        )
        if any(name == "text" for _, name, _ in connection.execute("PRAGMA database_list")):
            connection.execute("DETACH DATABASE text")
        for suffix in ("", "-wal", "-shm"):
            text_index.with_name(text_index.name + suffix).unlink(missing_ok=True)
        _attach_text_index(connection, text_index, again=True)


class Readers:
    """A few threads with one connection each; awaiting `run` leaves the event loop free.

    Text searches have a thread to themselves: the first one of a dataset indexes it, and no queue
    may wait for that.
    """

    def __init__(self, database: Path, text_index: Path, threads: int = READER_THREADS) -> None:
        self.database, self.text_index = database, text_index
        self._local = threading.local()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="embedded-search")
        self._text_pool = ThreadPoolExecutor(1, thread_name_prefix="embedded-text-search")

    async def run(self, work: Callable[[sqlite3.Connection], T], text: bool = False) -> T:
        """Run `work` with a connection in one of the threads, or in the thread for what uses the
        text index.
        """
        pool = self._text_pool if text else self._pool
        return await asyncio.get_running_loop().run_in_executor(pool, self._call, work)

    def _call(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if not hasattr(self._local, "connection"):
            self._local.connection = connect_reader(self.database, self.text_index)
        return work(self._local.connection)


_readers: dict[int, Readers] = {}


def readers() -> Readers:
    """The readers of this process: a fork, as rq makes for each job, gets its own threads and
    connections.
    """
    pid = os.getpid()
    if pid not in _readers:
        _readers.clear()
        _readers[pid] = Readers(database_path(), text_index_path())
    return _readers[pid]
