"""Aggregations against planted annotators: who can be trusted is found out, the order of responses
does not matter, little data does no harm.
"""

from __future__ import annotations

import typing
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from prefloop.config import (
    AdapterConfig,
    BackboneConfig,
    DataConfig,
    LabelConfig,
    PreferenceConfig,
    RewardConfig,
)
from prefloop.config.stages import Aggregation
from prefloop.data.sources import write_jsonl
from prefloop.errors import ConfigError
from prefloop.labeling.aggregation import (
    ALONE,
    FITTED,
    aggregation,
    hardened,
    learn,
    majority,
    vote_share,
)
from prefloop.pipeline.stages.label import Label
from prefloop.pipeline.stages.reward import RewardModel
from prefloop.records import Comparison, Message, Rating, Response, Thumb, Vote
from prefloop.runs.runtime import Runtime
from prefloop.stats.votes import collect, collect_thumbs

LAZY = -1.0
CROWD = {"good": 0.85, "better": 0.9, "fair": 0.7, "contrary": 0.12, "lazy": LAZY}


def record(id: str, votes: list[Vote], **meta: object) -> Comparison:
    return Comparison(
        id, [Message("user", f"q {id}")], [Response("one"), Response("two")], votes, dict(meta)
    )


def planted(
    seed: int, items: int = 400, ties: float = 0.1, missing: float = 0.2
) -> tuple[list[Comparison], list[int]]:
    """Comparisons with a known better response, and the votes of ``CROWD`` on most of them."""
    draw = np.random.default_rng(seed)
    truth = draw.integers(2, size=items).tolist()
    rows = []
    for i, best in enumerate(truth):
        votes = []
        for name, right in CROWD.items():
            seen, tied, correct = draw.random(3)
            if seen >= missing:
                choice = (
                    0
                    if right == LAZY
                    else "tie"
                    if tied < ties
                    else best
                    if correct < right
                    else 1 - best
                )
                votes.append(Vote(name, choice))
        rows.append(record(str(i), votes))
    return rows, truth


def graded(seed: int, items: int = 500) -> tuple[list[Comparison], list[float]]:
    """Comparisons of graded difference, votes of people of several abilities, and what many plain
    people would say.
    """
    draw = np.random.default_rng(seed)
    people = {
        "a": (2.5, 0, -1),
        "b": (2, 0, -0.5),
        "c": (2, 0.5, -1),
        "contrary": (-2, 0, -1),
        "lazy": (0, 4, -3),
    }

    def chance(d: float, ability: float, habit: float, ties: float) -> np.ndarray:
        x = (ability * d + habit) / 2
        p = np.exp([x, -x, ties])
        return p / p.sum()

    rows, truth = [], []
    for i in range(items):
        d = draw.normal()
        votes = [
            Vote(name, (0, 1, "tie")[draw.choice(3, p=chance(d, *how))])
            for name, how in people.items()
            if draw.random() < 0.7
        ]
        plain = chance(d, 2, 0, -1)
        rows.append(record(str(i), votes))
        truth.append(float(plain[0] + plain[2] / 2))
    return rows, truth


def labels(name: str, rows: Sequence[Comparison]) -> list[float]:
    return [0.5 if p is None else p for p in aggregation(name)(rows)]


def right(found: Sequence[float], truth: Sequence[int]) -> float:
    return float(
        np.mean(
            [
                0.5 if p == 0.5 else (p < 0.5) == bool(best)
                for p, best in zip(found, truth, strict=True)
            ]
        )
    )


def log_loss(found: Sequence[float], truth: Sequence[float]) -> float:
    p, t = np.clip(found, 1e-3, 1 - 1e-3), np.array(truth)
    return float(-(t * np.log(p) + (1 - t) * np.log(1 - p)).mean())


