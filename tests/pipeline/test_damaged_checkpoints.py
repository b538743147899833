"""A stage that finds its checkpoints damaged goes on from the one before, or from its start, and
ends in the same bytes.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefloop.artifacts.store import Artifact
from prefloop.base.sealed import SEAL
from prefloop.config import (
    AdapterConfig,
    BackboneConfig,
    DataConfig,
    LabelConfig,
    OptimConfig,
    RewardConfig,
    SFTStageConfig,
)
from prefloop.pipeline.stage import Stage
from prefloop.pipeline.stages.label import Label
from prefloop.pipeline.stages.reward import RewardModel
from prefloop.pipeline.stages.sft import SFT
from prefloop.runs.runtime import Runtime
from prefloop.training.held_out import HeldOut
from prefloop.training.loop import STATE


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random letters, with an answer that is better and one that is worse."""
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    draw = random.Random(0)
    found = [
        {
            "prompt": f"What of {i}?",
            "chosen": "".join(draw.choices("abcdefgh", k=9)),
            "rejected": "no",
        }
        for i in range(8)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


def runtime(folder: Path, model: Path) -> Runtime:
    adapter = AdapterConfig(r=4, alpha=8)
    backbone = BackboneConfig(
        model=str(model), precision="fp32", compute="fp32", max_length=128, adapter=adapter
    )
    return Runtime(backbone, None, "transformers", 0, folder)


OPTIM = OptimConfig(learning_rate=1e-2, warmup_steps=0, schedule="constant", checkpoint_every=1)


def sft(folder: Path, model: Path, rows: Path, **config: Any) -> Artifact:
    settings = SFTStageConfig(batch_size=2, optim=OPTIM, **config)
    return SFT(settings, DataConfig(demonstrations=rows)).run(runtime(folder, model))


def stop_at(step: int, patch: pytest.MonkeyPatch, stage: str) -> None:
    emit = Runtime.emit

    def dies(self: Runtime, **event: Any) -> None:
        if (event["stage"], event["event"], event.get("step")) == (stage, "step", step):
            raise KeyboardInterrupt
        emit(self, **event)

    patch.setattr(Runtime, "emit", dies)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 4
    path.write_bytes(content)


def weights(artifact: Artifact) -> dict[str, bytes]:
    return {
        str(p.relative_to(artifact.path)): p.read_bytes()
        for p in sorted(artifact.path.rglob("*.safetensors"))
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, rows: Path) -> Artifact:
    return sft(tmp_path_factory.mktemp("whole"), tiny_folder, rows)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": lambda place: (place / STATE).write_bytes((place / STATE).read_bytes()[:99]),
    "empty": lambda place: (place / STATE).write_bytes(b""),
    "a bit": lambda place: flip(place / STATE),
    "missing": lambda place: (place / STATE).unlink(),
    "no seal": lambda place: (place / SEAL).unlink(),
}


@pytest.mark.parametrize(
    ("damage", "both"), [*((name, False) for name in DAMAGES), ("a bit", True)]
)
def test_sft_passes_over_a_damaged_checkpoint(
    damage: str,
    both: bool,
    whole: Artifact,
    tiny_folder: Path,
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(4, patch, "sft")
        sft(tmp_path, tiny_folder, rows)
    places = sorted(tmp_path.rglob("step-*"))
    assert [place.name for place in places] == ["step-000002", "step-000003"]
    for place in places if both else places[-1:]:
        DAMAGES[damage](place)
    again = sft(tmp_path, tiny_folder, rows)
    said = " ".join(capsys.readouterr().out.split())
    assert "checkpoint step-000003 is damaged" in said
    assert (
        "going on from the start of the stage" in said
        if both
        else "sft: goes on from step 2" in said
    )
    assert weights(again) == weights(whole)


def test_sft_passes_over_a_checkpoint_whose_best_weights_are_damaged(
    tiny_folder: Path,
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The last look is made to be the best, so that the checkpoint before needs another."""
    losses = iter([3.0, 2.5, 2.0, 3.0, 2.5, 2.0, 1.9, 1.8, 1.7])
    monkeypatch.setattr("prefloop.training.held_out.mean_loss", lambda *_: next(losses))
    settings: dict[str, Any] = {"eval_share": 0.3, "eval_every": 1, "epochs": 2.0}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(HeldOut, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        stop_at(4, patch, "sft")
        sft(tmp_path / "cut", tiny_folder, rows, **settings)
    for place in (tmp_path / "cut").rglob("looks/*/adapter_model.safetensors"):
        flip(place)
    found = sft(tmp_path / "cut", tiny_folder, rows, **settings)
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "file 'scratch/looks/3/adapter_model.safetensors' is damaged" in said
        and "the start of the stage" in said
    )
    assert found.metrics["best_step"] == found.metrics["steps"] == 6


def reward(folder: Path, model: Path, rows: Path) -> Artifact:
    here = runtime(folder, model)
    comparisons = Label(LabelConfig(source="file"), DataConfig(comparisons=rows)).run(here)
    stage: Stage = RewardModel(
        RewardConfig(members=2, batch_pairs=2, holdout=0.25, optim=OPTIM), from_sft=False
    )  # fmt: skip
    return stage.run(here, comparisons=comparisons)


def test_a_finished_member_that_is_damaged_is_finished_again_and_the_metrics_are_those_of_a_run_that_was_not(  # noqa: E501
    tiny_folder: Path,
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    expected = reward(tmp_path / "whole", tiny_folder, rows)
    for damaged in (False, True):
        folder = tmp_path / f"cut-{damaged}"
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(
                RewardModel, "_calibrate", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
            )
            reward(folder, tiny_folder, rows)
        if damaged:
            (place,) = folder.rglob("finished-0")
            flip(place / "head.safetensors")
        capsys.readouterr()
        again = reward(folder, tiny_folder, rows)
        assert weights(again) == weights(expected)
        one, two = (
            {k: v for k, v in a.metrics.items() if k != "audit"} for a in (again, expected)
        )  # of step 1, once
        assert one == two
        said = " ".join(capsys.readouterr().out.split())
        assert ("checkpoint finished-0 is damaged" in said) == damaged
