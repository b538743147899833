"""Every filter, through the real API."""

import pytest

from .conftest import (
    Account,
    Dataset,
    Server,
    between,
    labels,
    metadata_scope,
    rating,
    record_scope,
    response_scope,
    suggestion_scope,
    terms,
)


@pytest.fixture(scope="module")
def votes(server: Server, ann: Account, ben: Account) -> Dataset:
    """r0 nobody; r1 ann a/5 submitted; r2 ann discarded; r3 ann a/3 draft, ben b/5 submitted; r4
    ben b/9 submitted.
    """
    dataset = server.dataset(
        questions={
            "choice": labels("a", "b", "tie"),
            "score": rating(),
            "tags": labels("x", "y", "z", type="multi_label_selection"),
        },
        min_submitted=1,
    )
    ids = dataset.log(*({"fields": {"prompt": f"p{n}"}, "external_id": f"r{n}"} for n in range(5)))
    answers = [
        ann.respond(ids[1], choice="a", score=5, tags=["x", "y"]),
        ann.respond(ids[2], status="discarded"),
        ann.respond(ids[3], status="draft", choice="a", score=3),
        ben.respond(ids[3], choice="b", score=5, tags=["y"]),
        ben.respond(ids[4], choice="b", score=9, tags=["z"]),
    ]
    assert [answer.status_code for answer in answers] == [201] * 5, [
        answer.text for answer in answers
    ]
    return dataset


@pytest.mark.parametrize(
    ("statuses", "for_ann", "for_anyone"),
    [
        (["pending"], ["r0", "r4"], ["r0"]),
        (["submitted"], ["r1"], ["r1", "r3", "r4"]),
        (["draft"], ["r3"], ["r3"]),
        (["discarded"], ["r2"], ["r2"]),
        (["pending", "draft"], ["r0", "r3", "r4"], ["r0", "r3"]),
        (["submitted", "discarded"], ["r1", "r2"], ["r1", "r2", "r3", "r4"]),
        (["nonsense"], [], []),
    ],
)
def test_response_status_is_of_the_asking_user_or_of_anyone(
    votes: Dataset, ann: Account, statuses: list[str], for_ann: list[str], for_anyone: list[str]
) -> None:
    status = terms(response_scope(), *statuses)
    assert votes.filtered(status, account=ann) == for_ann
    assert votes.filtered(status) == for_anyone


def test_two_status_filters_must_both_hold(votes: Dataset, ann: Account) -> None:
    first, second = (
        terms(response_scope(), "pending", "submitted"),
        terms(response_scope(), "submitted", "draft"),
    )
    assert votes.filtered(first, second, account=ann) == ["r1"]
    assert (
        votes.filtered(
            terms(response_scope(), "draft"), terms(response_scope(), "submitted"), account=ann
        )
        == []
    )


def test_response_status_and_value_must_hold_in_the_same_response(votes: Dataset) -> None:
    submitted = terms(response_scope(), "submitted")
    assert votes.filtered(terms(response_scope("choice"), "a")) == ["r1", "r3"]
    assert votes.filtered(submitted, terms(response_scope("choice"), "a")) == [
        "r1"
    ]  # r3's "a" is a draft
    assert (
        votes.filtered(terms(response_scope("choice"), "b"), terms(response_scope("score"), 3))
        == []
    )


def test_pending_has_no_values(votes: Dataset, ann: Account) -> None:
    choice = terms(response_scope("choice"), "a")
    assert votes.filtered(terms(response_scope(), "pending"), choice, account=ann) == []
    assert votes.filtered(terms(response_scope(), "pending", "submitted"), choice, account=ann) == [
        "r1"
    ]


def test_response_values_are_of_the_asking_user(votes: Dataset, ann: Account, ben: Account) -> None:
    assert votes.filtered(terms(response_scope("choice"), "b"), account=ann) == []
    assert votes.filtered(terms(response_scope("choice"), "b"), account=ben) == ["r3", "r4"]


