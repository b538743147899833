"""Artifacts are complete or not there; locks die with their holder."""

import contextlib
import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefloop.artifacts import store as store_module
from prefloop.artifacts.manifest import MANIFEST, Manifest
from prefloop.artifacts.store import Store, run_lock, try_lock
from prefloop.base.jsonl import read_rows, write_rows
from prefloop.base.sealed import digest, write_json
from prefloop.errors import DataError, StoreError
from prefloop.pipeline.pipeline import full_disk

KEY = "0123456789abcdef" * 4
DETAILS = Manifest("sft", KEY, metrics={"loss": 0.5}, seconds=1.5, status="ran")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def fill(store: Store) -> Path:
    work = store.work_folder("sft", KEY)
    (work / "sub").mkdir(exist_ok=True)
    (work / "weights.bin").write_bytes(b"weights" * 100)
    (work / "sub" / "rows.jsonl").write_text('{"a": 1}\n')
    return work


def artifacts(store: Store) -> list[str]:
    return sorted(p.name for p in store.root.iterdir() if p.name not in ("work", "locks"))


def test_a_committed_artifact_is_found_with_its_manifest_and_files(store: Store) -> None:
    work = fill(store)
    committed = store.commit(DETAILS)
    found = store.get("sft", KEY)
    assert found is not None
    assert found.path == committed.path
    assert (found.status, committed.status) == ("reused", "ran")
    assert (found.stage, found.key, found.metrics, found.seconds) == (
        "sft",
        KEY,
        {"loss": 0.5},
        1.5,
    )
    assert set(found.manifest.files) == {"weights.bin", "sub/rows.jsonl"}
    assert (found / "weights.bin").read_bytes() == b"weights" * 100
    assert not work.exists()


def test_a_work_folder_without_commit_is_not_an_artifact_and_survives(store: Store) -> None:
    fill(store)
    assert store.get("sft", KEY) is None
    assert artifacts(store) == []
    assert (Store(store.root).work_folder("sft", KEY) / "weights.bin").is_file()


