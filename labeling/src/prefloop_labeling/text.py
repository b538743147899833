"""The text index: one FTS5 table a dataset in a file beside Argilla's database, brought up to date
when somebody searches.

Argilla stamps `records.updated_at` before it commits, so a record may appear with a stamp older
than the newest one seen. Every sync therefore looks again at the last `OVERLAP` before that stamp
and compares stamps one by one. Rows of deleted records stay until their number shows; they are
never results, because every match is joined with `records`. One thread a process does all this
(`database.Readers`); two processes at once repeat work, but each transaction is whole.
"""

import json
import sqlite3
from collections.abc import Iterator
from datetime import datetime, timedelta
from uuid import UUID

from prefloop_labeling.filters import Sql, stored_uuid
from prefloop_labeling.text_query import parse, tokenizable

OVERLAP = timedelta(minutes=10)
BATCH = 500


class TextIndex:
    """The text index of one dataset, used within one connection of `database.connect_reader`."""

    def __init__(self, connection: sqlite3.Connection, dataset_id: UUID) -> None:
        self.connection = connection
        self.dataset = stored_uuid(
            dataset_id
        )  # hexadecimal digits only: it becomes part of table names
        self.docs, self.words = f"docs_{self.dataset}", f"words_{self.dataset}"

    def fields(self) -> list[str]:
        """The dataset's searchable fields (all but images), in the order of the index's columns."""
        rows = self.connection.execute(
            "SELECT name, settings FROM main.fields WHERE dataset_id = ? ORDER BY inserted_at,"
            " name",
            [self.dataset],
        )
        return [name for name, settings in rows if json.loads(settings).get("type") != "image"]

    def condition(self, query: str, field: str | None) -> tuple[Sql, Sql]:
        """What a query adds to a search: tables in front of `records r`, and a condition.

        The tables are joined in this order by CROSS JOIN: SQLite would otherwise walk through all
        documents and ask the index about each.
        """
        fields = self.fields()
        match = parse(query)
        if match.expression is None or not fields or (field is not None and field not in fields):
            return Sql(""), Sql("0")
        expression = match.expression
        if field is not None:
            expression = f"{{c{fields.index(field)}}} : ({expression})"
        tables = f"text.{self.words} w CROSS JOIN text.{self.docs} d ON d.rowid = w.rowid"
        matches = f"w.{self.words} MATCH ?"
        if match.negated:
            return Sql(""), Sql(
                f"r.id NOT IN (SELECT d.record_id FROM {tables} WHERE {matches})", (expression,)
            )
        return Sql(f"{tables} CROSS JOIN "), Sql(f"r.id = d.record_id AND {matches}", (expression,))

    def sync(self) -> None:
        """Index what was written since the last sync."""
        fields = self.fields()
        if fields:
            self._create(fields)
            self._update(fields)
            self._forget_deleted()

    def drop(self) -> None:
        """Drop the dataset's text rows."""
        with self._transaction():
            self._create_catalog()
            self._drop()

    def _drop(self) -> None:
        self.connection.execute(f"DROP TABLE IF EXISTS text.{self.words}")
        self.connection.execute(f"DROP TABLE IF EXISTS text.{self.docs}")
        self.connection.execute("DELETE FROM text.indexed WHERE dataset_id = ?", [self.dataset])

    def _create_catalog(self) -> None:
        self.connection.execute(
            "CREATE TABLE IF NOT EXISTS text.indexed (dataset_id TEXT PRIMARY KEY, fields TEXT NOT"
            " NULL)"
        )

    def _indexed_fields(self) -> list[str] | None:
        if not self.connection.execute(
            "SELECT 1 FROM text.sqlite_master WHERE name = 'indexed'"
        ).fetchone():
            return None
        row = self.connection.execute(
            "SELECT fields FROM text.indexed WHERE dataset_id = ?", [self.dataset]
        ).fetchone()
        return json.loads(row[0]) if row else None

    def _create(self, fields: list[str]) -> None:
        if self._indexed_fields() == fields:
            return
        with self._transaction():
            self._create_catalog()
            self._drop()
            self.connection.execute(
                f"CREATE TABLE text.{self.docs} (rowid INTEGER PRIMARY KEY, record_id TEXT UNIQUE,"
                " updated_at TEXT)"
            )
            self.connection.execute(
                f"CREATE INDEX text.{self.docs}_updated_at ON {self.docs} (updated_at)"
            )
            columns = ", ".join(f"c{number}" for number in range(len(fields)))
            self.connection.execute(
                f"CREATE VIRTUAL TABLE text.{self.words} USING fts5({columns}, tokenize ="
                " 'unicode61 remove_diacritics 0')"
            )
            self.connection.execute(
                "INSERT INTO text.indexed (dataset_id, fields) VALUES (?, ?)",
                [self.dataset, json.dumps(fields)],
            )

    def _update(self, fields: list[str]) -> None:
        newest = self.connection.execute(
            f"SELECT max(updated_at) FROM text.{self.docs}"
        ).fetchone()[0]
        since = "" if newest is None else _moment(datetime.fromisoformat(newest) - OVERLAP)
        changed = self.connection.execute(
            "SELECT r.id FROM main.records r WHERE r.dataset_id = ? AND r.updated_at >= ? AND NOT"
            f" EXISTS (SELECT 1 FROM text.{self.docs} d WHERE d.record_id = r.id AND d.updated_at ="
            " r.updated_at) ORDER BY r.updated_at, r.id",
            [self.dataset, since],
        ).fetchall()
        for start in range(0, len(changed), BATCH):
            ids = json.dumps([row[0] for row in changed[start : start + BATCH]])
            with self._transaction():
                self._index(ids, fields)

    def _index(self, ids: str, fields: list[str]) -> None:
        rows = self.connection.execute(
            "SELECT r.id, r.updated_at, r.fields FROM json_each(?) i CROSS JOIN main.records r ON"
            " r.id = i.value",
            [ids],
        ).fetchall()
        chosen = "SELECT i.value FROM json_each(?) i"
        self._delete(f"SELECT d.rowid FROM text.{self.docs} d WHERE d.record_id IN ({chosen})", ids)
        marks = ", ".join("?" * (len(fields) + 1))
        columns = ", ".join(f"c{number}" for number in range(len(fields)))
        for record_id, updated_at, values in rows:
            document = self.connection.execute(
                f"INSERT INTO text.{self.docs} (record_id, updated_at) VALUES (?, ?)",
                [record_id, updated_at],
            ).lastrowid
            texts = json.loads(values) or {}
            self.connection.execute(
                f"INSERT INTO text.{self.words} (rowid, {columns}) VALUES ({marks})",
                [document, *(tokenizable(field_text(texts.get(field))) for field in fields)],
            )

    def _forget_deleted(self) -> None:
        counts = (
            f"SELECT (SELECT count(*) FROM text.{self.docs}), (SELECT count(*) FROM main.records"
            " WHERE dataset_id = ?)"
        )
        documents, records = self.connection.execute(counts, [self.dataset]).fetchone()
        if documents > records:
            with self._transaction():
                self._delete(
                    f"SELECT d.rowid FROM text.{self.docs} d WHERE NOT EXISTS"
                    " (SELECT 1 FROM main.records r WHERE r.dataset_id = ? AND r.id = d.record_id)",
                    self.dataset,
                )

    def _delete(self, rows: str, parameter: str) -> None:
        documents = json.dumps([row[0] for row in self.connection.execute(rows, [parameter])])
        for table in (self.words, self.docs):
            self.connection.execute(
                f"DELETE FROM text.{table} WHERE rowid IN (SELECT i.value FROM json_each(?) i)",
                [documents],
            )

    def _transaction(self) -> "_Transaction":
        return _Transaction(self.connection)


class _Transaction:
    """A write transaction on the text index; Argilla's tables are open for reading only and stay
    unlocked.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection

    def __enter__(self) -> None:
        self.connection.execute("BEGIN IMMEDIATE")

    def __exit__(self, failure: object, *_rest: object) -> None:
        self.connection.execute("ROLLBACK" if failure else "COMMIT")


def _moment(moment: datetime) -> str:
    return moment.isoformat(sep=" ", timespec="microseconds")


def field_text(value: object) -> str:
    """The words of a field's value: a text, a chat's messages, or every text in a custom field."""
    if isinstance(value, list) and all(
        isinstance(message, dict) and "content" in message for message in value
    ):
        return "\n".join(str(message["content"]) for message in value)
    return "\n".join(_texts(value))


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield str(key)
            yield from _texts(part)
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)
    elif value is not None:
        yield str(value)
