"""The dry pass: covers the largest pack, teaches nothing, and turns a lack of memory into what to
change.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import add_random_role, load

from prefloop.errors import ModelError
from prefloop.training import memory_check as dry


@pytest.mark.parametrize("budget", [60, 64, 100, 128, 401])
def test_the_largest_pack_is_full(budget: int) -> None:
    assert len(dry.largest_pack(20, 10, 4, budget).tokens_N) in (budget, budget - 1)


def test_the_largest_pack_is_never_less_than_one_document() -> None:
    assert len(dry.largest_pack(20, 10, 2, budget=16).tokens_N) == 40


def test_a_dry_pass_teaches_nothing(tiny_folder: Path) -> None:
    backbone = load(tiny_folder)
    add_random_role(backbone, "policy")
    before = [p.detach().clone() for p in backbone.parameters("policy")]
    state = torch.get_rng_state()
    pack = dry.largest_pack(8, 4, 2, budget=64)
    dry.dry_pass(backbone, ["policy"], ["policy"], pack, pack)
    after = backbone.parameters("policy")
    assert all(p.grad is None and torch.equal(p, b) for p, b in zip(after, before, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("training", [False, True])
def test_out_of_memory_names_the_pack_and_the_settings(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, training: bool
) -> None:
    backbone = load(tiny_folder)
    add_random_role(backbone, "policy")
    real = dry.hidden_N_H

    def scarce(*arguments: object) -> torch.Tensor:
        if torch.is_grad_enabled() == training:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nmore")
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(dry, "hidden_N_H", scarce)
    pack = dry.largest_pack(8, 4, 2, budget=64)
    with pytest.raises(
        ModelError,
        match=(
            r"64 tokens.*lower backbone.pack_tokens \(now 512\).*gradient_checkpointing"
            r" block.*20\.00 GiB"
        ),
    ) as error:
        dry.dry_pass(backbone, ["policy"], ["policy"], pack, pack)
    assert "more" not in str(error.value).split("20.00")[1]
