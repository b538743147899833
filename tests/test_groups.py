"""Comparisons and thumbs as tokenised groups on disk."""

from __future__ import annotations

import gc
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from counted import Alive, LineByLine
from tiny import tiny_tokenizer

from prefloop.data.chat import ChatFormat
from prefloop.data.encode import Encoder, preference_groups
from prefloop.data.groups import documents, write_groups, write_thumbs
from prefloop.data.quarantine import Unusable
from prefloop.data.sources import write_jsonl
from prefloop.errors import DataError
from prefloop.labels.aggregation import WEIGHTS, vote_share
from prefloop.records import Comparison, Message, Rating, Response, Thumb, Vote, from_dict


@pytest.fixture
def encoder() -> Encoder:
    return Encoder(ChatFormat.load(tiny_tokenizer()), 80)


def comparison(id: str, prompt: str, first: str, second: str, *choices: int) -> Comparison:
    votes = [Vote(f"a{i}", choice) for i, choice in enumerate(choices)]  # type: ignore[arg-type]
    return Comparison(id, [Message("user", prompt)], [Response(first), Response(second)], votes)


ROWS = [
    comparison("1", "try", "one", "two", 0, 0, 1),
    comparison("2", "how", "one", "two", 1),
    comparison("3", "try", "two", "three", 0, 1, 1, 1),
]


def written(rows: Sequence[Comparison | Rating], tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, rows)
    return path


def test_groups_on_disk_are_the_groups_in_memory(encoder: Encoder, tmp_path: Path) -> None:
    groups = write_groups(written(ROWS, tmp_path), tmp_path / "g.arrow", encoder, vote_share)
    expected = preference_groups(ROWS, [2 / 3, 0.0, 0.25], encoder)
    assert [g.pairs for g in groups] == [[tuple(p) for p in g.pairs] for g in expected]
    for ours, theirs in zip(groups, expected, strict=True):
        assert ours.document.prompt_ids == theirs.document.prompt_ids
        assert list(ours.document.responses_ids) == list(theirs.document.responses_ids)
        assert ours.document.keys == theirs.document.keys
    assert [groups.pairs(i) for i in range(len(groups))] == [2, 1] and groups.total_pairs == 3
    assert len(list(documents(groups))) == 2
    assert groups.ids_of([0]) == ["1", "3"] and groups.ids_of(groups[1].document.keys) == ["2"]


def test_subsets_keep_order_repeats_and_pair_counts(encoder: Encoder, tmp_path: Path) -> None:
    groups = write_groups(written(ROWS, tmp_path), tmp_path / "g.arrow", encoder, vote_share)
    again = groups.subset([1, 0, 0])
    assert [again.pairs(i) for i in range(3)] == [1, 2, 2]
    assert again[2].document.keys == groups[0].document.keys
    assert [g.document.keys for g in again[1:].subset([0])] == [groups[0].document.keys]


def test_weights_have_mean_one_and_follow_votes_or_agreement(encoder: Encoder, tmp_path: Path) -> None:
    source = written(ROWS, tmp_path)
    by_votes = write_groups(source, tmp_path / "v.arrow", encoder, vote_share, WEIGHTS["votes"])
    assert [[p[3] for p in g.pairs] for g in by_votes] == [[3 / (8 / 3), 4 / (8 / 3)], [1 / (8 / 3)]]
    by_agreement = write_groups(source, tmp_path / "a.arrow", encoder, vote_share, WEIGHTS["agreement"])
    agreement = [1 / 3, 1 / 2, 1.0]
    mean = sum(agreement) / 3
    found = [p[3] for g in by_agreement for p in g.pairs]
    assert found == pytest.approx([agreement[0] / mean, agreement[1] / mean, agreement[2] / mean])
    tied = written([comparison("1", "try", "one", "two", 0, 1)], tmp_path)
    with pytest.raises(DataError, match="weight 0"):
        write_groups(tied, tmp_path / "t.arrow", encoder, vote_share, WEIGHTS["agreement"])


def test_no_pair_left_is_an_error_and_leaves_no_file(encoder: Encoder, tmp_path: Path) -> None:
    long = "word " * 90
    source = written([comparison("1", "try", long + "a", long + "b", 0)], tmp_path)
    with pytest.raises(DataError, match="no pair of two different responses"):
        write_groups(source, tmp_path / "g.arrow", encoder, vote_share)
    assert not list(tmp_path.glob("g.*"))


