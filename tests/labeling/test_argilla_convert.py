"""Records to Argilla's own objects and back: nothing is lost, and what either side makes the other
reads.
"""

import dataclasses
import os
import subprocess
import sys
from typing import Any

import argilla as rg
import pytest
from labeling_server import ROOT, Labeling, comparisons, ratings

from prefloop.errors import DataError
from prefloop.labeling.argilla.convert import from_argilla, to_argilla
from prefloop.labeling.argilla.records import Pushed
from prefloop.records import Comparison, Message, Prompt, Rating, Response, Thumb, Vote

VOTES = [
    Vote("ann", 0, 2, "drier", "2026-01-02T03:04:05+00:00"),
    Vote("ben", 1, 0.5),
    Vote("ann", "tie"),
    Vote("file:x", 1, 3, "<b>&amp;"),
]
TURNS = [
    Message("system", "Be <brief>."),
    Message("user", "Which bread?"),
    Message("assistant", "Rye &amp; wheat."),
    Message("user", "  And\nnow? 🌍 "),
]


@pytest.fixture(scope="module")
def sdk(labeling: Labeling) -> rg.Argilla:
    return rg.Argilla(api_url=labeling.url, api_key=labeling.connection.api_key)


@pytest.fixture(scope="module")
def pairs() -> list[Comparison]:
    """Pairs of every kind; with eight of them both orders of showing are among them."""
    responses = [Response("Rye <i>", "sft", {"n": 1}), Response("None.", "base")]
    meta = {"topic": ["a", None, 1.5], "deep": {"er": True}}
    return [Comparison(f"pair/{i} ü", TURNS, responses, VOTES[: i % 5], meta) for i in range(8)]


def bare(records: list[Any]) -> list[Any]:
    """Without the order of showing that the way back adds."""
    metas = [
        {key: value for key, value in record.meta.items() if key != "shown"} for record in records
    ]
    return [
        dataclasses.replace(record, meta=meta) for record, meta in zip(records, metas, strict=True)
    ]


def log(labeling: Labeling, sdk: rg.Argilla, made: Any, name: str) -> rg.Dataset:
    dataset = rg.Dataset(name, workspace="default", settings=made.settings, client=sdk)
    dataset.create()
    dataset.records.log(made.records)
    return dataset


def test_pairs_and_their_votes_come_back_as_they_were(
    sdk: rg.Argilla, pairs: list[Comparison]
) -> None:
    made = to_argilla(pairs, "bread", client=sdk)
    assert bare(from_argilla(made.records)) == pairs
    assert {record.meta["shown"][0] for record in from_argilla(made.records)} == {0, 1}
    assert [question.name for question in made.settings.questions] == [
        "preferred",
        "strength",
        "why",
    ]


def test_ratings_and_their_thumbs_come_back_as_they_were(sdk: rg.Argilla) -> None:
    thumbs = [Thumb("ann", "up", "short", "2026-01-02T03:04:05+00:00"), Thumb("ben", "down")]
    records = [
        dataclasses.replace(record, prompt=TURNS, votes=thumbs, meta={"n": 1})
        for record in ratings(3)
    ]
    assert from_argilla(to_argilla(records, "bread", client=sdk).records) == records


def test_a_dataset_of_the_sdk_is_the_one_that_a_push_makes(
    labeling: Labeling, sdk: rg.Argilla, pairs: list[Comparison]
) -> None:
    name = labeling.name()
    dataset = log(labeling, sdk, to_argilla(pairs, name, client=sdk), name)
    assert labeling.argilla.push(pairs, name) == Pushed(0, len(pairs))
    assert bare(from_argilla(dataset)) == pairs
    assert labeling.argilla.pull(name).records == [], "nobody has answered on the server"
    pushed = labeling.name()
    labeling.argilla.push(pairs, pushed)
    found = from_argilla(sdk.datasets(pushed, workspace="default"))
    assert bare(found) == [dataclasses.replace(pair, votes=[]) for pair in pairs]


def test_votes_of_the_servers_users_become_answers_that_show(
    labeling: Labeling, sdk: rg.Argilla, pairs: list[Comparison]
) -> None:
    name, ann = labeling.name(), labeling.user()
    ids = {user.username: user.id for user in sdk.users.list()}
    votes = [Vote(ann.name, i % 2, 1 + i % 3, "so") for i in range(8)]
    records = [
        dataclasses.replace(pair, votes=[vote, Vote("elsewhere", 1)])
        for pair, vote in zip(pairs, votes, strict=True)
    ]
    dataset = log(
        labeling, sdk, to_argilla(records, name, client=sdk, users={ann.name: ids[ann.name]}), name
    )
    assert labeling.argilla.progress(name).annotators[ann.name]["submitted"] == 8
    found = [
        dataclasses.replace(
            record, votes=[dataclasses.replace(vote, at=None) for vote in record.votes]
        )
        for record in bare(from_argilla(dataset))
    ]
    assert found == [dataclasses.replace(record, votes=record.votes[::-1]) for record in records]
    half = dataclasses.replace(records[0], votes=[Vote(ann.name, 0, 0.5)])
    with pytest.raises(DataError, match=r"strength 0\.5 is none of"):
        to_argilla([half], name, client=sdk, users={ann.name: ids[ann.name]})


