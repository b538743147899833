"""The annotator's queue: which indexes it uses, and that its shuffle is one."""

import sqlite3
from collections.abc import Iterator
from itertools import pairwise, product
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest
from argilla_server.models import Dataset as DatasetModel
from argilla_server.search_engine import (
    AndFilter,
    RecordFilterScope,
    ResponseFilterScope,
    TermsFilter,
    TextQuery,
)
from prefloop_labeling import engine, ordering, shuffles
from prefloop_labeling.database import INDEXES, connect_reader
from prefloop_labeling.filters import Sql, compile_filter, stored_uuid, unanswered

from .conftest import Account, Server, record_scope, response_scope, terms


@pytest.fixture
def reader(server: Server) -> Iterator[sqlite3.Connection]:
    connection = connect_reader(server.home.path / "argilla.db", server.home.path / "text-index.db")
    yield connection
    connection.close()


def plan(connection: sqlite3.Connection, statement: str, *params: object) -> list[str]:
    return [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", params)]


def searched(connection: sqlite3.Connection, *search: object, **page: int) -> list[list[str]]:
    """The plans of the statements that a search runs on records."""
    statements: list[str] = []
    connection.set_trace_callback(statements.append)
    engine._search(*search, connection, offset=0, limit=10, **page)
    connection.set_trace_callback(None)
    return [
        plan(connection, text)
        for text in statements
        if "records r" in text and text.startswith("SELECT")
    ]


def status_filter(user_id: str | None, *statuses: str, record: str | None = None) -> AndFilter:
    user = SimpleNamespace(id=UUID(user_id)) if user_id else None
    leaves = [
        TermsFilter(scope=ResponseFilterScope(property="status", user=user), values=list(statuses))
    ]
    if record:
        leaves.append(TermsFilter(scope=RecordFilterScope(property="status"), values=[record]))
    return AndFilter(filters=leaves)


def queue(user_id: str, *statuses: str) -> Sql:
    return compile_filter(status_filter(user_id, *statuses), DatasetModel(id=uuid4()))


@pytest.mark.parametrize(
    "statuses", [["pending"], ["submitted"], ["draft", "pending"], ["discarded"]]
)
def test_a_scan_of_the_queue_looks_up_one_response_a_record(
    server: Server, ann: Account, reader: sqlite3.Connection, statuses: list[str]
) -> None:
    dataset = server.dataset()
    plans = searched(
        reader, UUID(dataset.id), None, queue(ann.id, *statuses), ordering.shuffle(ann.id)
    )
    assert len(plans) == 2  # total and page
    for steps in plans:
        assert steps[0].startswith("SEARCH r USING COVERING INDEX ix_prefloop_records"), steps
        responses = [step for step in steps if step.startswith(("SEARCH p", "SCAN p"))]
        assert responses and all("(record_id=? AND user_id=?)" in step for step in responses), steps
        if statuses == ["pending"]:
            assert "COVERING INDEX" in responses[0]


def queued(
    connection: sqlite3.Connection,
    dataset_id: str,
    user_id: str,
    asked: AndFilter | None,
    offset: int,
    limit: int,
) -> Any:
    """A page of the queue as the engine reads it."""
    condition = compile_filter(asked, DatasetModel(id=UUID(dataset_id))) if asked else None
    pending = unanswered(asked)
    rest = compile_filter(pending[1], DatasetModel(id=UUID(dataset_id))) if pending else None
    by = pending[0] if pending else None
    return engine._queue(
        UUID(dataset_id), UUID(user_id), condition, rest, by, connection, offset=offset, limit=limit
    )


@pytest.mark.parametrize("record", [None, "pending"])
def test_the_queue_reads_covering_indexes_and_sorts_nothing_but_its_page(
    server: Server, ann: Account, reader: sqlite3.Connection, record: str | None
) -> None:
    dataset = server.dataset()
    dataset.log(*({"fields": {"prompt": f"p{n}"}} for n in range(200)))
    asked = status_filter(ann.id, "pending", record=record)
    queued(reader, dataset.id, ann.id, asked, 0, 10)  # the first time reads all records
    statements: list[str] = []
    reader.set_trace_callback(statements.append)
    assert len(queued(reader, dataset.id, ann.id, asked, 0, 10).items) == 10
    reader.set_trace_callback(None)
    plans = {text: plan(reader, text) for text in statements if text.startswith("SELECT")}
    for text, steps in plans.items():
        if text.startswith("SELECT r.id FROM"):
            assert steps == ["SEARCH r USING INTEGER PRIMARY KEY (rowid=?)"]
        elif text.startswith("SELECT r.rowid"):
            assert steps == [
                "SEARCH r USING INDEX ix_records_dataset_id (dataset_id=? AND rowid>?)"
            ]
        else:
            assert all(
                "COVERING INDEX" in step for step in steps if " r " in step or " p " in step
            ), steps
        assert ("TEMP B-TREE" in " ".join(steps)) == (
            "json_each" in text and "ORDER BY o.key" in text
        ), steps
    [page] = [steps for text, steps in plans.items() if "ORDER BY o.key" in text]
    assert (
        page[0].startswith("SCAN o")
        and "SEARCH r USING COVERING INDEX ix_prefloop_records" in page[1]
    ), page
    [answered] = [
        steps for text, steps in plans.items() if "FROM responses p" in text.split("WHERE")[0]
    ]
    assert answered[0] == "SEARCH p USING COVERING INDEX ix_prefloop_responses (user_id=?)"


def test_a_text_search_starts_from_the_words(server: Server, reader: sqlite3.Connection) -> None:
    dataset = server.dataset()
    dataset.log({"fields": {"prompt": "blue"}})
    plans = searched(reader, UUID(dataset.id), TextQuery(q="blue"), None, None)
    for steps in plans[-2:]:
        assert "VIRTUAL TABLE" in steps[0] and "d USING INTEGER PRIMARY KEY" in steps[1], steps
        assert "SEARCH r USING" in steps[2] and "id=?" in steps[2], steps


def test_progress_reads_only_covering_indexes(reader: sqlite3.Connection) -> None:
    [step, *_] = plan(reader, engine.PROGRESS, "x")
    assert "COVERING INDEX ix_prefloop_records (dataset_id=?)" in step
    responses, records, *_ = plan(reader, engine.USER_PROGRESS, "x", "y")
    assert "COVERING INDEX ix_prefloop_responses (user_id=?)" in responses
    assert "COVERING INDEX ix_prefloop_records (dataset_id=? AND id=?)" in records


def test_the_engine_cannot_write_argillas_tables(reader: sqlite3.Connection) -> None:
    assert {row[0] for row in reader.execute("SELECT name FROM main.sqlite_master")} >= set(INDEXES)
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader.execute("DELETE FROM main.records")


def shuffled(user_id: str, records: int) -> list[int]:
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE records (name TEXT)")
    connection.executemany("INSERT INTO records VALUES (?)", [(str(n),) for n in range(records)])
    order = ordering.shuffle(user_id)
    return [
        row[0]
        for row in connection.execute(
            f"SELECT r.rowid FROM records r ORDER BY {order.text}", order.params
        )
    ]


@pytest.mark.parametrize("seed", range(5))
def test_the_shuffle_has_no_visible_strides(seed: int) -> None:
    records = 2000
    order = shuffled(str(UUID(int=seed)), records)
    assert sorted(order) == list(range(1, records + 1))
    steps = [(after - before) % records for before, after in pairwise(order)]
    # A linear shuffle takes two or three different steps in all; a random one repeats a step about
    # once.
    assert len(set(steps)) > 0.55 * records
    place = {record: n for n, record in enumerate(order)}
    distances = [abs(place[n] - place[n + 1]) for n in range(1, records)]
    assert (
        abs(sum(distances) / len(distances) - records / 3) < records / 30
    )  # the mean of two random places
    assert abs(sum(order[: records // 2]) / (records // 2) - records / 2) < records / 20


def test_users_shuffles_are_unrelated() -> None:
    records = 2000
    orders = [shuffled(str(UUID(int=seed)), records) for seed in range(6)]
    for n, one in enumerate(orders):
        place = {record: at for at, record in enumerate(one)}
        for other in orders[:n]:
            moved = [abs(place[record] - at) for at, record in enumerate(other)]
            assert abs(sum(moved) / records - records / 3) < records / 30


def test_the_shuffle_depends_on_the_user_alone() -> None:
    user = str(uuid4())
    assert ordering.shuffle(user) == ordering.shuffle(UUID(user))
    short, long = shuffled(user, 100), shuffled(user, 150)
    assert [record for record in long if record <= 100] == short


@pytest.mark.parametrize("user_id", [uuid4() for _ in range(3)])
def test_the_shuffle_in_memory_is_the_one_in_sql(user_id: UUID) -> None:
    rowids = np.array(
        [*range(1, 3000), ordering.PRIME - 1, ordering.PRIME, ordering.PRIME + 7, 2**40 + 5]
    )
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE records (name TEXT)")
    connection.executemany(
        "INSERT INTO records (rowid) VALUES (?)", [(int(rowid),) for rowid in rowids]
    )
    order = ordering.shuffle(user_id)
    expected = [
        row[0] for row in connection.execute(f"SELECT r.rowid FROM records r ORDER BY {order.text}")
    ]
    keys = shuffles.shuffle_keys(user_id, rowids)
    assert rowids[np.argsort(keys, kind="stable")].tolist() == expected


def test_the_queue_is_what_sorting_all_records_gives(
    server: Server, ann: Account, ben: Account, reader: sqlite3.Connection
) -> None:
    dataset = server.dataset(min_submitted=2)
    records = dataset.log(*({"fields": {"prompt": f"p{n}"}} for n in range(150)))
    for n, record_id in enumerate(records[:36]):
        assert (
            ann.respond(
                record_id, ("submitted", "draft", "discarded")[n % 3], choice="a"
            ).status_code
            == 201
        )
        if n % 2:
            assert ben.respond(record_id, choice="b").status_code == 201
    asked_for = [(), ("pending",), ("submitted",), ("draft", "pending"), ("discarded",)]
    pages = [(0, 10), (0, 1), (5, 40), (80, 30), (140, 100), (500, 10), (0, 1000)]
    for statuses, record, account in product(asked_for, (None, "pending", "completed"), (ann, ben)):
        asked = status_filter(account.id, *statuses, record=record) if statuses else None
        condition = compile_filter(asked, DatasetModel(id=UUID(dataset.id))) if asked else None
        for offset, limit in pages:
            order = ordering.shuffle(account.id)
            expected = engine._search(
                UUID(dataset.id), None, condition, order, reader, offset=offset, limit=limit
            )
            assert queued(reader, dataset.id, account.id, asked, offset, limit) == expected


def test_a_filter_for_the_unanswered_is_told_from_others() -> None:
    ann, ben = str(uuid4()), str(uuid4())
    user, rest = unanswered(status_filter(ann, "pending", record="completed"))
    assert user == UUID(ann) and [leaf.scope.property for leaf in rest.filters] == ["status"]
    question = TermsFilter(
        scope=ResponseFilterScope(question="q", user=SimpleNamespace(id=UUID(ann))), values=["a"]
    )
    both = AndFilter(filters=[status_filter(ann, "pending"), status_filter(ben, "pending")])
    for other in (
        None,
        status_filter(ann, "pending", "draft"),
        status_filter(ann, "submitted"),
        status_filter(None, "pending"),  # nobody's response
        AndFilter(filters=[status_filter(ann, "pending"), question]),
        both,
        AndFilter(filters=[]),
    ):
        assert unanswered(other) is None


def test_the_queue_follows_records_that_come_and_go(server: Server, ann: Account) -> None:
    dataset, logged = server.dataset(), 0
    pending = [terms(response_scope(), "pending"), terms(record_scope("status"), "pending")]

    def log(count: int) -> list[str]:
        nonlocal logged
        logged += count
        names = range(logged - count, logged)
        return dataset.log(*({"fields": {"prompt": f"p{n}"}, "external_id": str(n)} for n in names))

    def delete(ids: list[str]) -> None:
        assert dataset.owner.delete(
            f"/datasets/{dataset.id}/records", params={"ids": ",".join(ids)}
        ).is_success

    def check(*expected: str) -> list[str]:
        page = dataset.search(ann, filters={"and": pending})
        assert sorted(item["record"]["id"] for item in page["items"]) == sorted(expected)
        assert page["total"] == len(expected)
        return [item["record"]["id"] for item in page["items"]]

    check()
    ids = log(40)
    before = check(*ids)
    more = log(20)
    after = check(*ids, *more)
    assert [record for record in after if record in set(ids)] == before
    delete(ids[10:15])  # amid the others
    kept = ids[:10] + ids[15:]
    check(*kept, *more)
    delete(more)  # the last ones, whose row numbers the next take
    check(*kept)
    more = log(20)
    check(*kept, *more)
    delete([kept[0], *more])
    again = log(21)  # as many as before, and the last row number too
    last = check(*kept[1:], *again)
    assert ann.respond(last[0], choice="a").status_code == 201
    assert check(*(set(last) - {last[0]})) == last[1:]
    delete(last[1:])
    check()


def test_what_is_kept_of_shuffles_is_bounded() -> None:
    recent: shuffles._Recent[int, int] = shuffles._Recent(2)
    recent.put(1, 1), recent.put(2, 2)
    assert recent.seen(1) == 1
    recent.put(3, 3)
    assert recent.seen(2) is None and list(recent) == [1, 3]


def test_uuids_are_stored_as_the_engine_reads_them(
    server: Server, reader: sqlite3.Connection
) -> None:
    dataset = server.dataset()
    [record] = dataset.log({"fields": {"prompt": "p"}})
    found = reader.execute(
        "SELECT dataset_id FROM main.records WHERE id = ?", [stored_uuid(record)]
    ).fetchone()
    assert found == (stored_uuid(dataset.id),)
