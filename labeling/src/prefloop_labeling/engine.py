"""The search engine "embedded": Argilla's own relational database is the index.

Argilla calls its engine after it has committed, so whatever the engine would be told is in the
database already: the write hooks do nothing and no index can fall behind. Only words need an index
of their own (`text.py`), which catches up by itself.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from uuid import UUID

from argilla_server.enums import MetadataPropertyType, SimilarityOrder
from argilla_server.models import (
    Dataset,
    MetadataProperty,
    Record,
    Response,
    Suggestion,
    User,
    VectorSettings,
)
from argilla_server.search_engine import (
    Filter,
    FloatMetadataMetrics,
    IntegerMetadataMetrics,
    MetadataMetrics,
    Order,
    SearchEngine,
    SearchResponseItem,
    SearchResponses,
    TermsMetrics,
    TextQuery,
)

from prefloop_labeling import __version__
from prefloop_labeling.database import Readers, readers
from prefloop_labeling.filters import (
    METADATA_VALUES,
    Sql,
    compile_filter,
    json_path,
    stored_uuid,
    unanswered,
)
from prefloop_labeling.ordering import compile_sort, shuffle
from prefloop_labeling.shuffles import first_matches, forget, known_records
from prefloop_labeling.text import TextIndex
from prefloop_labeling.vectors import similarities

MAX_TERMS = 2**14  # as many buckets as Argilla asks Elasticsearch for
MAX_SIMILAR = 1000  # what Argilla's similarity search pages through


@SearchEngine.register("embedded")
class EmbeddedEngine(SearchEngine):
    """Answers Argilla's searches from SQLite. Instances are made per request and hold nothing but
    the shared readers.
    """

    def __init__(self, shared: Readers) -> None:
        self.readers = shared

    @classmethod
    async def new_instance(cls) -> "EmbeddedEngine":
        return cls(readers())

    async def close(self) -> None:
        """Nothing to close: the connections are shared."""

    async def ping(self) -> bool:
        """Whether the database can be read and has Argilla's tables."""
        try:
            await self.readers.run(
                lambda connection: connection.execute("SELECT 1 FROM records LIMIT 1").fetchall()
            )
        except sqlite3.Error:
            return False
        return True

    async def info(self) -> dict[str, Any]:
        """What `/api/v1/status` shows as the search engine."""
        return {"name": "embedded", "version": __version__, "sqlite": sqlite3.sqlite_version}

    # Argilla has committed before it calls any of these.
    async def create_index(self, dataset: Dataset) -> None:
        """Nothing to do: the database is the index."""

    async def configure_metadata_property(
        self, dataset: Dataset, metadata_property: MetadataProperty
    ) -> None:
        """Nothing to do: the database is the index."""

    async def configure_index_vectors(self, vector_settings: VectorSettings) -> None:
        """Nothing to do: the database is the index."""

    async def index_records(self, dataset: Dataset, records: Iterable[Record]) -> None:
        """Nothing to do: the database is the index."""

    async def partial_record_update(self, record: Record, **update: Any) -> None:
        """Nothing to do: the database is the index."""

    async def delete_records(self, dataset: Dataset, records: Iterable[Record]) -> None:
        """Nothing to do: the database is the index."""

    async def update_record_response(self, response: Response) -> None:
        """Nothing to do: the database is the index."""

    async def delete_record_response(self, response: Response) -> None:
        """Nothing to do: the database is the index."""

    async def update_record_suggestion(self, suggestion: Suggestion) -> None:
        """Nothing to do: the database is the index."""

    async def delete_record_suggestion(self, suggestion: Suggestion) -> None:
        """Nothing to do: the database is the index."""

    async def delete_index(self, dataset: Dataset) -> None:
        """Drop the dataset's words and what is kept of its shuffles."""
        dataset_id = dataset.id
        forget(dataset_id)
        await self.readers.run(
            lambda connection: TextIndex(connection, dataset_id).drop(), text=True
        )

    async def get_dataset_progress(self, dataset: Dataset) -> dict[str, int]:
        """Records by status: `{total, pending, completed}`; `{}` for a draft."""
        if dataset.is_draft:
            return {}
        counts = dict(await self._rows(PROGRESS, stored_uuid(dataset.id)))
        return {"total": sum(counts.values()), "pending": 0, "completed": 0, **counts}

    async def get_dataset_user_progress(self, dataset: Dataset, user: User) -> dict[str, int]:
        """The user's responses by status, with their total; `{}` for a draft."""
        if dataset.is_draft:
            return {}
        counts = dict(
            await self._rows(USER_PROGRESS, stored_uuid(user.id), stored_uuid(dataset.id))
        )
        return {"total": sum(counts.values()), **counts}

    async def search(
        self,
        dataset: Dataset,
        query: TextQuery | str | None = None,
        filter: Filter | None = None,
        sort: list[Order] | None = None,
        offset: int = 0,
        limit: int = 100,
        user_id: UUID | str | None = None,
    ) -> SearchResponses:
        """Records that match, ordered by `sort`; else shuffled for the user; else by relevance, or
        as they were logged.
        """
        condition = compile_filter(filter, dataset) if filter else None
        if user_id and query is None and not sort:
            user = user_id if isinstance(user_id, UUID) else UUID(user_id)
            pending = unanswered(filter)
            rest = compile_filter(pending[1], dataset) if pending else None
            return await self.readers.run(
                partial(
                    _queue,
                    dataset.id,
                    user,
                    condition,
                    rest,
                    pending and pending[0],
                    offset=offset,
                    limit=limit,
                )
            )
        if sort:
            order: Sql | None = compile_sort(sort, dataset)
        else:
            order = shuffle(user_id) if user_id else None
        return await self.readers.run(
            partial(
                _search,
                dataset.id,
                _text_query(query),
                condition,
                order,
                offset=offset,
                limit=limit,
            ),
            text=query is not None,
        )

    async def similarity_search(
        self,
        dataset: Dataset,
        vector_settings: VectorSettings,
        value: list[float] | None = None,
        record: Record | None = None,
        query: TextQuery | str | None = None,
        filter: Filter | None = None,
        max_results: int = 100,
        order: SimilarityOrder = SimilarityOrder.most_similar,
        threshold: float | None = None,
    ) -> SearchResponses:
        """Records by cosine with a vector, or with the vector of a record, which is left out.
        Exact, over all candidates.
        """
        if bool(value) == bool(record):
            raise ValueError("give either a vector or a record to compare with, not both")
        vector = value or (
            record.vector_value_by_vector_settings(vector_settings) if record else None
        )
        if not vector:
            raise ValueError("the record to compare with has no vector of these settings")
        if order == SimilarityOrder.least_similar:
            vector = [-number for number in vector]
        conditions = [compile_filter(filter, dataset)] if filter else []
        if record:
            conditions.append(Sql("r.id <> ?", (stored_uuid(record.id),)))
        rows = await self.readers.run(
            partial(
                _vectors,
                dataset.id,
                _text_query(query),
                Sql.join(" AND ", conditions),
                vector_settings.id,
            ),
            text=query is not None,
        )
        scored = [
            (record_id, score)
            for record_id, score in similarities(rows, vector)
            if threshold is None or score >= threshold
        ]
        items = [
            SearchResponseItem(record_id=UUID(found), score=score)
            for found, score in scored[:max_results]
        ]
        return SearchResponses(items=items, total=min(len(scored), MAX_SIMILAR))

    async def compute_metrics_for(self, metadata_property: MetadataProperty) -> MetadataMetrics:
        """Terms with their counts, most frequent first; smallest and largest of numbers."""
        path, dataset_id = (
            json_path(metadata_property.name),
            stored_uuid(metadata_property.dataset_id),
        )
        if metadata_property.type == MetadataPropertyType.terms:
            counts = await self._rows(TERMS, path, dataset_id, MAX_TERMS)
            values = [TermsMetrics.TermCount(term=term, count=count) for term, count in counts]
            return TermsMetrics(total=sum(value.count for value in values), values=values)
        [(smallest, largest)] = await self._rows(RANGE, path, dataset_id)
        if metadata_property.type == MetadataPropertyType.integer:
            return IntegerMetadataMetrics(min=smallest, max=largest)
        return FloatMetadataMetrics(min=smallest, max=largest)

    async def _rows(self, statement: str, *params: Any) -> list[tuple[Any, ...]]:
        return await self.readers.run(
            lambda connection: connection.execute(statement, params).fetchall()
        )


