"""What a method keeps from step to step survives a kill in every loop of prefloop's own, and ends
in the form that the method ends in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from adapted import small_data
from safetensors.torch import load_file
from tiny import add_random_role
from tiny import load as load_lora

from prefloop.artifacts.store import Artifact
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
from prefloop.pipeline.stages.label import Label
from prefloop.pipeline.stages.ppo import PPO
from prefloop.pipeline.stages.preference import Preference
from prefloop.pipeline.stages.reward import RewardModel
from prefloop.pipeline.stages.sft import SFT
from prefloop.runs.runtime import Runtime
from prefloop.training.alarm import Alarm, Best, Reading

pytestmark = pytest.mark.slow
R, LAYERS, STEPS = 4, 14, 3
OPTIONS: dict[str, dict[str, Any]] = {
    "adalora": {"warmup": 0.0, "final": 0.0},
    "delta-lora": {"start": 2},
    "lora-drop": {"steps": 2, "share": 0.3},
    "prefix": {"tokens": 3},
}
METHODS = [
    "lora-fa",
    "pissa",
    "adalora",
    "delta-lora",
    "lora-drop",
    "mole",
    "oft",
    "vera",
    "prefix",
    "full",
]
OPTIM = OptimConfig(
    learning_rate=1e-2, warmup_steps=0, schedule="constant", weight_decay=0.1, checkpoint_every=1
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    return small_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> list[str]:
    folder = tmp_path_factory.mktemp("experts")
    backbone = load_lora(tiny_folder, r=R)
    backbone.config = dataclasses.replace(backbone.config, model=str(tiny_folder))
    for seed in (1, 2):
        add_random_role(backbone, "expert", seed)
        backbone.save_role("expert", folder / str(seed))
    return [str(folder / "1"), str(folder / "2")]


def runtime_of(model: Path, method: str, experts: list[str], output: Path) -> Runtime:
    options = {"experts": experts, "balance": 0.1} if method == "mole" else OPTIONS.get(method, {})
    adapter = AdapterConfig(method=method, r=R, alpha=2 * R, options=options)
    backbone = BackboneConfig(
        model=str(model), precision="fp32", compute="fp32", max_length=64, adapter=adapter
    )
    return Runtime(
        backbone, GenerationConfig(max_new_tokens=3, max_num_seqs=8), "transformers", 0, output
    )


def ppo_of(data: DataConfig, **settings: Any) -> PPO:
    fixed: dict[str, Any] = {
        "prompts_per_step": 2,
        "samples_per_prompt": 2,
        "samples_every": 0,
        "optim": OPTIM,
    }
    config = PPOConfig(steps=STEPS, critic="adapter", **fixed, **settings)
    return PPO(config, data)


def stages(data: DataConfig) -> Iterator[Stage]:
    yield RewardModel(RewardConfig(batch_pairs=2, holdout=0.0, optim=OPTIM))
    yield Preference("dpo", PreferenceConfig(batch_pairs=2, optim=OPTIM))
    yield ppo_of(data, minibatches=1, alarm=AlarmConfig(action="none"))


def bytes_of(artifact: Artifact) -> dict[str, bytes]:
    return {
        str(p.relative_to(artifact.path)): p.read_bytes()
        for p in sorted(artifact.path.rglob("*.safetensors"))
    }


def ranks(file: Path) -> int:
    return sum(
        int((t != 0).sum()) for name, t in load_file(file).items() if name.endswith("lora_E")
    )


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs a stage that is killed when its last step is logged, ahead of that step's checkpoint."""
    emit = Runtime.emit

    def dies(self: Runtime, **event: Any) -> None:
        if event.get("event") == "step" and event["step"] == STEPS:
            raise KeyboardInterrupt
        emit(self, **event)

    def run(stage: Stage, runtime: Runtime, **inputs: Artifact) -> None:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Runtime, "emit", dies)
            stage.run(runtime, **inputs)

    return run


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_stage_ends_in_the_bytes_of_one_that_was_not(
    method: str,
    tiny_folder: Path,
    experts: list[str],
    data: DataConfig,
    tmp_path: Path,
    killed: Callable[..., None],
) -> None:
    whole, cut = (
        runtime_of(tiny_folder, method, experts, tmp_path / name) for name in ("whole", "cut")
    )
    made = {
        "sft": SFT(SFTStageConfig(batch_size=4, optim=OPTIM), data).run(whole),
        "comparisons": Label(LabelConfig(source="file"), data).run(whole),
    }
    for stage in stages(data):
        inputs = {slot: made[slot] for slot in stage.inputs}
        expected = made[stage.produces] = stage.run(whole, **inputs)
        assert expected.metrics["updates" if stage.name == "ppo" else "steps"] == STEPS
        killed(stage, cut, **inputs)
        again = stage.run(cut, **inputs)
        assert again.status == "resumed" and bytes_of(again) == bytes_of(expected), stage.name
    if method == "adalora":
        assert (
            sorted(p.parent.name for p in made["ppo"].path.rglob("adapter_model.safetensors"))[-1]
            == "value"
        )
        for file in (p for a in made.values() for p in a.path.rglob("adapter_model.safetensors")):
            assert ranks(file) == R * LAYERS, file


def test_the_best_policy_and_its_critic_beside_a_later_result_are_at_adaloras_budget(
    tiny_folder: Path, data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The alarm speaks in the last step, long after the best, when the schedule had hardly
    begun.
    """

    def observe(self: Alarm, reading: Reading) -> list[str]:
        self.state = dataclasses.replace(self.state, best=Best(min(reading.step, 2), 0.0))
        return ["so it is said"] if reading.step == STEPS else []

    monkeypatch.setattr(Alarm, "observe", observe)
    runtime = runtime_of(tiny_folder, "adalora", [], tmp_path)
    inputs = {
        "sft": SFT(SFTStageConfig(batch_size=4, optim=OPTIM), data).run(runtime),
        "comparisons": Label(LabelConfig(source="file"), data).run(runtime),
    }
    reward = RewardModel(RewardConfig(batch_pairs=8, holdout=0.0, optim=OPTIM)).run(
        runtime, **inputs
    )
    made = ppo_of(data, minibatches=2, alarm=AlarmConfig(action="warn")).run(
        runtime, sft=inputs["sft"], reward=reward
    )
    assert made.metrics["alarm"]["best_step"] == 2 and made.metrics["alarm"]["result_step"] is None
    files = [
        made.path / place / "adapter_model.safetensors"
        for place in ("", "value", "best", "best/value")
    ]
    assert all(0 < ranks(file) <= R * LAYERS for file in files)
    assert len({file.read_bytes() for file in files}) == 4
