"""A run that is asked to end in the middle of a step leaves that step's checkpoint, and goes on
from it to the same bytes.
"""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from adapted import small_data

from prefloop.artifacts.store import Artifact
from prefloop.base.interrupt import Ended, heeding
from prefloop.base.jsonl import read_rows
from prefloop.config import (
    AdapterConfig,
    AlarmConfig,
    BackboneConfig,
    DataConfig,
    GenerationConfig,
    LabelConfig,
    OptimConfig,
    PPOConfig,
    PreferenceConfig,
    RewardConfig,
    SFTStageConfig,
)
from prefloop.pipeline.stage import Stage
from prefloop.pipeline.stages.kto import KTO
from prefloop.pipeline.stages.label import Label
from prefloop.pipeline.stages.ppo import PPO
from prefloop.pipeline.stages.preference import Preference
from prefloop.pipeline.stages.reward import RewardModel
from prefloop.pipeline.stages.sft import SFT
from prefloop.rollouts.engine import TransformersEngine
from prefloop.runs.runtime import Runtime
from prefloop.training.loop import Loop

OPTIM = OptimConfig(learning_rate=1e-2, warmup_steps=0, weight_decay=0.1, checkpoint_every=1000)
UPDATES = 2
"""Optimizer steps in a step of PPO."""
KINDS = ["sft", "reward", "dpo", "kto", "ppo"]


def stage_of(kind: str, data: DataConfig) -> Stage:
    """Three steps or more of a kind of stage, none of them due for a checkpoint."""
    pairs = PreferenceConfig(batch_pairs=2, optim=OPTIM)
    ppo: dict[str, Any] = {
        "prompts_per_step": 2,
        "samples_per_prompt": 2,
        "minibatches": UPDATES,
        "samples_every": 1,
    }
    return {
        "sft": lambda: SFT(SFTStageConfig(batch_size=1, optim=OPTIM), data),
        "reward": lambda: RewardModel(
            RewardConfig(members=2, batch_pairs=2, holdout=0.0, optim=OPTIM)
        ),
        "dpo": lambda: Preference("dpo", pairs),
        "kto": lambda: KTO(pairs),
        "ppo": lambda: PPO(
            PPOConfig(steps=3, alarm=AlarmConfig(every=1), optim=OPTIM, **ppo), data
        ),
    }[kind]()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    return small_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def runtime_of(tiny_folder: Path) -> Callable[[Path], Runtime]:
    adapter = AdapterConfig(r=4, alpha=8)
    backbone = BackboneConfig(
        model=str(tiny_folder), precision="fp32", compute="fp32", max_length=64, adapter=adapter
    )
    generation = GenerationConfig(max_new_tokens=3, max_num_seqs=8)
    return lambda output: Runtime(backbone, generation, "transformers", 0, output)


@pytest.fixture(scope="module")
def whole(
    runtime_of: Callable[[Path], Runtime],
    data: DataConfig,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Artifact]:
    """What a kind of stage makes when nobody interrupts it, made once."""
    runtime = runtime_of(tmp_path_factory.mktemp("whole"))
    made: dict[str, Artifact] = {}

    def of(slot: str) -> Artifact:
        if slot not in made:
            stage = (
                Label(LabelConfig(source="file"), data)
                if slot == "comparisons"
                else stage_of(slot, data)
            )
            made[slot] = stage.run(runtime, **{needed: of(needed) for needed in stage.inputs})
        return made[slot]

    return of


