"""Contexts longer than the model's own: the frequencies are transformers' own, and every way back
to the result has them too.
"""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from made_run import make_run
from peft import PeftModel
from tiny import KINDS, load, plain
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config

from prefloop.artifacts.references import policy_of
from prefloop.config import BackboneConfig, RopeConfig
from prefloop.errors import ConfigError, ModelError
from prefloop.export.adapter import export
from prefloop.models.rope import context, entries, written
from prefloop.runs.open import open_policies, require_one_backbone

YARN = {"type": "yarn", "factor": 4.0}
LINEAR = {"type": "linear", "factor": 2.0}
FAR = torch.randint(9, 400, (1, 900), generator=torch.Generator().manual_seed(3))
"""Past the 512 tokens of the tiny models."""


def transformers_own(folder: Path, rope: dict) -> torch.nn.Module:
    """The same weights under a configuration that says the scaling in transformers' older words,
    read by transformers alone.
    """
    config = AutoConfig.from_pretrained(folder)
    theta = config.rope_parameters["rope_theta"]
    config.rope_parameters = {
        "rope_theta": theta,
        "rope_type": rope["type"],
        "factor": rope["factor"],
    }
    if rope["type"] == "yarn":
        config.rope_parameters["original_max_position_embeddings"] = 512
    return AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=torch.float32, attn_implementation="sdpa"
    )


@pytest.mark.parametrize("rope", [YARN, LINEAR])
def test_frequencies_and_logits_are_those_of_transformers_own_scaled_model(
    tiny_folder: Path, rope: dict
) -> None:
    ours, theirs = load(tiny_folder, rope=rope).causal_lm, transformers_own(tiny_folder, rope)
    assert torch.equal(ours.model.rotary_emb.inv_freq, theirs.model.rotary_emb.inv_freq)
    assert ours.model.rotary_emb.attention_scaling == theirs.model.rotary_emb.attention_scaling
    with torch.no_grad():
        found, expected, bare = (m(FAR).logits for m in (ours, theirs, plain(tiny_folder)))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (found - bare).abs().max() > 1e-2


def test_yarn_keeps_fast_rotations_stretches_slow_ones_and_sharpens_attention(
    tiny_folder: Path,
) -> None:
    scaled, bare = (
        load(tiny_folder, rope=YARN).causal_lm.model.rotary_emb,
        plain(tiny_folder).model.rotary_emb,
    )
    share = scaled.inv_freq / bare.inv_freq
    rotations = (
        512 * bare.inv_freq / (2 * math.pi)
    )  # within the context of training, equation 17 with its bounds 1 and 32
    assert (
        torch.equal(share[rotations > 32], torch.ones_like(share[rotations > 32]))
        and (rotations > 32).any()
    )
    torch.testing.assert_close(share[rotations < 1], torch.full_like(share[rotations < 1], 1 / 4))
    assert (rotations < 1).any() and scaled.attention_scaling == pytest.approx(
        0.1 * math.log(4) + 1
    )


def test_linear_interpolation_divides_every_position(tiny_folder: Path) -> None:
    scaled, bare = (
        load(tiny_folder, rope=LINEAR).causal_lm.model.rotary_emb,
        plain(tiny_folder).model.rotary_emb,
    )
    torch.testing.assert_close(scaled.inv_freq, bare.inv_freq / 2)


@pytest.mark.parametrize(("rope", "longest"), [(YARN, 2048), (LINEAR, 1024)])
def test_max_length_may_go_to_factor_times_the_context(
    tiny_folder: Path, rope: dict, longest: int
) -> None:
    assert load(tiny_folder, rope=rope, max_length=longest).config.max_length == longest
    with pytest.raises(
        ModelError,
        match=f"max_length is {longest + 1}, but tiny-llama has a context of {longest} tokens",
    ):
        load(tiny_folder, rope=rope, max_length=longest + 1)
    with pytest.raises(
        ModelError,
        match=r"context of 512 tokens: lower it, or make the context longer with backbone\.rope",
    ):
        load(tiny_folder, max_length=513)


def test_wrong_settings_are_named_before_anything_is_read() -> None:
    with pytest.raises(
        ConfigError,
        match=r"rope\.type: unknown 'yarm' \(did you mean 'yarn'\?; one of none, yarn, linear\)",
    ):
        BackboneConfig(rope={"type": "yarm", "factor": 4})
    with pytest.raises(ConfigError, match=r"rope\.factor is 1: .* must be over 1"):
        RopeConfig("linear", 1)
    with pytest.raises(
        ConfigError,
        match=r"rope\.factor is 4 without a type: set backbone\.rope\.type yarn or linear",
    ):
        RopeConfig(factor=4)


def test_models_that_cannot_be_stretched_are_refused_by_name(tiny_folder: Path) -> None:
    yarn = RopeConfig(**YARN)
    with pytest.raises(
        ModelError, match="rope is yarn, but gpt2 has no rotary position embeddings"
    ):
        entries(GPT2Config().to_dict(), yarn, "gpt2")
    done = AutoConfig.from_pretrained(tiny_folder).to_dict()
    done["rope_parameters"] |= {"rope_type": "llama3", "factor": 8.0}
    with pytest.raises(ModelError, match=r"of llama are scaled already \(llama3, context 512\)"):
        entries(done, yarn, "llama")


