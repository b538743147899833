"""What a file is that holds no rows is told with the way out; no message grows with what people's
files hold.
"""

from __future__ import annotations

import gzip
import io
import json
import pickle
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefloop.base.console import MOST_SAID
from prefloop.cli import _main, guarded
from prefloop.data.files import read_rows
from prefloop.data.source import Source
from prefloop.data.sources import detect_layout, load_comparisons, load_prompts
from prefloop.errors import DataError

ROW = {"prompt": "Hi", "chosen": "Yes", "rejected": "No"}
LINES = (json.dumps(ROW) + "\n").encode() * 3


def zipped(*names: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in names:
            archive.writestr(name, LINES)
    return out.getvalue()


def tarred() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo("train.jsonl")
        info.size = len(LINES)
        archive.addfile(info, io.BytesIO(LINES))
    return out.getvalue()


FOREIGN = {
    "a.zip": (
        zipped("train.jsonl", "b"),
        r"is a zip archive, which holds train\.jsonl, b; unpack it \(unzip",
    ),
    "a.xlsx": (zipped("xl/workbook.xml"), "is an Excel file; save the sheet as CSV"),
    "a.pt": (zipped("model/data.pkl"), "is a file of torch.save"),
    "a.tar": (tarred(), r"is a tar archive; unpack it \(tar -xf"),
    "a.tar.gz": (gzip.compress(tarred()), "is a tar archive"),
    "a.7z": (b"7z\xbc\xaf\x27\x1c....", "is a 7z archive"),
    "a.pkl": (pickle.dumps([ROW]), "is a pickle, which can run any code"),
    "a.pdf": (b"%PDF-1.7 ...", "is a PDF"),
    "a.xls": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "old Excel"),
    "a.db": (b"SQLite format 3\x00", "SQLite"),
    "le.jsonl": (
        LINES.decode().encode("utf-16"),
        "is UTF-16; save it as UTF-8: iconv -f UTF-16 -t UTF-8",
    ),
    "no-bom.jsonl": (
        LINES.decode().encode("utf-16-le"),
        "is UTF-16LE; save it as UTF-8: iconv -f UTF-16LE",
    ),
    "a32.jsonl": (LINES.decode().encode("utf-32"), "is UTF-32; save"),
    "lfs.jsonl": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
        r"pointer of git LFS.*git lfs pull",
    ),
    "page.jsonl": (b"\n<!DOCTYPE html>\n<html>", "is a web page and not data"),
    "a.xml": (b"<?xml version='1.0'?>", "is XML"),
    "a.yaml": (b"- prompt: Hi\n  chosen: Yes\n", r"is YAML; save its rows as JSON lines: yq"),
    "list.jsonl": (b"- prompt: Hi\n  chosen: Yes\n", "is YAML"),
    "cut.parquet": (b"PAR1", "is a cut parquet file"),
    "wrapped.json": (
        json.dumps({"version": 1, "data": [ROW] * 3}, indent=1).encode(),
        r"rows stand under 'data'.*jq -c '\.data\[\]' .*> out\.jsonl",
    ),
    "odd-key.json": (
        json.dumps({"my rows": [ROW]}, indent=1).encode(),
        r"jq -c '\.\"my rows\"\[\]'",
    ),
    "large.json": (
        json.dumps({"data": [{"p": "x" * 300}] * 2000}, indent=1).encode(),
        "rows stand under 'data'",
    ),
    "single.json": (
        json.dumps(ROW, indent=1).encode(),
        r"is one JSON object \(keys: prompt, chosen, rejected\) and no list",
    ),
    "talk.json": (
        json.dumps({"messages": [{"role": "user", "content": "Hi"}]}, indent=1).encode(),
        "is one JSON object",
    ),
    "pretty.json": (
        b"".join(json.dumps(ROW, indent=2).encode() + b"\n" for _ in range(3)),
        r"objects over several lines each; .*jq -c \.",
    ),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_a_file_is_instead_is_told_with_the_way_out(tmp_path: Path, name: str) -> None:
    content, message = FOREIGN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        list(read_rows(tmp_path / name))
    assert name in str(error.value) and len(str(error.value).splitlines()) == 1


def test_a_wrapped_list_on_one_line_is_told_by_layout_detection(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"data": [ROW] * 3}))
    with pytest.raises(DataError, match=r"rows stand under 'data'; take them out: jq"):
        detect_layout(tmp_path / "a.json")
    (tmp_path / "b.json").write_text(json.dumps({"messages": [{"role": "user", "content": "Hi"}]}))
    assert detect_layout(tmp_path / "b.json") == "messages"


