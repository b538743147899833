"""An export writes what its artifact's manifest hashes, and nothing leads it elsewhere: the run may
be somebody else's.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_run import make_run

from prefloop.artifacts.manifest import MANIFEST
from prefloop.artifacts.store import Store
from prefloop.base.sealed import file_digest, read_sealed, write_json, write_sealed
from prefloop.cli import _main, guarded


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    return make_run(
        tmp_path_factory.mktemp("made") / "runs", "t", tiny_folder, slots=("sft", "ppo")
    )


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made.parent, tmp_path / "runs", symlinks=True)
    (tmp_path / "secret").write_text("secret")
    return tmp_path / "runs" / "t"


def resealed(folder: Path, **changes: Any) -> None:
    """As somebody who knows the code would write it."""
    content = read_sealed(folder / MANIFEST)
    content["files"] |= changes.pop("files", {})
    write_sealed(folder / MANIFEST, content | changes)


def outside(folder: Path) -> None:
    evil = folder.parent / "evil"
    evil.mkdir()
    (evil / "reward.json").write_text("evil")
    resealed(folder, files={"../evil/reward.json": file_digest(evil / "reward.json")})


def absolute(folder: Path) -> None:
    secret = folder.parents[2] / "secret"
    place = folder.parents[2] / "reward.json"
    place.write_bytes(secret.read_bytes())
    resealed(folder, files={str(place): file_digest(place)})


def linked(folder: Path) -> None:
    secret = folder.parents[2] / "secret"
    (folder / "reward.json").symlink_to(secret)
    resealed(folder, files={"reward.json": file_digest(secret)})


def behind_a_link(folder: Path) -> None:
    elsewhere = folder.parents[2] / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "reward.json").write_text("secret")
    (folder / "best").symlink_to(elsewhere)
    resealed(folder, files={"best/reward.json": file_digest(elsewhere / "reward.json")})


def other_content(folder: Path) -> None:
    resealed(folder, files={"adapter_config.json": "0" * 64})


def other_types(folder: Path) -> None:
    resealed(folder, identity={"backbone": "none"})


def no_digest(folder: Path) -> None:
    evil = folder.parent / "evil"
    evil.mkdir()
    (evil / "reward.json").write_text("evil")
    content = read_sealed(folder / MANIFEST)
    content["files"]["../evil/reward.json"] = "0"
    write_json(folder / MANIFEST, content)


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize(
    "harm", [outside, absolute, linked, behind_a_link, other_content, other_types, no_digest]
)
def test_what_leads_elsewhere_is_refused_and_nothing_is_left(
    harm: Callable[[Path], None],
    merge: bool,
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = (run / "artifacts" / "ppo").resolve()
    harm(folder)
    out = tmp_path / "exports" / "ppo"
    assert guarded(_main, ["export", f"{run}:ppo", str(out), *(["--merge"] if merge else [])]) == 2
    assert "error: " in capsys.readouterr().err
    assert not list((tmp_path / "exports").rglob("*"))


@pytest.mark.parametrize(
    "harm", [outside, absolute, linked, behind_a_link, other_content, no_digest]
)
def test_the_store_does_not_reuse_it_either(harm: Callable[[Path], None], run: Path) -> None:
    folder = (run / "artifacts" / "ppo").resolve()
    key = read_sealed(folder / MANIFEST)["key"]
    harm(folder)
    assert Store(folder.parent).get("ppo", key) is None and not folder.exists()
    assert (run.parents[1] / "secret").read_text() == "secret"


def test_an_artifact_of_an_earlier_version_is_exported(run: Path, tmp_path: Path) -> None:
    folder = (run / "artifacts" / "ppo").resolve()
    write_json(folder / MANIFEST, read_sealed(folder / MANIFEST))
    assert guarded(_main, ["export", f"{run}:ppo", str(tmp_path / "out")]) == 0
    about = read_sealed(tmp_path / "out" / "prefloop.json")
    assert about["files"] == {name: file_digest(tmp_path / "out" / name) for name in about["files"]}
    assert set(about["files"]) == {"adapter_config.json", "adapter_model.safetensors"}


def test_a_place_that_takes_no_folder_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in (tmp_path / ("x" * 300), tmp_path / "secret" / "ppo"):
        assert guarded(_main, ["export", f"{run}:ppo", str(place)]) == 2
        assert "cannot be written" in capsys.readouterr().err
