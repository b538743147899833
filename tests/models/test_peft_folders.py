"""Adapters that PEFT made and prefloop never saw: their settings are read from their own files, and
they compute what PEFT computes.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from adapted import PACK
from peft import (
    AdaLoraConfig,
    BOFTConfig,
    HRAConfig,
    IA3Config,
    LNTuningConfig,
    LoraConfig,
    MissConfig,
    OFTConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    RandLoraConfig,
    VeraConfig,
    get_peft_model,
)
from tiny import plain
from torch.testing import assert_close

from prefloop.artifacts.references import Origin, origin_of, policy_of
from prefloop.errors import ModelError
from prefloop.export.merge import merge_adapters
from prefloop.models.backbone import Backbone
from prefloop.runs.open import config_of, runtime_of

ON: dict[str, Any] = {"target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
THEIRS: dict[str, tuple[Any, dict[str, Any]]] = {
    "lora": (LoraConfig(r=3, lora_alpha=5, **ON), {"r": 3, "alpha": 5}),
    "rslora": (LoraConfig(r=4, lora_alpha=6, use_rslora=True, **ON), {"r": 4}),
    "dora": (LoraConfig(r=4, use_dora=True, **ON), {"r": 4}),
    "adalora": (
        AdaLoraConfig(init_r=6, target_r=3, lora_alpha=5, total_step=10, **ON),
        {"r": 3, "options": {"start": 2.0}},
    ),
    "vera": (
        VeraConfig(r=7, d_initial=0.5, projection_prng_key=3, save_projection=False, **ON),
        {"r": 7, "options": {"d_initial": 0.5, "key": 3}},
    ),
    "ia3": (
        IA3Config(feedforward_modules=["down_proj"], **ON),
        {"options": {"feedforward": r"(.*\.)?(down_proj)"}},
    ),
    "oft": (
        OFTConfig(oft_block_size=16, r=0, use_cayley_neumann=False, **ON),
        {"options": {"block": 16, "neumann": False}},
    ),
    "boft": (
        BOFTConfig(boft_block_size=8, boft_n_butterfly_factor=1, **ON),
        {"options": {"block": 8, "factors": 1}},
    ),
    "hra": (HRAConfig(r=6, **ON), {"r": 6}),
    "miss": (MissConfig(r=8, **ON), {"r": 8}),
    "randlora": (
        RandLoraConfig(r=8, randlora_alpha=24, projection_prng_key=5, save_projection=False, **ON),
        {"r": 8, "options": {"scale": 3.0, "key": 5}},
    ),
    "prompt": (
        PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
        {"options": {"tokens": 3}},
    ),
    "p-tuning": (
        PromptEncoderConfig(num_virtual_tokens=4, encoder_hidden_size=24, task_type="CAUSAL_LM"),
        {"options": {"tokens": 4, "hidden": 24}},
    ),
    "p-tuning-v2": (
        PrefixTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM"),
        {"options": {"tokens": 5}},
    ),
}


def saved(config: Any, model: Path, folder: Path) -> None:
    """A folder of PEFT's with random weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = get_peft_model(plain(model), config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    made.save_pretrained(folder)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("method", THEIRS)
def test_a_folder_of_pefts_opens_with_its_own_settings_and_computes_the_same(
    tiny_folder: Path, tmp_path: Path, method: str
) -> None:
    config, said = THEIRS[method]
    saved(config, tiny_folder, tmp_path)
    origin = origin_of(tmp_path)
    assert origin.shape["method"] == method and said.items() <= origin.shape.items()
    settings = config_of(origin, "theirs", precision="fp32", compute="fp32", max_length=64)
    backbone = Backbone.load(settings, tiny_folder, torch.device("cpu"))
    backbone.add_role("theirs", start=tmp_path)
    ids = PACK.tokens_N[None, :20]
    theirs = PeftModel.from_pretrained(plain(tiny_folder), str(tmp_path)).eval()
    with torch.no_grad(), backbone.role("theirs"):
        expected = theirs(input_ids=ids).logits[0, -20:]
        bare = plain(tiny_folder)(ids).logits[0]
        assert_close(backbone.causal_lm(ids).logits[0], expected, atol=2e-4, rtol=2e-4)
        assert (expected - bare).abs().max() > 1e-2


