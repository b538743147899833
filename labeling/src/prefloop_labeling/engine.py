"""The search engine "embedded": Argilla's own relational database is the index.

Argilla calls its engine after it has committed, so whatever the engine would be told is in the database already: the write
hooks do nothing and no index can fall behind. Only words need an index of their own (`text.py`), which catches up by itself.
"""

import sqlite3
from collections.abc import Iterable
from functools import partial
from typing import Any
from uuid import UUID

from argilla_server.enums import MetadataPropertyType, SimilarityOrder
from argilla_server.models import Dataset, MetadataProperty, Record, Response, Suggestion, User, VectorSettings
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
from prefloop_labeling.filters import METADATA_VALUES, Sql, compile_filter, json_path, stored_uuid
from prefloop_labeling.ordering import compile_sort, shuffle
from prefloop_labeling.text import TextIndex
from prefloop_labeling.vectors import similarities

MAX_TERMS = 2**14  # as many buckets as Argilla asks Elasticsearch for
MAX_SIMILAR = 1000  # what Argilla's similarity search pages through


@SearchEngine.register("embedded")
class EmbeddedEngine(SearchEngine):
    """Answers Argilla's searches from SQLite. Instances are made per request and hold nothing but the shared readers."""

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
            await self.readers.run(lambda connection: connection.execute("SELECT 1 FROM records LIMIT 1").fetchall())
        except sqlite3.Error:
            return False
        return True

    async def info(self) -> dict[str, Any]:
        """What `/api/v1/status` shows as the search engine."""
        return {"name": "embedded", "version": __version__, "sqlite": sqlite3.sqlite_version}

    # Argilla has committed before it calls any of these.
    async def create_index(self, dataset: Dataset) -> None:
        """Nothing to do: the database is the index."""

    async def configure_metadata_property(self, dataset: Dataset, metadata_property: MetadataProperty) -> None:
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
        """Drop the dataset's words."""
        dataset_id = dataset.id
        await self.readers.run(lambda connection: TextIndex(connection, dataset_id).drop(), text=True)

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
        counts = dict(await self._rows(USER_PROGRESS, stored_uuid(user.id), stored_uuid(dataset.id)))
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
        """Records that match, ordered by `sort`; else shuffled for the user; else by relevance, or as they were logged."""
        condition = compile_filter(filter, dataset) if filter else None
        if sort:
            order: Sql | None = compile_sort(sort, dataset)
        else:
            order = shuffle(user_id) if user_id else None
        return await self.readers.run(
            partial(_search, dataset.id, _text_query(query), condition, order, offset=offset, limit=limit),
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
        """Records by cosine with a vector, or with the vector of a record, which is left out. Exact, over all candidates."""
        if bool(value) == bool(record):
            raise ValueError("give either a vector or a record to compare with, not both")
        vector = value or (record.vector_value_by_vector_settings(vector_settings) if record else None)
        if not vector:
            raise ValueError("the record to compare with has no vector of these settings")
        if order == SimilarityOrder.least_similar:
            vector = [-number for number in vector]
        conditions = [compile_filter(filter, dataset)] if filter else []
        if record:
            conditions.append(Sql("r.id <> ?", (stored_uuid(record.id),)))
        rows = await self.readers.run(
            partial(_vectors, dataset.id, _text_query(query), Sql.join(" AND ", conditions), vector_settings.id),
            text=query is not None,
        )
        scored = [
            (record_id, score)
            for record_id, score in similarities(rows, vector)
            if threshold is None or score >= threshold
        ]
        items = [SearchResponseItem(record_id=UUID(found), score=score) for found, score in scored[:max_results]]
        return SearchResponses(items=items, total=min(len(scored), MAX_SIMILAR))

    async def compute_metrics_for(self, metadata_property: MetadataProperty) -> MetadataMetrics:
        """Terms with their counts, most frequent first; smallest and largest of numbers."""
        path, dataset_id = json_path(metadata_property.name), stored_uuid(metadata_property.dataset_id)
        if metadata_property.type == MetadataPropertyType.terms:
            counts = await self._rows(TERMS, path, dataset_id, MAX_TERMS)
            values = [TermsMetrics.TermCount(term=term, count=count) for term, count in counts]
            return TermsMetrics(total=sum(value.count for value in values), values=values)
        [(smallest, largest)] = await self._rows(RANGE, path, dataset_id)
        if metadata_property.type == MetadataPropertyType.integer:
            return IntegerMetadataMetrics(min=smallest, max=largest)
        return FloatMetadataMetrics(min=smallest, max=largest)

    async def _rows(self, statement: str, *params: Any) -> list[tuple[Any, ...]]:
        return await self.readers.run(lambda connection: connection.execute(statement, params).fetchall())


PROGRESS = "SELECT r.status, count(*) FROM records r WHERE r.dataset_id = ? GROUP BY +r.status"
USER_PROGRESS = (
    "SELECT p.status, count(*) FROM responses p CROSS JOIN records r ON r.id = p.record_id"
    " WHERE p.user_id = ? AND r.dataset_id = ? GROUP BY +p.status"
)
TERMS = (
    f"SELECT CAST(j.value AS TEXT) AS term, count(DISTINCT r.rowid) AS records FROM records r, {METADATA_VALUES}"
    " WHERE r.dataset_id = ? AND j.value IS NOT NULL GROUP BY term ORDER BY records DESC, term LIMIT ?"
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
    score = "-w.rank" if ranked else "NULL"
    connection.execute("BEGIN")  # the page and the total are of one moment
    try:
        total = connection.execute(f"SELECT count(*) {source.text}", source.params).fetchone()[0]
        rows = connection.execute(
            f"SELECT r.id, {score} {source.text} ORDER BY {order.text} LIMIT ? OFFSET ?",
            (*source.params, *order.params, limit, offset),
        ).fetchall()
    finally:
        connection.execute("COMMIT")
    items = [SearchResponseItem(record_id=UUID(record_id), score=score) for record_id, score in rows]
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
