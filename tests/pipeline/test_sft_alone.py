"""--algo sft: supervised fine-tuning and what measures it, nothing after it."""

from __future__ import annotations

from pathlib import Path

import pytest
from loop_run import run, summary, write_config

from prefloop.config import AdapterConfig, RLHFConfig
from prefloop.errors import ConfigError
from prefloop.pipeline.algorithms import algorithm
from prefloop.pipeline.pipeline import named
from prefloop.report.closing import sft_lines
from prefloop.report.summary import StageRun


def test_sft_alone_trains_and_is_measured_on_what_it_holds_out(
    tiny_folder: Path, tmp_path: Path
) -> None:
    config = write_config(
        tmp_path,
        tiny_folder,
        algo="sft",
        rollout="vllm",
        gold=None,
        data={"demonstrations": str(tmp_path / "demonstrations.jsonl")},
    )
    flags = ("--sft.eval-share", "0.25", "--sft.eval-every", "2")
    said = run(config, *flags, "--backbone.adapter.method", "dora", "--backbone.adapter.r", "4")
    found = summary(config)
    assert [stage["name"] for stage in found["stages"]] == ["sft"]
    assert found["algo"] == "sft" and found["results"] == {}
    assert found["stages"][0]["metrics"]["held_out_loss"] > 0
    metrics = found["stages"][0]["metrics"]
    assert (
        f"{found['model']}, dora, r 4\nSFT: loss {metrics['loss_last']:.3f} at the last of " in said
    )
    assert (
        f"held-out loss {metrics['held_out_loss']:.3f} at step {metrics['best_step']}, whose"
        in said
    )
    assert "nothing was measured" not in said
    page = (tmp_path / "runs" / "t" / "report.html").read_text(encoding="utf-8")
    assert f"<span>{found['model']}</span><span>dora, r 4</span>" in page


def test_sft_alone_says_what_it_came_to_and_that_nothing_measured_it() -> None:
    metrics = {"loss_last": 1.25, "steps": 8}
    sft = StageRun("sft", metrics=metrics)
    loss = "SFT: loss 1.250 at the last of 8 steps"
    first, second = sft_lines([sft])
    assert first == loss and second.startswith("nothing was measured: set sft.eval_share")
    assert sft_lines([sft, StageRun("bench")]) == [loss]
    held = StageRun("sft", metrics=metrics | {"held_out_loss": 1.5, "best_step": 6})
    assert sft_lines([held]) == [f"{loss}, held-out loss 1.500 at step 6, whose weights are kept"]


def test_plain_lora_goes_without_saying() -> None:
    assert [named(AdapterConfig(method=m, r=8)) for m in ("lora", "dora", "ia3", "full")] == [
        "",
        "dora, r 8",
        "ia3",
        "full",
    ]


def test_an_algorithm_that_is_none_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'sft'"):
        algorithm(RLHFConfig(algo="stf"))
