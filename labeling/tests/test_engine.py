"""What Argilla's REST API does not pass on, asked of the engine itself on the server's files."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from argilla_server.models import Dataset as DatasetModel
from argilla_server.search_engine import SearchEngine
from prefloop_labeling.database import Readers
from prefloop_labeling.engine import EmbeddedEngine

from .conftest import Server


@pytest.fixture
def engine(server: Server) -> EmbeddedEngine:
    return EmbeddedEngine(
        Readers(server.home.path / "argilla.db", server.home.path / "text-index.db", threads=1)
    )


def test_the_engine_is_found_by_name_and_has_every_method() -> None:
    assert SearchEngine.registered_classes["embedded"] is EmbeddedEngine
    assert not EmbeddedEngine.__abstractmethods__
    inherited = {
        name for name, value in vars(SearchEngine).items() if asyncio.iscoroutinefunction(value)
    }
    assert inherited <= set(vars(EmbeddedEngine))


def test_write_hooks_do_nothing(engine: EmbeddedEngine) -> None:
    async def call() -> list[Any]:
        nothing = SimpleNamespace()
        return [
            await engine.create_index(nothing),
            await engine.configure_metadata_property(nothing, nothing),
            await engine.configure_index_vectors(nothing),
            await engine.index_records(nothing, []),
            await engine.partial_record_update(nothing, status="completed"),
            await engine.delete_records(nothing, []),
            await engine.update_record_response(nothing),
            await engine.delete_record_response(nothing),
            await engine.update_record_suggestion(nothing),
            await engine.delete_record_suggestion(nothing),
            await engine.close(),
        ]

    assert asyncio.run(call()) == [None] * 11


def test_ping_tells_whether_the_tables_are_there(engine: EmbeddedEngine, tmp_path: Path) -> None:
    assert asyncio.run(engine.ping()) is True
    assert (
        asyncio.run(EmbeddedEngine(Readers(tmp_path / "none.db", tmp_path / "text.db")).ping())
        is False
    )


def test_a_plain_string_is_a_text_query_and_the_threshold_cuts(
    server: Server, engine: EmbeddedEngine
) -> None:
    dataset = server.dataset(vectors={"meaning": 2})
    dataset.log(
        {"fields": {"prompt": "near"}, "vectors": {"meaning": [1, 0]}},
        {"fields": {"prompt": "far"}, "vectors": {"meaning": [-1, 0.1]}},
    )
    [settings] = server.owner.get(f"/datasets/{dataset.id}/vectors-settings").json()["items"]
    model, vectors = DatasetModel(id=UUID(dataset.id)), SimpleNamespace(id=UUID(settings["id"]))

    assert asyncio.run(engine.search(model, query="far")).total == 1
    found = asyncio.run(engine.similarity_search(model, vectors, value=[1.0, 0.0], threshold=0.5))
    assert (found.total, [item.score for item in found.items]) == (1, [1.0])
    for arguments in ({}, {"value": [1.0, 0.0], "record": SimpleNamespace(id=UUID(int=0))}):
        with pytest.raises(ValueError, match="either a vector or a record"):
            asyncio.run(engine.similarity_search(model, vectors, **arguments))


def test_a_damaged_text_index_is_made_again(server: Server, tmp_path: Path) -> None:
    dataset = server.dataset()
    dataset.log({"fields": {"prompt": "ocelot"}})
    damaged = tmp_path / "text-index.db"
    damaged.write_text("no database " * 500)
    engine = EmbeddedEngine(Readers(server.home.path / "argilla.db", damaged))
    assert asyncio.run(engine.search(DatasetModel(id=UUID(dataset.id)), query="ocelot")).total == 1
