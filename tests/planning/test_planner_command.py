"""``prefloop plan``: what it prints, what it proposes, how it exits."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from loop_run import ROOT

from prefloop.cli import _main as cli
from prefloop.commands.plan import bytes_of, machine_memory, split
from prefloop.config import AdapterConfig, BackboneConfig, OptimConfig, RLHFConfig, RopeConfig
from prefloop.config.load import parse
from prefloop.errors import ConfigError, ModelError, PrefloopError
from prefloop.planning.memory import GIB
from prefloop.planning.propose import cards_needed, changed, fits, most_helpful, propose
from prefloop.planning.refusals import settled
from prefloop.planning.shapes import Shape, shape_of
from prefloop.planning.stages import Planner


@pytest.fixture(scope="module")
def seven_b() -> Shape:
    return shape_of("shape:7b", Path("unused"))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "run.yaml"
    file.write_text(
        "output: "
        + str(tmp_path)
        + "\nbackbone: {model: 'shape:7b', pack_tokens: 8192}\nlabel: {source: file}\nalgo: dpo\n"
    )
    return file


def plan(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    """Exit status and lines."""
    status = 0
    try:
        cli(["plan", *words])
    except SystemExit as left:
        status = int(left.code or 0)
    return status, capsys.readouterr().out.splitlines()


def test_a_run_that_fits_exits_with_0_and_its_table_is_narrow(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, lines = plan([str(config), "--gpu", "80GiB"], capsys)
    start = next(
        i for i, line in enumerate(lines) if line.split() == ["sft", "reward", "dpo", "evaluate"]
    )
    assert status == 0 and any(line.startswith("fits 80.0 GiB") for line in lines)
    assert all(len(line) <= 80 for line in lines[start : start + 15])
    assert "40,370,176" in lines[start + 1]


def test_a_run_that_does_not_fit_exits_with_1_and_flags_that_then_fit(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, lines = plan([str(config), "--gpu", "24GiB"], capsys)
    flags = next(line for line in lines if line.startswith("  --")).split()
    assert status == 1 and any("does not fit 24.0 GiB" in line for line in lines)
    assert parse(["--config", str(config), *flags], "rlhf.py", "")
    assert plan([str(config), *flags, "--gpu", "24GiB"], capsys)[0] == 0


def test_the_card_whose_rates_the_time_is_of_is_named(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(config), "--gpu", "80GiB"]
    assert "time without 30.0s to load and to start, on rates measured on an H100" in "".join(
        plan([*words, "--card", "h100"], capsys)[1]
    )
    guessed = "".join(plan(words, capsys)[1])
    assert "a guess of 150 TFLOP/s" in guessed and "--card takes H200, H100, A100" in guessed


def test_flags_of_the_pipeline_override_the_file(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_flag = plan([str(config), "--backbone.adapter.r", "8", "--gpu", "80GiB"], capsys)[1]
    assert "20,185,088" in "\n".join(with_flag)


def test_where_only_vllm_is_too_large_the_plan_without_it_is_proposed_and_fits(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(config), "--gpu", "16GB", "--card", "T4", "--backbone.adapter.method", "vera"]
    status, lines = plan(words, capsys)
    place = next(i for i, line in enumerate(lines) if line.startswith("fits without vLLM alone"))
    flags = lines[place + 1].split()
    assert status == 1 and flags[:2] == ["--rollout", "transformers"]
    assert plan([*words, *flags], capsys)[0] == 0


def test_where_nothing_fits_the_setting_that_helps_most_and_the_cards_are_told(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, lines = plan([str(config), "--gpu", "3GiB"], capsys)
    said = "\n".join(lines)
    assert (
        status == 1 and "no combination of settings fits" in said and "prefloop runs on one" in said
    )


def test_nothing_is_said_to_fit_whose_estimate_with_its_error_is_over_the_memory(
    seven_b: Shape,
) -> None:
    config = RLHFConfig(
        algo="dpo", backbone=BackboneConfig(pack_tokens=4096, gradient_checkpointing="block")
    )
    config = changed(config, {"label.source": "file"})
    stages = Planner(config, seven_b, 80 * GIB).stages()
    highest = max(stages, key=lambda stage: stage.at_most)
    assert highest.at_most > highest.peak
    assert fits(stages, highest.at_most) and not fits(stages, highest.at_most - 1)


@pytest.mark.parametrize("memory", [8, 12, 16, 24, 48])
def test_what_is_proposed_fits(seven_b: Shape, memory: int) -> None:
    config = RLHFConfig(algo="ppo", backbone=BackboneConfig(pack_tokens=8192, precision="bf16"))
    found = propose(config, seven_b, memory * GIB)
    if found is None:
        best, gain = most_helpful(config, seven_b, memory * GIB)
        assert gain > 0 and best.changes
        assert cards_needed(config, seven_b, memory * GIB) > 1
    else:
        assert fits(Planner(found.config, seven_b, memory * GIB).stages(), memory * GIB)


@pytest.mark.parametrize(
    ("model", "shape"), [("no/such-8B", "7b"), ("no/such-125M", "smollm2"), ("no/such", "7b")]
)
def test_a_model_that_cannot_be_reached_is_told_with_a_shape_of_its_size(
    config: Path, model: str, shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "prefloop.models.lookup.unavailable", lambda name: "cannot be reached from here"
    )
    monkeypatch.setattr("prefloop.planning.shapes._without_weights", lambda name, local_only: None)
    with pytest.raises(
        ModelError, match=f"the hub: cannot be reached from here.*--backbone.model shape:{shape} "
    ) as caught:
        cli(["plan", str(config), "--gpu", "24GiB", "--backbone.model", model])
    assert "Error" not in str(caught.value) and "HF_HUB_OFFLINE=1" in str(caught.value)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("prefloop.commands.plan.machine_memory", lambda: 16 * GIB)


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_the_run_without_one_is_planned_in_the_memory_of_the_machine(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(config), "--backbone.model", "shape:smollm2", "--backbone.pack-tokens", "512"]
    told, named = plan(words, capsys), plan([*words, "--card", "cpu"], capsys)
    assert told[0] == named[0] == 0 and "--gpu 24GiB" in told[1][0] and told[1][1:] == named[1]
    assert any(
        line.startswith("fits 16.0 GiB") for line in named[1]
    ) and "two CPU cores" in "".join(named[1])
    assert any(
        line.startswith("fits 12.0 GiB")
        for line in plan([*words, "--card", "CPU", "--gpu", "12"], capsys)[1]
    )
    with pytest.raises(
        ConfigError, match=r"no GPU whose memory --card H100 could have.*--gpu 24GiB"
    ):
        cli(["plan", *words, "--card", "H100"])


@pytest.mark.usefixtures("no_gpu")
def test_the_demo_is_planned_for_a_processor(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert (
        plan(["examples/demo.yaml", "--backbone.model", "shape:smollm2", "--card", "CPU"], capsys)[
            0
        ]
        == 0
    )


@pytest.mark.usefixtures("no_gpu")
def test_what_does_not_fit_a_processor_is_told_what_helps_there(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, lines = plan([str(config), "--card", "CPU"], capsys)
    said = "\n".join(lines)
    assert status == 1 and "a machine of more memory" in said
    assert not any(
        flag in said for flag in ("--generation.sleep", "--generation.weights", "such cards")
    )


def test_a_processor_computes_in_float32_without_fast_bfloat16_and_vllm_keeps_its_weights_there(
    seven_b: Shape, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RLHFConfig(backbone=BackboneConfig(precision="bf16"))
    run = changed(
        run, {"generation.weights": "nf4", "sft.optim": OptimConfig(name="paged_adamw8bit")}
    )

    def stages(fast: bool, cpu: bool = True) -> dict[str, dict[str, int]]:
        monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: fast)
        return {stage.name: stage.parts for stage in Planner(run, seven_b, None, cpu).stages()}

    card, slow, fast = stages(True, cpu=False), stages(False), stages(True)
    assert slow["sft"]["weights"] == 4 * seven_b.parameters == 2 * fast["sft"]["weights"]
    assert fast["sft"]["optimizer"] > card["sft"]["optimizer"]  # nothing is paged
    assert fast["sample"]["vLLM"] > 2 * seven_b.parameters > card["sample"]["vLLM"]
    assert fast["ppo"]["vLLM"] == fast["sample"]["vLLM"] and fast["sample"]["KV cache"] == GIB


def test_a_container_has_what_its_limit_leaves_it(tmp_path: Path) -> None:
    whole = machine_memory(tmp_path / "none")
    for text, memory in (("1048576\n", 1 << 20), ("max\n", whole), (f"{10 * whole}\n", whole)):
        (tmp_path / "max").write_text(text)
        assert machine_memory(tmp_path / "max") == memory


def test_sizes_are_read_with_their_units() -> None:
    assert bytes_of("24GiB") == bytes_of("24") == 24 * 2**30 and bytes_of("24GB") == 24 * 10**9
    for wrong in ("", "GiB", "-3GiB", "24 apples", "0"):
        with pytest.raises(ConfigError, match="no size of memory"):
            bytes_of(wrong)


def test_words_of_the_command_and_of_the_configuration_come_apart() -> None:
    words = ["plan", "run.yaml", "--ppo.rewards", "a", "1", "--gpu", "24GiB", "--ppo.kl.coef=0.1"]
    assert split(words) == (
        ["plan", "run.yaml", "--gpu", "24GiB"],
        ("--ppo.rewards", "a", "1", "--ppo.kl.coef=0.1"),
    )


@pytest.mark.parametrize("example", ["demo", "hh", "hh_ppo", "hh_reward"])
def test_every_example_is_planned_within_80_columns_and_twice_alike(
    example: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    words = [
        f"examples/{example}.yaml",
        "--backbone.model",
        "shape:smollm2",
        "--gpu",
        "24GiB",
        "--card",
        "H100",
    ]
    first, again = plan(words, capsys), plan(words, capsys)
    assert first == again and first[0] == 0
    table = [
        line
        for line in first[1]
        if line[:13].strip() in ("", "trained", "weights", "peak", "at most", "highest in", "time")
    ]
    assert len(table) >= 7 and all(len(line) <= 80 for line in table)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--gpu", "banana"], "no size of memory"),
        (["--backbone.model", "./nowhere"], "does not exist"),
        (
            ["--backbone.adapter.method", "prefix"],
            "vLLM cannot run adapters of method prefix.*; as merged weights also dora",
        ),
        (
            ["--backbone.adapter.method", "prefix", "--generation.handover", "adapter"],
            "take one of lora, rslora(?!.*merged)",
        ),
        (
            ["--backbone.adapter.method", "dora", "--generation.weights", "nf4"],
            "reaches vLLM as merged weights alone",
        ),
        (["--backbone.adapter.method", "full"], "full trains on bf16 and fp32 weights only"),
        (["--backbone.max-length", "40000"], "has a context of 32768 tokens"),
        (
            ["--backbone.adapter.r", "513", "--generation.handover", "adapter"],
            "supports LoRA ranks up to 512",
        ),
        (["--backbone.rope.type", "yarn"], "yarn makes the context longer"),
    ],
)
def test_what_cannot_run_is_refused_as_a_run_would(
    config: Path, words: list[str], said: str
) -> None:
    with pytest.raises(PrefloopError, match=said):
        cli(["plan", str(config), "--gpu", "80GiB", *words])


def test_what_samples_nothing_needs_no_way_to_an_engine(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(config), "--gpu", "80GiB", "--algo", "sft", "--backbone.adapter.method", "prefix"]
    assert plan([*words, "--data.demonstrations", "rows.jsonl"], capsys)[0] == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"backbone.precision": "bf16"}, "only be trained on with backbone.precision nf4"),
        ({"generation.handover": "merged"}, "nothing can be merged into 4 bits"),
        ({"backbone.adapter": AdapterConfig(method="dora")}, "not those of method dora"),
        ({"backbone.rope": RopeConfig("linear", 2.0)}, "scaled already"),
    ],
)
def test_a_model_stored_in_4_bits_is_planned_as_it_can_run(
    seven_b: Shape, changes: dict[str, Any], said: str
) -> None:
    scaled = {
        "max_position_embeddings": 8192,
        "rope_parameters": {"rope_type": "yarn", "factor": 2.0},
    }
    stored = dataclasses.replace(seven_b, stored_4bit=True, described=scaled)
    settled(RLHFConfig(), stored)
    with pytest.raises(PrefloopError, match="vLLM's CPU build cannot run"):
        settled(RLHFConfig(), stored, cpu=True)
    with pytest.raises(PrefloopError, match=said):
        settled(changed(RLHFConfig(), changes), stored)


def test_what_no_plan_counts_is_said(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = config.with_name("rows.jsonl")
    rows.write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    words = [str(config), "--gpu", "80GiB", "--data.comparisons", str(rows)]
    words += ["--bench.tasks", "gsm8k", "--evaluate.judge", "local:m"]
    said = " ".join(" ".join(plan(words, capsys)[1]).split())
    assert "not counted: benchmarks" in said and "the model of evaluate.judge local:m" in said
    assert "not counted" not in "".join(plan(words[:5], capsys)[1])


def test_what_fits_a_card_as_it_is_sold_alone_is_said_to_be_close(
    config: Path, seven_b: Shape, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(config), "--algo", "sft", "--data.demonstrations", "rows.jsonl", "--gpu"]
    need = (
        max(s.at_most for s in Planner(parse(["--config", *words[:-1]], "t", ""), seven_b).stages())
        / GIB
    )
    for times, close in ((1.05, True), (1.2, False)):
        status, lines = plan([*words, f"{need * times:.2f}GiB"], capsys)
        assert status == 0 and ("nvidia-smi" in "".join(lines)) == close


def test_a_card_that_holds_nothing_is_no_unit(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, lines = plan([str(config), "--gpu", "0.5GiB"], capsys)
    assert (
        status == 1
        and "such cards" not in "".join(lines)
        and "a smaller backbone.model" in "".join(lines)
    )


def test_nothing_is_proposed_that_a_run_refuses(seven_b: Shape) -> None:
    """DoRA reaches vLLM as merged weights alone, so 4-bit weights there are no way out; full
    fine-tuning takes no 4-bit weights at all.
    """
    for method, precision in (("dora", "nf4"), ("full", "bf16")):
        backbone = BackboneConfig(
            model="m", precision=precision, adapter=AdapterConfig(method=method, r=4)
        )  # type: ignore[arg-type]
        config = RLHFConfig(backbone=backbone)
        found = propose(config, seven_b, 140 * GIB)
        best, _ = most_helpful(config, seven_b, 8 * GIB)
        for proposed in (best.config, *([found.config] if found else [])):
            assert (
                proposed.generation.weights == "full" and proposed.backbone.precision == precision
            )
