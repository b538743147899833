"""How much of each method learns: the papers' formulas, and the numbers that they publish."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from adapted import LINEAR, R, load, two_experts
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BertConfig,
    LlamaConfig,
    RobertaConfig,
    T5Config,
)

from prefloop.config import AdapterConfig
from prefloop.config.adapters import CARDS
from prefloop.models.adapters import method_of

LORA = sum(R * (i + o) for i, o in LINEAR)
HIDDEN, KEYS, LAYERS, TOKENS = 64, 32, 2, 20
COUNTS: dict[str, int] = {
    **dict.fromkeys(
        ("lora", "rslora", "pissa", "olora", "eva", "lora+", "delta-lora", "lora-drop"), LORA
    ),
    "lora-fa": sum(R * o for _, o in LINEAR),  # B alone
    "dora": sum(R * (i + o) + o for i, o in LINEAR),  # and a magnitude for each output
    "adalora": sum(6 * (i + o + 1) for i, o in LINEAR),  # P, Q and the singular values, at 1.5 r
    "vera": sum(R + o for _, o in LINEAR),  # d and b
    "ia3": 2 * (32 + 32 + 128),  # keys, values, inner activations
    "oft": sum((i // 32) * (32 * 31 // 2) for i, _ in LINEAR),  # a skew matrix for each block
    "boft": sum(2 * i * 4 + o for i, o in LINEAR),  # two factors of blocks of 4, and output scales
    "hra": sum(R * i for i, _ in LINEAR),
    "miss": sum(R * o for _, o in LINEAR),
    # scales of the rank for each base, and of the smaller side for each base
    "randlora": sum(-(-min(i, o) // R) * (R + min(i, o)) for i, o in LINEAR),
    "prompt": TOKENS * HIDDEN,
    "p-tuning": TOKENS * HIDDEN + 3 * (HIDDEN * HIDDEN + HIDDEN),  # and an MLP of three layers
    # and an MLP of two layers to the keys and values of all layers
    "prefix": TOKENS * KEYS + (KEYS * HIDDEN + HIDDEN) + (HIDDEN + 1) * 2 * LAYERS * KEYS,
    "p-tuning-v2": TOKENS * 2 * LAYERS * KEYS,
    "bitfit": sum(o for _, o in LINEAR),
    "bottleneck": 2
    * LAYERS
    * (2 * HIDDEN * R + R + HIDDEN + 2 * HIDDEN),  # 2 m d + d + m, and the norm's 2 m
    "mole": sum(2 * (i + 1) for i, _ in LINEAR),  # a gate over two experts
    "full": 400 * HIDDEN
    + sum(i * o for i, o in LINEAR)
    + LAYERS * 2 * HIDDEN
    + HIDDEN,  # tied embeddings, norms
}
"""Numbers that learn on the tiny model."""


@pytest.mark.parametrize("method", CARDS)
def test_parameters_are_as_many_as_the_paper_says(
    tiny_folder: Path, tmp_path: Path, method: str
) -> None:
    options = {"experts": two_experts(tmp_path, tiny_folder)} if method == "mole" else {}
    backbone = load(tiny_folder, method, options=options)
    backbone.add_role("policy")
    assert backbone.method.count("policy") == COUNTS[method]


@pytest.mark.parametrize(("layers", "width"), [(12, 768), (24, 1024)])
@pytest.mark.parametrize("rank", [1, 16, 256])
def test_veras_numbers_are_layers_times_width_plus_rank_and_loras_twice_their_product(
    layers: int, width: int, rank: int
) -> None:
    """2310.11454, section 3.2, on queries and values of RoBERTa: L_tuned (d_model + r) against 2
    L_tuned d_model r.
    """
    small = {
        "vocab_size": 8,
        "intermediate_size": 8,
        "hidden_size": width,
        "num_hidden_layers": layers,
    }
    for name, expected in (
        ("vera", 2 * layers * (width + rank)),
        ("lora", 2 * 2 * layers * width * rank),
    ):
        with torch.device("meta") if name == "lora" else contextlib.nullcontext():
            model = AutoModelForCausalLM.from_config(RobertaConfig(**small, num_attention_heads=8))
            method = method_of(
                AdapterConfig(method=name, r=rank, target_modules=r".*\.(query|value)")
            )
            method.wrap(model)
            method.add("policy")
        assert method.count("policy") == expected


LLAMA_7B: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
}
T5_XXL: dict[str, Any] = {
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
}
"""T5 1.1 XXL, which T0 is."""
LARGE: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
}
PUBLISHED = {
    "LoRA, 2106.09685, table 2: RoBERTa base, 0.3 M": (
        RobertaConfig(),
        "lora",
        8,
        r".*\.(query|value)",
        {},
        0.3e6,
    ),
    "LoRA, 2106.09685, table 2: RoBERTa large, 0.8 M": (
        RobertaConfig(**LARGE),
        "lora",
        8,
        r".*\.(query|value)",
        {},
        0.8e6,
    ),
    "VeRA, 2310.11454, table 2: RoBERTa base, 0.043 M": (
        RobertaConfig(),
        "vera",
        1024,
        r".*\.(query|value)",
        {},
        0.043e6,
    ),
    "the same: RoBERTa large, 0.061 M": (
        RobertaConfig(**LARGE),
        "vera",
        256,
        r".*\.(query|value)",
        {},
        0.061e6,
    ),
    "VeRA, 2310.11454v1, abstract: Llama 2 7B, 1.4 M": (
        LlamaConfig(**LLAMA_7B),
        "vera",
        256,
        "all-linear",
        {},
        1.4e6,
    ),
    "DoRA, 2402.09353, table 1: LLaMA 7B, 0.84 %": (
        LlamaConfig(**LLAMA_7B),
        "dora",
        32,
        r".*\.(q|k|v|up|down)_proj",
        {},
        0.84 / 100,
    ),
    "the same: LoRA, 0.83 %": (
        LlamaConfig(**LLAMA_7B),
        "lora",
        32,
        r".*\.(q|k|v|up|down)_proj",
        {},
        0.83 / 100,
    ),
    "IA3, 2205.05638, abstract and section 3.3: T0, 0.01 %": (
        T5Config(**T5_XXL),
        "ia3",
        8,
        r".*Attention\.(k|v)|.*\.wo",
        {"feedforward": r".*\.wo"},
        0.01 / 100,
    ),
    "BitFit, 2106.10199, section 3: BERT base, 0.09 %": (
        BertConfig(),
        "bitfit",
        8,
        "all-linear",
        {},
        0.09 / 100,
    ),
    "the same: BERT large, 0.08 %": (
        BertConfig(**LARGE),
        "bitfit",
        8,
        "all-linear",
        {},
        0.08 / 100,
    ),
}
"""Model, method, rank, layers, options; the paper's number of parameters or its share of all."""


@pytest.mark.parametrize("source", PUBLISHED)
def test_counts_and_shares_are_the_published_ones(source: str) -> None:
    config, name, r, layers, options, published = PUBLISHED[source]
    kinds = {T5Config: AutoModelForSeq2SeqLM, BertConfig: AutoModel}
    with torch.device("meta"):
        model = kinds.get(type(config), AutoModelForCausalLM).from_config(config)
        base = sum(p.numel() for p in model.parameters())
    method = method_of(
        AdapterConfig(method=name, r=r, alpha=r, target_modules=layers, options=options)
    )
    # VeRA draws its matrices from a key, on the host
    with torch.device("meta") if name != "vera" else contextlib.nullcontext():
        method.wrap(model)
        method.add("policy")
    count = method.count("policy")
    whole = base if name == "bitfit" else base + count  # biases are the model's own
    found = count / whole * 100 if published < 1 else count / 1e6
    published *= 100 if published < 1 else 1e-6
    digits = len(f"{published:.6f}".rstrip("0").partition(".")[2])
    assert round(found, digits) == pytest.approx(published)
