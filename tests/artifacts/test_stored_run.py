"""A run whose folder or store is damaged, in the way, or may only be read: it is served, built
again, or refused by name.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prefloop.artifacts.manifest import MANIFEST
from prefloop.artifacts.store import Artifact, Store, run_lock
from prefloop.base.jsonl import write_rows
from prefloop.base.sealed import read_sealed, write_json
from prefloop.cli import _main, guarded
from prefloop.errors import ConfigError, DataError, PrefloopError, StoreError
from prefloop.pipeline.pipeline import Pipeline
from prefloop.pipeline.stage import Stage, content
from prefloop.report.summary import Summary
from prefloop.runs.runtime import Runtime
from prefloop.runs.work import Work


class Words(Stage):
    """A stage that costs nothing; ``built`` counts."""

    built: list[str]

    def __init__(self, name: str, inputs: tuple[str, ...] = ()) -> None:
        self.name = self.produces = name
        self.inputs = inputs

    def parts(self) -> dict[str, Any]:
        return {"words": self.name}

    def build(self, work: Work, inputs: dict[str, Artifact]) -> dict[str, Any]:
        self.built.append(self.name)
        write_rows(work.folder / "rows.jsonl", [{"of": self.name}])
        return {"steps": 1, "loss_last": 0.5}


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(Words, "built", found, raising=False)
    return found


def go(output: Path, *more: Stage, command: str = "", runtime: Runtime | None = None) -> Summary:
    stages = [Words("sft"), Words("label", ("sft",)), *more]
    runtime = runtime or Runtime(rollout="transformers", output=output)
    vars(runtime).update(
        model_fingerprint="none", compute="float32", engine_name="transformers"
    )  # no stage has a model
    return Pipeline(stages, runtime).run(output / "t", command)


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], None]]:
    """Make a folder one of a file system that is mounted to be read."""

    def protect(folder: Path) -> None:
        def refuses(
            function: Callable[..., Any], writes: Callable[..., bool]
        ) -> Callable[..., Any]:
            def asked(path: Any, *more: Any, **named: Any) -> Any:
                inside = isinstance(path, str | os.PathLike) and Path(path).is_relative_to(folder)
                if inside and writes(path, *more, **named):
                    raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
                return function(path, *more, **named)

            return asked

        def writing(path: Any, mode: str = "r", *_: Any, **__: Any) -> bool:
            return bool(set(mode) & set("wax+"))

        monkeypatch.setattr(io, "open", refuses(io.open, writing))
        monkeypatch.setattr(
            os, "mkdir", refuses(os.mkdir, lambda path, *_: not os.path.lexists(path))
        )
        for name in ("unlink", "rmdir", "rename", "replace", "truncate"):
            monkeypatch.setattr(os, name, refuses(getattr(os, name), lambda *_, **__: True))
        monkeypatch.setattr(os, "symlink", refuses(os.symlink, lambda *_, **__: False))
        access = os.access
        monkeypatch.setattr(
            os,
            "access",
            lambda path, mode, **n: (
                access(path, mode, **n)
                and not (mode & os.W_OK and Path(path).is_relative_to(folder))
            ),
        )

    yield protect
    monkeypatch.undo()


def everything(folder: Path) -> dict[str, bytes | str]:
    return {
        str(p.relative_to(folder)): os.readlink(p) if p.is_symlink() else p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_symlink() or p.is_file()
    }


def test_a_finished_run_in_a_place_that_may_only_be_read_is_shown_and_not_touched(
    tmp_path: Path,
    built: list[str],
    read_only: Callable[[Path], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = go(tmp_path / "runs")
    before = everything(tmp_path)
    capsys.readouterr()
    read_only(tmp_path / "runs")
    again = go(tmp_path / "runs")
    assert built == ["sft", "label"]
    assert [s.metrics for s in again.stages] == [s.metrics for s in first.stages]
    assert everything(tmp_path) == before
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "reused label" in said
        and "cannot be written: no summary, links or report of this command are in it" in said
    )


@pytest.mark.parametrize("protected", ["runs", "runs/t", "runs/.store"])
def test_a_stage_that_is_not_stored_is_refused_before_it_runs_where_nothing_can_be_written(
    protected: str, tmp_path: Path, built: list[str], read_only: Callable[[Path], None]
) -> None:
    go(tmp_path / "runs")
    read_only(tmp_path / protected)
    with pytest.raises(StoreError, match=r"cannot be written.*--output") as caught:
        go(tmp_path / "runs", Words("ppo", ("label",)))
    assert built == ["sft", "label"] and str(tmp_path / protected) in str(caught.value)


def in_the_way(what: str) -> Callable[[Path], object]:
    def put(output: Path) -> None:
        place = output / what
        if place.is_symlink() or place.is_file():
            place.unlink()
        elif place.is_dir():
            shutil.rmtree(place)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("in the way")

    return put


@pytest.mark.parametrize(
    "what", ["", "t", ".store", ".store/locks", ".store/work", "t/artifacts", "t/artifacts/sft"]
)
def test_a_file_where_a_folder_belongs_is_refused_by_name(
    what: str, tmp_path: Path, built: list[str]
) -> None:
    in_the_way(what)(tmp_path / "runs")
    with pytest.raises(PrefloopError) as caught:
        go(tmp_path / "runs")
    assert str(tmp_path / "runs" / what) in str(caught.value)


@pytest.mark.parametrize("what", ["t/events.jsonl", "t/summary.json", ".store/work/sft"])
def test_a_folder_where_a_file_belongs_is_refused_by_name(
    what: str, tmp_path: Path, built: list[str]
) -> None:
    if what.endswith("sft"):
        go(tmp_path / "runs")
        (artifact,) = (tmp_path / "runs" / ".store").glob("sft-*")
        shutil.rmtree(artifact)
        what = f".store/work/{artifact.name}/events.jsonl"
    (tmp_path / "runs" / what).mkdir(parents=True)
    with pytest.raises(PrefloopError) as caught:
        go(tmp_path / "runs")
    assert str(tmp_path / "runs" / what) in str(caught.value)


def test_a_copied_result_in_the_place_of_a_link_is_kept(tmp_path: Path, built: list[str]) -> None:
    go(tmp_path / "runs")
    place = tmp_path / "runs" / "t" / "artifacts" / "sft"
    target = place.resolve()
    place.unlink()
    shutil.copytree(target, place)
    with pytest.raises(StoreError, match="is no link into the store: it may be a copy of a result"):
        go(tmp_path / "runs")
    assert (place / "rows.jsonl").is_file()


def test_names_that_no_disk_takes_are_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(StoreError, match=r"cannot be the folder of a run.*File name too long"),
        run_lock(tmp_path / ("x" * 300)),
    ):
        pass
    with pytest.raises(DataError, match=r"prompts: file 'x+' cannot be read: File name too long"):
        content({"prompts": Path("x" * 300)})


DAMAGED: dict[str, Callable[[Path], object]] = {
    "half": lambda path: path.write_bytes(path.read_bytes()[:50]),
    "empty": lambda path: path.write_bytes(b""),
    "not UTF-8": lambda path: path.write_bytes(b"\xff\xfe"),
    "files alone": lambda path: write_json(path, {"files": {}}),
    "a list": lambda path: write_json(path, []),
    "other figures": lambda path: path.write_text(
        path.read_text().replace('"loss_last": 0.5', '"loss_last": 0.6')
    ),
    "no digest": lambda path: write_json(path, read_sealed(path)),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a link": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_manifest_is_told_and_its_stage_built_again(
    damage: str, tmp_path: Path, built: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    first = go(tmp_path / "runs")
    (artifact,) = (tmp_path / "runs" / ".store").glob("label-*")
    DAMAGED[damage](artifact / MANIFEST)
    capsys.readouterr()
    again = go(tmp_path / "runs")
    assert built == ["sft", "label", "label"]
    assert [s.metrics for s in again.stages] == [s.metrics for s in first.stages]
    assert "label: the stored artifact is damaged" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_policy_of_an_earlier_command_is_left_out_with_one_line(
    damage: str, tmp_path: Path, built: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    go(tmp_path / "runs", Words("dpo", ("label",)))

    class Asks(Words):
        def expand(self, run: Any) -> list[Stage]:
            found.append((run.policies(), run.has("dpo")))
            return [self]

    found: list[Any] = []
    go(tmp_path / "runs", Asks("judge", ("label",)))
    (artifact,) = (tmp_path / "runs" / ".store").glob("dpo-*")
    DAMAGED[damage](artifact / MANIFEST)
    capsys.readouterr()
    go(tmp_path / "runs", Asks("judge", ("label",)))
    assert found == [(["dpo"], True), ([], False)]
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("left out dpo of an earlier command") == 1


@pytest.mark.parametrize(
    "damage", [name for name in DAMAGED if name not in ("no digest", "files alone")]
)
def test_a_damaged_summary_is_refused_by_the_report_and_written_anew_by_the_run(
    damage: str, tmp_path: Path, built: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    go(tmp_path / "runs")
    path = tmp_path / "runs" / "t" / "summary.json"
    DAMAGED[damage](path)
    assert guarded(_main, ["report", str(path.parent)]) == 2
    assert "summary.json" in capsys.readouterr().err
    if damage not in ("a folder", "a link"):
        go(tmp_path / "runs")
        assert guarded(_main, ["report", str(path.parent)]) == 0


def test_checkpoints_that_a_kill_left_in_an_artifact_go(tmp_path: Path, built: list[str]) -> None:
    go(tmp_path / "runs")
    (artifact,) = (tmp_path / "runs" / ".store").glob("label-*")
    (artifact / "checkpoints" / "step-000001").mkdir(parents=True)
    (artifact / "checkpoints" / "step-000001" / "state.safetensors").write_bytes(b"moments")
    go(tmp_path / "runs")
    assert not (artifact / "checkpoints").exists() and built == ["sft", "label"]


def test_an_artifact_of_another_stage_in_the_place_of_one_is_no_artifact_of_it(
    tmp_path: Path, built: list[str]
) -> None:
    go(tmp_path / "runs")
    store = Store(tmp_path / "runs" / ".store")
    sft, label = (
        json.loads((next(store.root.glob(f"{n}-*")) / MANIFEST).read_text())
        for n in ("sft", "label")
    )
    shutil.rmtree(store.root / f"label-{label['key'][:16]}")
    shutil.copytree(
        store.root / f"sft-{sft['key'][:16]}", store.root / f"label-{label['key'][:16]}"
    )
    assert store.get("label", label["key"]) is None and store.get("sft", sft["key"]) is not None


def test_half_a_line_of_the_log_is_gone_when_the_run_goes_on(
    tmp_path: Path, built: list[str]
) -> None:
    go(tmp_path / "runs")
    log = tmp_path / "runs" / "t" / "events.jsonl"
    with log.open("ab") as file:
        file.write(b'{"at": "2026-11-30", "sta\0\0')
    go(tmp_path / "runs")
    assert all(
        json.loads(line)["stage"] in ("sft", "label") for line in log.read_text().splitlines()
    )


def test_a_command_whose_bytes_are_no_utf_8_is_kept(tmp_path: Path, built: list[str]) -> None:
    command = os.fsdecode(b"prefloop run caf\xe9.yaml")
    go(tmp_path, command=command)
    assert read_sealed(tmp_path / "t" / "summary.json")["command"] == command


@pytest.mark.parametrize("name", ["my stage", "bewerten-ü", ".hidden", "a*[b]"])
def test_a_stage_is_reused_whatever_it_is_called(
    name: str, tmp_path: Path, built: list[str]
) -> None:
    for _ in range(2):
        go(tmp_path, Words(name), Words("last", (name,)))
    assert built == ["sft", "label", name, "last"]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0b"])
def test_a_stage_whose_name_leaves_its_folder_is_refused_before_it_runs(
    name: str, tmp_path: Path, built: list[str]
) -> None:
    with pytest.raises(ConfigError, match="a stage or slot cannot be called"):
        go(tmp_path, Words(name))
    assert built == []


def test_a_files_managers_own_files_among_the_links_are_left_alone(
    tmp_path: Path, built: list[str]
) -> None:
    go(tmp_path)
    links = tmp_path / "t" / "artifacts"
    (links / ".DS_Store").write_text("icons")
    go(tmp_path)
    assert (links / ".DS_Store").read_text() == "icons" and built == ["sft", "label"]
    (links / "sft").unlink()
    (links / "sft").write_text("a result?")
    with pytest.raises(StoreError, match="sft' is no link into the store"):
        go(tmp_path)


def test_a_run_that_may_only_be_read_closes_the_store_for_itself_alone(
    tmp_path: Path, built: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    go(tmp_path)
    runtime = Runtime(rollout="transformers", output=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(
            "prefloop.pipeline.pipeline.run_lock", lambda folder: contextlib.nullcontext(False)
        )
        with pytest.raises(StoreError, match="ppo is not in the store"):
            go(tmp_path, Words("ppo"), runtime=runtime)
    go(tmp_path, Words("ppo"), runtime=runtime)
    assert built == ["sft", "label", "ppo"]


def test_a_damaged_artifact_that_cannot_be_built_again_is_called_damaged(
    tmp_path: Path, built: list[str], read_only: Callable[[Path], None]
) -> None:
    go(tmp_path)
    next((tmp_path / ".store").glob("label-*/rows.jsonl")).write_text("other")
    read_only(tmp_path)
    with pytest.raises(
        StoreError, match=r"label in the store is damaged: file 'rows.jsonl'.*cannot be written"
    ):
        go(tmp_path)
    assert built == ["sft", "label"]
