"""Argilla's filters as conditions on a row `r` of `records`.

Every value from outside is a bound parameter; lists are bound as one JSON array. All response
filters of a search must hold in one and the same response row, so they become a single EXISTS.
`+p.status` keeps SQLite from choosing the index on the status alone, which holds every response of
every dataset.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from typing import Any
from uuid import UUID

from argilla_server.enums import ResponseStatus, ResponseStatusFilter
from argilla_server.errors.future import UnprocessableEntityError
from argilla_server.models import Dataset
from argilla_server.search_engine import (
    AndFilter,
    Filter,
    MetadataFilterScope,
    RangeFilter,
    RecordFilterScope,
    ResponseFilterScope,
    SuggestionFilterScope,
    TermsFilter,
)

# Metadata may hold Infinity, which older SQLites call malformed JSON: such a row has no values
# rather than failing the search.
METADATA_VALUES = "json_each(CASE WHEN json_valid(r.metadata) THEN r.metadata END, ?) j"
RESPONSE_VALUES = 'json_each(p."values", ?) j'
RECORD_PROPERTIES = ("id", "external_id", "inserted_at", "updated_at", "status")
SUGGESTION_PROPERTIES = ("value", "score", "agent", "type")


@dataclass(frozen=True)
class Sql:
    """A piece of SQL with the parameters of its question marks, in order."""

    text: str
    params: tuple[Any, ...] = ()

    @staticmethod
    def join(separator: str, parts: Iterable["Sql"]) -> "Sql":
        """The parts in order with `separator` between them."""
        parts = list(parts)
        return Sql(
            separator.join(part.text for part in parts),
            tuple(p for part in parts for p in part.params),
        )


NOTHING = Sql("0")


def json_path(*keys: str) -> str:
    """A JSON path for member names; names come from Argilla's database, whose own rules forbid
    quotes in them.
    """
    return "$" + "".join(f'."{key}"' for key in keys)


def stored_uuid(value: UUID | str) -> str:
    """A UUID as Argilla's database holds it: 32 hexadecimal digits. Raises ValueError for anything
    else.
    """
    return (value if isinstance(value, UUID) else UUID(value)).hex


def compile_filter(filter: Filter, dataset: Dataset) -> Sql:
    """The condition for a filter; raises UnprocessableEntityError (422) for one that means
    nothing.
    """
    leaves = list(_leaves(filter))
    by_user: dict[Any, list[TermsFilter | RangeFilter]] = {}
    conditions = []
    for leaf in leaves:
        scope = leaf.scope
        if isinstance(scope, ResponseFilterScope):
            by_user.setdefault(scope.user.id if scope.user else None, []).append(leaf)
        elif isinstance(scope, MetadataFilterScope):
            match = _value_condition(leaf)
            path = json_path(scope.metadata_property)
            conditions.append(
                Sql(
                    f"EXISTS (SELECT 1 FROM {METADATA_VALUES} WHERE {match.text})",
                    (path, *match.params),
                )
            )
        elif isinstance(scope, SuggestionFilterScope):
            conditions.append(_suggestion_condition(leaf, dataset))
        elif isinstance(scope, RecordFilterScope):
            conditions.append(_record_condition(leaf))
        else:
            raise UnprocessableEntityError(f"cannot filter by {type(scope).__name__}")
    conditions += [_response_condition(group, user_id) for user_id, group in by_user.items()]
    return Sql.join(" AND ", conditions) if conditions else Sql("1")


def unanswered(filter: Filter | None) -> tuple[UUID, Filter] | None:
    """The user and the other conditions when a filter asks for what that user has not answered;
    None when it does not.
    """
    leaves = list(_leaves(filter)) if filter else []
    asked = [leaf for leaf in leaves if isinstance(leaf.scope, ResponseFilterScope)]
    users = {leaf.scope.user.id if leaf.scope.user else None for leaf in asked}
    if len(users) != 1 or None in users:
        return None
    for leaf in asked:
        if (
            leaf.scope.question
            or leaf.scope.property != "status"
            or not isinstance(leaf, TermsFilter)
        ):
            return None
        if {str(value) for value in leaf.values} != {ResponseStatusFilter.pending.value}:
            return None
    return users.pop(), AndFilter(filters=[leaf for leaf in leaves if leaf not in asked])


def _leaves(filter: Filter) -> Iterable[TermsFilter | RangeFilter]:
    if isinstance(filter, AndFilter):
        for part in filter.filters:
            yield from _leaves(part)
    else:
        yield filter


def _number(value: Any) -> int | float | None:
    """The number that a filter value spells ("5" is 5), or None."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def _bound(values: Sequence[Any]) -> str:
    return json.dumps(list(values))


