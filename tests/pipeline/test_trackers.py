"""Steps in TensorBoard, W&B and trackio: what is written, that a kill costs and doubles nothing,
that what is missing is said at once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prefloop.artifacts.store import Artifact
from prefloop.base.redact import flat_without_secrets
from prefloop.config import PPOConfig
from prefloop.errors import ConfigError
from prefloop.pipeline.pipeline import Pipeline
from prefloop.pipeline.run import Run
from prefloop.pipeline.stage import Stage, content
from prefloop.pipeline.trackers import check_trackers, numbers
from prefloop.runs.runtime import Runtime
from prefloop.runs.work import Work

# Stands where wandb or trackio would: writes every call into calls.jsonl beside it.
FAKE = """
import json, os, pathlib

def _note(*call):
    with (pathlib.Path(__file__).parents[1] / "calls.jsonl").open("a") as file:
        file.write(json.dumps(call, default=str) + "\\n")

class Run:
    def __init__(self, name): self.name = name
    def log(self, values, step=None):
        if os.environ.get("FAKE_FAILS"): raise OSError("no route\\nto host")
        _note("log", self.name, step, values)
    def finish(self): _note("finish", self.name)

def init(**arguments):
    _note("init", arguments["name"], arguments)
    return Run(arguments["name"])
"""


class Training(Stage):
    """Emits a step event a step and has a checkpoint every second one."""

    name = produces = "training"

    def __init__(self, fails_after: int | None = None, members: int = 1, rate: float = 0.5) -> None:
        self.fails_after = fails_after
        self.members = members
        self.rate = rate

    def parts(self) -> dict[str, Any]:
        return {
            "rate": self.rate,
            "members": self.members,
            "url": "http://user:pass@host:8000/v1?key=s3cret",
            "none": None,
        }

    def build(self, work: Work, inputs: dict[str, Artifact]) -> dict[str, Any]:
        first = max((int(p.name.split("-")[1]) for p in work.checkpoints.glob("step-*")), default=0)
        for member in range(self.members):
            for step in range(first + 1, 6):
                work.emit(
                    "step",
                    step=step,
                    member=member,
                    loss=1 / step,
                    note="words",
                    seconds={"forward": 0.25},
                )
                if step == self.fails_after:
                    raise RuntimeError("as if killed")
                if step % 2 == 0:
                    (work.checkpoints / f"step-{step}").mkdir(parents=True, exist_ok=True)
        return {}


def execute(folder: Path, stage: Stage, *trackers: str) -> None:
    run = Run(folder / "demo", Runtime(output=folder, trackers=trackers))
    (folder / "demo" / "artifacts").mkdir(parents=True, exist_ok=True)
    run.execute(stage)


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The calls that fake wandb and trackio packages got."""
    for name in ("wandb", "trackio"):
        (tmp_path / "fakes" / name).mkdir(parents=True)
        (tmp_path / "fakes" / name / "__init__.py").write_text(FAKE)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path / "fakes")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    yield tmp_path / "fakes" / "calls.jsonl"
    for name in ("wandb", "trackio"):
        sys.modules.pop(name, None)


def calls(path: Path, kind: str) -> list[list[Any]]:
    return [call[1:] for call in map(json.loads, path.open()) if call[0] == kind]


