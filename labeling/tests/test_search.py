"""Order, paging, progress, metrics and similarity, through the real API."""

import pytest

from .conftest import (
    Account,
    Dataset,
    Server,
    labels,
    metadata_scope,
    rating,
    record_scope,
    response_scope,
    suggestion_scope,
    terms,
)


def sort(scope: dict, order: str = "asc") -> dict:
    return {"scope": scope, "order": order}


@pytest.fixture(scope="module")
def rated(server: Server, ann: Account, ben: Account) -> Dataset:
    dataset = server.dataset(
        questions={"score": rating(), "choice": labels("a", "b")},
        metadata={"words": "integer", "source": "terms"},
    )
    choice = server.question_id(dataset, "choice")
    ids = dataset.log(
        {
            "fields": {"prompt": "p"},
            "external_id": "r0",
            "metadata": {"words": 30, "source": ["m", "a"]},
        },
        {"fields": {"prompt": "p"}, "external_id": "r1"},
        {
            "fields": {"prompt": "p"},
            "external_id": "r2",
            "metadata": {"words": 4, "source": "k"},
            "suggestions": [{"question_id": choice, "value": "b", "score": 0.1, "agent": "m1"}],
        },
        {
            "fields": {"prompt": "p"},
            "external_id": "r3",
            "metadata": {"words": 200},
            "suggestions": [{"question_id": choice, "value": "a", "score": 0.7, "agent": "m2"}],
        },
    )
    for record, account, score in ((0, ann, 2), (0, ben, 8), (1, ann, 4), (2, ben, 1)):
        assert account.respond(ids[record], score=score, choice="a").status_code == 201
    return dataset


@pytest.mark.parametrize(
    ("scope", "ascending", "descending"),
    [
        (metadata_scope("words"), ["r2", "r0", "r3", "r1"], ["r3", "r0", "r2", "r1"]),
        (
            metadata_scope("source"),
            ["r0", "r2", "r1", "r3"],
            ["r0", "r2", "r1", "r3"],
        ),  # r0: "a" up, "m" down
        (suggestion_scope("choice"), ["r3", "r2", "r0", "r1"], ["r2", "r3", "r0", "r1"]),
        (suggestion_scope("choice", "score"), ["r2", "r3", "r0", "r1"], ["r3", "r2", "r0", "r1"]),
        (suggestion_scope("choice", "agent"), ["r2", "r3", "r0", "r1"], ["r3", "r2", "r0", "r1"]),
        (
            response_scope("score"),
            ["r2", "r1", "r0", "r3"],
            ["r0", "r1", "r2", "r3"],
        ),  # means 1, 4, 5, none
        (record_scope("external_id"), ["r0", "r1", "r2", "r3"], ["r3", "r2", "r1", "r0"]),
        (record_scope("inserted_at"), ["r0", "r1", "r2", "r3"], ["r3", "r2", "r1", "r0"]),
        (record_scope("status"), ["r0", "r1", "r2", "r3"], ["r3", "r0", "r1", "r2"]),
    ],
)
def test_sort_puts_missing_values_last_in_both_directions(
    rated: Dataset, scope: dict, ascending: list[str], descending: list[str]
) -> None:
    assert rated.found(sort=[sort(scope)]) == ascending
    if scope != record_scope("inserted_at"):  # records of one bulk call may share a moment
        assert rated.found(sort=[sort(scope, "desc")]) == descending


def test_sort_by_responses_is_by_the_asking_users(rated: Dataset, ann: Account) -> None:
    assert rated.found(ann, sort=[sort(response_scope("score"), "desc")])[:2] == ["r1", "r0"]
    assert rated.found(ann, sort=[sort(response_scope())])[:2] == ["r0", "r1"]


def test_later_sort_clauses_break_ties(rated: Dataset) -> None:
    clauses = [sort(record_scope("status"), "desc"), sort(metadata_scope("words"), "desc")]
    assert rated.found(sort=clauses) == ["r3", "r0", "r2", "r1"]