def test_the_artifact_appears_in_one_rename(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    work = fill(store)
    (work / "checkpoints").mkdir()
    (work / "checkpoints" / "step").write_text("state")

    def killed(self: Path, target: Path) -> None:
        assert (self / MANIFEST).is_file()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", killed)
        store.commit(DETAILS)
    assert store.get("sft", KEY) is None
    assert (work / "checkpoints" / "step").is_file()  # to go on from
    store.commit(DETAILS)
    found = store.get("sft", KEY)
    assert found is not None
    assert set(found.manifest.files) == {"weights.bin", "sub/rows.jsonl"}
    assert not (found / "checkpoints").exists()


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "manifest", "manifest field"])
def test_a_damaged_artifact_is_reported_removed_and_can_be_built_again(
    damage: str, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(store)
    path = store.commit(DETAILS).path
    target = path / "weights.bin"
    if damage == "flip":
        target.write_bytes(b"Weights" + target.read_bytes()[7:])
    elif damage == "truncate":
        target.write_bytes(target.read_bytes()[:-1])
    elif damage == "delete":
        target.unlink()
    elif damage == "manifest":
        (path / MANIFEST).write_text('{"files": {')
    else:
        (path / MANIFEST).write_text("{}")
    assert store.get("sft", KEY) is None
    assert not path.exists()
    said = capsys.readouterr().out
    assert "damaged" in said
    assert ("manifest.json" if "manifest" in damage else "'weights.bin'") in said
    fill(store)
    store.commit(DETAILS)
    assert store.get("sft", KEY) is not None


def test_the_rest_of_a_half_removed_artifact_does_not_block_the_next(store: Store) -> None:
    fill(store)
    path = store.commit(DETAILS).path
    (path / MANIFEST).unlink()
    assert store.get("sft", KEY) is None
    fill(store)
    store.commit(DETAILS)
    assert store.get("sft", KEY) is not None


@pytest.mark.parametrize("target", ["weights.bin", "sub", "nowhere"])
def test_a_link_in_a_stages_folder_is_refused_by_name(target: str, store: Store) -> None:
    work = fill(store)
    (work / "checkpoints").mkdir()
    (work / "checkpoints" / "last").symlink_to("step")  # goes with its folder
    (work / "alias").symlink_to(target)
    with pytest.raises(StoreError, match=r"alias: is a link"):
        store.commit(DETAILS)
    assert artifacts(store) == []
    (work / "alias").unlink()
    assert "alias" not in store.commit(DETAILS).manifest.files


def test_checkpoints_are_not_put_on_disk_just_before_they_go(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = fill(store)
    (work / "checkpoints" / "step-1").mkdir(parents=True)
    (work / "checkpoints" / "step-1" / "state").write_text("state")
    synced: list[Path] = []
    monkeypatch.setattr("prefloop.base.atomic.sync", synced.append)
    store.commit(DETAILS)
    assert work / "weights.bin" in synced and not [
        place for place in synced if "checkpoints" in place.parts
    ]


def test_a_lock_of_another_user_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder may be written, the lock may not."""
    opened = Path.open

    def refuses(self: Path, *more: str, **named: str) -> object:
        if self.name == ".lock":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return opened(self, *more, **named)

    monkeypatch.setattr(Path, "open", refuses)
    with (
        pytest.raises(StoreError, match=r"run/\.lock: Permission denied"),
        run_lock(tmp_path / "run"),
    ):
        pass


def test_write_json_never_leaves_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_json(path, {"n": 1})
    with pytest.raises(TypeError):
        write_json(path, {"n": 2, "bad": object()})
    assert json.loads(path.read_text()) == {"n": 1}


def test_digest_does_not_depend_on_dictionary_order() -> None:
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    rows = [{"text": "Żółć\u2028🙂\n"}, {"text": "", "n": 1}]
    write_rows(tmp_path / "rows.jsonl", rows)
    assert list(read_rows(tmp_path / "rows.jsonl")) == rows


LOCK = """
import sys
from pathlib import Path
from prefloop.artifacts.store import Store
with Store(Path(sys.argv[1])).lock("sft", sys.argv[2]):
    print("acquired", Path(sys.argv[3]).exists(), flush=True)
    sys.stdin.readline()
"""
RUN_LOCK = """
import os, sys
from pathlib import Path
from prefloop.artifacts.store import run_lock
with run_lock(Path(sys.argv[1])):
    print(os.getpid(), flush=True)
    sys.stdin.readline()
"""


@contextlib.contextmanager
def process(code: str, *args: object) -> Iterator[subprocess.Popen[str]]:
    """A second Python process; ends with its pipe at the latest."""
    source = str(Path(store_module.__file__).parents[2])
    command = [sys.executable, "-c", code, *map(str, args)]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": source},
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def test_a_second_process_waits_for_the_lock_and_says_so(store: Store, tmp_path: Path) -> None:
    done = tmp_path / "done"
    with contextlib.ExitStack() as held:
        lock = held.enter_context(contextlib.ExitStack())
        lock.enter_context(store.lock("sft", KEY))
        child = held.enter_context(process(LOCK, store.root, KEY, done))
        assert "another process is building this artifact" in line(child)
        done.touch()
        lock.close()
        assert line(child) == "acquired True"


def test_another_artifact_is_not_locked(store: Store, tmp_path: Path) -> None:
    with store.lock("sft", KEY), process(LOCK, store.root, "f" * 64, tmp_path / "done") as child:
        assert line(child) == "acquired False"


def test_a_killed_holder_frees_the_lock(store: Store, tmp_path: Path) -> None:
    with process(LOCK, store.root, KEY, tmp_path / "done") as child:
        assert line(child) == "acquired False"
        with (store.root / "locks" / f"sft-{KEY[:16]}").open("a") as handle:
            assert not try_lock(handle)
        child.kill()
        child.wait()
        with (store.root / "locks" / f"sft-{KEY[:16]}").open("a") as handle:
            assert try_lock(handle)


def test_a_run_in_progress_refuses_a_second_process_with_its_pid(tmp_path: Path) -> None:
    run = tmp_path / "first"
    with process(RUN_LOCK, run) as child:
        pid = line(child)
        with (
            pytest.raises(
                StoreError,
                match=rf"run 'first' is in progress \(process {pid}\): wait for it to end",
            ),
            run_lock(run),
        ):
            pass
        child.kill()
        child.wait()
        with run_lock(run):
            assert (run / ".lock").read_text() == str(os.getpid())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip(
            "mounting a tmpfs is not permitted here; the simulated full disk is tested below"
        )
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_nothing_in_the_store_and_the_work_to_go_on_with(
    small_disk: Path,
) -> None:
    store = Store(small_disk)
    fill(store)
    with (small_disk / "ballast").open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
        while ballast.write(b"x" * 4096):
            pass
    with pytest.raises(DataError, match="No space left") as caught:
        store.commit(DETAILS)
    assert full_disk(caught.value)
    assert store.get("sft", KEY) is None
    (small_disk / "ballast").unlink()
    assert artifacts(store) == []
    store.commit(DETAILS)
    found = store.get("sft", KEY)
    assert found is not None
    assert set(found.manifest.files) == {"weights.bin", "sub/rows.jsonl"}


def test_a_simulated_full_disk_leaves_nothing_in_the_store(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(DataError, match="No space left"):
        patch.setattr(os, "fsync", full)
        store.commit(DETAILS)
    assert store.get("sft", KEY) is None
    assert artifacts(store) == []
    store.commit(DETAILS)
    found = store.get("sft", KEY)
    assert found is not None
    assert set(found.manifest.files) == {"weights.bin", "sub/rows.jsonl"}
