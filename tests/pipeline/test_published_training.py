"""Files with the columns that other projects publish are checked and trained on: two steps each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from layout_rows import PUBLISHED
from tiny import tiny_model

from prefloop.cli import _main, guarded
from prefloop.config import (
    AdapterConfig,
    BackboneConfig,
    DataConfig,
    LabelConfig,
    OptimConfig,
    RewardConfig,
    SFTStageConfig,
)
from prefloop.data.sources import kind_of
from prefloop.pipeline.stages.label import Label
from prefloop.pipeline.stages.reward import RewardModel
from prefloop.pipeline.stages.sft import SFT
from prefloop.runs.runtime import Runtime

OPTIM = OptimConfig(learning_rate=1e-2, warmup_steps=0)


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    """One tiny model, whose template shows tools, calls and thoughts."""
    folder = tmp_path_factory.mktemp("published")
    model = tiny_model(folder / "model", tokenizer="tools")
    adapter = AdapterConfig(r=2, alpha=4)
    backbone = BackboneConfig(
        model=str(model), precision="fp32", compute="fp32", max_length=400, adapter=adapter
    )
    return Runtime(backbone, output=folder / "runs")


def steps(path: Path, kind: str, runtime: Runtime) -> Any:
    """The metrics of two optimizer steps: a reward model on pairs, SFT on what is to be
    imitated.
    """
    if kind in ("comparisons", "best_of"):
        labels = Label(LabelConfig(source="file"), DataConfig(comparisons=path)).run(runtime)
        config = RewardConfig(members=1, batch_pairs=100, holdout=0.0, epochs=2, optim=OPTIM)
        return RewardModel(config, from_sft=False).run(runtime, comparisons=labels).metrics
    config = SFTStageConfig(batch_size=100, epochs=2, optim=OPTIM)
    return SFT(config, DataConfig(demonstrations=path)).run(runtime).metrics


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_file_is_checked_and_trained_on(
    name: str, runtime: Runtime, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, rows = PUBLISHED[name]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = str(runtime.backbone_config.model)
    assert guarded(_main, ["check", str(path), "--show", "1", "--model", model]) == 0
    said, kind = capsys.readouterr().out, kind_of(path)
    assert "rows.jsonl (" in said and "<|im_start|>user" in said
    if kind == "prompts":
        assert "⟦" not in said  # nothing to learn from
        return
    assert "⟦" in said and "<|im_end|>⟧" in said
    assert steps(path, kind, runtime)["steps"] == 2