def test_pages_cover_everything_once_and_total_stays(rated: Dataset, ann: Account) -> None:
    for account in (None, ann):
        pages = [rated.search(account, offset=offset, limit=2) for offset in (0, 2, 4)]
        assert [page["total"] for page in pages] == [4, 4, 4]
        found = [item["record"]["external_id"] for page in pages for item in page["items"]]
        assert sorted(found) == ["r0", "r1", "r2", "r3"]
    assert rated.found() == ["r0", "r1", "r2", "r3"]  # without a user: as they were logged


def test_the_queue_is_a_stable_shuffle_that_differs_between_users(
    server: Server, ann: Account, ben: Account
) -> None:
    dataset = server.dataset()
    ids = dataset.log(*({"fields": {"prompt": f"p{n}"}, "external_id": str(n)} for n in range(200)))
    anns = [int(n) for n in dataset.found(ann)]
    assert sorted(anns) == list(range(200))
    assert [int(n) for n in dataset.found(ann)] == anns
    assert [int(n) for n in dataset.found(ben)] != anns
    assert ann.respond(ids[anns[0]], choice="a").status_code == 201
    dataset.log({"fields": {"prompt": "new"}, "external_id": "200"})
    pending = [
        int(n) for n in dataset.found(ann, filters={"and": [terms(response_scope(), "pending")]})
    ]
    assert [n for n in pending if n != 200] == anns[
        1:
    ]  # neither a vote nor a new record reorders the rest


def test_progress(server: Server, ann: Account, ben: Account) -> None:
    dataset = server.dataset(min_submitted=2)
    ids = dataset.log(*({"fields": {"prompt": f"p{n}"}} for n in range(5)))
    for account, record, status in (
        (ann, 0, "submitted"),
        (ben, 0, "submitted"),
        (ann, 1, "discarded"),
        (ann, 2, "draft"),
    ):
        assert account.respond(ids[record], status=status, choice="a").status_code == 201
    progress = server.owner.get(f"/datasets/{dataset.id}/progress").json()
    assert {key: progress[key] for key in ("total", "pending", "completed")} == {
        "total": 5,
        "pending": 4,
        "completed": 1,
    }
    mine = ann.client.get(f"/me/datasets/{dataset.id}/metrics").json()["responses"]
    assert mine == {"total": 5, "submitted": 1, "discarded": 1, "draft": 1, "pending": 2}
    theirs = ben.client.get(f"/me/datasets/{dataset.id}/metrics").json()["responses"]
    assert theirs == {"total": 5, "submitted": 1, "discarded": 0, "draft": 0, "pending": 4}


def test_a_draft_dataset_has_no_progress(server: Server) -> None:
    draft = server.draft()
    assert server.owner.get(f"/datasets/{draft.id}/progress").json()["total"] == 0
    assert server.owner.get(f"/me/datasets/{draft.id}/metrics").status_code == 200


def test_votes_taken_back_leave_progress_and_queue(server: Server, ann: Account) -> None:
    dataset = server.dataset()
    [record] = dataset.log({"fields": {"prompt": "p"}, "external_id": "r"})
    response = ann.respond(record, choice="a").json()
    assert dataset.filtered(terms(record_scope("status"), "completed")) == ["r"]
    assert ann.client.delete(f"/responses/{response['id']}").status_code == 200
    assert dataset.filtered(terms(record_scope("status"), "completed")) == []
    assert dataset.filtered(terms(response_scope(), "pending"), account=ann) == ["r"]


def test_metadata_metrics(server: Server) -> None:
    dataset = server.dataset(
        metadata={"source": "terms", "words": "integer", "quality": "float", "unused": "float"}
    )
    dataset.log(
        {"fields": {"prompt": "p"}, "metadata": {"source": "own", "words": 7, "quality": 0.5}},
        {"fields": {"prompt": "p"}, "metadata": {"source": ["hh", "own"], "words": -3}},
        {"fields": {"prompt": "p"}, "metadata": {"source": "hh", "quality": 1.25}},
        {"fields": {"prompt": "p"}, "metadata": {"source": "own"}},
        {"fields": {"prompt": "p"}},
    )
    properties = server.owner.get(f"/me/datasets/{dataset.id}/metadata-properties").json()["items"]
    metrics = {
        found["name"]: server.owner.get(f"/metadata-properties/{found['id']}/metrics").json()
        for found in properties
    }
    assert metrics["source"] == {
        "type": "terms",
        "total": 5,
        "values": [{"term": "own", "count": 3}, {"term": "hh", "count": 2}],
    }
    assert metrics["words"] == {"type": "integer", "min": -3, "max": 7}
    assert metrics["quality"] == {"type": "float", "min": 0.5, "max": 1.25}
    assert metrics["unused"] == {"type": "float", "min": None, "max": None}


