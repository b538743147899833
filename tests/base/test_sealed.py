"""What we wrote is read back whole, or refused by name."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from prefloop.artifacts.manifest import MANIFEST, Manifest, read_manifest
from prefloop.base import atomic
from prefloop.base.atomic import cut_torn_line
from prefloop.base.sealed import (
    SEAL,
    check_files,
    copy_file,
    digest,
    file_digest,
    read_folder,
    read_sealed,
    seal_folder,
    write_json,
    write_sealed,
)
from prefloop.errors import StoreError

CONTENT = {
    "a": {"loss": 0.1, "n": 3, "none": None, "nan": float("inf")},
    "text": "Żółć 🙂",
    "list": [1, 2.5, True],
}


def test_every_flipped_bit_is_found_or_changes_nothing_that_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_sealed(path, CONTENT)
    whole = path.read_bytes()
    assert read_sealed(path) == CONTENT
    for place in range(8 * len(whole)):
        content = bytearray(whole)
        content[place // 8] ^= 1 << place % 8
        path.write_bytes(content)
        try:
            assert read_sealed(path) == CONTENT
        except StoreError as error:
            assert str(path) in str(error)


def test_keys_that_json_turns_into_text_and_tuples_keep_the_digest(tmp_path: Path) -> None:
    write_sealed(tmp_path / "a.json", {"losses": {2: 0.5, 10: 0.25}, "pair": (1, 2)})
    assert read_sealed(tmp_path / "a.json") == {"losses": {"2": 0.5, "10": 0.25}, "pair": [1, 2]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b'{"a": 1', "not valid JSON"),
        (b'{"a": "\xff"}', "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[1, 2]", "an object was written and something else is there"),
        (b"null", "an object was written"),
        (b'{"a": "\\ud800", "digest": "x"}', "damaged"),
        (b'{"a": 1, "digest": 5}', "not what its digest says"),
        (b'{"a": 1}', "holds no digest of its content"),
    ],
)
def test_what_is_not_ours_is_refused_with_the_name_of_the_file(
    content: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(StoreError, match=message) as caught:
        read_sealed(path)
    assert str(path) in str(caught.value) and len(str(caught.value)) < 600


def test_names_that_are_no_utf_8_are_kept_in_a_file_that_is(tmp_path: Path) -> None:
    content = {"command": "train caf\udce9.jsonl", "reads": {"Żółć \udcff": "🙂"}}
    write_sealed(tmp_path / "a.json", content)
    assert read_sealed(tmp_path / "a.json") == content
    assert "Żółć" in (tmp_path / "a.json").read_text(encoding="utf-8")


def test_content_with_the_key_of_the_digest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'digest' is the key of the digest itself"):
        write_sealed(tmp_path / "a.json", {"digest": 1})
    assert not (tmp_path / "a.json").exists()


def test_no_file_a_folder_and_a_pipe_are_refused(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe")
    for name, message in (
        ("none", "cannot be read"),
        (".", "no regular file"),
        ("pipe", "no regular file"),
    ):
        with pytest.raises(StoreError, match=message):
            read_sealed(tmp_path / name)


def test_a_file_of_an_earlier_version_is_read_where_it_may_be(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": 1})
    assert read_sealed(tmp_path / "a.json", required=False) == {"a": 1}
    write_json(tmp_path / "a.json", {"a": 2, "digest": digest({"a": 1})})
    with pytest.raises(StoreError, match="not what its digest says"):
        read_sealed(tmp_path / "a.json", required=False)


NAMES = (
    "../evil",
    "/etc/passwd",
    "a/../../evil",
    "",
    ".",
    "a\0b",
    "link",
    "behind/file",
    "x" * 300,
    "folder",
    "./plain",
    "folder/",
    "folder//in",
)


@pytest.mark.parametrize("name", NAMES)
def test_no_name_leads_out_of_its_folder(name: str, tmp_path: Path) -> None:
    folder, outside = tmp_path / "in", tmp_path / "out"
    (folder / "folder").mkdir(parents=True)
    outside.mkdir()
    (folder / "plain").write_text("secret")
    (folder / "folder" / "in").write_text("secret")
    (outside / "file").write_text("secret")
    (tmp_path / "evil").write_text("secret")
    (folder / "link").symlink_to(outside / "file")
    (folder / "behind").symlink_to(outside)
    hashed = file_digest(outside / "file")
    with pytest.raises(StoreError):
        check_files(folder, {name: hashed})
    with pytest.raises(StoreError):
        copy_file(folder, name, hashed, tmp_path / "copies" / "copy")
    assert not (tmp_path / "copies" / "copy").exists()


def test_a_copy_is_compared_while_it_is_made(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("one")
    copy_file(tmp_path, "a", file_digest(tmp_path / "a"), tmp_path / "b")
    assert (tmp_path / "b").read_text() == "one"
    with pytest.raises(StoreError, match="file 'a' is damaged"):
        copy_file(tmp_path, "a", "0" * 64, tmp_path / "c")


def test_a_folder_is_on_disk_before_it_has_its_name_and_its_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft, target = tmp_path / "draft", tmp_path / "target"
    (draft / "sub").mkdir(parents=True)
    (draft / "sub" / "weights").write_text("w")
    synced: list[tuple[str, bool]] = []
    sync = atomic.sync

    def watched(place: Path) -> None:
        synced.append((place.relative_to(tmp_path).as_posix(), target.exists()))
        sync(place)

    monkeypatch.setattr(atomic, "sync", watched)
    seal_folder(draft, target, {"step": 3})
    before = {name for name, named in synced if not named}
    assert {"draft", "draft/sub", "draft/sub/weights", f"draft/{SEAL}"} <= before
    assert synced[-1] == (".", True)
    assert read_folder(target)["step"] == 3
    (target / "sub" / "weights").write_text("v")
    with pytest.raises(StoreError, match="'sub/weights' is damaged"):
        read_folder(target)


WRONG: dict[str, Callable[[dict], object]] = {
    "seconds": lambda made: made.update(seconds="long"),
    "inputs": lambda made: made.update(inputs=["sft"]),
    "metrics": lambda made: made.update(metrics=None),
    "key": lambda made: made.pop("key"),
    "stage": lambda made: made.update(stage="../ppo"),
    "files": lambda made: made.update(files={"a": 1}),
    "inputs.sft": lambda made: made.update(inputs={"sft": "*/../.."}),
}


@pytest.mark.parametrize("field", WRONG)
def test_a_manifest_of_wrong_fields_is_refused_by_name(field: str, tmp_path: Path) -> None:
    content = Manifest("ppo", "k" * 64, inputs={"sft": "s" * 64}, files={"a": "0" * 64}).to_dict()
    write_sealed(tmp_path / MANIFEST, content)
    assert read_manifest(tmp_path).inputs == {"sft": "s" * 64}
    WRONG[field](content)
    write_sealed(tmp_path / MANIFEST, content)
    with pytest.raises(StoreError, match=r"manifest\.json: damaged"):
        read_manifest(tmp_path)
    del content  # one of an earlier version, with less in it
    write_json(tmp_path / MANIFEST, {"stage": "ppo", "key": "k" * 64, "files": {}})
    assert read_manifest(tmp_path, required=False).seconds == 0


@pytest.mark.parametrize(
    ("content", "left"),
    [
        (b"", b""),
        (b'{"a": 1}\n', b'{"a": 1}\n'),
        (b'{"a": 1}\n{"b', b'{"a": 1}\n'),
        (b'{"a": 1}\n\0\0\0', b'{"a": 1}\n'),
        (b'{"half', b""),
        (b"1\n" + b"x" * 200_000, b"1\n"),
    ],
)
def test_what_a_power_cut_left_of_a_line_goes(content: bytes, left: bytes, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    cut_torn_line(path)
    assert not path.exists()
    path.write_bytes(content)
    cut_torn_line(path)
    assert path.read_bytes() == left


def test_json_is_plain_for_other_programs(tmp_path: Path) -> None:
    write_sealed(tmp_path / "a.json", {"a": 1})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1, "digest": digest({"a": 1})}