def test_a_prompt_without_room_is_an_error_or_set_aside_by_id(encoder: Encoder, tmp_path: Path) -> None:
    source = written([ROWS[0], comparison("long", "word " * 90, "a", "b", 0)], tmp_path)
    with pytest.raises(DataError, match="'long'"):
        write_groups(source, tmp_path / "g.arrow", encoder, vote_share)
    aside = tmp_path / "aside.jsonl"
    assert write_groups(source, tmp_path / "g.arrow", encoder, vote_share, unusable=Unusable(aside)).total_pairs == 1
    (row,) = [json.loads(line) for line in aside.open()]
    assert row["id"] == "long" and "max_length" in row["problem"]


def rating(id: str, prompt: str, text: str, *thumbs: str) -> Rating:
    votes = [Thumb(f"a{i}", value) for i, value in enumerate(thumbs)]  # type: ignore[arg-type]
    return Rating(id, [Message("user", prompt)], Response(text), votes)


def test_thumbs_of_one_response_are_added_up_and_undecided_ones_left_out(encoder: Encoder, tmp_path: Path) -> None:
    rows = [
        rating("1", "try", "one", "up"),
        rating("2", "how", "odd", "up", "down"),
        rating("3", "try", "two", "down", "down", "up"),
        rating("4", "try", "one", "down"),
        rating("5", "try", "one", "up"),
    ]
    groups = write_thumbs(written(rows, tmp_path), tmp_path / "t.arrow", encoder)
    assert len(groups) == 1 and groups.rated(0) == 2
    group = groups.thumbs(0)
    assert [encoder.chat.decode(ids) for ids in group.document.responses_ids] == ["one", "two"]
    assert group.up == [True, False]
    with pytest.raises(DataError, match="no response with a decided thumb"):
        write_thumbs(written(rows[1:2], tmp_path), tmp_path / "u.arrow", encoder)


class Ids(list[int]):
    """Token ids that weak references can point at."""


class Row(dict[str, Any]):
    """A parsed row that weak references can point at."""


def test_memory_does_not_grow_with_the_text_of_the_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in memory at once is counted: rows of one prompt, the tokens of one batch of the writer; the result is mapped, not read."""
    count, batch = 700, 200
    raw, records, ids = Alive(), Alive(), Alive()

    class Counting(Encoder):
        def prompt(self, *arguments: Any, **options: Any) -> list[int]:
            return ids.see(Ids(super().prompt(*arguments, **options)))

        def response(self, *arguments: Any, **options: Any) -> list[int]:
            return ids.see(Ids(super().response(*arguments, **options)))

    def parse(line: str | bytes) -> Any:
        return raw.see(Row(json.loads(line)))

    def build(kind: type[Any], row: dict[str, Any]) -> Any:
        return records.see(from_dict(kind, row))

    counting = SimpleNamespace(loads=parse, dumps=json.dumps)
    monkeypatch.setattr("prefloop.data.groups.json", counting)
    monkeypatch.setattr("prefloop.store.json", counting)
    monkeypatch.setattr("prefloop.data.groups.from_dict", build)
    rows = [
        comparison(f"{i}/{k}", f"q {i} " + "good " * 40, f"x {i} {k}", f"y {i} {k}", 0)
        for i in range(count)
        for k in (0, 1)
    ]
    source = LineByLine(written(rows, tmp_path))
    encoder = Counting(ChatFormat.load(tiny_tokenizer()), 400)
    gc.collect()
    arrow = pa.total_allocated_bytes()
    groups = write_groups(source, tmp_path / "g.arrow", encoder, vote_share, WEIGHTS["votes"])
    assert groups.total_pairs == len(groups[3:5]) * count == 2 * count
    assert sum(len(groups[i].document.prompt_ids) for i in range(count)) > 40 * count
    # Three passes: the prompts are found, the weights are added up, the rows are tokenised.
    assert raw.ever == 3 * len(rows) and raw.most <= 5
    assert records.ever == 2 * len(rows) and records.most <= 5
    assert ids.ever == 5 * count and ids.most <= 5 * (batch + 1)
    size = (tmp_path / "g.arrow").stat().st_size
    assert size > 400_000 and pa.total_allocated_bytes() - arrow < size / 10