@pytest.fixture(scope="module")
def embedded(server: Server) -> tuple[Dataset, list[str]]:
    dataset = server.dataset(vectors={"meaning": 2}, metadata={"source": "terms"})
    points = {
        "east": [2, 0],
        "north-east": [1, 1],
        "north": [0, 3],
        "west": [-1, 0],
        "nowhere": [0, 0],
        "unknown": None,
    }
    ids = dataset.log(
        *(
            {
                "fields": {"prompt": name.replace("-", " ")},
                "external_id": name,
                "metadata": {"source": "corner" if "-" in name else "axis"},
                **({"vectors": {"meaning": point}} if point else {}),
            }
            for name, point in points.items()
        )
    )
    return dataset, ids


def similar(
    dataset: Dataset, account: Account | None = None, limit: int = 10, **rest: object
) -> list[tuple[str, float]]:
    vector = {key: rest.pop(key) for key in ("value", "record_id", "order") if key in rest}
    query = {
        "vector": {"name": "meaning", **vector},
        **({"text": rest.pop("text")} if "text" in rest else {}),
    }
    items = dataset.search(account, limit=limit, query=query, **rest)["items"]
    return [(item["record"]["external_id"], round(item["query_score"], 4)) for item in items]


def test_similarity_is_half_of_one_plus_cosine(
    embedded: tuple[Dataset, list[str]], ann: Account
) -> None:
    dataset, _ = embedded
    expected = [("east", 1.0), ("north-east", 0.8536), ("north", 0.5), ("west", 0.0)]
    assert similar(dataset, value=[5, 0]) == expected
    assert similar(dataset, ann, value=[5, 0]) == expected
    assert similar(dataset, value=[5, 0], limit=2) == expected[:2]
    least = similar(dataset, value=[5, 0], order="least_similar")
    assert least == [("west", 1.0), ("north", 0.5), ("north-east", 0.1464), ("east", 0.0)]


def test_similarity_to_a_record_leaves_it_out(embedded: tuple[Dataset, list[str]]) -> None:
    dataset, ids = embedded
    assert [name for name, _ in similar(dataset, record_id=ids[0])] == [
        "north-east",
        "north",
        "west",
    ]


def test_similarity_honors_filters_and_text(embedded: tuple[Dataset, list[str]]) -> None:
    dataset, _ = embedded
    axis = {"and": [terms(metadata_scope("source"), "axis")]}
    assert [name for name, _ in similar(dataset, value=[1, 0], filters=axis)] == [
        "east",
        "north",
        "west",
    ]
    assert [name for name, _ in similar(dataset, value=[1, 0], text={"q": "north"})] == [
        "north-east",
        "north",
    ]


def test_a_vector_of_the_wrong_length_or_without_direction_is_refused(
    embedded: tuple[Dataset, list[str]],
) -> None:
    dataset, _ = embedded
    for value in ([1, 2, 3], [0, 0]):
        answer = dataset.post_search(query={"vector": {"name": "meaning", "value": value}})
        assert answer.status_code == 422 and "vector to compare with" in answer.text


def test_status_names_the_engine(server: Server) -> None:
    assert server.owner.get("/status").json()["search_engine"]["name"] == "embedded"


def test_many_searches_at_once_do_not_starve_each_other(server: Server) -> None:
    """Handlers hold a pooled connection each while the engine works; an engine on the same pool
    would deadlock here.
    """
    from concurrent.futures import ThreadPoolExecutor

    dataset = server.dataset()
    dataset.log(*({"fields": {"prompt": f"p{n}"}} for n in range(100)))
    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(lambda _: dataset.post_search(limit=1).status_code, range(120)))
    assert answers == [200] * 120
