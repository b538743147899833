"""Every format gives the same rows; a null is no key; what spoils one row costs that row."""

from __future__ import annotations

import datetime
import decimal
import gzip
import json
import os
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from prefloop.data.files import RawRow, count_rows, read_rows
from prefloop.data.raw import plain
from prefloop.data.sources import load_comparisons, load_prompts
from prefloop.errors import DataError

ROWS = [
    {"prompt": "Why is grass green?", "chosen": "Chlorophyll, \u2028 mostly.", "rejected": "Paint"},
    {"prompt": "Count", "chosen": 'one\ntwo "three"', "rejected": "no, I\twon't"},
    {"prompt": "Grüße", "chosen": "Hallo", "rejected": ""},
]
FILLED = [{key: value for key, value in row.items() if value} for row in ROWS]


def zstd(content: bytes) -> bytes:
    return bytes(pa.compress(content, codec="zstd", asbytes=True))


def csv_of(rows: list[dict[str, str]], between: str = ",") -> bytes:
    def cell(text: str) -> str:
        return (
            '"' + text.replace('"', '""') + '"'
            if any(c in text for c in f'"\n\r{between}')
            else text
        )

    lines = [between.join(rows[0]), *(between.join(map(cell, row.values())) for row in rows)]
    return "".join(line + "\r\n" for line in lines).encode()


def values(source: object) -> list[Any]:
    rows = list(read_rows(source))  # type: ignore[arg-type]
    assert [row.problem for row in rows] == [None] * len(rows)
    return [row.value for row in rows]


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
    table = pa.Table.from_pylist(ROWS)
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "a.json").write_text(json.dumps(ROWS, indent=2), encoding="utf-8")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "a.jsonl.zst").write_bytes(zstd(lines[:40]) + zstd(lines[40:]))
    (tmp_path / "unnamed").write_bytes(zstd(lines))
    pq.write_table(table, tmp_path / "a.parquet")
    pa.feather.write_feather(table, tmp_path / "file.arrow")
    with pa.ipc.new_stream(str(tmp_path / "stream.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    for name in (
        "a.jsonl",
        "a.json",
        "a.jsonl.gz",
        "a.jsonl.zst",
        "unnamed",
        "a.parquet",
        "file.arrow",
        "stream.arrow",
    ):
        assert values(tmp_path / name) == ROWS, name
        assert count_rows(tmp_path / name) == 3, name
    (tmp_path / "a.csv").write_bytes(csv_of(ROWS))
    (tmp_path / "bom.csv").write_bytes(b"\xef\xbb\xbf" + csv_of(ROWS))
    (tmp_path / "excel.csv").write_bytes(csv_of(ROWS, ";"))
    (tmp_path / "a.tsv").write_bytes(csv_of(ROWS, "\t"))
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(csv_of(ROWS)))
    for name in ("a.csv", "bom.csv", "excel.csv", "a.tsv", "a.csv.gz"):
        assert values(tmp_path / name) == FILLED, name  # an empty cell is no key
        assert count_rows(tmp_path / name) == 3, name


def test_a_folder_a_pattern_and_a_saved_data_set_are_their_shards_in_order(tmp_path: Path) -> None:
    for index, row in enumerate(ROWS):
        (tmp_path / "hub" / "data").mkdir(parents=True, exist_ok=True)
        pq.write_table(
            pa.Table.from_pylist([row]), tmp_path / f"hub/data/train-{index:05}-of-00003.parquet"
        )
    datasets.disable_progress_bars()
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved", num_shards=2)
    for source in (tmp_path / "hub", f"{tmp_path}/hub/data/train-*.parquet", tmp_path / "saved"):
        assert values(source) == ROWS
        assert [row.number for row in read_rows(source)] == [1, 2, 3]