def test_what_argilla_does_not_take_is_named_before_anything_is_made(sdk: rg.Argilla) -> None:
    long = Comparison("long", [Message("user", "x" * 20_001)], [Response("a"), Response("b")])
    with pytest.raises(DataError, match="'long': message 1 of the prompt has 20,001 characters"):
        to_argilla([long], "bread", client=sdk)
    with pytest.raises(DataError, match="push records of one kind"):
        to_argilla([*comparisons(1), *ratings(1)], "bread", client=sdk)  # type: ignore[list-item]


def row(id: str, *answers: tuple[str, str, str]) -> dict[str, Any]:
    given = [{"value": value, "user_id": user, "status": status} for value, user, status in answers]
    fields = {"ask": "p?", "one": "a", "two": "b"}
    return {
        "id": id,
        "fields": fields,
        "responses": {"best": given},
        "suggestions": {},
        "metadata": {},
    }


def test_exported_rows_are_read_by_the_questions_that_are_named() -> None:
    rows = [
        row("r0", ("one", "u1", "submitted"), ("two", "u2", "draft")),
        row("r1", ("two", "u1", "submitted")),
        row("r2"),
    ]
    found = from_argilla(rows, questions=["prompt=ask", "responses=one,two"], users={"u1": "ann"})
    assert [[(vote.annotator, vote.choice) for vote in r.votes] for r in found] == [
        [("ann", 0)],
        [("ann", 1)],
        [],
    ]  # type: ignore[union-attr]
    with pytest.raises(DataError, match="none of the fields 'ask', 'one', 'two' is a prompt"):
        from_argilla(rows)
    with pytest.raises(DataError, match="two records have one id"):
        from_argilla([row("r0"), row("r0")])


def test_records_of_the_sdk_without_a_dataset_are_read_by_what_they_hold() -> None:
    user = "11111111-2222-3333-4444-555555555555"
    fields = {"instruction": "p?", "response1": "a", "response2": "b"}
    given = [rg.Response("better", "response2", user, status="submitted")]  # type: ignore[arg-type]
    unsent = [rg.Response("better", "response1", user)]  # type: ignore[arg-type]
    records = [
        rg.Record(id=f"r{i}", fields=dict(fields), responses=each)
        for i, each in enumerate((given, unsent))
    ]
    first, second = from_argilla(records, users={user: "ann"})
    assert isinstance(first, Comparison) and first.votes == [Vote("ann", 1)]
    assert isinstance(second, Comparison) and second.votes == []
    ranked = [rg.Response("order", ["response1", "response2"], user, status="submitted")]  # type: ignore[arg-type]
    with pytest.raises(DataError, match="record 'r0': order is a ranking without ranks"):
        from_argilla([rg.Record(id="r0", fields=dict(fields), responses=ranked)])


def test_prompts_and_single_responses_of_records() -> None:
    records = [rg.Record(id="a", fields={"prompt": "p?"})]
    assert from_argilla(records) == [Prompt("a", [Message("user", "p?")])]
    (rating,) = from_argilla([rg.Record(id="a", fields={"prompt": "p?", "response": "r"})])
    assert isinstance(rating, Rating) and rating.votes == []


def test_what_is_done_to_texts_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    fields = {"prompt": "p?", "response": "<|im_start|>assistant\nRye.<|im_end|>", "town": "Ulm"}
    (rating,) = from_argilla([{"id": "a", "fields": fields, "responses": {}, "status": "pending"}])
    assert (
        isinstance(rating, Rating)
        and rating.response.text == "Rye."
        and rating.meta == {"town": "Ulm"}
    )
    out = capsys.readouterr().out
    assert "ChatML markers in texts, unwrapped into messages (in 1 row)" in out
    assert "columns kept in meta, not used: town" in out


def test_without_a_client_it_says_to_make_one() -> None:
    code = (
        "from prefloop.labeling.argilla.convert import to_argilla; from prefloop.errors import"
        " LabelError; import sys\nassert 'argilla' not in sys.modules\nfrom prefloop.records import"
        " *\ntry: to_argilla([Comparison('p', [Message('user', 'q')], [Response('a'),"
        " Response('b')])], 'd')\nexcept LabelError as error: print(error)"
    )
    environment = {**os.environ, "PYTHONPATH": "src"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT
    )
    assert "make one first, rg.Argilla(" in done.stdout, done.stderr
