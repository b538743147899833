"""Rows that Argilla exports: how they are recognized, and the records they hold.

Read are the forms of ``dataset.records.to_json()`` and ``to_list()`` (``fields``, ``responses`` by
question), of ``to_datasets()`` (flat, with ``<question>.responses``, ``.responses.users`` and
``.responses.status`` as parallel lists), and of Argilla 1.x for feedback datasets (``responses`` as
a list of ``values``; flat, a column of ``{user_id, value, status}`` for each question). Only
submitted answers are votes; suggestions never are.

The SDK's JSON leaves out the status of answers. The only answer to a completed record was
submitted; any other doubt refuses the row. The SDK's JSON also leaves out the ranks of rankings,
which are therefore refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from prefloop.base.console import listed
from prefloop.data.argilla_guess import Unclear, guess
from prefloop.data.argilla_own import own_record
from prefloop.data.argilla_votes import (
    HIDDEN,
    ArgillaAnswer,
    ArgillaQuestion,
    ArgillaReading,
    Item,
    records_of,
    row_of,
)
from prefloop.data.check import BadRow, json_type
from prefloop.data.row import Habits, Row
from prefloop.data.tools import parsed
from prefloop.records import Record

Columns = Mapping[str, Any]

_LIST, _USERS, _STATUS = ".responses", ".responses.users", ".responses.status"
_SERVERS = frozenset({"id", "status", "_server_id", "vectors", "external_id", "score"})
_RECORD = frozenset({"fields", "metadata", "responses", "suggestions", "inserted_at", "updated_at"})
_SUGGESTED = (
    ".suggestion",
    ".suggestion.score",
    ".suggestion.agent",
    "-suggestion",
    "-suggestion-metadata",
)


def matches(row: Columns) -> bool:
    """Whether a row is in one of Argilla's forms."""
    if isinstance(row.get("fields"), Mapping):
        return isinstance(row.get("responses"), Mapping | list) or isinstance(
            row.get("suggestions"), Mapping | list
        )
    flat = any(key.endswith((_USERS, _STATUS)) and key[: key.rindex(".")] in row for key in row)
    return flat or ("_server_id" in row and "status" in row) or any(map(_is_answers, row.values()))


def read(row: Columns, id: str, source: str) -> list[Record]:
    """The records of one row: a pair, a rating or a prompt, or, of more than two responses, every
    pair that was compared.

    If ``row`` is a ``Row``, it gets notes of what was done to the fields. Raises ``BadRow`` for
    answers that cannot be read with certainty.
    """
    item, questions = item_of(row, source)
    if isinstance(item.meta.get(HIDDEN), Mapping):
        return [own_record(item, id)]
    try:
        reading = _reading(item, questions)
    except Unclear as unclear:
        raise BadRow("", str(unclear)) from None
    inner = row_of(item, reading, id, source, row.habits if isinstance(row, Row) else Habits())
    try:
        return records_of(item, reading, inner)
    finally:
        if isinstance(row, Row):
            row.also(inner)
            if isinstance(row.get("fields"), Mapping) and (others := _other_columns(row)):
                row.say(f"columns kept in meta, not used: {listed(others)}")
            if inner.unused:
                row.say(f"fields kept in meta, not used: {listed(inner.unused)}")


def left_out(row: Columns, source: str = "") -> Counter[str]:
    """What ``read`` does not use of a row, by reason. Empty for a row that ``read`` refuses."""
    reasons: Counter[str] = Counter()
    try:
        item, questions = item_of(row, source)
        if not isinstance(item.meta.get(HIDDEN), Mapping):
            reasons.update(f"question {name}" for name in _reading(item, questions).unused)
    except (BadRow, Unclear):
        return Counter()
    others = (answer.status for answer in item.answers if answer.status != "submitted")
    reasons.update(f"{status} answer" for status in others)
    columns = (row[key] for key in row if key.endswith((".suggestion", "-suggestion")))
    if row.get("suggestions") or any(value is not None for value in columns):
        reasons["suggestion"] += 1
    return reasons


