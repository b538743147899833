"""The annotator's queue: which indexes it uses, and that its shuffle is one."""

import sqlite3
from collections.abc import Iterator
from itertools import pairwise
from types import SimpleNamespace
from uuid import UUID, uuid4

import pytest
from argilla_server.models import Dataset as DatasetModel
from argilla_server.search_engine import AndFilter, ResponseFilterScope, TermsFilter, TextQuery
from prefloop_labeling import engine, ordering
from prefloop_labeling.database import INDEXES, connect_reader
from prefloop_labeling.filters import Sql, compile_filter, stored_uuid

from .conftest import Account, Server


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
    return [plan(connection, text) for text in statements if "records r" in text and text.startswith("SELECT")]


def queue(user_id: str, *statuses: str) -> Sql:
    scope = ResponseFilterScope(property="status", user=SimpleNamespace(id=UUID(user_id)))
    return compile_filter(
        AndFilter(filters=[TermsFilter(scope=scope, values=list(statuses))]), DatasetModel(id=uuid4())
    )


@pytest.mark.parametrize("statuses", [["pending"], ["submitted"], ["draft", "pending"], ["discarded"]])
def test_the_queue_looks_up_one_response_a_record(
    server: Server, ann: Account, reader: sqlite3.Connection, statuses: list[str]
) -> None:
    dataset = server.dataset()
    plans = searched(reader, UUID(dataset.id), None, queue(ann.id, *statuses), ordering.shuffle(ann.id))
    assert len(plans) == 2  # total and page
    for steps in plans:
        assert steps[0].startswith("SEARCH r USING COVERING INDEX ix_prefloop_records"), steps
        responses = [step for step in steps if step.startswith(("SEARCH p", "SCAN p"))]
        assert responses and all("(record_id=? AND user_id=?)" in step for step in responses), steps
        if statuses == ["pending"]:
            assert "COVERING INDEX" in responses[0]


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
    return [row[0] for row in connection.execute(f"SELECT r.rowid FROM records r ORDER BY {order.text}", order.params)]


@pytest.mark.parametrize("seed", range(5))
def test_the_shuffle_has_no_visible_strides(seed: int) -> None:
    records = 2000
    order = shuffled(str(UUID(int=seed)), records)
    assert sorted(order) == list(range(1, records + 1))
    steps = [(after - before) % records for before, after in pairwise(order)]
    # A linear shuffle takes two or three different steps in all; a random one repeats a step about once.
    assert len(set(steps)) > 0.55 * records
    place = {record: n for n, record in enumerate(order)}
    distances = [abs(place[n] - place[n + 1]) for n in range(1, records)]
    assert abs(sum(distances) / len(distances) - records / 3) < records / 30  # the mean of two random places
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


def test_uuids_are_stored_as_the_engine_reads_them(server: Server, reader: sqlite3.Connection) -> None:
    dataset = server.dataset()
    [record] = dataset.log({"fields": {"prompt": "p"}})
    found = reader.execute("SELECT dataset_id FROM main.records WHERE id = ?", [stored_uuid(record)]).fetchone()
    assert found == (stored_uuid(dataset.id),)