PROGRESS = "SELECT r.status, count(*) FROM records r WHERE r.dataset_id = ? GROUP BY +r.status"
USER_PROGRESS = (
    "SELECT p.status, count(*) FROM responses p CROSS JOIN records r ON r.id = p.record_id"
    " WHERE p.user_id = ? AND r.dataset_id = ? GROUP BY +p.status"
)
ANSWERED = "FROM responses p CROSS JOIN records r ON r.id = p.record_id WHERE p.user_id = ?"
LISTED = "FROM json_each(?) o CROSS JOIN records r ON r.id = o.value"
TERMS = (
    "SELECT CAST(j.value AS TEXT) AS term, count(DISTINCT r.rowid) AS records FROM records r,"
    f" {METADATA_VALUES} WHERE r.dataset_id = ? AND j.value IS NOT NULL GROUP BY term ORDER BY"
    " records DESC, term LIMIT ?"
)
RANGE = (
    f"SELECT min(j.value), max(j.value) FROM records r, {METADATA_VALUES}"
    " WHERE r.dataset_id = ? AND j.type IN ('integer', 'real')"
)


def _text_query(query: TextQuery | str | None) -> TextQuery | None:
    return TextQuery(q=query) if isinstance(query, str) else query


def _source(
    connection: sqlite3.Connection, dataset_id: UUID, query: TextQuery | None, condition: Sql | None
) -> tuple[Sql, bool]:
    """FROM and WHERE of a search, and whether its rows have a relevance (`w.rank`)."""
    tables, conditions = Sql(""), [Sql("r.dataset_id = ?", (stored_uuid(dataset_id),))]
    if query is not None:
        index = TextIndex(connection, dataset_id)
        index.sync()
        tables, matches = index.condition(query.q, query.field)
        conditions.append(matches)
    if condition is not None and condition.text:
        conditions.append(condition)
    where = Sql.join(" AND ", conditions)
    return Sql(f"FROM {tables.text}records r WHERE {where.text}", where.params), bool(tables.text)