def _value_condition(leaf: TermsFilter | RangeFilter) -> Sql:
    """A condition on `j`, one JSON value or element of a list, by the type it is stored as."""
    if isinstance(leaf, TermsFilter):
        texts = _bound([str(value) for value in leaf.values])
        numbers = _bound([number for number in map(_number, leaf.values) if number is not None])
        return Sql(
            "(CASE WHEN j.type IN ('integer', 'real') THEN j.value IN (SELECT n.value FROM"
            " json_each(?) n) WHEN j.type = 'text' THEN j.value IN (SELECT t.value FROM"
            " json_each(?) t) WHEN j.type IN ('true', 'false') THEN j.type IN (SELECT t.value FROM"
            " json_each(?) t) ELSE 0 END)",
            (numbers, texts, texts),
        )
    parts = []
    for operator, bound in ((">=", leaf.ge), ("<=", leaf.le)):
        if bound is None:
            continue
        number = _number(bound)
        if number is not None:
            parts.append(
                Sql(f"(j.type IN ('integer', 'real') AND j.value {operator} ?)", (float(number),))
            )
        else:
            parts.append(
                Sql(
                    f"(j.type = 'text' AND j.value {operator} json_extract(?, '$[0]'))",
                    (_bound([bound]),),
                )
            )
    return Sql.join(" AND ", parts) if parts else Sql("1")


def _column_condition(column: str, leaf: TermsFilter | RangeFilter) -> Sql:
    if isinstance(leaf, TermsFilter):
        values = [str(value) for value in leaf.values]
        if len(values) == 1:  # the queue's filter by status: no lookup in a list for each record
            return Sql(f"{column} = ?", (values[0],))
        return Sql(f"{column} IN (SELECT t.value FROM json_each(?) t)", (_bound(values),))
    bounds = ((">=", leaf.ge), ("<=", leaf.le))
    parts = [
        Sql(f"{column} {operator} json_extract(?, '$[0]')", (_bound([str(bound)]),))
        for operator, bound in bounds
        if bound is not None
    ]
    return Sql.join(" AND ", parts) if parts else Sql("1")


def _response_condition(leaves: list[TermsFilter | RangeFilter], user_id: UUID | None) -> Sql:
    statuses: set[str] | None = None
    who = Sql("p.record_id = r.id")
    if user_id is not None:
        who = Sql("p.record_id = r.id AND p.user_id = ?", (stored_uuid(user_id),))
    values = []
    for leaf in leaves:
        if leaf.scope.question:
            match = _value_condition(leaf)
            path = json_path(leaf.scope.question, "value")
            values.append(
                Sql(
                    f"EXISTS (SELECT 1 FROM {RESPONSE_VALUES} WHERE {match.text})",
                    (path, *match.params),
                )
            )
        elif leaf.scope.property == "status" and isinstance(leaf, TermsFilter):
            named = {str(value) for value in leaf.values}
            statuses = named if statuses is None else statuses & named
        else:
            raise UnprocessableEntityError(
                "a response filter needs a question, or the property 'status' with terms"
            )
    row, alternatives = [who], []
    if statuses is not None:
        # Pending is the absence of a response, which has no values: beside a question filter it can
        # match nothing.
        if ResponseStatusFilter.pending.value in statuses and not values:
            alternatives.append(
                Sql(f"NOT EXISTS (SELECT 1 FROM responses p WHERE {who.text})", who.params)
            )
        written = sorted(statuses & {status.value for status in ResponseStatus})
        if not written:
            return alternatives[0] if alternatives else NOTHING
        row.append(Sql("+p.status IN (SELECT t.value FROM json_each(?) t)", (_bound(written),)))
    match = Sql.join(" AND ", [*row, *values])
    alternatives.append(Sql(f"EXISTS (SELECT 1 FROM responses p WHERE {match.text})", match.params))
    either = Sql.join(" OR ", alternatives)
    return Sql(f"({either.text})", either.params)