def test_response_ratings_match_numbers_and_their_spellings(votes: Dataset) -> None:
    assert votes.filtered(terms(response_scope("score"), "5")) == ["r1", "r3"]
    assert votes.filtered(terms(response_scope("score"), 5, 9)) == ["r1", "r3", "r4"]
    assert votes.filtered(terms(response_scope("score"), "five")) == []
    assert votes.filtered(between(response_scope("score"), ge=4)) == ["r1", "r3", "r4"]
    assert votes.filtered(between(response_scope("score"), ge="4", le="5")) == ["r1", "r3"]


def test_response_lists_match_by_element(votes: Dataset) -> None:
    assert votes.filtered(terms(response_scope("tags"), "y")) == ["r1", "r3"]
    assert votes.filtered(terms(response_scope("tags"), "x", "z")) == ["r1", "r4"]


def test_a_response_filter_without_question_or_status_is_refused(votes: Dataset) -> None:
    answer = votes.post_search(filters={"and": [terms({"entity": "response"}, "a")]})
    assert answer.status_code == 422 and "question" in answer.text
    assert votes.post_search(filters={"and": [between(response_scope(), ge=1)]}).status_code == 422


@pytest.fixture(scope="module")
def suggested(server: Server) -> Dataset:
    dataset = server.dataset(
        questions={
            "choice": labels("a", "b"),
            "score": rating(),
            "tags": labels("x", "y", type="multi_label_selection"),
        }
    )
    choice, score, tags = (
        server.question_id(dataset, name) for name in ("choice", "score", "tags")
    )
    dataset.log(
        {
            "fields": {"prompt": "p"},
            "external_id": "r0",
            "suggestions": [
                {
                    "question_id": choice,
                    "value": "a",
                    "score": 0.9,
                    "agent": "model-1",
                    "type": "model",
                },
                {"question_id": score, "value": 5},
            ],
        },
        {
            "fields": {"prompt": "p"},
            "external_id": "r1",
            "suggestions": [
                {
                    "question_id": choice,
                    "value": "b",
                    "score": 0.2,
                    "agent": "model-2",
                    "type": "human",
                },
                {"question_id": tags, "value": ["x", "y"], "score": [0.3, 0.8]},
            ],
        },
        {"fields": {"prompt": "p"}, "external_id": "r2"},
    )
    return dataset


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (terms(suggestion_scope("choice"), "a"), ["r0"]),
        (terms(suggestion_scope("choice"), "a", "b"), ["r0", "r1"]),
        (terms({"entity": "suggestion", "question": "choice"}, "b"), ["r1"]),
        (terms(suggestion_scope("score"), "5"), ["r0"]),
        (between(suggestion_scope("score"), ge=6), []),
        (terms(suggestion_scope("tags"), "y"), ["r1"]),
        (between(suggestion_scope("choice", "score"), ge=0.5), ["r0"]),
        (between(suggestion_scope("choice", "score"), le=0.5), ["r1"]),
        (terms(suggestion_scope("choice", "score"), "0.9"), ["r0"]),
        (between(suggestion_scope("tags", "score"), ge=0.7), ["r1"]),
        (between(suggestion_scope("tags", "score"), ge=0.85), []),
        (terms(suggestion_scope("choice", "agent"), "model-2", "other"), ["r1"]),
        (terms(suggestion_scope("choice", "type"), "model"), ["r0"]),
    ],
)
def test_suggestion_filters(suggested: Dataset, condition: dict, expected: list[str]) -> None:
    assert suggested.filtered(condition) == expected


@pytest.fixture(scope="module")
def described(server: Server) -> Dataset:
    dataset = server.dataset(metadata={"source": "terms", "words": "integer", "quality": "float"})
    dataset.log(
        {
            "fields": {"prompt": "p"},
            "external_id": "r0",
            "metadata": {"source": "hh", "words": 5, "quality": 0.5},
        },
        {
            "fields": {"prompt": "p"},
            "external_id": "r1",
            "metadata": {"source": ["hh", "own"], "words": 50, "quality": 5.0},
        },
        {"fields": {"prompt": "p"}, "external_id": "r2", "metadata": {"source": "5"}},
        {"fields": {"prompt": "p"}, "external_id": "r3"},
        {"fields": {"prompt": "p"}, "external_id": "r4", "metadata": None},
    )
    return dataset


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (terms(metadata_scope("source"), "hh"), ["r0", "r1"]),
        (terms(metadata_scope("source"), "own", "5"), ["r1", "r2"]),
        (terms(metadata_scope("words"), "5"), ["r0"]),
        (terms(metadata_scope("words"), 5, "50"), ["r0", "r1"]),
        (terms(metadata_scope("quality"), "5"), ["r1"]),
        (between(metadata_scope("words"), ge=6), ["r1"]),
        (between(metadata_scope("words"), ge="5", le="9"), ["r0"]),
        (between(metadata_scope("quality"), le=0.5), ["r0"]),
        (between(metadata_scope("words"), ge="many"), []),
    ],
)
def test_metadata_filters(described: Dataset, condition: dict, expected: list[str]) -> None:
    assert described.filtered(condition) == expected