def _reading(item: Item, questions: list[ArgillaQuestion]) -> ArgillaReading:
    texts = [name for name, value in item.fields.items() if isinstance(value, str | list)]
    return guess(texts, questions)


def item_of(row: Columns, source: str) -> tuple[Item, list[ArgillaQuestion]]:
    """The row's fields and answers, and the questions that its submitted answers belong to. Raises
    ``BadRow``.
    """
    if isinstance(row.get("fields"), Mapping):
        fields, meta = dict(row["fields"]), _other_columns(row) | _metadata(row.get("metadata", {}))
        given = list(_of_record(row.get("responses") or {}, source))
    else:
        asked = {key: value for key, value in row.items() if _is_answers(value)}
        given = list(_of_columns(row, source))
        for name, value in asked.items():
            given += _answers_of(name, value, source)
        kept = {key: value for key, value in row.items() if _is_own(key) and key not in asked}
        meta = _metadata(kept.pop("metadata")) if "metadata" in kept and asked else {}
        fields = {
            key: value
            for key, value in kept.items()
            if not isinstance(value, Mapping) and value is not None
        }
        meta |= {key: value for key, value in kept.items() if isinstance(value, Mapping)}
    answers = _joined(given, row.get("status"))
    seen: dict[str, list[Any]] = {}
    for answer in answers:
        for name, value in answer.values.items():
            if answer.status == "submitted":
                seen.setdefault(name, []).append(value)
    return Item(fields, answers, meta), [_question(name, values) for name, values in seen.items()]


def _other_columns(row: Columns) -> dict[str, Any]:
    """The columns of a record that are not Argilla's."""
    return {
        key: value
        for key, value in row.items()
        if key not in _SERVERS | _RECORD and value is not None
    }


def _is_own(key: str) -> bool:
    return key not in _SERVERS and not key.endswith((_LIST, _USERS, _STATUS, *_SUGGESTED))


def _metadata(value: Any) -> dict[str, Any]:
    if value is None or (isinstance(value, str) and value.strip() in ("", "null")):
        return {}
    if isinstance(value, str):  # 1.x wrote it as JSON
        value = parsed(value)
        if value is None:
            raise BadRow("metadata", "is text that is not JSON")
    if not isinstance(value, Mapping):
        raise BadRow("metadata", f"is {json_type(value)}, expected an object")
    return dict(value)


_Given = tuple[str, str, Any, str | None]  # annotator, question, value, status


def _of_record(responses: Any, source: str) -> Iterator[_Given]:
    if isinstance(responses, Mapping):
        for name, value in responses.items():
            yield from _answers_of(str(name), value, source)
        return
    if not isinstance(responses, list):
        raise BadRow("responses", f"is {json_type(responses)}, expected answers by question")
    for index, one in enumerate(responses):  # 1.x: one entry an annotator
        if not isinstance(one, Mapping):
            raise BadRow(
                f"responses.{index}",
                f"is {json_type(one)}, expected an object with values and status",
            )
        values = one.get("values") or {}
        who, status = _who(one.get("user_id"), source, index), one.get("status")
        if not values:
            yield who, "", None, status  # an empty discard
        for name, value in values.items():
            value = value.get("value") if isinstance(value, Mapping) else value
            yield who, str(name), value, status


def _answers_of(name: str, value: Any, source: str) -> Iterator[_Given]:
    """The answers to one question, given as a list of ``{value, user_id, status}`` or as parallel
    lists.
    """
    if isinstance(value, Mapping):
        keys = list(value)
        columns = [value[key] if isinstance(value[key], list) else [value[key]] for key in keys]
        if len({len(column) for column in columns}) > 1:
            raise BadRow(f"responses.{name}", "holds lists of different lengths")
        value = [dict(zip(keys, each, strict=True)) for each in zip(*columns, strict=True)]
    if not isinstance(value, list):
        raise BadRow(f"responses.{name}", f"is {json_type(value)}, expected a list of answers")
    for index, one in enumerate(value):
        if not isinstance(one, Mapping):
            raise BadRow(
                f"responses.{name}.{index}",
                f"is {json_type(one)}, expected an object with value and user_id",
            )
        yield _who(one.get("user_id"), source, index), name, one.get("value"), one.get("status")