def test_splits_of_a_folder_are_told_and_taken_by_name(tmp_path: Path) -> None:
    datasets.disable_progress_bars()
    two = {"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:1])}
    datasets.DatasetDict(two).save_to_disk(tmp_path / "dict")
    (tmp_path / "shards").mkdir()
    for split, data in two.items():
        data.to_parquet(tmp_path / f"shards/{split}-00000-of-00001.parquet")
    for name in ("dict", "shards"):
        folder = tmp_path / name
        assert values(f"{folder}:test") == ROWS[:1] and len(values(f"{folder}:train")) == 3
        with pytest.raises(
            DataError, match=rf"holds the splits .*test.*: name one, such as {folder}:t"
        ):
            values(folder)
        with pytest.raises(DataError, match=r"no split 'tset'; there are .*train"):
            values(f"{folder}:tset")


def test_a_null_is_no_key_at_any_depth_and_in_any_format(tmp_path: Path) -> None:
    message = {
        "role": "user",
        "content": "Hi",
        "name": None,
        "calls": [{"id": None, "args": {"x": None, "y": 1}}, None],
    }
    row = {
        "prompt": None,
        "messages": [message],
        "score": float("nan"),
        "n": 0,
        "ok": False,
        "empty": {"a": None},
    }
    said = {"role": "user", "content": "Hi", "calls": [{"args": {"y": 1}}, None]}
    expected = {"messages": [said], "n": 0, "ok": False, "empty": {}}
    (tmp_path / "a.jsonl").write_text(json.dumps({**row, "score": None}) + "\n")
    (tmp_path / "a.json").write_text(json.dumps([{**row, "score": None}]))
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.json", "a.parquet"):
        assert values(tmp_path / name) == [expected], name


def test_columns_that_arrow_filled_with_nulls_do_not_hide_a_layout(tmp_path: Path) -> None:
    pair = {"prompt": "Hi", "chosen": "Yes", "rejected": "No"}
    pq.write_table(
        pa.Table.from_pylist([{**pair, "conversations": None, "label": None}]),
        tmp_path / "a.parquet",
    )
    assert load_comparisons(tmp_path / "a.parquet").layout == "trl_explicit"


def test_values_of_tables_become_those_of_json(tmp_path: Path) -> None:
    row = {
        "day": datetime.date(2024, 2, 29),
        "time": datetime.datetime(2024, 2, 29, 12, 30),
        "price": decimal.Decimal("2.50"),
        "whole": decimal.Decimal("3.00"),
        "small": np.float32(0.5),
        "list": np.array([1, 2]),
    }
    expected = {
        "day": "2024-02-29",
        "time": "2024-02-29T12:30:00",
        "price": 2.5,
        "whole": 3,
        "small": 0.5,
        "list": [1, 2],
    }
    assert plain(row) == expected
    assert json.dumps(plain(row)) and type(plain(row)["whole"]) is int
    columns = {
        "when": pa.array([row["time"]], pa.timestamp("ns")),
        "tags": pa.array([[("a", 1)]], pa.map_("str", "i4")),
    }
    pq.write_table(
        pa.table({**columns, "kind": pa.array(["x"]).dictionary_encode()}), tmp_path / "a.parquet"
    )
    assert values(tmp_path / "a.parquet") == [
        {"when": "2024-02-29T12:30:00", "tags": {"a": 1}, "kind": "x"}
    ]


def test_bytes_and_infinite_numbers_cost_their_row(tmp_path: Path) -> None:
    rows = [
        {"p": "a", "image": {"bytes": b"\x89PNG"}},
        {"p": "b", "image": None},
        {"p": "c", "score": float("inf")},
    ]
    pq.write_table(
        pa.Table.from_pylist(
            rows,
            pa.schema(
                {
                    "p": pa.string(),
                    "image": pa.struct({"bytes": pa.binary()}),
                    "score": pa.float64(),
                }
            ),
        ),
        tmp_path / "a.parquet",
    )
    first, second, third = read_rows(tmp_path / "a.parquet")
    assert first.problem == "its 'image.bytes' is 4 bytes (a picture, a sound?), expected text"
    assert json.dumps(first.value) and second == RawRow(2, {"p": "b"})
    assert third.problem == "its 'score' is an infinite number"


TWICE = '{"prompt": "a", "meta": {"k": 1, "k": 2}}'
LARGE = '{"prompt": "a", "score": 1e999}'
NAN = '{"prompt": "a", "score": NaN}'
LONG = '{"prompt": "a", "n": ' + "9" * 5000 + "}"
BROKEN = '{"prompt": "a", "b": "], [{", "n": [1, 2,]}'
DEEP = '{"prompt": "a", "n": ' + "[" * 3000 + "]" * 3000 + "}"
FAULTS = {
    BROKEN: "Expecting value",
    DEEP: "nested too deeply",
    TWICE: "has the key 'k' twice",
    LARGE: "holds 1e999",
    NAN: "holds NaN, which is no JSON",
    LONG: "more digits than can be read",
}


@pytest.mark.parametrize("fault", FAULTS, ids=["broken", "deep", "twice", "large", "nan", "long"])
def test_a_fault_of_one_row_costs_that_row_in_lines_and_in_an_array(
    tmp_path: Path, fault: str
) -> None:
    good = ['{"prompt": "x"}', '{"prompt": "y"}']
    (tmp_path / "a.jsonl").write_text("\n".join([good[0], fault, good[1]]))
    (tmp_path / "a.json").write_text(f"[{good[0]},\n {fault} ,{good[1]}]")
    for name in ("a.jsonl", "a.json"):
        checked = load_prompts(tmp_path / name, bad_rows="quarantine")
        assert len(checked.records) == 2 and checked.findings[0].row == 2
        assert FAULTS[fault] in checked.findings[0].problem
        assert checked.quarantine and json.loads(checked.quarantine.read_text())["raw"] == fault


def test_an_element_whose_end_nobody_knows_leaves_the_array_unread(tmp_path: Path) -> None:
    for broken in ('{"prompt": "a}', '{"prompt": "a"}}', '{"prompt": "a" "b" {', "a, b"):
        (tmp_path / "a.json").write_text(f'[{{"prompt": "x"}},\n{broken}, {{"prompt": "y"}}]')
        with pytest.raises(DataError, match=r"a\.json: line 2, column"):
            load_prompts(tmp_path / "a.json", bad_rows="quarantine")


def test_a_line_or_element_without_end_does_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("json_rows", "tables"):
        monkeypatch.setattr(f"prefloop.data.{module}.LONGEST", 100_000)
    good, long = '{"prompt": "x"}', '{"prompt": "' + "y" * 300_000 + '"}'
    (tmp_path / "a.jsonl").write_text(f"{good}\n{long}\n{good}\n" + "\0" * 300_000)
    first, second, third, zeros = read_rows(tmp_path / "a.jsonl")
    assert first == RawRow(1, {"prompt": "x"}) and third == RawRow(3, {"prompt": "x"})
    for row in (second, zeros):
        assert row.problem and "no row of texts is" in row.problem and len(row.value) == 1000
    (tmp_path / "a.json").write_text(f"[{good}, {long}]")
    (tmp_path / "a.csv").write_text(f"prompt,b\nx,y\n{'z' * 300_000},y\n")
    for name in ("a.json", "a.csv"):
        with pytest.raises(DataError, match=r"longer than .* which no row of texts is"):
            list(read_rows(tmp_path / name))


def test_a_row_of_endless_columns_is_named(tmp_path: Path) -> None:
    wide = {f"k{i}": "x" for i in range(300_000)}
    (tmp_path / "a.jsonl").write_text('{"prompt": "x"}\n' + json.dumps(wide))
    (tmp_path / "a.csv").write_text(",".join(wide) + "\n")
    _, row = read_rows(tmp_path / "a.jsonl")
    assert row.problem and row.problem.startswith(
        "has 300,000 keys, and no row has more than 4,000"
    )
    with pytest.raises(DataError, match="has 300,000 columns"):
        list(read_rows(tmp_path / "a.csv"))


def test_an_arrow_file_with_offsets_beyond_its_texts_is_broken(tmp_path: Path) -> None:
    table = pa.table({"prompt": ["hi" * 8]})
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    good = (tmp_path / "a.arrow").read_bytes()
    offsets = np.array([0, 16], "int32").tobytes()
    (tmp_path / "a.arrow").write_bytes(
        good.replace(offsets, np.array([0, 1 << 30], "int32").tobytes())
    )
    with pytest.raises(DataError, match="broken or cut Arrow file"):
        list(read_rows(tmp_path / "a.arrow"))


def test_a_pipe_or_a_device_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    for path in (tmp_path / "pipe.jsonl", Path("/dev/zero")):
        with pytest.raises(DataError, match="is a pipe or a device"):
            list(read_rows(path))


def test_a_null_given_twice_is_twice_too(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": null, "prompt": "x"}\n{"a": null, "b": null}\n')
    first, second = read_rows(tmp_path / "a.jsonl")
    assert first.problem == "has the key 'prompt' twice in one object; keep one of them"
    assert second == RawRow(2, {})


def test_a_byte_that_is_no_utf8_costs_its_row_in_an_array_and_in_csv(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(
        b'[{"prompt": "caf\xe9"}, {"prompt": "caf\xc3\xa9 \\udc80"}, {"prompt": "x"}]'
    )
    first, second, third = read_rows(tmp_path / "a.json")
    assert (
        first.problem and "is not UTF-8 (byte 0xe9)" in first.problem and "caf\\xe9" in first.value
    )
    assert second.problem is None and third.value == {"prompt": "x"}
    (tmp_path / "a.csv").write_bytes(b"prompt,note\ncaf\xe9,x\nok,\n")
    first, second = read_rows(tmp_path / "a.csv")
    assert first.problem and "WINDOWS-1252" in first.problem and second.value == {"prompt": "ok"}


def test_a_row_of_csv_with_another_number_of_cells_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('prompt,chosen,rejected\nq,"two\nlines",no\nq,a, b, c\n\nq,x\n')
    rows = list(read_rows(tmp_path / "a.csv"))
    assert [row.number for row in rows] == [1, 2, 3] and rows[0].problem is None
    assert (
        rows[1].problem
        and "has 4 cells where the header has 3 (it ends in line 4)" in rows[1].problem
    )
    assert rows[2].problem and "has 2 cells" in rows[2].problem and rows[2].value == ["q", "x"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b,a\n1,2,3\n", "names the column 'a' twice"),
        ('a,b\n1,"2" x\n', r"the quotes of row 1 \(line 2\) are broken"),
        ('a,b\n1,"2\n3,4\n', r"the quotes of row 1 .* are broken"),
    ],
)
def test_csv_that_cannot_be_followed_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        list(read_rows(tmp_path / "a.csv"))


def test_broken_tables_are_errors_that_name_the_file(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS * 100), tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    with pa.ipc.new_stream(str(tmp_path / "a.arrow"), pa.schema({"a": pa.string()})) as writer:
        writer.write_table(pa.table({"a": ["x" * 1000] * 100}))
    cut = {
        "cut.parquet": whole[:-20],
        "short.parquet": whole[:5],
        "cut.arrow": (tmp_path / "a.arrow").read_bytes()[:-9000],
    }
    for name, content in cut.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"{name} is a .*cut .* file.* again"):
            list(read_rows(tmp_path / name))


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_a_cut_or_broken_compressed_file_is_an_error_and_not_a_short_one(
    tmp_path: Path, ending: str
) -> None:
    lines = "".join(
        json.dumps({"prompt": f"{i * 7919 % 100_003}"}) + "\n" for i in range(50_000)
    ).encode()
    whole = gzip.compress(lines) if ending == "gz" else zstd(lines)
    path = tmp_path / f"x.jsonl.{ending}"
    path.write_bytes(whole)
    assert count_rows(path) == 50_000
    for content in (whole[:-30], whole[: len(whole) // 2], whole + b"junk" * 9):
        path.write_bytes(content)
        with pytest.raises(
            DataError, match=rf"x\.jsonl\.{ending} is a broken or incomplete \w+ file"
        ):
            list(read_rows(path))
    path.write_bytes(lines)
    with pytest.raises(DataError, match=r"is not a \w+ file although its name ends in"):
        list(read_rows(path))
