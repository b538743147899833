"""The reward stage where it can go wrong: damaged members, repeated names, small data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefloop.config import (
    AdapterConfig,
    BackboneConfig,
    DataConfig,
    LabelConfig,
    OptimConfig,
    RewardConfig,
)
from prefloop.data.packing import Document, pack
from prefloop.data.sources import write_jsonl
from prefloop.errors import AuditError, DataError
from prefloop.models.backbone import Backbone
from prefloop.models.reward_model import Reward
from prefloop.pipeline.stages.kto import no_singles
from prefloop.pipeline.stages.label import Label
from prefloop.pipeline.stages.reward import RewardModel
from prefloop.pipeline.stages.reward_eval import RewardTest
from prefloop.records import Comparison, Message, Response, Vote
from prefloop.runs.runtime import Runtime
from prefloop.training.batches import epochs_of_groups


@pytest.fixture
def runtime(tmp_path: Path, tiny_folder: Path) -> Runtime:
    config = BackboneConfig(
        model=str(tiny_folder),
        precision="fp32",
        max_length=128,
        adapter=AdapterConfig(r=4, alpha=8),
    )
    return Runtime(config, output=tmp_path / "runs")


@pytest.fixture
def data(tmp_path: Path) -> DataConfig:
    rows = [
        Comparison(
            str(i),
            [Message("user", f"question {i}")],
            [Response(f"good {i}"), Response(f"bad {i}")],
            [Vote("a", 0)],
        )
        for i in range(8)
    ]
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    return DataConfig(comparisons=tmp_path / "pairs.jsonl")


def stage(members: int) -> RewardModel:
    optim = OptimConfig(learning_rate=1e-2, warmup_steps=0)
    return RewardModel(
        RewardConfig(members=members, batch_pairs=4, holdout=0.25, optim=optim), from_sft=False
    )


def test_what_failed_its_audit_is_not_accepted_the_second_time(
    runtime: Runtime, data: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    comparisons = Label(LabelConfig(source="file"), data).run(runtime)
    whole = Backbone.save_role

    def damaged(self: Backbone, role: str, folder: Path) -> None:
        for parameter in self.parameters(role):
            parameter.data.mul_(0.5)
        whole(self, role, folder)
        for parameter in self.parameters(role):
            parameter.data.mul_(2.0)

    monkeypatch.setattr(Backbone, "save_role", damaged)
    for _ in range(2):
        with pytest.raises(AuditError, match="save, load, same scores"):
            stage(1).run(runtime, comparisons=comparisons)
    monkeypatch.undo()
    assert stage(1).run(runtime, comparisons=comparisons).metrics["steps"] > 0


@pytest.mark.parametrize("method", ["eva", "lora-drop"])
def test_a_killed_run_of_a_method_that_reads_data_ends_in_the_same_bytes(
    method: str,
    data: DataConfig,
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    adapter = AdapterConfig(
        method=method, r=4, alpha=8, options={"steps": 2} if method == "lora-drop" else {}
    )
    config = BackboneConfig(
        model=str(tiny_folder), precision="fp32", max_length=128, adapter=adapter
    )
    optim = OptimConfig(learning_rate=1e-2, warmup_steps=0, checkpoint_every=1)
    reward = RewardModel(RewardConfig(batch_pairs=2, holdout=0.25, optim=optim), from_sft=False)
    saved = []
    for place, killed in (("whole", False), ("cut", True), ("cut", False)):
        runtime = Runtime(config, output=tmp_path / place)
        comparisons = Label(LabelConfig(source="file"), data).run(runtime)
        if killed:
            emit = Runtime.emit

            def dies(self: Runtime, emit: Callable[..., None] = emit, **event: Any) -> None:
                if event.get("step") == 3:
                    raise KeyboardInterrupt
                emit(self, **event)

            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(Runtime, "emit", dies)
                reward.run(runtime, comparisons=comparisons)
        else:
            made = reward.run(runtime, comparisons=comparisons)
            saved.append((made.path / "adapter_model.safetensors").read_bytes())
    assert made.status == "resumed" and saved[0] == saved[1]


def test_an_ensemble_scores_by_its_mean_and_keeps_its_members(
    runtime: Runtime, data: DataConfig
) -> None:
    comparisons = Label(LabelConfig(source="file"), data).run(runtime)
    artifact = stage(3).run(runtime, comparisons=comparisons)
    reward = Reward.load(runtime.backbone, artifact.path)
    assert len(reward.heads) == 3
    document = Document([5, 6, 7], [[8, 9], [10]], [0, 1])
    each = reward.score([document])
    mean = reward.scores_K_B(pack([document])).mean(0).tolist()
    assert [sum(each[k]) / 3 for k in (0, 1)] == pytest.approx(mean, abs=1e-5)
    assert len({round(s, 6) for s in each[0]}) == 3
    reward.drop()
    assert not runtime.backbone.roles


def test_files_of_one_name_keep_their_own_results(tmp_path: Path) -> None:
    paths = [tmp_path / "helpful" / "test.jsonl", tmp_path / "harmless" / "test.jsonl"]
    assert len(set(RewardTest(DataConfig(reward_tests=paths)).names)) == 2
    assert RewardTest(DataConfig(reward_tests=paths[:1])).names == ["test.jsonl"]


def test_epochs_count_even_when_the_data_are_less_than_half_a_batch() -> None:
    steps = epochs_of_groups(6, lambda _: 2, 32, 10, seed=0)
    assert len(steps) == 10 and all(sorted(step) == list(range(6)) for step in steps)
    assert len({tuple(step) for step in steps}) > 1
    steps = epochs_of_groups(10, lambda _: 1, 4, 1, seed=0)
    assert [len(step) for step in steps] == [4, 4, 2]
    steps = epochs_of_groups(9, lambda _: 1, 4, 2, seed=0)
    assert [len(step) for step in steps] == [4, 5, 4, 5]


def test_kto_steps_hold_two_prompts() -> None:
    assert no_singles([[0, 1], [2], [3, 4]]) == [[0, 1, 2], [3, 4]]
    assert no_singles([[0], [1], [2]]) == [[0, 1, 2]]
    with pytest.raises(DataError, match="at least 2 prompts"):
        no_singles([[0], [0]])