def _search(
    dataset_id: UUID,
    query: TextQuery | None,
    condition: Sql | None,
    order: Sql | None,
    connection: sqlite3.Connection,
    offset: int,
    limit: int,
) -> SearchResponses:
    source, ranked = _source(connection, dataset_id, query, condition)
    order = order or Sql("w.rank, r.rowid" if ranked else "r.rowid")
    with _one_moment(connection):
        total = _count(connection, source)
        return _responses(
            _page(connection, source, order, "-w.rank" if ranked else "NULL", offset, limit), total
        )


def _queue(
    dataset_id: UUID,
    user_id: UUID,
    condition: Sql | None,
    rest: Sql | None,
    unanswered_by: UUID | None,
    connection: sqlite3.Connection,
    offset: int,
    limit: int,
) -> SearchResponses:
    """A page in the user's shuffle. `rest` is the condition without the one that asks for what a
    user has not answered.
    """
    source, _ = _source(connection, dataset_id, None, condition)
    with _one_moment(connection):
        known = known_records(connection, dataset_id)
        if condition is None:
            total = len(known)
        elif rest is not None and unanswered_by is not None:
            of_dataset = Sql("r.dataset_id = ?", (stored_uuid(dataset_id),))
            where = Sql.join(" AND ", [of_dataset, rest] if rest.text != "1" else [of_dataset])
            every = (
                len(known)
                if rest.text == "1"
                else _count(connection, Sql(f"FROM records r WHERE {where.text}", where.params))
            )
            answered = Sql(
                f"{ANSWERED} AND {where.text}", (stored_uuid(unanswered_by), *where.params)
            )
            total = every - _count(connection, answered)
        else:
            total = _count(connection, source)
        wanted = min(offset + limit, total)

        def matching(ids: list[str]) -> list[tuple[str, None]]:
            params = (json.dumps(ids), *source.params)
            return connection.execute(
                f"SELECT r.id, NULL {LISTED} {source.text.removeprefix('FROM records r')} ORDER BY"
                " o.key",
                params,
            ).fetchall()

        # Few matches among many records are found sooner by sorting them than by walking along the
        # shuffle.
        budget = len(known) // 4
        rows = None
        if wanted * len(known) <= budget * total or not wanted:
            rows = first_matches(known, user_id, wanted, matching, budget)
        if rows is None:
            return _responses(
                _page(connection, source, shuffle(user_id), "NULL", offset, limit), total
            )
        return _responses(rows[offset:], total)


@contextmanager
def _one_moment(connection: sqlite3.Connection) -> Iterator[None]:
    """A read transaction: the page and the total are of one moment."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("COMMIT")


def _count(connection: sqlite3.Connection, source: Sql) -> int:
    return connection.execute(f"SELECT count(*) {source.text}", source.params).fetchone()[0]


def _page(
    connection: sqlite3.Connection, source: Sql, order: Sql, score: str, offset: int, limit: int
) -> list[tuple[str, float | None]]:
    statement = f"SELECT r.id, {score} {source.text} ORDER BY {order.text} LIMIT ? OFFSET ?"
    return connection.execute(statement, (*source.params, *order.params, limit, offset)).fetchall()


def _responses(rows: Iterable[tuple[str, float | None]], total: int) -> SearchResponses:
    items = [
        SearchResponseItem(record_id=UUID(record_id), score=score) for record_id, score in rows
    ]
    return SearchResponses(items=items, total=total)


def _vectors(
    dataset_id: UUID,
    query: TextQuery | None,
    condition: Sql,
    vector_settings_id: UUID,
    connection: sqlite3.Connection,
) -> list[tuple[str, str]]:
    source, _ = _source(connection, dataset_id, query, condition)
    return connection.execute(
        f"WITH found AS MATERIALIZED (SELECT r.id, r.rowid AS logged {source.text})"
        " SELECT v.record_id, v.value FROM found CROSS JOIN vectors v"
        " ON v.record_id = found.id AND v.vector_settings_id = ? ORDER BY found.logged",
        (*source.params, stored_uuid(vector_settings_id)),
    ).fetchall()
