"""Text search: simple_query_string on FTS5, and an index that catches up by itself."""

import json
import random
import sqlite3

import pytest
from prefloop_labeling.text_query import MAX_WORDS, parse

from .conftest import Account, Dataset, Server, response_scope, terms

DOCUMENTS = {
    "sky": "Why is the sky blue?",
    "sea": "Why is the sea blue and deep",
    "tea": "A recipe for green tea, well-known",
    "café": "Das Café in Zürich öffnet um 8",
    "tokyo": "東京都に住んでいます",
}


@pytest.fixture(scope="module")
def corpus(server: Server) -> Dataset:
    dataset = server.dataset(fields={"prompt": "text", "answer": "text"})
    dataset.log(
        *(
            {"fields": {"prompt": text, "answer": f"answer of {name}"}, "external_id": name}
            for name, text in DOCUMENTS.items()
        )
    )
    return dataset


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("blue", {"sky", "sea"}),
        ("BLUE", {"sky", "sea"}),
        ("why blue", {"sky", "sea"}),
        ("blue sky", {"sky"}),
        ("blue tea", set()),
        ("blue +deep", {"sea"}),
        ("tea | deep", {"tea", "sea"}),
        ("blue | tea green", {"tea"}),
        ("blue | (tea green)", {"sky", "sea", "tea"}),
        ("-blue", {"tea", "café", "tokyo"}),
        ("blue -sky", {"sea"}),
        ("-sky blue", {"sea"}),
        ("-blue -tea", {"café", "tokyo"}),
        ("tea | -blue", {"tea", "café", "tokyo"}),
        ("-(blue | tea)", {"café", "tokyo"}),
        ("--blue", {"sky", "sea"}),
        ('"the sky"', {"sky"}),
        ('"sky the"', set()),
        ('-"the sky" blue', {"sea"}),
        ('"the sky', {"sky"}),
        ("gree*", {"tea"}),
        ("gree", set()),
        ("well-known", {"tea"}),
        ("ZÜRICH", {"café"}),
        ("zurich", set()),
        ("東京", {"tokyo"}),
        ("京東", set()),
        ("blue~2", {"sky", "sea"}),
        (r"\-blue", {"sky", "sea"}),
        ("answer", set(DOCUMENTS)),
        ("blue sea", {"sea"}),
    ],
)
def test_simple_query_string(corpus: Dataset, query: str, expected: set[str]) -> None:
    assert corpus.text(query) == sorted(expected)


def test_words_may_be_in_different_fields_unless_one_is_named(corpus: Dataset) -> None:
    assert corpus.text("recipe answer") == ["tea"]
    assert corpus.text("recipe answer", field="prompt") == []
    assert corpus.text("sea", field="answer") == ["sea"]
    assert corpus.text("-sea", field="answer") == ["café", "sky", "tea", "tokyo"]
    assert corpus.post_search(query={"text": {"q": "sea", "field": "nowhere"}}).status_code == 422


GARBAGE = [
    "",
    " ",
    "*",
    "**",
    '"',
    '""',
    "'",
    "';--",
    "(",
    ")",
    "(((((((",
    "))))",
    "()",
    "-",
    "+",
    "|",
    "||",
    "- | +",
    "~",
    "^",
    "\\",
    "!!!",
    "…",
    "\0",
    "\u0000\u0000",
    "NEAR(",
    ":",
    "{}",
    "' OR 1=1 --",
    '" OR "',
    "c0 : x",
    "{c0} : x",
    "\ud800",
    "💥",
    "%",
    "_",
    "?",
    "(" * 5000,
    "-" * 5001 + "zebra",
    "zebra " * (MAX_WORDS + 1),
    "(zz | " * 500,
    "zz -" * 500 + "b",
    '"' * 999,
    "*zz",
    "(-) x7q",
]


