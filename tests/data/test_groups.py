"""Comparisons and thumbs as tokenized groups on disk."""

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
from prefloop.data.encode import Encoder, LabeledPair
from prefloop.data.groups import LeftOut, documents, write_groups, write_thumbs
from prefloop.data.quarantine import Unusable, encoded
from prefloop.data.sources import write_jsonl
from prefloop.data.tokens import Tokens
from prefloop.errors import DataError
from prefloop.labeling.aggregation import WEIGHTS, aggregation
from prefloop.records import Comparison, Message, Prompt, Rating, Response, Thumb, Vote, from_dict

SHARE = aggregation("share")


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


def test_comparisons_of_one_prompt_form_a_group_with_its_distinct_responses(
    encoder: Encoder, tmp_path: Path
) -> None:
    groups = write_groups(written(ROWS, tmp_path), tmp_path / "g.arrow", encoder, SHARE)
    chat = encoder.chat
    prompts = [chat.prompt_ids(row.prompt) for row in ROWS[:2]]
    assert [list(g.document.prompt_ids) for g in groups] == prompts
    texts = [[chat.decode(ids) for ids in g.document.responses_ids] for g in groups]
    assert texts == [["one", "two", "three"], ["one", "two"]]
    assert [g.pairs for g in groups] == [
        [LabeledPair(0, 1, 2 / 3, 1.0), LabeledPair(1, 2, 0.25, 1.0)],
        [LabeledPair(0, 1, 0.0, 1.0)],
    ]
    assert [list(g.document.keys) for g in groups] == [[0, 1, 2], [3, 4]]
    assert [groups.pairs(i) for i in range(len(groups))] == [2, 1] and groups.total_pairs == 3
    assert len(list(documents(groups))) == 2
    assert groups.ids_of([0]) == ["1", "3"] and groups.ids_of(groups[1].document.keys) == ["2"]


def test_subsets_keep_order_repeats_and_pair_counts(encoder: Encoder, tmp_path: Path) -> None:
    groups = write_groups(written(ROWS, tmp_path), tmp_path / "g.arrow", encoder, SHARE)
    again = groups.subset([1, 0, 0])
    assert [again.pairs(i) for i in range(3)] == [1, 2, 2]
    assert again[2].document.keys == groups[0].document.keys
    assert [g.document.keys for g in again[1:].subset([0])] == [groups[0].document.keys]


def test_weights_have_mean_one_and_follow_votes_or_agreement(
    encoder: Encoder, tmp_path: Path
) -> None:
    source = written(ROWS, tmp_path)
    by_votes = write_groups(source, tmp_path / "v.arrow", encoder, SHARE, WEIGHTS["votes"])
    assert [[p.weight for p in g.pairs] for g in by_votes] == [
        [3 / (8 / 3), 4 / (8 / 3)],
        [1 / (8 / 3)],
    ]
    by_agreement = write_groups(source, tmp_path / "a.arrow", encoder, SHARE, WEIGHTS["agreement"])
    agreement = [1 / 3, 1 / 2, 1.0]
    mean = sum(agreement) / 3
    found = [p.weight for g in by_agreement for p in g.pairs]
    assert found == pytest.approx([agreement[0] / mean, agreement[1] / mean, agreement[2] / mean])
    tied = written([comparison("1", "try", "one", "two", 0, 1)], tmp_path)
    with pytest.raises(DataError, match="weight 0"):
        write_groups(tied, tmp_path / "t.arrow", encoder, SHARE, WEIGHTS["agreement"])


def test_no_pair_left_is_an_error_and_leaves_no_file(encoder: Encoder, tmp_path: Path) -> None:
    long = "word " * 90
    source = written([comparison("1", "try", long + "a", long + "b", 0)], tmp_path)
    with pytest.raises(DataError, match="no pair of two different responses"):
        write_groups(source, tmp_path / "g.arrow", encoder, SHARE)
    assert not list(tmp_path.glob("g.*"))


def test_a_prompt_without_room_is_an_error_or_set_aside_by_id(
    encoder: Encoder, tmp_path: Path
) -> None:
    source = written([ROWS[0], comparison("long", "word " * 90, "a", "b", 0)], tmp_path)
    with pytest.raises(DataError, match="'long'"):
        write_groups(source, tmp_path / "g.arrow", encoder, SHARE)
    aside = tmp_path / "aside.jsonl"
    assert (
        write_groups(
            source, tmp_path / "g.arrow", encoder, SHARE, unusable=Unusable(aside)
        ).total_pairs
        == 1
    )
    (row,) = [json.loads(line) for line in aside.open()]
    assert row["id"] == "long" and "max_length" in row["problem"]