def suggestion_rows(question: str, dataset: Dataset) -> Sql:
    """The condition that picks the suggestion `s` of a record for a question."""
    return Sql(
        "s.record_id = r.id AND s.question_id = (SELECT q.id FROM questions q WHERE q.dataset_id ="
        " ? AND q.name = ?)",
        (stored_uuid(dataset.id), question),
    )


def suggestion_property(scope: SuggestionFilterScope) -> str:
    """The property of a suggestion that a scope names; raises UnprocessableEntityError for an
    unknown one.
    """
    property = "value" if scope.property in (None, "None") else str(scope.property)
    if property not in SUGGESTION_PROPERTIES:
        raise UnprocessableEntityError(
            f"suggestions have no property {property!r}: use one of {SUGGESTION_PROPERTIES}"
        )
    return property


def _suggestion_condition(leaf: TermsFilter | RangeFilter, dataset: Dataset) -> Sql:
    rows, property = suggestion_rows(leaf.scope.question, dataset), suggestion_property(leaf.scope)
    if property in ("agent", "type"):
        match = _column_condition(f"+s.{property}", leaf)
        return Sql(
            f"EXISTS (SELECT 1 FROM suggestions s WHERE {rows.text} AND {match.text})",
            rows.params + match.params,
        )
    match = _value_condition(leaf)
    return Sql(
        f"EXISTS (SELECT 1 FROM suggestions s, json_each(s.{property}) j WHERE {rows.text} AND"
        f" {match.text})",
        rows.params + match.params,
    )


def record_property(scope: RecordFilterScope) -> str:
    """The column of a record that a scope names; raises UnprocessableEntityError for an unknown
    one.
    """
    if str(scope.property) not in RECORD_PROPERTIES:
        raise UnprocessableEntityError(
            f"records have no property {scope.property!r}: use one of {RECORD_PROPERTIES}"
        )
    return str(scope.property)


def _record_condition(leaf: TermsFilter | RangeFilter) -> Sql:
    property = record_property(leaf.scope)
    if property in ("inserted_at", "updated_at"):
        if isinstance(leaf, TermsFilter):
            moments = [stored_moment(value, property) for value in leaf.values]
            return Sql(f"+r.{property} IN (SELECT t.value FROM json_each(?) t)", (_bound(moments),))
        parts = []
        if leaf.ge is not None:
            parts.append(Sql(f"+r.{property} >= ?", (stored_moment(leaf.ge, property),)))
        if leaf.le is not None:
            parts.append(
                Sql(f"+r.{property} <= ?", (stored_moment(leaf.le, property, end_of_day=True),))
            )
        return Sql.join(" AND ", parts) if parts else Sql("1")
    if property == "id" and isinstance(leaf, TermsFilter):
        ids = []
        for value in leaf.values:
            try:
                ids.append(stored_uuid(value))
            except ValueError:
                continue  # what is not a UUID is no record's id
        return Sql("r.id IN (SELECT t.value FROM json_each(?) t)", (_bound(ids),))
    return _column_condition(f"+r.{property}", leaf)


def stored_moment(value: Any, property: str, end_of_day: bool = False) -> str:
    """A moment as the database holds it (UTC); a bare date as an upper bound means its whole day.

    Numbers are milliseconds since 1970. Raises UnprocessableEntityError (422) for what is no
    moment.
    """
    number = _number(value)
    try:
        if number is not None:
            moment = datetime(1970, 1, 1) + timedelta(milliseconds=number)
        else:
            moment = datetime.fromisoformat(str(value))
            if moment.tzinfo is not None:
                moment = moment.astimezone(UTC).replace(tzinfo=None)
            if end_of_day and len(str(value)) <= len("2025-01-31"):
                moment = datetime.combine(moment, time.max)
    except (ValueError, OverflowError):
        raise UnprocessableEntityError(
            f"{property} cannot be compared with {value!r}: give an ISO 8601 date or time, such as"
            " 2025-01-31"
        ) from None
    return moment.isoformat(sep=" ", timespec="microseconds")