@pytest.fixture
def signaled(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Sends signals in the middle of the update after ``updates`` of them, its gradients known and
    its weights as before.
    """
    with monkeypatch.context() as patch:

        def arrange(updates: int, *numbers: signal.Signals) -> None:
            left = list(numbers)

            def send() -> None:
                while left:
                    signal.raise_signal(left.pop(0))

            check = Loop._check

            def own(self: Loop, *arguments: Any) -> float:
                if self.step == updates:
                    send()
                return check(self, *arguments)

            patch.setattr(Loop, "_check", own)

        yield arrange


def checkpoints(runtime: Runtime, kind: str) -> list[str]:
    """The checkpoints' names in the work folder of a stage that did not end."""
    (work,) = (runtime.store.root / "work").glob(f"{kind}-*")
    return sorted(p.name for p in work.rglob("*-*") if p.name.startswith("step-"))


def bytes_of(artifact: Artifact) -> dict[str, bytes]:
    files = [*artifact.path.rglob("*.safetensors"), *artifact.path.rglob("samples.jsonl")]
    return {str(p.relative_to(artifact.path)): p.read_bytes() for p in sorted(files)}


def run(
    kind: str, data: DataConfig, whole: Callable[[str], Artifact], runtime: Runtime
) -> Artifact:
    stage = stage_of(kind, data)
    return stage.run(runtime, **{slot: whole(slot) for slot in stage.inputs})


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_finished_and_its_checkpoint_leads_to_the_same_bytes(
    kind: str,
    data: DataConfig,
    whole: Callable[[str], Artifact],
    runtime_of: Callable[[Path], Runtime],
    tmp_path: Path,
    signaled: Callable[..., None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    expected = whole(kind)
    total = int(
        expected.metrics["updates"] / UPDATES if kind == "ppo" else expected.metrics["steps"]
    )
    assert total > 2
    per_step = UPDATES if kind == "ppo" else 1
    signaled(per_step, signal.SIGTERM)  # in the second step
    capfd.readouterr()
    cut = runtime_of(tmp_path)
    with pytest.raises(Ended, match="SIGTERM"), heeding():
        run(kind, data, whole, cut)
    assert checkpoints(cut, kind) == [f"step-{2 * per_step:06d}"]
    said = capfd.readouterr().err
    assert (
        "SIGTERM: the step is finished first" in said
        and f"\ncheckpoint of step 2 of {total} written\n" in said
    )
    again = run(kind, data, whole, cut)
    assert again.status == "resumed" and bytes_of(again) == bytes_of(expected)
    events = read_rows(again / "events.jsonl")
    steps = [(event.get("member"), event["step"]) for event in events if event["event"] == "step"]
    assert len(steps) == len(set(steps)), "a step was done twice"


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_signal_ends_a_step_at_once(
    kind: str,
    data: DataConfig,
    whole: Callable[[str], Artifact],
    runtime_of: Callable[[Path], Runtime],
    tmp_path: Path,
    signaled: Callable[..., None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    signaled(1, signal.SIGTERM, signal.SIGINT)
    cut = runtime_of(tmp_path)
    with pytest.raises(KeyboardInterrupt), heeding():
        run(kind, data, whole, cut)
    assert checkpoints(cut, kind) == [] and "written" not in capfd.readouterr().err


def test_a_rollout_is_not_waited_for_and_the_step_before_it_is_kept(
    data: DataConfig,
    whole: Callable[[str], Artifact],
    runtime_of: Callable[[Path], Runtime],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    batch, calls, after = TransformersEngine._batch, itertools.count(), []

    def interrupted(self: TransformersEngine, *arguments: Any) -> Any:
        if next(calls) == 2:
            signal.raise_signal(signal.SIGINT)
            after.append("the rollout went on")
        return batch(self, *arguments)

    expected = whole("ppo")
    cut = runtime_of(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), heeding():
        patch.setattr(TransformersEngine, "_batch", interrupted)
        run("ppo", data, whole, cut)
    assert not after and checkpoints(cut, "ppo") == [f"step-{2 * UPDATES:06d}"]
    said = capfd.readouterr().err
    assert "checkpoint of step 2 of 3 written\n" in said and "is finished first" not in said
    again = run("ppo", data, whole, cut)
    assert again.status == "resumed" and bytes_of(again) == bytes_of(expected)


def test_a_look_at_the_held_out_loss_belongs_to_its_step(
    data: DataConfig,
    runtime_of: Callable[[Path], Runtime],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    losses: list[float] = []

    def scripted(*_: Any) -> float:
        found = losses.pop(0)
        if found == 2.0:
            signal.raise_signal(signal.SIGHUP)
        return found

    monkeypatch.setattr("prefloop.training.held_out.mean_loss", scripted)
    stage = SFT(
        SFTStageConfig(batch_size=1, eval_share=0.25, eval_every=1, optim=OPTIM),
        data,
    )
    losses[:] = [3.0, 2.5, 1.0]
    expected = stage.run(runtime_of(tmp_path / "whole"))
    losses[:] = [3.0, 2.0, 1.0]
    cut = runtime_of(tmp_path / "cut")
    with pytest.raises(Ended, match="SIGHUP"), heeding():
        stage.run(cut)
    assert checkpoints(cut, "sft") == ["step-000002"] and losses == [1.0]
    again = stage.run(cut)
    assert again.metrics["best_step"] == expected.metrics["best_step"] == 3 and not losses
    assert bytes_of(again) == bytes_of(expected)


def test_a_run_that_is_asked_to_end_in_its_last_step_has_nothing_left_to_learn(
    data: DataConfig,
    runtime_of: Callable[[Path], Runtime],
    tmp_path: Path,
    signaled: Callable[..., None],
) -> None:
    stage = SFT(SFTStageConfig(batch_size=1, epochs=0.5, optim=OPTIM), data)
    expected = stage.run(runtime_of(tmp_path / "whole"))
    signaled(expected.metrics["steps"] - 1, signal.SIGTERM)
    cut = runtime_of(tmp_path / "cut")
    with pytest.raises(Ended, match="SIGTERM"), heeding():
        stage.run(cut)
    assert checkpoints(cut, "sft") == [f"step-{expected.metrics['steps']:06d}"]
    again = stage.run(cut)
    assert again.metrics["steps"] == expected.metrics["steps"] and bytes_of(again) == bytes_of(
        expected
    )