def rating(id: str, prompt: str, text: str, *thumbs: str) -> Rating:
    votes = [Thumb(f"a{i}", value) for i, value in enumerate(thumbs)]  # type: ignore[arg-type]
    return Rating(id, [Message("user", prompt)], Response(text), votes)


def test_thumbs_of_one_response_are_added_up_and_undecided_ones_left_out(
    encoder: Encoder, tmp_path: Path
) -> None:
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


def test_pairs_that_are_equal_once_cut_are_counted_and_said(
    encoder: Encoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "word " * 90
    cut = [comparison(str(i), f"q {i}", long + "a", long + "b", 0) for i in range(3)]
    twice = comparison("twice", "q", "same", "same", 0)
    groups = write_groups(
        written([*ROWS, *cut, twice], tmp_path), tmp_path / "g.arrow", encoder, SHARE
    )
    assert groups.total_pairs == 3
    assert groups.left_out == groups[:1].left_out == LeftOut(read=7, equal=3, repeated=1)
    assert groups.left_out.metrics() == {"read_rows": 7, "equal_rows": 3, "repeated_rows": 1}
    said = capsys.readouterr().out
    assert "3 of 7 pairs are equal once cut to max_length (80 tokens) and were left out" in said
    assert "1 of 7 pairs is of one response with itself and was left out" in said
    with pytest.raises(
        DataError,
        match=r"no pair .* is left of 3 pairs: 3 of 3 pairs are equal once cut to max_length",
    ):
        write_groups(written(cut, tmp_path), tmp_path / "h.arrow", encoder, SHARE)
    whole = write_groups(written(ROWS, tmp_path), tmp_path / "w.arrow", encoder, SHARE)
    assert whole.left_out.metrics() == {} and len(capsys.readouterr().out.splitlines()) == 0


def test_opposite_thumbs_on_responses_that_are_equal_once_cut_teach_nothing(
    encoder: Encoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "word " * 90
    rows = [
        rating("1", "try", long + "a", "up"),
        rating("2", "try", long + "b", "down"),
        rating("3", "try", "short", "up"),
        rating("4", "how", "even", "up"),
        rating("5", "how", "even", "down"),
    ]
    groups = write_thumbs(written(rows, tmp_path), tmp_path / "t.arrow", encoder)
    assert [groups.thumbs(i).up for i in range(len(groups))] == [[True]]
    assert groups.left_out == LeftOut(read=5, equal=2, undecided=2)
    said = capsys.readouterr().out
    assert (
        "2 of 5 thumbs are equal once cut" in said
        and "2 of 5 thumbs are of a response with as many thumbs up" in said
    )


class Picky(Encoder):
    """Refuses a prompt as a chat template does."""

    def prompt(self, record_id: str, prompt: Sequence[Message], room: int = 1) -> list[int]:
        if prompt[0].content == "refused":
            raise DataError(f"prompt '{record_id}' is refused by the template")
        return super().prompt(record_id, prompt, room)


def test_without_a_file_to_set_them_aside_in_all_rows_that_do_not_fit_are_counted(
    encoder: Encoder, tmp_path: Path
) -> None:
    picky = Picky(encoder.chat, 80)
    bad = [comparison("long", "word " * 90, "a", "b", 0), comparison("odd", "refused", "a", "b", 0)]
    source = written([*bad, *ROWS], tmp_path)
    with pytest.raises(
        DataError,
        match=r"^2 of 5 rows cannot be used, the first: prompt 'long' .*has .*bad_rows: quarantine",
    ):
        write_groups(source, tmp_path / "g.arrow", picky, SHARE)
    assert not list(tmp_path.glob("g.*"))


def test_a_file_of_rows_set_aside_is_named_after_the_reason(
    encoder: Encoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picky = Picky(encoder.chat, 80)
    prompts = [
        Prompt("long", [Message("user", "word " * 90)]),
        Prompt("odd", [Message("user", "refused")]),
    ]
    fine = Prompt("fine", [Message("user", "try")])

    def kept(*records: Prompt) -> list[str]:
        aside = Unusable(tmp_path / "p.too-long.quarantine.jsonl", "prompt")
        return [
            record.id
            for record, _ in encoded(records, lambda p: picky.prompt(p.id, p.prompt), aside)
        ]

    assert kept(fine) == ["fine"] and not list(tmp_path.iterdir()) and capsys.readouterr().out == ""
    assert kept(prompts[0], fine) == ["fine"] and [p.name for p in tmp_path.iterdir()] == [
        "p.too-long.quarantine.jsonl"
    ]
    assert kept(*prompts, fine) == ["fine"]
    rows = [json.loads(line) for line in (tmp_path / "p.unusable.quarantine.jsonl").open()]
    assert [row["id"] for row in rows] == ["long", "odd"] and rows[1]["problem"].endswith(
        "refused by the template"
    )
    assert (
        "2 prompts set aside in p.unusable.quarantine.jsonl: prompt 'long' ("
        in capsys.readouterr().out
    )
    with pytest.raises(DataError, match="none of 1 prompt can be used, the first: prompt 'odd'"):
        kept(prompts[1])


class Ids(list[int]):
    """Token ids that weak references can point at."""


class Row(dict[str, Any]):
    """A parsed row that weak references can point at."""


def test_memory_does_not_grow_with_the_text_of_the_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in memory at once is counted: rows of one prompt, the tokens of one batch of the
    writer; the result is mapped, not read.
    """
    count, batch = 700, 200
    raw, records, ids = Alive(), Alive(), Alive()

    class Counting(Encoder):
        def prompt(self, *arguments: Any, **options: Any) -> list[int]:
            return ids.see(Ids(super().prompt(*arguments, **options)))

        def response(self, *arguments: Any, **options: Any) -> Tokens:
            found = super().response(*arguments, **options)
            return Tokens(ids.see(Ids(found.ids)), found.learn)

    def parse(line: str | bytes) -> Any:
        return raw.see(Row(json.loads(line)))

    def build(kind: type[Any], row: dict[str, Any]) -> Any:
        return records.see(from_dict(kind, row))

    counting = SimpleNamespace(loads=parse, dumps=json.dumps)
    monkeypatch.setattr("prefloop.data.groups.json", counting)
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
    groups = write_groups(source, tmp_path / "g.arrow", encoder, SHARE, WEIGHTS["votes"])
    assert groups.total_pairs == len(groups[3:5]) * count == 2 * count
    assert sum(len(groups[i].document.prompt_ids) for i in range(count)) > 40 * count
    # Two passes: one indexes, labels and weighs the rows, the other tokenizes them.
    assert raw.ever == 2 * len(rows) and raw.most <= 5
    assert records.ever == 2 * len(rows) and records.most <= 5
    assert ids.ever == 5 * count and ids.most <= 5 * (batch + 1)
    size = (tmp_path / "g.arrow").stat().st_size
    assert size > 400_000 and pa.total_allocated_bytes() - arrow < size / 10


def test_a_refused_pair_is_counted_once_and_costs_its_prompt_nothing(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.content == 'bad' %}{{ raise_exception('bad word') }}{%"
        " endif %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}{%"
        " if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    rows = [
        comparison("good", "try", "one", "two", 0),
        comparison("same", "try", "bad", "bad", 0),
        comparison("one", "try", "one", "bad", 0),
    ]
    unusable = Unusable(tmp_path / "too-long.quarantine.jsonl")
    encoder = Encoder(ChatFormat.load(tokenizer), 80)
    groups = write_groups(
        written(rows, tmp_path), tmp_path / "g.arrow", encoder, SHARE, unusable=unusable
    )
    assert groups.total_pairs == 1 and unusable.count == 2 and "bad word" in unusable.first
    assert (groups.left_out.equal, groups.left_out.repeated, groups.left_out.unusable) == (0, 0, 2)
    with pytest.raises(DataError, match="2 of 3 rows cannot be used, the first: row 'same' "):
        write_groups(written(rows, tmp_path), tmp_path / "g.arrow", encoder, SHARE)


def test_thumbs_of_one_prompt_meet_whatever_of_it_is_learnt(
    tmp_path: Path, encoder: Encoder
) -> None:
    def thumb(id: str, learn: bool, value: str) -> Rating:
        turns = [
            Message("user", "try"),
            Message("assistant", "so", learn=learn),
            Message("user", "how"),
        ]
        return Rating(id, turns, Response("one"), [Thumb("ann", value)])  # type: ignore[arg-type]

    rows = [thumb("a", True, "up"), thumb("b", False, "down"), thumb("c", False, "up")]
    groups = write_thumbs(written(rows, tmp_path), tmp_path / "g.arrow", encoder)
    assert len(groups) == 1 and groups.thumbs(0).up == [True]
