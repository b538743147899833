"""Records to a real Argilla and votes back: once, un-swapped, and the same again."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from labeling_server import Annotator, Labeling, comparisons, ratings
from turns import WEATHER, asked, looked

from prefloop.data.sources import write_jsonl
from prefloop.errors import DataError, LabelError
from prefloop.labeling.argilla.datasets import BATCH
from prefloop.labeling.argilla.forms import is_swapped
from prefloop.labeling.argilla.records import Argilla, Pushed
from prefloop.records import Comparison, Rating, Response, Thumb, Vote

DIES = """
import os, signal
from prefloop.cli import main
from prefloop.labeling.argilla.records import Argilla
send = Argilla._send
def once(*arguments):
    send(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
Argilla._send = once
main()
"""
"""The command, killed when Argilla has taken one batch."""


@pytest.fixture(scope="module")
def ann(labeling: Labeling) -> Annotator:
    return labeling.user()


@pytest.fixture(scope="module")
def ben(labeling: Labeling) -> Annotator:
    return labeling.user()


def bare(records: list) -> list:
    """As pushed: without votes, and without the order of showing that a pull adds."""
    metas = [{k: v for k, v in record.meta.items() if k != "shown"} for record in records]
    return [
        dataclasses.replace(record, votes=[], meta=meta)
        for record, meta in zip(records, metas, strict=True)
    ]


def on_screen(labeling: Labeling, dataset: str, person: Annotator) -> dict[str, dict]:
    """External id → the record as a person's queue shows it."""
    return {
        item["external_id"]: item
        for item in person.queue(labeling.argilla.datasets.find(dataset).id)
    }


def test_pushing_twice_sends_once_and_more_records_later(
    labeling: Labeling, ann: Annotator
) -> None:
    dataset, records = labeling.name(), comparisons(7)
    assert labeling.argilla.push(records[:5], dataset) == Pushed(5, 0)
    assert labeling.argilla.push(records[:5], dataset) == Pushed(0, 5)
    assert labeling.argilla.push(records, dataset) == Pushed(2, 5)
    assert sorted(on_screen(labeling, dataset, ann)) == [record.id for record in records]


def test_every_vote_is_for_the_text_that_was_chosen_on_screen(
    labeling: Labeling, ann: Annotator
) -> None:
    dataset, records = labeling.name(), comparisons(24)
    labeling.argilla.push(records, dataset)
    chosen, sides = {}, set()
    for number, (id, shown) in enumerate(on_screen(labeling, dataset, ann).items()):
        side = "AB"[number % 2]
        chosen[id] = shown["fields"][f"response_{side.lower()}"]
        sides.add((side, chosen[id].split()[0]))
        assert (
            ann.answer(
                shown["id"], preferred=side, strength="clear", why=" it is short "
            ).status_code
            == 201
        )
    pulled = labeling.argilla.pull(dataset)
    assert len(sides) == 4, "both sides should have shown both responses"
    assert bare(pulled.records) == records
    for record in pulled.records:
        (vote,) = record.votes
        assert record.responses[vote.choice].text == chosen[record.id]
        assert (vote.annotator, vote.strength, vote.why) == (ann.name, 2.0, "it is short")
        assert vote.at.endswith("+00:00")


def test_tools_calls_and_thoughts_are_on_screen_and_come_back_as_they_were(
    labeling: Labeling, ann: Annotator
) -> None:
    dataset, record = (
        labeling.name(),
        Comparison("turns", asked(), [looked(), Response("No.", "base")], meta={"k": 1}),
    )
    assert labeling.argilla.push([record], dataset) == Pushed(1, 0)
    assert labeling.argilla.push([record], dataset) == Pushed(0, 1)
    (shown,) = on_screen(labeling, dataset, ann).values()
    said = "\n".join(message["content"] for message in shown["fields"]["prompt"])
    assert (
        "Weather &lt;now&gt; &amp; here" in said
        and "I should look." in said
        and 'get_weather({"city": "Bern"})' in said
    )
    ann.answer(shown["id"], preferred="A")
    (pulled,) = labeling.argilla.pull(dataset).records
    assert (
        bare([pulled]) == [record] and pulled.prompt.tools == [WEATHER] and len(pulled.votes) == 1
    )


def test_annotators_are_not_shown_which_response_is_which(
    labeling: Labeling, ann: Annotator
) -> None:
    dataset = labeling.name()
    labeling.argilla.push(comparisons(12), dataset)
    shown = on_screen(labeling, dataset, ann).values()
    assert all(not record["metadata"] for record in shown)
    assert {record["fields"]["response_a"].split()[0] for record in shown} == {"first", "second"}
    assert not any(
        secret in json.dumps([s["fields"] for s in shown]) for secret in ("sft", "base", "swapped")
    )


def test_a_tie_is_a_tie(labeling: Labeling, ann: Annotator) -> None:
    dataset = labeling.name()
    labeling.argilla.push(comparisons(4), dataset)
    for shown in ann.queue(labeling.argilla.datasets.find(dataset).id):
        ann.answer(shown["id"], preferred="tie")
    assert [r.votes[0].choice for r in labeling.argilla.pull(dataset).records] == ["tie"] * 4


def test_drafts_and_discards_are_counted_and_not_used(
    labeling: Labeling, ann: Annotator, ben: Annotator
) -> None:
    dataset = labeling.name()
    labeling.argilla.push(comparisons(3), dataset)
    first, second, third = on_screen(labeling, dataset, ann).values()
    ann.answer(first["id"], preferred="A")
    ann.answer(second["id"], "draft", preferred="A")
    ben.answer(second["id"], "discarded", preferred="B")
    ben.answer(third["id"], "discarded")
    pulled = labeling.argilla.pull(dataset)
    assert [record.id for record in pulled.records] == [first["external_id"]]
    assert (pulled.votes, pulled.drafts, pulled.discards, pulled.foreign) == (1, 1, 2, 0)


def test_a_vote_changed_later_replaces_the_first_and_a_discard_takes_it_back(
    labeling: Labeling,
) -> None:
    dataset, records, name = labeling.name(), comparisons(2), labeling.name()
    labeling.argilla.push(records, dataset)
    labeling.argilla.vote(dataset, name, {r.id: Vote("", 0) for r in records})
    before = labeling.argilla.pull(dataset).records
    labeling.argilla.vote(dataset, name, {records[0].id: Vote("", 1, 3.0)})
    labeling.argilla.vote(dataset, name, {records[1].id: Vote("", 0)}, status="discarded")
    (after,) = labeling.argilla.pull(dataset).records
    assert [r.votes[0].choice for r in before] == [0, 0]
    assert (after.id, after.votes[0].choice, after.votes[0].strength) == (records[0].id, 1, 3.0)
    assert after.votes[0].at > before[0].votes[0].at


def test_votes_beyond_the_minimum_are_all_kept_oldest_first(labeling: Labeling) -> None:
    dataset, records = labeling.name(), comparisons(1)
    labeling.argilla.push(records, dataset, min_submitted=2)
    people = [labeling.name() for _ in range(4)]
    for number, person in enumerate(people):
        labeling.argilla.vote(dataset, person, {records[0].id: Vote("", number % 2)})
    (record,) = labeling.argilla.pull(dataset).records
    assert [(vote.annotator, vote.choice) for vote in record.votes] == list(
        zip(people, (0, 1, 0, 1), strict=True)
    )


def test_a_renamed_user_is_renamed_in_all_votes(labeling: Labeling) -> None:
    dataset, records, name = labeling.name(), comparisons(2), labeling.name()
    labeling.argilla.push(records, dataset)
    labeling.argilla.vote(dataset, name, {r.id: Vote("", 0) for r in records})
    rest = labeling.argilla.rest
    user = next(user for user in rest.get("/users")["items"] if user["username"] == name)
    rest.call("PATCH", f"/users/{user['id']}", {"username": f"{name}-married"})
    assert {r.votes[0].annotator for r in labeling.argilla.pull(dataset).records} == {
        f"{name}-married"
    }


def test_a_vote_that_cannot_be_cast_is_refused_before_any_is_sent(labeling: Labeling) -> None:
    dataset, name = labeling.name(), labeling.name()
    labeling.argilla.push(comparisons(1), dataset)
    with pytest.raises(
        DataError, match=r"strength 0\.5 is none of 1 \(slight\), 2 \(clear\), 3 \(strong\)"
    ):
        labeling.argilla.vote(dataset, name, {"pair/0": Vote("", 0, 0.5)})
    with pytest.raises(DataError, match="holds no record 'pair/1': push it before"):
        labeling.argilla.vote(dataset, name, {"pair/0": Vote("", 0), "pair/1": Vote("", 0)})
    with pytest.raises(LabelError, match="did not take an answer"):
        labeling.argilla.vote(dataset, name, {"pair/0": Thumb("", "up")})
    assert labeling.argilla.pull(dataset).votes == 0


def test_ratings_go_round(labeling: Labeling, ann: Annotator) -> None:
    dataset, records = labeling.name(), ratings(3)
    labeling.argilla.push(records, dataset)
    up, down, _ = on_screen(labeling, dataset, ann).values()
    ann.answer(up["id"], thumb="up")
    ann.answer(down["id"], thumb="down", why="wrong")
    pulled = labeling.argilla.pull(dataset)
    found = {record.id: record.votes[0] for record in pulled.records}
    assert isinstance(pulled.records[0], Rating) and bare(pulled.records) == [
        r for r in records if r.id in found
    ]
    assert dataclasses.replace(found[up["external_id"]], at=None) == Thumb(ann.name, "up")
    assert dataclasses.replace(found[down["external_id"]], at=None) == Thumb(
        ann.name, "down", "wrong"
    )


def test_progress_counts_records_and_each_annotators_answers(labeling: Labeling) -> None:
    dataset, records, name = labeling.name(), comparisons(4), labeling.name()
    labeling.argilla.push(records, dataset)
    labeling.argilla.vote(dataset, name, {r.id: Vote("", "tie") for r in records[:2]})
    labeling.argilla.vote(dataset, name, {records[2].id: Vote("", 0)}, status="draft")
    progress = labeling.argilla.progress(dataset)
    assert (progress.total, progress.completed, progress.pending) == (4, 2, 2)
    assert progress.annotators == {name: {"submitted": 2, "draft": 1, "discarded": 0}}


def test_pages_join_without_a_seam(labeling: Labeling, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefloop.labeling.argilla.datasets.PAGE", 4)
    dataset, records = labeling.name(), comparisons(13)
    labeling.argilla.push(records, dataset)
    labeling.argilla.vote(dataset, labeling.name(), {r.id: Vote("", 0) for r in records})
    assert bare(labeling.argilla.pull(dataset).records) == records


def test_records_of_another_hand_are_left_out_and_counted(
    labeling: Labeling, ann: Annotator
) -> None:
    dataset = labeling.name()
    labeling.argilla.push(comparisons(1), dataset)
    id = labeling.argilla.datasets.find(dataset).id
    fields = {"prompt": [{"role": "user", "content": "x"}], "response_a": "y", "response_b": "z"}
    labeling.argilla.rest.post(f"/datasets/{id}/records/bulk", {"items": [{"fields": fields}]})
    for shown in ann.queue(id):
        ann.answer(shown["id"], preferred="A")
    pulled = labeling.argilla.pull(dataset)
    assert (len(pulled.records), pulled.votes, pulled.foreign) == (1, 1, 1)


def test_a_draft_that_a_killed_push_left_is_completed(labeling: Labeling) -> None:
    dataset, argilla = labeling.name(), labeling.argilla
    place = argilla.rest.get("/me/workspaces")["items"][0]["id"]
    made = argilla.rest.post("/datasets", {"name": dataset, "workspace_id": place})
    body = {
        "name": "prompt",
        "title": "Prompt",
        "required": True,
        "settings": {"type": "chat", "use_markdown": False},
    }
    argilla.rest.post(f"/datasets/{made['id']}/fields", body)
    assert argilla.push(comparisons(1), dataset) == Pushed(1, 0)


def test_a_push_killed_half_way_is_finished_by_the_same_command(
    labeling: Labeling, tmp_path: Path
) -> None:
    dataset, records, file = labeling.name(), comparisons(3 * BATCH), tmp_path / "pairs.jsonl"
    write_jsonl(file, records)
    command = [
        sys.executable,
        "-c",
        DIES,
        "label",
        "push",
        str(file),
        "--dataset",
        dataset,
        "--home",
        labeling.home,
    ]
    died = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": "src"}, stdout=subprocess.DEVNULL
    )
    assert died.returncode == -signal.SIGKILL
    assert labeling.argilla.progress(dataset).total == BATCH
    assert labeling.argilla.push(records, dataset) == Pushed(2 * BATCH, BATCH)
    assert labeling.argilla.progress(dataset).total == len(records)


def test_a_push_beside_another_sends_nothing_twice_and_says_so(
    labeling: Labeling, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, records = labeling.name(), comparisons(3)
    labeling.argilla.push(records[:2], dataset)
    monkeypatch.setattr(Argilla, "_present", lambda *_: set())  # the other push came after the look
    with pytest.raises(LabelError, match="another push is at work on dataset"):
        labeling.argilla.push(records, dataset)
    assert labeling.argilla.progress(dataset).total == 2


def test_the_same_id_with_other_content_is_named_and_nothing_is_sent(labeling: Labeling) -> None:
    dataset, records = labeling.name(), comparisons(2)
    labeling.argilla.push(records[:1], dataset)
    changed = dataclasses.replace(records[0], responses=records[0].responses[::-1])
    with pytest.raises(DataError, match=r"holds 'pair/0' with other content.*Nothing was sent"):
        labeling.argilla.push([changed, records[1]], dataset)
    assert labeling.argilla.progress(dataset).total == 1


def test_what_argilla_refuses_for_a_reason_of_its_own_is_named(
    labeling: Labeling, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefloop.labeling.argilla.records.untakeable", lambda records: [])
    records = comparisons(3)
    prompt = [dataclasses.replace(records[1].prompt[0], content="x" * 20_001)]
    records[1] = dataclasses.replace(records[1], prompt=prompt)
    with pytest.raises(
        DataError, match=r"Argilla does not take record 'pair/1': .*at most 20000 characters"
    ):
        labeling.argilla.push(records, labeling.name())


def test_a_dataset_of_another_form_is_refused_with_what_it_has_and_what_is_needed(
    labeling: Labeling,
) -> None:
    dataset = labeling.name()
    labeling.argilla.push(comparisons(1), dataset)
    with pytest.raises(
        LabelError, match=r"is there with .*response_a.* but ratings need .*question thumb"
    ):
        labeling.argilla.push(ratings(1), dataset)
    with pytest.raises(LabelError, match="asks for 1 answer to a record, not 3"):
        labeling.argilla.push(comparisons(1), dataset, min_submitted=3)


def test_swaps_are_even_and_depend_on_the_dataset() -> None:
    ids = [record.id for record in comparisons(2000)]
    first, second = ([is_swapped(dataset, id) for id in ids] for dataset in ("a", "b"))
    assert 900 < sum(first) < 1100 and first != second


def test_a_swapped_comparison_keeps_its_own_order_in_the_record(labeling: Labeling) -> None:
    dataset, records = labeling.name(), comparisons(12)
    swapped = [record for record in records if is_swapped(dataset, record.id)]
    labeling.argilla.push(records, dataset)
    labeling.argilla.vote(dataset, labeling.name(), {record.id: Vote("", 0) for record in records})
    pulled = labeling.argilla.pull(dataset).records
    assert swapped and all(
        isinstance(record, Comparison) and record.votes[0].choice == 0 for record in pulled
    )
    assert bare(pulled) == records
