"""The order of search results: Argilla's sort clauses, and a shuffle that every annotator has for
their own.

Missing values come last in both directions, as in Elasticsearch. Of a list the smallest element
counts when ascending and the largest when descending; of several responses the mean.
"""

from hashlib import blake2b
from uuid import UUID

from argilla_server.enums import SortOrder
from argilla_server.errors.future import UnprocessableEntityError
from argilla_server.models import Dataset
from argilla_server.search_engine import (
    MetadataFilterScope,
    Order,
    RecordFilterScope,
    ResponseFilterScope,
    SuggestionFilterScope,
)

from prefloop_labeling.filters import (
    METADATA_VALUES,
    RESPONSE_VALUES,
    Sql,
    json_path,
    record_property,
    stored_uuid,
    suggestion_property,
    suggestion_rows,
)

# A prime below 2**31 with 3 not dividing PRIME - 1: cubing modulo it moves every number to another
# place, and squares of numbers below it stay within SQLite's 64-bit integers.
PRIME = 2147483579


def shuffle(user_id: UUID | str) -> Sql:
    """An order of `r` that depends on the user alone and stays when records come or go.

    Two rounds of (x + seed)^3 modulo a prime on the row number. One multiplication would leave
    strides: records that were logged one after the other would come at equal distances.
    """
    first, second = seeds(user_id)
    once = _cube(f"((r.rowid + {first}) % {PRIME})")
    return Sql(f"{_cube(f'(({once} + {second}) % {PRIME})')}, r.rowid")


def seeds(user_id: UUID | str) -> tuple[int, int]:
    """The two numbers that make a shuffle a user's own."""
    digest = blake2b(str(user_id).encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4]) % PRIME, int.from_bytes(digest[4:]) % PRIME


def _cube(x: str) -> str:
    return f"({x} * {x} % {PRIME} * {x} % {PRIME})"


def compile_sort(sort: list[Order], dataset: Dataset) -> Sql:
    """The ORDER BY terms for sort clauses, ending with the order in which records were logged."""
    terms = []
    for order in sort:
        descending = order.order == SortOrder.desc
        key = _sort_key(order, dataset, "max" if descending else "min")
        terms.append(Sql(f"{key.text} {'DESC' if descending else 'ASC'} NULLS LAST", key.params))
    return Sql.join(", ", [*terms, Sql("r.rowid")])


def _sort_key(order: Order, dataset: Dataset, pick: str) -> Sql:
    scope = order.scope
    scalars = "j.type IN ('integer', 'real', 'text')"
    if isinstance(scope, RecordFilterScope):
        return Sql(f"r.{record_property(scope)}")
    if isinstance(scope, MetadataFilterScope):
        path = json_path(scope.metadata_property)
        return Sql(f"(SELECT {pick}(j.value) FROM {METADATA_VALUES} WHERE {scalars})", (path,))
    if isinstance(scope, SuggestionFilterScope):
        rows, property = suggestion_rows(scope.question, dataset), suggestion_property(scope)
        if property in ("agent", "type"):
            return Sql(f"(SELECT s.{property} FROM suggestions s WHERE {rows.text})", rows.params)
        return Sql(
            f"(SELECT {pick}(j.value) FROM suggestions s, json_each(s.{property}) j WHERE"
            f" {rows.text} AND {scalars})",
            rows.params,
        )
    if isinstance(scope, ResponseFilterScope):
        rows = Sql("p.record_id = r.id")
        if scope.user:
            rows = Sql("p.record_id = r.id AND p.user_id = ?", (stored_uuid(scope.user.id),))
        if not scope.question:
            return Sql(f"(SELECT {pick}(p.status) FROM responses p WHERE {rows.text})", rows.params)
        numbers = "avg(CASE WHEN j.type IN ('integer', 'real') THEN j.value END)"
        return Sql(
            f"(SELECT coalesce({numbers}, {pick}(j.value)) FROM responses p, {RESPONSE_VALUES}"
            f" WHERE {rows.text} AND {scalars})",
            (json_path(scope.question, "value"), *rows.params),
        )
    raise UnprocessableEntityError(f"cannot sort by {type(scope).__name__}")