def test_a_missing_rope_is_found_before_any_weight_is_loaded(
    tmp_path: Path, tiny_folder: Path
) -> None:
    GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=400).save_pretrained(
        tmp_path
    )  # no weights at all
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny_folder / name).read_bytes())
    with pytest.raises(ModelError, match="has no rotary position embeddings"):
        load(tmp_path, rope=YARN)


def test_only_layers_that_see_everything_are_stretched_where_the_model_tells_them_apart() -> None:
    parameters = {
        n: {"rope_type": "default", "rope_theta": t}
        for n, t in (("full_attention", 1e6), ("sliding_attention", 1e4))
    }
    text = {"rope_parameters": parameters, "max_position_embeddings": 512, "model_type": "x"}
    before = copy.deepcopy(text)
    found = entries(text, RopeConfig(**LINEAR), "x")["rope_parameters"]
    assert found["sliding_attention"] == parameters["sliding_attention"] and text == before
    assert found["full_attention"] == {"rope_type": "linear", "rope_theta": 1e6, "factor": 2.0}
    assert context(text | {"rope_parameters": found}) == 1024


def test_older_words_in_config_json_give_way_and_others_stay() -> None:
    old = {"rope_scaling": None, "rope_theta": 1e4, "vocab_size": 7}
    assert written(old, {"rope_parameters": {"factor": 2}}) == {
        "rope_parameters": {"factor": 2},
        "vocab_size": 7,
    }
    assert written({"text_config": old, "a": 1}, {"text_config": {"b": 2}}) == {
        "text_config": {"vocab_size": 7, "b": 2},
        "a": 1,
    }
    assert written(old, {}) == old


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("llama", "llama-wide")])
def test_every_kind_of_model_takes_it(tiny_folders, kind: str) -> None:
    backbone = load(tiny_folders(kind), kind, rope=YARN, max_length=2048)
    with torch.no_grad():
        found, bare = (m(FAR).logits for m in (backbone.causal_lm, plain(tiny_folders(kind), kind)))
    assert found.isfinite().all() and (found - bare).abs().max() > 1e-3


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A run whose adapters were made with YaRN."""
    return make_run(
        tmp_path_factory.mktemp("rope"),
        "long",
        tiny_folder,
        slots=("sft", "reward"),
        rope=YARN,
        max_length=1024,
    )


def far_logits(reference: str | Path) -> torch.Tensor:
    opened = open_policies([reference])
    with opened.runtime.backbone.role(next(iter(opened.roles.values()))):
        return opened.runtime.backbone.causal_lm(FAR).logits


@pytest.mark.parametrize("rope", [YARN, LINEAR])
def test_a_merged_export_is_a_scaled_model_for_transformers_alone(
    tmp_path: Path, tiny_folder: Path, rope: dict
) -> None:
    run = make_run(tmp_path, "long", tiny_folder, slots=("sft",), rope=rope, max_length=1024)
    folder = export(f"{run}:sft", tmp_path / "whole", merge=True)
    with torch.no_grad():
        found = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(FAR).logits
    torch.testing.assert_close(found, far_logits(f"{run}:sft"), atol=1e-4, rtol=1e-4)
    said = json.loads((folder / "config.json").read_text())
    assert (
        said["rope_parameters"]["rope_type"] == rope["type"]
        and context(said) == 512 * rope["factor"]
    )


def test_an_exported_adapter_brings_its_rope_back(run: Path, tmp_path: Path) -> None:
    folder = export(f"{run}:sft", tmp_path / "adapter")
    assert (
        policy_of(folder).origin.settings["rope"]
        == YARN
        == policy_of(f"{run}:sft").origin.settings["rope"]
    )
    assert torch.equal(far_logits(folder), far_logits(f"{run}:sft"))


def test_the_cards_snippet_loads_the_scaled_model(
    run: Path, tmp_path: Path, tiny_folder: Path
) -> None:
    folder = export(f"{run}:sft", tmp_path / "adapter")
    card = (folder / "README.md").read_text()
    snippet = card.split("```python\n")[1].split("```")[0]
    code = snippet.replace('"BASE"', repr(str(tiny_folder))).replace('"FOLDER"', repr(str(folder)))
    space: dict = {}
    exec(code, space)
    assert isinstance(space["model"], PeftModel)
    with torch.no_grad():
        found = space["model"].float()(FAR).logits
    torch.testing.assert_close(found, far_logits(folder), atol=1e-4, rtol=1e-4)
    told = json.loads(card.split("--hf-overrides '")[1].split("'")[0])
    assert (
        told["rope_parameters"]["original_max_position_embeddings"] == 512
        and told["max_position_embeddings"] == 2048
    )


def test_a_run_with_rope_is_not_comparable_to_one_without(
    run: Path, tmp_path: Path, tiny_folder: Path
) -> None:
    other = make_run(tmp_path, "short", tiny_folder, slots=("sft",))
    one, two = policy_of(f"{run}:sft"), policy_of(f"{other}:sft")
    assert one.key != two.key
    with pytest.raises(ModelError, match="different backbones: rope yarn 4 and none"):
        require_one_backbone([one, two])
