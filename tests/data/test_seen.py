"""What is kept of a row while others are read is small, and tells the same as keeping
everything.
"""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from prefloop.data.seen import Seen
from prefloop.data.sources import count_records, kind_of, load_comparisons, load_prompts


@given(st.lists(st.text(max_size=3), max_size=60))
def test_the_table_answers_as_a_dictionary_does(texts: list[str]) -> None:
    table, known = Seen(), dict[str, int]()
    for row, text in enumerate(texts, start=1):
        assert table.get(text) == known.get(text)
        table.add(text, row)
        known[text] = row
    assert len(table) == len(known) and {text: table.get(text) for text in known} == known


def test_the_table_grows_and_stays_small() -> None:
    table = Seen()
    for row in range(1, 20_001):
        table.add(f"a rather long id of a row {row}", row)
    assert [table.get(f"a rather long id of a row {row}") for row in (1, 9_999, 20_000)] == [
        1,
        9_999,
        20_000,
    ]
    assert table.get("another") is None and len(table) == 20_000
    assert len(table._rows) * 16 < 50 * 20_000


def test_repeated_rows_are_numbered_on_and_never_meet_a_given_id(tmp_path: Path) -> None:
    row = {"prompt": "Hi", "chosen": "a", "rejected": "b"}
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for _ in range(300)))
    ids = [record.id for record in load_comparisons(path).records]
    base = ids[0]
    assert ids[1:] == [f"{base}-{n}" for n in range(2, 301)]
    taken = [row, {**row, "id": f"{base}-2"}, row, row]
    path.write_text("".join(json.dumps(row) + "\n" for row in taken))
    assert [record.id for record in load_comparisons(path).records] == [
        base,
        f"{base}-2",
        f"{base}-3",
        f"{base}-4",
    ]


def test_a_source_is_counted_as_its_loader_reads_it(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"{i % 3}", "completion": f"answer {i}", "label": i % 2 == 0} for i in range(12)
    ]
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    counted = count_records(kind_of(path), path)
    assert (counted.kind, counted.count, counted.records) == ("Rating", 12, [])
    pairs = load_comparisons(path)
    assert count_records("comparisons", path).count == len(pairs.records) == 6
    assert [(pair.prompt[0].content, pair.responses[0].text[:6]) for pair in pairs.records] == [
        (f"{i}", "answer") for i in (0, 0, 1, 1, 2, 2)
    ]
    assert count_records("prompts", path).describe() == load_prompts(path).describe()