def test_every_name_in_the_settings_is_an_aggregation() -> None:
    assert set(typing.get_args(Aggregation)) == {*ALONE, *FITTED}
    with pytest.raises(ConfigError, match="did you mean 'dawid_skene'"):
        aggregation("dawid-skene")


def test_share_and_majority() -> None:
    rows = record("1", [Vote("a", 0), Vote("b", 0), Vote("c", "tie"), Vote("d", 1)])
    assert vote_share(rows) == 0.625 and majority(rows) == 1.0
    assert (
        majority(record("2", [Vote("a", 0), Vote("b", 1)])) == 0.5
        and vote_share(record("3", [])) is None
    )


@pytest.mark.parametrize("name", FITTED)
def test_trust_is_learnt_and_beats_the_majority_by_a_tenth_on_every_seed(name: str) -> None:
    for seed in range(8):
        rows, truth = planted(seed)
        assert right(labels(name, rows), truth) > right(labels("majority", rows), truth) + 0.1


def test_dawid_skene_finds_each_annotators_reliability() -> None:
    trust = learn("dawid_skene", collect(planted(0, items=2000)[0])).trust
    for name, expected in (CROWD | {"lazy": 0.5}).items():
        assert trust[name] == pytest.approx(expected, abs=0.04)


def test_bradley_terry_labels_graded_preferences_better_than_share_and_dawid_skene() -> None:
    for seed in range(5):
        rows, truth = graded(seed)
        loss = {name: log_loss(labels(name, rows), truth) for name in ("share", *FITTED)}
        assert loss["bradley_terry"] < min(loss["share"], loss["dawid_skene"]) - 0.1
        assert loss["bradley_terry"] < log_loss([0.5] * len(truth), truth) - 0.05
    trust = learn("bradley_terry", collect(graded(0)[0])).trust
    assert (
        trust["contrary"] < -0.8 and abs(trust["lazy"]) < 0.8 and min(trust[n] for n in "abc") > 1.2
    )


@pytest.mark.parametrize("name", [*ALONE, *FITTED])
def test_swapping_all_responses_mirrors_every_label(name: str) -> None:
    rows, _ = planted(3)
    mirrored = labels(name, [row.swap() for row in rows])
    assert np.allclose(labels(name, rows), 1 - np.array(mirrored), atol=1e-5)


@pytest.mark.parametrize("name", [*ALONE, *FITTED])
def test_swapping_some_records_changes_nothing_where_the_order_of_showing_is_known(
    name: str,
) -> None:
    rows = [record(row.id, row.votes, shown=[0, 1]) for row in planted(4)[0]]
    some = [row.swap() if i % 3 == 0 else row for i, row in enumerate(rows)]
    assert [vote.choice for vote in some[0].votes] != [vote.choice for vote in rows[0].votes]
    back = [1 - p if i % 3 == 0 else p for i, p in enumerate(labels(name, some))]
    assert np.allclose(labels(name, rows), back, atol=1e-9)


@pytest.mark.parametrize("name", FITTED)
def test_the_order_of_comparisons_and_the_names_of_people_do_not_matter(name: str) -> None:
    rows, _ = planted(5, items=100)
    there = dict(zip([row.id for row in rows], labels(name, rows), strict=True))
    names = {who: f"{k}-{who}" for k, who in enumerate(reversed(CROWD))}
    back = [
        record(row.id, [Vote(names[v.annotator], v.choice) for v in reversed(row.votes)])
        for row in reversed(rows)
    ]
    for row, p in zip(back, labels(name, back), strict=True):
        assert p == pytest.approx(there[row.id], abs=1e-4)


DEGENERATE = {
    "one annotator": [record(str(i), [Vote("a", i % 2)]) for i in range(10)],
    "one annotator who never varies": [record(str(i), [Vote("a", 0)]) for i in range(10)],
    "all ties": [record(str(i), [Vote("a", "tie"), Vote("b", "tie")]) for i in range(5)],
    "one vote an item, no overlap": [record(str(i), [Vote(f"p{i}", i % 2)]) for i in range(6)],
    "one item": [record("0", [Vote("a", 1), Vote("b", "tie")])],
    "nobody voted": [record("0", []), record("1", [])],
    "nothing": [],
    "two who always differ": [
        record(str(i), [Vote("a", i % 2), Vote("b", 1 - i % 2)]) for i in range(10)
    ],
}


