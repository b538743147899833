"""The planner's time and disk against what runs took and left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from loop_run import ROOT
from tiny import load as load_tiny

from prefloop.config import AdapterConfig, BackboneConfig, OptimConfig, RLHFConfig
from prefloop.config.load import load_config
from prefloop.data.source import Source
from prefloop.planning.memory import Device
from prefloop.planning.propose import changed
from prefloop.planning.shapes import Shape, shape_of
from prefloop.planning.time import (
    CARDS,
    CHARACTERS,
    UNKNOWN,
    Clock,
    Data,
    card_named,
    disk,
    measure,
    measure_votes,
)

HH = Data(6000, 29.2, 62.2)
"""hh_helpful_train: 6,000 pairs; 66 characters of a prompt and 12 tokens of template, 227 and 266
characters of a response.
"""


@pytest.fixture(scope="module")
def smollm2() -> Shape:
    return shape_of("shape:smollm2", Path("x"))


def clock(example: str, shape: Shape, card: str, **changes: Any) -> Clock:
    config = changed(load_config(ROOT / "examples" / f"{example}.yaml"), changes)
    return Clock(config, Device.of(shape, config.backbone), CARDS[card])


@pytest.mark.parametrize(
    ("example", "card", "changes", "stage", "measured"),
    [
        ("hh_ppo", "H200", {}, "reward", 115),
        ("hh_ppo", "H200", {}, "ppo", 223),
        ("hh_reward", "H100", {"reward.members": 4}, "reward", 178),
        ("hh_reward", "H100", {}, "reward", 126),
        ("demo", "CPU", {"sft.epochs": 0.5}, "sft", 42),
        ("demo", "CPU", {}, "sample", 102),
        ("demo", "CPU", {}, "reward", 101),
        ("demo", "CPU", {"ppo.steps": 5}, "ppo", 168),
        (
            "demo",
            "CPU",
            {"evaluate.base": False},
            "evaluate",
            106,
        ),  # measured before the bare model answered too
        ("demo", "CPU", {"algo": "dpo"}, "dpo", 125),
    ],
)
def test_times_are_within_a_quarter_of_those_of_docs_benchmarks(
    smollm2: Shape,
    monkeypatch: pytest.MonkeyPatch,
    example: str,
    card: str,
    changes: Any,
    stage: str,
    measured: float,
) -> None:
    monkeypatch.chdir(ROOT)
    algo, packs = (
        changes.pop("algo", None),
        {"backbone.pack_tokens": 16384} if card != "CPU" else {},
    )
    found = clock(example, smollm2, card, **changes, **packs)
    if example != "demo":  # the files are not in the repository
        found.demonstrations = Data(6000, 29.2, 75.0)
        found.comparisons = found.prompts = HH
    seconds = found.seconds(algo or stage)
    assert seconds is not None and seconds == pytest.approx(measured, rel=0.25)


def test_steps_are_those_that_the_demo_makes(
    smollm2: Shape, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    demo = clock("demo", smollm2, "CPU")
    for stage, made in (("sft", 15), ("reward", 54), ("ppo", 14)):
        found = demo.steps(stage)
        assert found is not None and abs(found - made) <= 1, (stage, found)
    assert demo.steps("sample") is None and demo.steps("evaluate") is None


def test_a_stage_without_its_data_has_no_time(smollm2: Shape) -> None:
    config = RLHFConfig()
    found = Clock(config, Device.of(smollm2, config.backbone), UNKNOWN)
    assert [found.seconds(stage) for stage in ("sft", "sample", "reward", "evaluate")] == [None] * 4


def test_a_file_is_measured_by_its_rows_and_the_records_at_its_head(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    row = json.dumps({"prompt": "a" * 40, "chosen": "b" * 80, "rejected": "c" * 160})
    file.write_text(f"{row}\n" * 300)
    assert measure(file, "comparisons") == Data(300, 12 + 10, 30)
    assert measure(file, "demonstrations", limit=50) == Data(50, 12 + 10, 20)
    file.write_text("no json\n")
    assert measure(file, "comparisons") is None


def test_thumbs_are_counted_as_the_steps_of_kto_take_them(tmp_path: Path) -> None:
    """60 thumbs, each on a prompt of its own, form no pairs: with 32 pairs a step, that is 64
    thumbs, a run made 2 steps of 1.5 passes.
    """
    path = tmp_path / "thumbs.jsonl"
    rows = [{"prompt": f"Why {i}?", "completion": "x" * 40, "label": i % 2 == 0} for i in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = measure_votes(Source.of(path))
    assert found is not None and (found.rows, found.response) == (
        30,
        pytest.approx(40 / CHARACTERS),
    )
    assert measure_votes(Source.of(path), limit=20).rows == 10
    assert measure_votes(Source.of(tmp_path / "none.jsonl")) is None


def test_cards_are_known_by_torchs_names_of_them() -> None:
    assert (
        card_named("NVIDIA H100 80GB HBM3") is CARDS["H100"] and card_named("cpu") is CARDS["CPU"]
    )
    assert card_named("GT 710") is card_named(None) is UNKNOWN


def test_time_grows_with_members_recomputation_and_methods_that_do_not_run_fused(
    smollm2: Shape,
) -> None:
    def seconds(**changes: Any) -> float:
        found = clock("hh_reward", smollm2, "H100", **changes)
        found.comparisons = HH
        return found.seconds("reward") or 0.0

    plain = seconds()
    assert seconds(**{"reward.members": 6}) == pytest.approx(2 * plain)
    assert seconds(**{"backbone.gradient_checkpointing": "block"}) > plain
    assert seconds(**{"backbone.adapter": AdapterConfig(method="dora")}) > 2 * plain


@pytest.mark.parametrize("name", ["adamw", "adamw8bit"])
def test_disk_is_that_of_the_files(tiny_folder: Path, tmp_path: Path, name: str) -> None:
    """One SFT adapter and its two checkpoints."""
    from prefloop.training.loop import Loop

    backbone = load_tiny(tiny_folder, r=32)
    backbone.add_role("policy")
    named = backbone.named_parameters("policy")
    for parameter in named.values():
        parameter.grad = parameter.detach().clone()
    loop = Loop(
        {f"adapter/{n}": p for n, p in named.items()}, OptimConfig(name=name), 2, tmp_path / "loop"
    )
    loop.optimizer.step()
    loop.save({})
    backbone.save_role("policy", tmp_path / "saved")
    sizes = [
        sum(f.stat().st_size for f in (tmp_path / part).rglob("*.safetensors"))
        for part in ("loop", "saved")
    ]
    config = RLHFConfig(algo="sft", backbone=BackboneConfig(adapter=AdapterConfig(r=32, alpha=8)))
    config = changed(config, {"sft.optim": OptimConfig(name=name)})
    found = disk(config, Device.of(shape_of(str(tiny_folder), Path("x")), config.backbone))
    assert found == pytest.approx(2 * sizes[0] + sizes[1], rel=0.05)
