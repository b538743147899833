"""BitFit and bottleneck adapters: the papers' formulas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from adapted import load
from tiny import add_random_role
from torch.testing import assert_close

from prefloop.config import GenerationConfig
from prefloop.errors import ConfigError, ModelError
from prefloop.models.merge import save_merged
from prefloop.rollouts.vllm import VLLMEngine


def test_bitfit_owns_one_number_for_each_output_of_each_linear_layer(tiny_folder: Path) -> None:
    backbone = load(tiny_folder, "bitfit")
    backbone.add_role("policy")
    width, inner, key_value = 64, 128, 32
    expected = 2 * (2 * width + 2 * key_value + 2 * inner + width)
    assert sum(p.numel() for p in backbone.parameters("policy")) == expected


def test_bitfit_begins_at_the_models_own_biases_and_replaces_them(tiny_folders: Any) -> None:
    backbone = load(tiny_folders("qwen2"), "bitfit", kind="qwen2")
    backbone.add_role("policy")
    layer = backbone.causal_lm.get_submodule("model.layers.0.self_attn.q_proj")
    own = backbone.named_parameters("policy")["model.layers.0.self_attn.q_proj.bias"]
    assert torch.equal(own, layer.bias)
    with torch.no_grad():
        own.fill_(0.5)
    x = torch.randn(3, 64)
    with backbone.role("policy"):
        assert_close(layer(x), x @ layer.weight.T + 0.5)


def test_bitfit_on_a_model_without_biases_says_why_it_does_not_merge(
    tiny_folder: Path, tmp_path: Path
) -> None:
    backbone = load(tiny_folder, "bitfit")
    backbone.add_role("policy")
    for merge in (
        lambda: dict(backbone.merged_weights("policy")),
        lambda: save_merged(backbone.causal_lm, "policy", tmp_path, torch.float32),
        lambda: VLLMEngine(
            backbone, GenerationConfig()
        ),  # which samples from merged weights: not started for nothing
    ):
        with pytest.raises(ModelError, match=r"14 layers of this model have no bias.*lora"):
            merge()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_bottleneck_counts_as_the_paper_has_it(kind: str, tiny_folders: Any) -> None:
    backbone = load(tiny_folders(kind), "bottleneck", kind=kind, r=6)
    backbone.add_role("policy")
    width, rank, layers = 64, 6, 2
    per_adapter = 2 * width * rank + rank + width + 2 * width
    assert sum(p.numel() for p in backbone.parameters("policy")) == layers * 2 * per_adapter


def test_bottleneck_adds_its_network_to_what_the_sublayer_gives(tiny_folder: Path) -> None:
    backbone = load(tiny_folder, "bottleneck", options={"activation": "relu"})
    add_random_role(backbone, "policy")
    mlp, x = backbone.causal_lm.get_submodule("model.layers.1.mlp"), torch.randn(5, 64)
    p = {
        n.removeprefix("model.layers.1.mlp."): t
        for n, t in backbone.named_parameters("policy").items()
    }
    with backbone.role(None):
        h = mlp(x)
    normed = (h - h.mean(-1, keepdim=True)) / (
        h.var(-1, unbiased=False, keepdim=True) + 1e-5
    ).sqrt()
    normed = normed * p["norm.weight"] + p["norm.bias"]
    low = (normed @ p["down.weight"].T + p["down.bias"]).relu()
    with backbone.role("policy"):
        assert_close(mlp(x), h + low @ p["up.weight"].T + p["up.bias"])


def test_bottleneck_refuses_an_unknown_activation(tiny_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown 'step'.*gelu, relu, silu"):
        load(tiny_folder, "bottleneck", options={"activation": "step"})