@pytest.mark.parametrize("name", FITTED)
@pytest.mark.parametrize("what", DEGENERATE)
def test_little_to_learn_from_gives_a_label_on_the_votes_side(name: str, what: str) -> None:
    rows = DEGENERATE[what]
    for row, p in zip(rows, labels(name, rows), strict=True):
        assert 0 <= p <= 1
        share = vote_share(row)
        if share is None or share == 0.5:
            assert p == pytest.approx(0.5, abs=1e-3)
        else:
            assert (p > 0.5) == (share > 0.5)


def test_few_votes_are_a_weaker_label_than_many_with_bradley_terry() -> None:
    rows = [record("few", [Vote("a", 0)]), record("many", [Vote(n, 0) for n in "abcde"])]
    rows += [record(str(i), [Vote(n, i % 2) for n in "abcde"]) for i in range(20)]
    few, many, *_ = labels("bradley_terry", rows)
    assert 0.5 < few < many < 1


@pytest.mark.parametrize("name", [*ALONE, *FITTED])
def test_a_comparison_without_votes_has_no_label(name: str) -> None:
    rows = [record("voted", [Vote("a", 0)]), record("new", [])]
    first, second = aggregation(name)(rows)
    assert first is not None and second is None


def test_thumbs_are_no_votes_on_pairs() -> None:
    rated = Rating("1", [Message("user", "q")], Response("r"), [Thumb("a", "up")])
    with pytest.raises(ValueError, match="votes on pairs"):
        FITTED["dawid_skene"](collect_thumbs([rated]))


def test_those_that_look_at_one_comparison_read_nothing_ahead() -> None:
    def rows() -> typing.Iterator[Comparison]:
        yield record("1", [Vote("a", 0)])
        raise AssertionError("read")

    assert next(iter(aggregation("share")(rows()))) == 1.0


def test_labels_reach_the_groups_that_stages_train_on(tmp_path: Path, tiny_folder: Path) -> None:
    from prefloop.data.encode import Encoder
    from prefloop.data.groups import write_groups

    rows, _ = planted(0, items=60)
    write_jsonl(tmp_path / "v.jsonl", rows)
    config = BackboneConfig(
        model=str(tiny_folder),
        precision="fp32",
        max_length=128,
        adapter=AdapterConfig(r=4, alpha=8),
    )
    runtime = Runtime(config, output=tmp_path / "runs")
    encoder = Encoder(runtime.backbone.chat, 128)
    learnt = aggregation("dawid_skene")
    groups = write_groups(tmp_path / "v.jsonl", tmp_path / "g.arrow", encoder, learnt)
    assert [group.pairs[0].label for group in groups] == list(learnt(rows))
    hard = write_groups(tmp_path / "v.jsonl", tmp_path / "h.arrow", encoder, hardened(learnt))
    assert {group.pairs[0].label for group in hard} == {0.0, 1.0}
    # The stages take it by name, and another name is another artifact.
    comparisons = Label(
        LabelConfig(source="file"), DataConfig(comparisons=tmp_path / "v.jsonl")
    ).run(runtime)
    stages = [
        RewardModel(RewardConfig(aggregation=name), from_sft=False)
        for name in ("share", "bradley_terry")
    ]
    keys = {stage.key(runtime, {"comparisons": comparisons}) for stage in stages}
    assert len(keys) == 2 and PreferenceConfig(aggregation="bradley_terry").soft_labels
    assert stages[1].run(runtime, comparisons=comparisons).metrics["steps"] > 0