@pytest.mark.parametrize("query", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_gives_no_results_and_no_error(corpus: Dataset, ann: Account, query: str) -> None:
    for client, path in ((corpus.owner, ""), (ann.client, "/me")):
        answer = client.post(
            f"{path}/datasets/{corpus.id}/records/search",
            content=json.dumps({"query": {"text": {"q": query}}}),
            headers={"Content-Type": "application/json"},
        )
        assert answer.status_code in (200, 422), answer.text
        if answer.status_code == 200 and not query.startswith("-" * 5001):
            assert answer.json()["total"] == 0


def test_no_query_is_a_malformed_expression() -> None:
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE VIRTUAL TABLE words USING fts5(c0, c1)")
    connection.execute("INSERT INTO words VALUES ('a b c', 'd e')")
    draw = random.Random(0)
    for _ in range(5000):
        query = "".join(
            draw.choice(
                ['"', "*", "-", "|", "+", "(", ")", " ", "\\", "~1", "a", "b", "NOT", "é", ":"]
            )
            for _ in range(draw.randrange(40))
        )
        match = parse(query)
        if match.expression is not None:
            for expression in (match.expression, f"{{c0}} : ({match.expression})"):
                connection.execute(
                    "SELECT rowid FROM words WHERE words MATCH ?", [expression]
                ).fetchall()


def test_complements_follow_boolean_logic() -> None:
    """Random expressions of one-word documents against Python's own evaluation, left to right."""
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE VIRTUAL TABLE words USING fts5(c0)")
    letters = "abcd"
    documents = {n: {c for bit, c in enumerate(letters) if n >> bit & 1} for n in range(16)}
    for n, words in documents.items():
        connection.execute(
            "INSERT INTO words (rowid, c0) VALUES (?, ?)", [n, " ".join(sorted(words))]
        )
    draw = random.Random(1)
    for _ in range(500):
        terms = [
            (draw.choice(letters), draw.random() < 0.4, draw.choice(" |"))
            for _ in range(draw.randrange(1, 7))
        ]
        query, expected = "", set()
        for index, (letter, negated, operator) in enumerate(terms):
            having = {n for n, words in documents.items() if (letter in words) != negated}
            if index:
                query += " | " if operator == "|" else " "
                expected = expected | having if operator == "|" else expected & having
            else:
                expected = having
            query += "-" * negated + letter
        match = parse(query)
        found = {
            row[0]
            for row in connection.execute(
                "SELECT rowid FROM words WHERE words MATCH ?", [match.expression]
            )
        }
        assert (set(documents) - found if match.negated else found) == expected, query


def test_the_index_follows_new_changed_and_deleted_records(server: Server) -> None:
    dataset = server.dataset()
    first, second = dataset.log(
        {"fields": {"prompt": "zebra one"}, "external_id": "one"},
        {"fields": {"prompt": "zebra two"}, "external_id": "two"},
    )
    assert dataset.text("zebra") == ["one", "two"]
    dataset.log({"fields": {"prompt": "zebra three"}, "external_id": "three"})
    assert dataset.text("zebra") == ["one", "three", "two"]
    answer = server.owner.patch(f"/records/{first}", json={"fields": {"prompt": "giraffe"}})
    assert answer.status_code == 200, answer.text
    assert dataset.text("zebra") == ["three", "two"]
    assert dataset.text("giraffe") == ["one"]
    assert (
        server.owner.delete(f"/datasets/{dataset.id}/records", params={"ids": second}).status_code
        == 204
    )
    assert dataset.text("zebra") == ["three"]
    assert dataset.text("-giraffe") == ["three"]


def test_text_and_filters_combine_and_the_most_relevant_comes_first(
    server: Server, ann: Account
) -> None:
    dataset = server.dataset()
    ids = dataset.log(
        {
            "fields": {"prompt": "tiger and many other words of no importance at all"},
            "external_id": "weak",
        },
        {"fields": {"prompt": "tiger tiger"}, "external_id": "strong"},
        {"fields": {"prompt": "other"}, "external_id": "other"},
    )
    result = dataset.search(query={"text": {"q": "tiger"}})
    assert [item["record"]["external_id"] for item in result["items"]] == ["strong", "weak"]
    assert result["items"][0]["query_score"] > result["items"][1]["query_score"]
    assert ann.respond(ids[1], choice="a").status_code == 201
    pending = {"and": [terms(response_scope(), "pending")]}
    assert dataset.found(ann, query={"text": {"q": "tiger"}}, filters=pending) == ["weak"]


def test_chats_and_custom_fields_are_searched_and_images_are_not(server: Server) -> None:
    dataset = server.dataset(
        fields={"prompt": "text", "talk": "chat", "extra": "custom", "picture": "image"}
    )
    dataset.log(
        {
            "fields": {
                "prompt": "p",
                "talk": [
                    {"role": "user", "content": "hello walrus"},
                    {"role": "assistant", "content": "hi"},
                ],
                "extra": {"species": ["otter", {"n": 5}]},
                "picture": "https://example.com/lynx.png",
            },
            "external_id": "r",
        },
        {"fields": {"prompt": "q"}, "external_id": "s"},
    )
    assert dataset.text("walrus hi") == ["r"]
    assert dataset.text("walrus", field="talk") == ["r"]
    assert dataset.text("otter", field="extra") == ["r"]
    assert dataset.text("lynx") == []
    assert dataset.text("lynx", field="picture") == []
    assert dataset.text("assistant") == []


def test_deleting_a_dataset_drops_its_words(server: Server) -> None:
    dataset = server.dataset()
    dataset.log({"fields": {"prompt": "panther"}, "external_id": "r"})
    assert dataset.text("panther") == ["r"]
    assert server.owner.delete(f"/datasets/{dataset.id}").status_code == 200
    connection = sqlite3.connect(server.home.path / "text-index.db")
    tables = [
        row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
    ]
    assert "indexed" in tables
    assert not [name for name in tables if dataset.id.replace("-", "") in name]
