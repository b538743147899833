"""Votes of one round are collected from a real Argilla: whose they are, what is waited for, what is
set aside.
"""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from queue import Queue
from typing import Any

import pytest
from labeling_server import Labeling, comparisons

from prefloop.config import LabelConfig
from prefloop.errors import LabelError
from prefloop.labeling import rounds
from prefloop.labeling.argilla.records import Pushed
from prefloop.labeling.rounds import collect_round
from prefloop.records import Comparison, Message, Vote

pytestmark = pytest.mark.slow


def waited(labeling: Labeling, dataset: str, **label: Any) -> LabelConfig:
    return LabelConfig(
        source="argilla", dataset=dataset, home=labeling.home, poll_seconds=0.02, **label
    )


def simulated(pairs: list[Comparison], name: str) -> dict[str, dict[str, Vote]]:
    return {name: {pair.id: Vote(name, 0) for pair in pairs}}


def test_votes_of_simulated_annotators_are_never_taken_for_those_of_people(
    labeling: Labeling,
) -> None:
    dataset, pairs, name = labeling.name(), comparisons(3), labeling.name()
    config = waited(labeling, dataset)
    found = collect_round(config, dataset, pairs, simulated(pairs, name))
    assert [[v.annotator for v in c.votes] for c in found.comparisons] == [[name]] * 3
    with pytest.raises(LabelError, match="votes of simulated annotators"):
        collect_round(config, dataset, pairs, {})
    person = labeling.user()
    for record in person.queue(labeling.argilla.datasets.find(dataset).id):
        person.answer(record["id"], preferred="B")
    found = collect_round(config, dataset, pairs, simulated(pairs, name))
    assert [[v.annotator for v in c.votes] for c in found.comparisons] == [
        [name]
    ] * 3 and found.others == 3


def test_a_simulated_annotator_takes_no_persons_account(labeling: Labeling) -> None:
    dataset, pairs, person = labeling.name(), comparisons(1), labeling.user()
    labeling.argilla.push(pairs, dataset)
    (record,) = person.queue(labeling.argilla.datasets.find(dataset).id)
    person.answer(record["id"], preferred="tie")
    with pytest.raises(LabelError, match="account of a person"):
        labeling.argilla.vote(dataset, person.name, {pairs[0].id: Vote("x", 0)})
    assert [v.choice for v in labeling.argilla.pull(dataset).records[0].votes] == ["tie"]


def test_what_is_deleted_meanwhile_is_not_waited_for(
    labeling: Labeling, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, pairs, said = labeling.name(), comparisons(3), Queue()
    monkeypatch.setattr(
        rounds, "say", lambda line, *_: said.put(line) if "waiting for votes" in line else None
    )
    labeling.argilla.push(pairs, dataset)
    found = labeling.argilla.datasets.find(dataset)
    person = labeling.user()
    queue = {r["external_id"]: r["id"] for r in person.queue(found.id)}
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(collect_round, waited(labeling, dataset), dataset, pairs, {})
        said.get(timeout=300)
        for pair in pairs[:2]:
            person.answer(queue[pair.id], preferred="A")
        labeling.argilla.rest.call(
            "DELETE", f"/datasets/{found.id}/records", query={"ids": queue[pairs[2].id]}
        )
        assert [c.id for c in waiting.result(300).comparisons] == [pair.id for pair in pairs[:2]]
        waiting = pool.submit(collect_round, waited(labeling, dataset), dataset, pairs, {})
        said.get(timeout=300)
        labeling.argilla.rest.call("DELETE", f"/datasets/{found.id}")
        with pytest.raises(LabelError, match=r"holds no dataset|refused"):
            waiting.result(300)


def test_pairs_that_argilla_does_not_take_are_set_aside(
    labeling: Labeling, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs, name = comparisons(2), labeling.name()
    pairs[1] = dataclasses.replace(pairs[1], prompt=[Message("user", "x" * 20_001)])
    found = collect_round(waited(labeling, name), name, pairs, simulated(pairs, labeling.name()))
    assert [c.id for c in found.comparisons] == [pairs[0].id] and found.refused == 1
    assert f"1 pair set aside, the first '{pairs[1].id}'" in capsys.readouterr().out


def test_why_a_pair_was_chosen_does_not_make_it_another(labeling: Labeling) -> None:
    dataset, pairs = labeling.name(), comparisons(2)
    labeling.argilla.push(pairs, dataset)
    again = [dataclasses.replace(p, meta=p.meta | {"selected": {"value": 0.1}}) for p in pairs]
    assert labeling.argilla.push(again, dataset) == Pushed(0, 2)