def scalars(folder: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out = {}
    for path in sorted((folder / "demo" / "trackers" / "tensorboard").iterdir()):
        found = accumulator.EventAccumulator(str(path)).Reload()
        out[path.name] = {
            tag: [(s.step, s.value) for s in found.Scalars(tag)] for tag in found.Tags()["scalars"]
        }
        assert (
            found.Tags()["tensors"] == ["config/text_summary"]
            and len(found.Tensors("config/text_summary")) == 1
        )
    return out


def test_tensorboard_files_hold_every_step_once_after_a_kill(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        execute(tmp_path, Training(fails_after=3), "tensorboard")
    execute(tmp_path, Training(), "tensorboard")
    (found,) = scalars(tmp_path).values()
    assert set(found) == {"loss", "seconds/forward"}
    assert found["loss"] == [(step, pytest.approx(1 / step)) for step in (1, 2, 3, 4, 5)]


def test_a_damaged_note_of_how_far_a_run_was_logged_begins_another_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RuntimeError):
        execute(tmp_path, Training(fails_after=3), "tensorboard")
    (note,) = (tmp_path / "demo" / "trackers" / ".logged").iterdir()
    note.write_bytes(note.read_bytes()[:20])
    execute(tmp_path, Training(), "tensorboard")
    first, second = scalars(tmp_path)
    assert second == f"{first}-2" and [step for step, _ in scalars(tmp_path)[second]["loss"]] == [
        3,
        4,
        5,
    ]
    assert "it is logged as another run" in " ".join(capsys.readouterr().out.split())


def test_a_run_is_named_after_the_stage_and_its_key_and_other_settings_are_another_run(
    tmp_path: Path,
) -> None:
    execute(tmp_path, Training(), "tensorboard")
    execute(tmp_path, Training(rate=0.25), "tensorboard")
    execute(tmp_path, Training(), "tensorboard")
    link = tmp_path / "demo" / "artifacts" / "training"
    key = json.loads((link / "manifest.json").read_text())["key"]
    assert f"training-{key[:8]}" in scalars(tmp_path) and len(scalars(tmp_path)) == 2


def test_members_of_an_ensemble_are_runs_of_their_own(tmp_path: Path) -> None:
    execute(tmp_path, Training(members=2), "tensorboard")
    first, second = scalars(tmp_path)
    assert second == f"{first}-member-2"
    assert [len(run["loss"]) for run in scalars(tmp_path).values()] == [5, 5]


def test_a_stage_that_is_trained_once_more_after_it_was_done_is_a_run_of_its_own(
    tmp_path: Path,
) -> None:
    execute(tmp_path, Training(), "tensorboard")
    stored = (tmp_path / "demo" / "artifacts" / "training").resolve()
    (stored / "events.jsonl").write_text("damaged")
    execute(tmp_path, Training(), "tensorboard")
    first, second = scalars(tmp_path)
    assert second == f"{first}-2" and all(
        len(run["loss"]) == 5 for run in scalars(tmp_path).values()
    )


def test_wandb_and_trackio_get_one_run_a_stage_and_go_on_in_it(tmp_path: Path, fakes: Path) -> None:
    with pytest.raises(RuntimeError):
        execute(tmp_path, Training(fails_after=3), "wandb", "trackio")
    execute(tmp_path, Training(), "wandb", "trackio")
    started = [arguments for _, arguments in calls(fakes, "init")]
    wandb, trackio = [a for a in started if "mode" in a], [a for a in started if "mode" not in a]
    assert len(wandb) == len(trackio) == 2 and {a["project"] for a in started} == {"demo"}
    assert wandb[0]["id"] == wandb[1]["id"] and {a["mode"] for a in wandb} == {"offline"}
    assert wandb[0]["dir"] == str(tmp_path / "demo" / "trackers") and {
        a["resume"] for a in started
    } == {"allow"}
    assert len({a["name"] for a in started}) == 1 and started[0]["name"].startswith("training-")
    logged = [(step, values) for _, step, values in calls(fakes, "log")]
    assert [step for step, _ in logged] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert logged[2][1] == {"loss": 0.5, "seconds/forward": 0.25}
    assert len(calls(fakes, "finish")) == 4


def test_the_configuration_is_logged_without_secrets(tmp_path: Path, fakes: Path) -> None:
    execute(tmp_path, Training(), "trackio")
    config = calls(fakes, "init")[0][1]["config"]
    assert (
        config["rate"] == 0.5
        and config["url"] == "http://host:8000/v1"
        and config["none"] == "null"
    )
    assert config["stage"] == "training" and "seed" in config
    assert "s3cret" not in fakes.read_text() and "user:" not in fakes.read_text()


def test_wandb_mode_is_the_users(
    tmp_path: Path, fakes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    execute(tmp_path, Training(), "wandb")
    assert calls(fakes, "init")[0][1]["mode"] == "online"


def test_a_tracker_that_fails_is_left_out_and_training_goes_on(
    tmp_path: Path, fakes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAKE_FAILS", "1")
    execute(tmp_path, Training(), "wandb")
    assert (tmp_path / "demo" / "artifacts" / "training" / "events.jsonl").is_file()
    assert (
        capsys.readouterr().out.count(
            "wandb failed (OSError: no route); training goes on without it"
        )
        == 1
    )


def test_a_missing_package_is_named_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefloop.pipeline.trackers._installed", lambda package: False)
    pipeline = Pipeline(
        [Training()], Runtime(output=tmp_path / "runs", trackers=["wandb", "trackio"])
    )
    with pytest.raises(
        ConfigError, match="wandb and trackio are not installed: pip install wandb trackio"
    ):
        pipeline.run(tmp_path / "runs" / "demo")
    assert not (tmp_path / "runs").exists()
    with pytest.raises(
        ConfigError, match=r"'tensorbord' is not a tracker \(did you mean 'tensorboard'"
    ):
        check_trackers(["tensorbord"])


def test_a_folder_that_wandb_left_behind_is_not_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefloop.pipeline.trackers import _installed

    (tmp_path / "left_behind" / "offline-run").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    assert (
        not _installed("left_behind") and not _installed("no_such_package") and _installed("json")
    )


def test_numbers_are_flat_and_words_and_truths_are_none() -> None:
    event = {
        "loss": 1,
        "gold": None,
        "name": "x",
        "ok": True,
        "seconds": {"score": 0.5, "deep": {"er": 2}},
    }
    assert numbers(event) == {"loss": 1, "seconds/score": 0.5, "seconds/deep/er": 2}
    assert flat_without_secrets({"a": {"b": [1, 2]}, "c": None, "d": "x"}) == {
        "a/b": "[1, 2]",
        "c": "null",
        "d": "x",
    }


def test_trackers_and_samples_do_not_change_what_is_made(tmp_path: Path) -> None:
    assert content(PPOConfig(samples_every=3)) == content(PPOConfig())
    execute(tmp_path, Training())
    execute(tmp_path, Training(), "tensorboard")  # reused: there is nothing to log
    assert not (tmp_path / "demo" / "trackers").exists()


class Looking(Training):
    """Looks at the held-out loss every second step, just before that step is told, as SFT does."""

    def build(self, work: Work, inputs: dict[str, Artifact]) -> dict[str, Any]:
        first = max((int(p.name.split("-")[1]) for p in work.checkpoints.glob("step-*")), default=0)
        for step in range(first + 1, 6):
            if step % 2 == 0:
                work.emit("held_out", step=step, loss=10.0 + step)
                if step == self.fails_after:
                    raise RuntimeError("as if killed")
                (work.checkpoints / f"step-{step - 1}").mkdir(parents=True, exist_ok=True)
            work.emit("step", step=step, loss=1 / step)
        return {}


def test_held_out_loss_is_logged_once_with_its_step_through_a_kill(
    fakes: Path, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError):
        execute(tmp_path, Looking(fails_after=4), "wandb")
    execute(tmp_path, Looking(), "wandb")
    logged = [(step, values.get("held_out_loss")) for _, step, values in calls(fakes, "log")]
    assert logged == [(1, None), (2, 12.0), (3, None), (4, 14.0), (5, None)]