def test_a_broken_first_line_is_a_bad_row_and_not_another_kind_of_file(tmp_path: Path) -> None:
    for first in (b'{"prompt": "x", \n', b'{"prompt": "x\n', b"{\n", b'{"prompt": "x"}}\n'):
        (tmp_path / "a.jsonl").write_bytes(first + LINES)
        checked = load_comparisons(tmp_path / "a.jsonl", bad_rows="quarantine")
        assert len(checked.records) == 3 and [finding.row for finding in checked.findings] == [1], (
            first
        )


def test_text_that_looks_like_a_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("ORCID,prompt\n1,Hi\n")
    (tmp_path / "b.csv").write_text("prompt,note\n- a: b,x\n")
    assert [
        row.value["prompt"] for name in "ab" for row in read_rows(tmp_path / f"{name}.csv")
    ] == ["Hi", "- a: b"]


def test_a_folder_of_other_files_suggests_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINES)
    with pytest.raises(
        DataError,
        match=r"is a folder without parquet or Arrow files \(it holds a\.jsonl\).*/\*\.jsonl",
    ):
        list(read_rows(tmp_path))
    with pytest.raises(DataError, match="no file fits the pattern"):
        list(read_rows(f"{tmp_path}/*.parquet"))


def test_files_beside_shards_are_never_left_out_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(
        pa.Table.from_pylist([{"prompt": "p", "chosen": "a", "rejected": "b"}]),
        tmp_path / "x.parquet",
    )
    for name in ("README.md", "dataset_infos.json", ".hidden"):
        (tmp_path / name).write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert Source.of(".").name == tmp_path.name and len(list(read_rows("."))) == 1
    for name in ("a.jsonl", "b.csv.gz", "c.json", "d.tsv"):
        (tmp_path / name).write_bytes(LINES)
        with pytest.raises(
            DataError, match=rf"\(1 of them\), and would leave out {name}: .*'\./\*\.parquet'"
        ):
            list(read_rows("."))
        (tmp_path / name).unlink()


def test_no_message_grows_with_the_keys_and_values_of_a_row(tmp_path: Path) -> None:
    many = {f"key {i} " + "k" * 200: i for i in range(20_000)}
    texts = {
        "unknown": json.dumps(many),
        "missing": json.dumps({"prompt": "x", "chosen": "y", **many}),
        "value": json.dumps(
            {"id": "a", "prompt": "x", "response": {"text": "y", "k" * 100_000: 1}}
        ),
        "object": json.dumps({"data": many}, indent=1),
        "list": "[" + json.dumps(many) + ",,",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.json").write_text(text + "\n")
        with pytest.raises(DataError) as error:
            load_comparisons(
                tmp_path / f"{name}.json", layout="trl_explicit" if name == "missing" else "auto"
            )
        assert len(str(error.value)) < 5_000, name


def test_rows_have_no_power_over_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"prompt": "x", "chosen": "y", "\x1b]0;owned\x07\x1b[31mred": 1}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(ROW) + "\n")
    assert guarded(_main, ["check", str(tmp_path / "a.jsonl"), "--layout", "trl_explicit"]) == 2
    assert (
        guarded(_main, ["check", str(tmp_path / "a.jsonl"), "--quarantine", str(tmp_path / "q")])
        == 0
    )
    (tmp_path / "b.jsonl").write_text('{"prompt": "x", "\\u001b[31m": 1, "\\u001b[31m": 2}\n')
    assert guarded(_main, ["check", str(tmp_path / "b.jsonl")]) == 2
    said = "".join(capsys.readouterr())
    assert (
        "\x1b" not in said
        and "\x07" not in said
        and "␛]0;owned␇␛[31mred" in said
        and "'␛[31m' twice" in said
    )


def test_an_endless_error_is_cut_at_the_door(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(_: object) -> None:
        raise DataError("x" * 10 * MOST_SAID)

    assert guarded(fail, []) == 2
    assert len(capsys.readouterr().err) < MOST_SAID + 100


def test_an_empty_file_is_told_as_such(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.csv", "a.jsonl.gz", "a.tsv"):
        (tmp_path / name).write_bytes(gzip.compress(b"") if name.endswith("gz") else b"")
        with pytest.raises(DataError, match=rf"{name} is empty: it holds no rows"):
            load_prompts(tmp_path / name)