def test_a_folder_of_an_older_peft_that_did_not_write_its_switches_is_plain_lora(
    tiny_folder: Path, tmp_path: Path
) -> None:
    saved(LoraConfig(r=4, **ON), tiny_folder, tmp_path)
    described = json.loads((tmp_path / "adapter_config.json").read_text())
    kept = {
        n: described[n]
        for n in ("peft_type", "base_model_name_or_path", "r", "lora_alpha", "target_modules")
    }
    (tmp_path / "adapter_config.json").write_text(json.dumps(kept))
    settings = config_of(
        origin_of(tmp_path), "theirs", precision="fp32", compute="fp32", max_length=64
    )
    backbone = Backbone.load(settings, tiny_folder, torch.device("cpu"))
    backbone.add_role("theirs", start=tmp_path)
    assert settings.adapter.method == "lora" and len(backbone.parameters("theirs")) == 8


def test_a_result_from_before_rope_existed_had_none() -> None:
    def origin(**rope: Any) -> Origin:
        return Origin("m", "files", {"precision": "nf4", "chat_template": "model", **rope})

    assert origin().differs(origin(rope={"type": "none", "factor": 1.0})) == []
    assert origin().differs(origin(rope={"type": "yarn", "factor": 4.0})) == [
        "rope none and yarn 4"
    ]


def test_a_method_that_prefloop_does_not_have_is_named(tiny_folder: Path, tmp_path: Path) -> None:
    saved(LNTuningConfig(task_type="CAUSAL_LM"), tiny_folder, tmp_path)
    with pytest.raises(ModelError, match="method ln_tuning is not one of lora, rslora, "):
        origin_of(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        *(
            ("init_lora_weights", start, "PEFT changes the base weights")
            for start in ("pissa", "pissa_niter_4", "olora", "loftq")
        ),
        ("alpha_pattern", {"q_proj": 4}, "different ranks or scales per layer"),
        ("rank_pattern", {"q_proj": 4}, "different ranks or scales per layer"),
    ],
)
def test_what_would_compute_something_else_as_lora_is_not_taken_for_it(
    tiny_folder: Path, tmp_path: Path, field: str, value: Any, said: str
) -> None:
    saved(LoraConfig(r=4, **ON), tiny_folder, tmp_path)
    described = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(described | {field: value}))
    with pytest.raises(ModelError, match=f"{field} .*{said}"):
        origin_of(tmp_path)


def test_a_setting_that_prefloop_does_not_take_is_named(tiny_folder: Path, tmp_path: Path) -> None:
    saved(LoraConfig(r=4, **ON), tiny_folder, tmp_path)
    described = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(described | {"lora_alpha": 5.5}))
    with pytest.raises(ModelError, match=r"'theirs' .*adapter.alpha"):
        config_of(origin_of(tmp_path), "theirs")


@pytest.fixture
def nameless(tiny_folder: Path, tmp_path: Path) -> Path:
    """Of a model that PEFT was given without a name."""
    place = tmp_path / "nameless"
    saved(LoraConfig(r=4, **ON), tiny_folder, place)
    described = json.loads((place / "adapter_config.json").read_text())
    (place / "adapter_config.json").write_text(
        json.dumps(described | {"base_model_name_or_path": None})
    )
    return place


def test_a_folder_that_does_not_name_its_model_asks_for_it(
    nameless: Path, tiny_folder: Path
) -> None:
    with pytest.raises(
        ModelError, match=r"nameless' does not state the model .* give the model with --model"
    ):
        runtime_of([policy_of(nameless)])
    assert runtime_of([policy_of(nameless)], str(tiny_folder)).model_folder == tiny_folder


def test_a_folder_that_does_not_name_its_model_takes_that_of_one_beside_it(
    nameless: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    saved(LoraConfig(r=4, **ON), tiny_folder, tmp_path / "named")
    policies = [policy_of(nameless), policy_of(tmp_path / "named")]
    assert runtime_of(policies).model_folder == tiny_folder


def test_a_combination_names_the_model_that_its_parts_do_not(
    nameless: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    merge_adapters([nameless, nameless], tmp_path / "both", model=str(tiny_folder))
    assert origin_of(tmp_path / "both").model == str(tiny_folder)
