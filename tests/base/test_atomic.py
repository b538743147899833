"""A file is replaced as a whole, and nothing but a file is replaced."""

import os
from pathlib import Path

import pytest

from prefloop.base.atomic import replacing
from prefloop.base.sealed import write_json
from prefloop.cli import _main, guarded
from prefloop.errors import DataError


def test_an_error_half_way_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(path) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]
    with replacing(path) as file:
        file.write(b"new")
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["a.txt"]


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path: Path) -> None:
    target, link = tmp_path / "target.txt", tmp_path / "link.txt"
    target.write_text("old")
    link.symlink_to(target)
    with replacing(link) as file:
        file.write(b"new")
    assert link.is_symlink() and target.read_text() == "new"


def test_devices_pipes_and_folders_are_never_replaced(tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "null"
    os.mkfifo(pipe)
    link.symlink_to("/dev/null")
    for path, kind in (
        (pipe, "no regular file"),
        (link, "no regular file"),
        (tmp_path, "a folder"),
    ):
        with (
            pytest.raises(DataError, match=f"cannot write .*: it is {kind}; name a file"),
            replacing(path),
        ):
            pass
    assert pipe.is_fifo() and link.is_symlink() and Path("/dev/null").is_char_device()
    with pytest.raises(DataError, match=r"cannot write /proc/x/a\.json"):
        write_json(Path("/proc/x/a.json"), {})


def test_a_folder_named_as_output_is_told_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "a.jsonl"
    rows.write_text(
        '{"prompt": "p", "responses": [{"text": "a"}, {"text": "b"}], "votes": [{"annotator": "x",'
        ' "choice": 0}]}\n'
    )
    assert guarded(_main, ["label", "agree", str(rows), "--output", str(tmp_path)]) == 2
    assert "it is a folder; name a file" in capsys.readouterr().err


def test_what_a_killed_writer_left_does_not_enter_an_artifact(tmp_path: Path) -> None:
    from prefloop.artifacts.manifest import Manifest
    from prefloop.artifacts.store import Store

    store = Store(tmp_path)
    folder = store.work_folder("sft", "k" * 64)
    (folder / "rows.jsonl").write_text("{}")
    (folder / ".rows.jsonl.123-abcd.part").write_text("{")
    artifact = store.commit(Manifest("sft", "k" * 64))
    assert list(artifact.manifest.files) == ["rows.jsonl"]