def test_infinite_metadata_does_not_break_other_records(server: Server) -> None:
    dataset = server.dataset(metadata={"quality": "float"})
    dataset.log({"fields": {"prompt": "p"}, "external_id": "fine", "metadata": {"quality": 1.5}})
    body = (
        '{"items": [{"fields": {"prompt": "p"}, "external_id": "odd", "metadata": {"quality":'
        " Infinity}}]}"
    )
    headers = {"Content-Type": "application/json"}
    dataset.owner.post(f"/datasets/{dataset.id}/records/bulk", content=body, headers=headers)
    assert dataset.filtered(between(metadata_scope("quality"), ge=1))[0] == "fine"
    assert dataset.search(sort=[{"scope": metadata_scope("quality"), "order": "asc"}])["items"]


def test_record_filters(server: Server, ann: Account) -> None:
    dataset = server.dataset()
    ids = dataset.log(*({"fields": {"prompt": "p"}, "external_id": f"r{n}"} for n in range(3)))
    assert ann.respond(ids[2], choice="a").status_code == 201
    assert dataset.filtered(terms(record_scope("id"), ids[0], ids[1].upper(), "no-uuid")) == [
        "r0",
        "r1",
    ]
    assert dataset.filtered(terms(record_scope("external_id"), "r1", "other")) == ["r1"]
    assert dataset.filtered(between(record_scope("external_id"), ge="r1", le="r1")) == ["r1"]
    assert dataset.filtered(terms(record_scope("status"), "completed")) == ["r2"]
    assert dataset.filtered(terms(record_scope("status"), "pending")) == ["r0", "r1"]


def test_date_filters(server: Server) -> None:
    dataset = server.dataset()
    dataset.log({"fields": {"prompt": "p"}, "external_id": "r0"})
    dataset.log({"fields": {"prompt": "p"}, "external_id": "r1"})
    records = [item["record"] for item in dataset.search()["items"]]
    first, second = (record["inserted_at"] for record in records)
    inserted = record_scope("inserted_at")
    assert dataset.filtered(between(inserted, ge=second)) == ["r1"]
    assert dataset.filtered(between(inserted, le=first)) == ["r0"]
    assert dataset.filtered(between(inserted, le=f"{first}Z")) == ["r0"]
    assert dataset.filtered(terms(inserted, second)) == ["r1"]
    assert dataset.filtered(between(inserted, ge=first[:10], le=second[:10])) == ["r0", "r1"]
    assert dataset.filtered(between(record_scope("updated_at"), ge="2999-01-01")) == []
    assert dataset.filtered(between(inserted, ge=0)) == ["r0", "r1"]
    answer = dataset.post_search(filters={"and": [between(inserted, ge="yesterday")]})
    assert answer.status_code == 422 and "ISO 8601" in answer.text


def test_a_search_leaves_the_callers_filter_as_it_was() -> None:
    from argilla_server.models import Dataset as DatasetModel
    from argilla_server.search_engine import AndFilter, ResponseFilterScope, TermsFilter
    from prefloop_labeling.filters import compile_filter

    leaf = TermsFilter(
        scope=ResponseFilterScope(property="status"), values=["pending", "submitted"]
    )
    first = compile_filter(AndFilter(filters=[leaf, AndFilter(filters=[])]), DatasetModel())
    assert leaf.values == ["pending", "submitted"]
    assert compile_filter(leaf, DatasetModel()) == first
