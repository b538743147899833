"""Adapters that cannot be, through the commands as a user starts them, on a model folder whose
weights cannot be read.
"""

from __future__ import annotations

import json
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from adapted import load
from loop_run import ROOT, write_config
from safetensors import SafetensorError
from safetensors.torch import load_file
from tiny import add_random_role, tiny_model

from prefloop.cli import _main as cli
from prefloop.config import AdapterConfig, BackboneConfig
from prefloop.config.adapters import CARDS
from prefloop.errors import ConfigError, EngineError, ModelError, PrefloopError
from prefloop.models.adapters.mole import MoLE
from prefloop.models.backbone import Backbone
from prefloop.runs.runtime import Runtime

METHOD, OPTIONS, TARGETS = (
    f"--backbone.adapter.{name}" for name in ("method", "options", "target-modules")
)
RANK, DROPOUT = (f"--backbone.adapter.{name}" for name in ("r", "dropout"))


@pytest.fixture(scope="module")
def unreadable(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """The tiny model with its weights cut off in the middle."""
    folder = tmp_path_factory.mktemp("cut") / "model"
    shutil.copytree(tiny_folder, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    with pytest.raises(SafetensorError):
        load_file(weights)
    return folder


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, unreadable: Path) -> Path:
    return write_config(tmp_path_factory.mktemp("run"), unreadable)


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """Folders ``one`` and ``two`` of this backbone, ``stranger`` of a backbone of another name, and
    some that are damaged.
    """
    folder = tmp_path_factory.mktemp("experts")
    backbone = load(tiny_folder, "lora")
    add_random_role(backbone, "expert")
    backbone.config.model = "model"
    for name in ("one", "two", "garbage", "torn", "no-r", "list", "half", "other-kind"):
        backbone.save_role("expert", folder / name)
    backbone.config.model = "org/stranger"
    for name in ("stranger", "stranger-too"):
        backbone.save_role("expert", folder / name)
    (folder / "garbage" / "adapter_model.safetensors").write_bytes(b"garbage")
    (folder / "torn" / "adapter_config.json").write_text("{")
    (folder / "list" / "adapter_config.json").write_text("[]")
    (folder / "half" / "adapter_config.json").unlink()
    narrow = load(tiny_folder, "lora", target_modules=r".*\.q_proj")
    add_random_role(narrow, "expert")
    narrow.config.model = "model"
    narrow.save_role("expert", folder / "narrow")
    described = json.loads((folder / "no-r" / "adapter_config.json").read_text())
    (folder / "other-kind" / "adapter_config.json").write_text(
        json.dumps(described | {"peft_type": "ADALORA"})
    )
    del described["r"]
    (folder / "no-r" / "adapter_config.json").write_text(json.dumps(described))
    return folder


def run(config: Path, *flags: str) -> None:
    runpy.run_path(str(ROOT / "pipelines" / "rlhf.py"))["main"](["--config", str(config), *flags])


def plan(config: Path, *flags: str) -> None:
    cli(["plan", str(config), "--gpu", "80GiB", *flags])


CASES: dict[str, tuple[list[str], str]] = {
    "unknown method": (
        [METHOD, "dorra"],
        r"unknown method 'dorra' \(did you mean 'dora'\?; one of lora, .*full\)",
    ),
    "precision": (
        [METHOD, "full"],
        r"full trains on bf16 and fp32 .*precision is nf4: .*with nf4 go lora, .*mole$",
    ),
    "targets": (
        [TARGETS, ".*query"],
        r"target_modules '.*query' matches no layer.*down_proj.*q_proj",
    ),
    "targets of bitfit": ([METHOD, "bitfit", TARGETS, ".*query"], "matches no layer"),
    "no expression": ([TARGETS, "*"], "is not a regular expression"),
    "rank": (
        [RANK, "64"],
        "does not fit model.layers.0.self_attn.k_proj.*a rank of 64 is over its smaller side, 32",
    ),
    "rank of delta-lora": (
        [METHOD, "delta-lora", RANK, "64"],
        "a rank of 64 is over its smaller side, 32",
    ),
    "rank at adalora's start": (
        [METHOD, "adalora", RANK, "24"],
        "a rank of 36 is over its smaller side, 32",
    ),
    "rank of a bottleneck": (
        [METHOD, "bottleneck", RANK, "65"],
        "a rank of 65 is over its hidden size, 64",
    ),
    "blocks": ([METHOD, "oft", OPTIONS, "block", "48"], "not a multiple of 48"),
    "odd reflections": (
        [METHOD, "hra", RANK, "3"],
        "only with an even number of reflections, .*r is 3",
    ),
    "no dropout": (
        [METHOD, "ia3", DROPOUT, "0.1"],
        "ia3 has none: set 0, or take one of lora, .*mole$",
    ),
    "option": ([METHOD, "lora+", OPTIONS, "ratoi", "2"], "options.ratoi.*did you mean 'ratio'"),
    "context": (
        [METHOD, "prompt", "--backbone.max-length", "500"],
        "500 plus 20 virtual tokens.*context of 512 tokens",
    ),
}


@pytest.mark.parametrize("command", [run, plan])
@pytest.mark.parametrize("case", CASES)
def test_it_is_said_before_a_weight_is_read(
    config: Path, command: Callable[..., None], case: str
) -> None:
    flags, said = CASES[case]
    if "prompt" in flags or "bottleneck" in flags:
        flags = [*flags, "--rollout", "transformers"]
    with pytest.raises(PrefloopError, match=said):
        command(config, *flags)
    assert not list(config.parent.glob("runs/t/artifacts/*"))


def test_these_weights_cannot_be_read_where_nothing_else_is_wrong(unreadable: Path) -> None:
    with pytest.raises(ModelError, match=r"'model': model\.safetensors cannot be used"):
        Backbone.load(BackboneConfig(model="m", precision="fp32", max_length=64), unreadable)


@pytest.mark.parametrize("method", [card.name for card in CARDS.values() if card.places])
@pytest.mark.parametrize("command", [run, plan])
def test_target_modules_are_not_passed_over(
    config: Path, command: Callable[..., None], method: str
) -> None:
    flags = (
        METHOD,
        method,
        TARGETS,
        r".*\.q_proj",
        "--backbone.precision",
        "fp32",
        "--rollout",
        "transformers",
    )
    with pytest.raises(
        ConfigError, match=f"method {method} sits on .*: leave it out, or take one of lora, "
    ):
        command(config, *flags)


@pytest.mark.parametrize("command", [run, plan])
@pytest.mark.parametrize(
    ("folders", "more", "said"),
    [
        (
            ["one"],
            {},
            (
                r"mole mixes two or more LoRA adapters.*such as experts '\[runs/a:sft,"
                r" runs/b:sft\]' \(found \['.*one'\]"
            ),
        ),
        ([], {}, "mole mixes two or more LoRA adapters"),
        (
            ["one", "gone"],
            {},
            "'/.*/gone' does not exist: give LoRA adapters, .*, or their folders$",
        ),
        (["one", "garbage"], {}, "'/.*/garbage' holds no adapter that can be read"),
        (["one", "torn"], {}, "/torn' holds no adapter that can be read"),
        (["one", "list"], {}, "/list' holds no adapter that can be read"),
        (["one", "half"], {}, "/half' holds no adapter that can be read"),
        (["one", "no-r"], {}, "/no-r' is not a complete LoRA adapter"),
        (
            ["one", "other-kind"],
            {},
            "/other-kind' is not a plain LoRA adapter; mole mixes adapters of lora and rslora",
        ),
        (["one", "narrow"], {}, "/one' and '/.*/narrow' differ in 12 layers"),
        (["one", "two"], {"top_k": 3}, "options.top_k is 3: there are 2 experts"),
        (["one", "two"], {"top_k": -1}, "options.top_k is -1: give a whole number from 0 "),
        (["one", "two"], {"temperature": 0}, "options.temperature is 0: give a number from 1e-09 "),
        (
            ["one", "stranger"],
            {},
            "/one' is of model and '/.*/stranger' of org/stranger: give experts of one backbone",
        ),
        (
            ["stranger", "stranger-too"],
            {},
            "/stranger' was trained on org/stranger, backbone.model is .*/model: give",
        ),
    ],
)
def test_experts_that_cannot_be_mixed_are_named_before_a_weight_is_read(
    config: Path,
    experts: Path,
    command: Callable[..., None],
    folders: list[str],
    more: dict[str, Any],
    said: str,
) -> None:
    given = json.dumps([str(experts / name) for name in folders])
    options = [str(part) for pair in more.items() for part in pair]
    flags = (METHOD, "mole", OPTIONS, "experts", given, *options, "--rollout", "transformers")
    with pytest.raises(PrefloopError, match=said):
        command(config, *flags)


def test_experts_that_are_not_there_are_named_as_they_were_typed(
    config: Path, tmp_path: Path
) -> None:
    (tmp_path / "runs" / "a" / "artifacts").mkdir(parents=True)
    for given, said in (
        (
            "zzz/yyy",
            r"'zzz/yyy' does not exist: .*\(relative paths start at the current folder, .*\)",
        ),
        (f"{tmp_path}/yyy:sft", "'/.*/yyy' is not the folder of a run"),
        (f"{tmp_path}/runs/a:sft", "'/.*/runs/a:sft': the run has no finished result 'sft'"),
        (f"{tmp_path}/runs/a:base", "'/.*/runs/a:base' is a bare model"),
    ):
        flags = (
            METHOD,
            "mole",
            OPTIONS,
            "experts",
            f"[{given}, runs/b]",
            "--rollout",
            "transformers",
        )
        with pytest.raises(ModelError, match=f"^backbone.adapter.options.experts: {said}"):
            run(config, *flags)


@pytest.mark.parametrize("where", ["run", "plan"])
def test_bitfit_says_that_its_new_biases_cannot_get_to_vllm_before_anything_runs(
    config: Path, unreadable: Path, where: str
) -> None:
    said = (
        r"bitfit cannot get to vLLM: 14 layers of this model have no bias.*--rollout transformers,"
        r" or take one of lora"
    )
    if where == "plan":
        with pytest.raises(EngineError, match=said):
            plan(config, METHOD, "bitfit", "--rollout", "vllm")
        return
    backbone = BackboneConfig(
        model=str(unreadable), max_length=64, adapter=AdapterConfig(method="bitfit")
    )
    with pytest.raises(EngineError, match=said):
        Runtime(backbone).check_adapter(samples=True)
    Runtime(backbone).check_adapter(samples=False)
    Runtime(backbone, rollout="transformers").check_adapter(samples=True)


@pytest.mark.parametrize("algo", ["sft", "reward"])
def test_the_planner_asks_nothing_of_vllm_where_nothing_is_sampled(
    config: Path, algo: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--algo", algo, "--label.source", "file", "--rollout", "vllm", METHOD, "prefix")
    plan(config, *flags)
    assert "fits 80.0 GiB" in capsys.readouterr().out
    with pytest.raises(EngineError, match="vLLM cannot run adapters of method prefix"):
        plan(config, *flags, "--algo", "dpo")


def test_bitfit_gets_to_vllm_where_every_layer_has_its_bias(
    tiny_folders: Callable[[str], Path],
) -> None:
    model = str(tiny_folders("llama-biased"))
    Runtime(
        BackboneConfig(model=model, max_length=64, adapter=AdapterConfig(method="bitfit"))
    ).check_adapter(True)


def test_ia3_wants_keys_values_and_the_mlps_last_layer_to_be_layers(tmp_path: Path) -> None:
    """Phi-3 joins queries, keys and values in one layer: down_proj alone would learn, without a
    word.
    """
    from transformers import GPTNeoXConfig, Phi3Config

    small = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    for made, missing, ends in (
        (
            Phi3Config(**small, pad_token_id=0),
            "k_proj or v_proj",
            "down_proj, gate_up_proj, o_proj, qkv_proj",
        ),
        (
            GPTNeoXConfig(**small),
            "k_proj or v_proj or down_proj",
            "dense, dense_4h_to_h, dense_h_to_4h, query_key_value",
        ),
    ):
        made.save_pretrained(tmp_path)
        adapter = AdapterConfig(method="ia3")
        with pytest.raises(
            ModelError, match=f"adapter ia3: m has no {missing}, its layers end in {ends}: .*vera"
        ):
            Backbone.load(BackboneConfig(model="m", max_length=64, adapter=adapter), tmp_path)
    named = AdapterConfig(method="ia3", target_modules=r".*\.(query_key_value|dense_4h_to_h)")
    with pytest.raises(
        ModelError, match=r"holds no model\.safetensors"
    ):  # the weights are what is missing now
        Backbone.load(BackboneConfig(model="m", max_length=64, adapter=named), tmp_path)
    broken = AdapterConfig(method="ia3", options={"feedforward": "*"})
    with pytest.raises(ModelError, match="feedforward is not a regular expression"):
        Backbone.load(BackboneConfig(model="m", max_length=64, adapter=broken), tmp_path)


def test_virtual_tokens_want_a_model_whose_attention_makes_keys(tmp_path: Path) -> None:
    from transformers import GPT2Config

    config = GPT2Config(vocab_size=64, n_positions=64, n_embd=16, n_layer=2, n_head=2)
    config.architectures = ["GPT2LMHeadModel"]
    config.save_pretrained(tmp_path)
    adapter = AdapterConfig(method="prompt")
    with pytest.raises(
        ModelError,
        match=r"adapter prompt: tiny has 2 layers, but virtual tokens .* 0 of them: .*lora",
    ):
        Backbone.load(BackboneConfig(model="tiny", max_length=32, adapter=adapter), tmp_path)


def test_the_key_of_a_stage_follows_what_the_experts_hold(
    experts: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    from prefloop.config import DataConfig, SFTStageConfig
    from prefloop.pipeline.stages.sft import SFT

    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        shutil.copytree(experts / folder.name, folder)
    adapter = AdapterConfig(method="mole", options={"experts": [str(folder) for folder in folders]})
    runtime = Runtime(BackboneConfig(model=str(tiny_folder), adapter=adapter), output=tmp_path)
    stage = SFT(SFTStageConfig(), DataConfig())
    before = stage.key(runtime, {})
    assert stage.key(runtime, {}) == before
    weights = bytearray((folders[1] / "adapter_model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folders[1] / "adapter_model.safetensors").write_bytes(weights)
    assert stage.key(runtime, {}) != before


def test_experts_of_the_same_shape_on_other_weights_are_refused(
    tmp_path: Path, tiny_folder: Path
) -> None:
    """A run's artifact knows the files of its backbone, whatever their folder is called."""
    from made_run import make_run

    run = make_run(tmp_path, "lora", tiny_folder, slots=("sft", "dpo"))
    options = {"experts": [str((run / "artifacts" / slot).resolve()) for slot in ("sft", "dpo")]}
    other = tiny_model(tmp_path / tiny_folder.name, seed=5)
    settings: dict[str, Any] = {
        "precision": "fp32",
        "max_length": 64,
        "adapter": AdapterConfig(method="mole", options=options),
    }
    loaded = Backbone.load(
        BackboneConfig(model="elsewhere", **settings), tiny_folder, torch.device("cpu")
    )
    by_name = {"experts": [f"{run}:{slot}" for slot in ("sft", "dpo")]}
    named = MoLE(AdapterConfig(method="mole", options=by_name), CARDS["mole"])
    assert [folder.resolve() for folder in named.folders] == cast(MoLE, loaded.method).folders
    with pytest.raises(ModelError, match=r"was trained on .*: give experts of this backbone"):
        Backbone.load(
            BackboneConfig(model=str(tiny_folder), **settings), other, torch.device("cpu")
        )
