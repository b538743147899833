"""Options that change what a saved adapter computes stand in its files: under another value it is
refused or is what it was, nothing between.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from adapted import load, logps, two_experts
from tiny import add_random_role

from prefloop.errors import ModelError
from prefloop.models.adapters import CARDS

CHANGED: dict[str, dict[str, Any]] = {
    "adalora": {
        "start": 2.0,
        "warmup": 0.2,
        "final": 0.1,
        "every": 2,
        "orthogonal": 0.2,
        "beta1": 0.5,
        "beta2": 0.5,
    },
    "lora+": {"ratio": 4.0},
    "vera": {"d_initial": 0.5, "key": 1},
    "ia3": {"feedforward": r".*\.o_proj"},
    "oft": {"block": 16, "neumann": True},
    "boft": {"block": 8, "factors": 1},
    "randlora": {"scale": 10.0, "key": 1},
    "prompt": {"tokens": 5},
    "p-tuning": {"tokens": 5, "hidden": 8},
    "prefix": {"tokens": 5, "hidden": 8},
    "p-tuning-v2": {"tokens": 5},
    "bottleneck": {"activation": "relu"},
    "delta-lora": {"ratio": 3.0, "start": 5.0},
    "lora-drop": {"share": 0.5, "steps": 2},
    "mole": {"temperature": 2.0, "top_k": 1, "balance": 0.5},
}
"""Another value of every option than the one that holds by itself; experts are put in another
order.
"""
REFUSED = {
    ("adalora", "start"),
    ("vera", "key"),
    ("ia3", "feedforward"),
    ("oft", "block"),
    ("oft", "neumann"),
    ("boft", "block"),
    ("boft", "factors"),
    ("randlora", "scale"),
    ("randlora", "key"),
    *((method, "tokens") for method in ("prompt", "p-tuning", "prefix", "p-tuning-v2")),
    *((method, "hidden") for method in ("p-tuning", "prefix")),
    ("bottleneck", "activation"),
    ("delta-lora", "ratio"),
    *(("mole", option) for option in ("experts", "temperature", "top_k")),
}
SQUARE = {"ia3": {"target_modules": r".*\.(q_proj|o_proj)"}}
"""Layers whose shapes tell nothing."""


@pytest.fixture(scope="module")
def saved(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """By method: settings, the folder of a random adapter, its log-probs."""
    experts = two_experts(tmp_path_factory.mktemp("experts"), tiny_folder)

    @cache
    def of(method: str) -> tuple[dict[str, Any], Path, torch.Tensor]:
        settings: dict[str, Any] = {**SQUARE.get(method, {}), "options": {}}
        if method == "mole":
            settings["options"] = {"experts": experts}
        backbone = load(tiny_folder, method, **settings)
        add_random_role(backbone, "policy")
        folder = tmp_path_factory.mktemp("saved") / method
        backbone.save_role("policy", folder)
        return settings, folder, logps(backbone, "policy")

    return of


@pytest.mark.parametrize(
    ("method", "option"),
    [(card.name, option) for card in CARDS.values() for option in card.options],
)
def test_a_saved_adapter_is_refused_or_the_same_under_another_value_of_an_option(
    method: str, option: str, tiny_folder: Path, saved: Any
) -> None:
    settings, folder, expected = saved(method)
    value = settings["options"]["experts"][::-1] if option == "experts" else CHANGED[method][option]
    settings = {**settings, "options": {**settings["options"], option: value}}
    backbone = load(tiny_folder, method, **settings)
    if (method, option) in REFUSED:
        with pytest.raises(ModelError, match="does not fit"):
            backbone.add_role("policy", start=folder)
    else:
        backbone.add_role("policy", start=folder)
        assert torch.equal(logps(backbone, "policy"), expected)