def _of_columns(row: Columns, source: str) -> Iterator[_Given]:
    for key, values in row.items():
        if not key.endswith(_LIST) or values is None:
            continue
        name = key.removesuffix(_LIST)
        users, statuses = row.get(name + _USERS), row.get(name + _STATUS)
        if not isinstance(values, list):
            raise BadRow(key, f"is {json_type(values)}, expected a list of answers")
        for other, column in ((_USERS, users), (_STATUS, statuses)):
            if column is not None and (not isinstance(column, list) or len(column) != len(values)):
                raise BadRow(
                    name + other, f"does not have one entry for each of the {len(values)} answers"
                )
        for index, value in enumerate(values):
            who = _who(users[index] if users else None, source, index)
            yield who, name, value, statuses[index] if statuses else None


def _who(user: Any, source: str, index: int) -> str:
    return f"{source}#{index}" if user is None else str(user)


def _is_answers(value: Any) -> bool:
    """Whether a column holds answers in the form of Argilla 1.x."""
    if isinstance(value, Mapping):
        return {"user_id", "value", "status"} <= value.keys()
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(one, Mapping) and _is_answers(one) for one in value)
    )


def _joined(given: list[_Given], record: Any) -> list[ArgillaAnswer]:
    """One answer for each annotator, in order of appearance."""
    values: dict[str, dict[str, Any]] = {}
    statuses: dict[str, Any] = {}
    for who, name, value, status in given:
        mine = values.setdefault(who, {})
        if name in mine:
            raise BadRow(f"responses.{name}", f"has two answers of {who[:40]!r}")
        if name and value is not None:
            mine[name] = value
        if statuses.setdefault(who, status) != status:
            raise BadRow(
                f"responses.{name}", f"has another status than other answers of {who[:40]!r}"
            )
    answers = []
    for who, status in statuses.items():
        if status is None and record == "completed" and len(statuses) == 1:
            status = "submitted"  # nothing else completes a record
        if status not in ("submitted", "draft", "discarded", "pending"):
            unknown = "" if status is None else f" (it has the status {str(status)[:40]!r})"
            raise BadRow(
                "responses",
                f"does not say which answers were submitted{unknown}, and drafts and discards are"
                " no votes: export with `dataset.records.to_datasets()`, which writes the status,"
                " or use `prefloop label pull`",
            )
        answers.append(ArgillaAnswer(who, status, values[who]))
    return answers


def _question(name: str, values: list[Any]) -> ArgillaQuestion:
    """A question, as far as the answers of one row show it."""
    if all(
        isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value)
        for value in values
    ):
        if all("rank" in one for value in values for one in value):
            options = dict.fromkeys(str(one.get("value")) for value in values for one in value)
            return ArgillaQuestion(name, "ranking", tuple(options), known=False)
        return ArgillaQuestion(name, "span", known=False)
    if all(isinstance(value, Mapping) and {"rank", "value"} <= value.keys() for value in values):
        raise BadRow(
            f"responses.{name}",
            "is a ranking as an object of lists, expected a list of {value, rank}",
        )
    if all(isinstance(value, list) for value in values):
        options = dict.fromkeys(str(one) for value in values for one in value)
        return ArgillaQuestion(name, "multi_label_selection", tuple(options), known=False)
    if all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        return ArgillaQuestion(name, "rating", tuple(dict.fromkeys(values)), known=False)
    if all(isinstance(value, str) for value in values):
        return ArgillaQuestion(name, "label_selection", tuple(dict.fromkeys(values)), known=False)
    return ArgillaQuestion(name, "text", known=False)
