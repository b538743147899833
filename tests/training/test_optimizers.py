"""Optimizers by name: their moments survive checkpoints bit by bit, whatever they are stored in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import random_documents
from torch import nn

from prefloop.config import OptimConfig, SFTStageConfig
from prefloop.config.common import OPTIMIZERS
from prefloop.config.load import parse
from prefloop.data.packing import packs
from prefloop.errors import ConfigError
from prefloop.training.loop import Loop

PACK = packs(random_documents([(2, [1])]), 8)
NAMES = pytest.mark.parametrize("name", OPTIMIZERS)


def loop_of(folder: Path, name: str, seed: int = 0) -> Loop:
    """A tensor large enough for 8-bit moments and one that is not, each at its own rate."""
    generator = torch.Generator().manual_seed(seed)
    named = {
        n: nn.Parameter(torch.randn(s, generator=generator))
        for n, s in (("adapter/w", (80, 70)), ("head/b", (9,)))
    }
    optim = OptimConfig(name=name, learning_rate=1e-2, warmup_steps=1, weight_decay=0.1)
    return Loop(named, optim, 8, folder, {"head/": 3e-2})


def steps(loop: Loop, start: int, stop: int) -> None:
    for k in range(start, stop):
        generator = torch.Generator().manual_seed(100 + k)
        towards = [torch.randn(p.shape, generator=generator) for p in loop.parameters.values()]
        loop.update(
            PACK,
            lambda _, t=towards: sum(
                (p * x).sum() for p, x in zip(loop.parameters.values(), t, strict=True)
            ),
            items=1,
        )


@NAMES
def test_going_on_from_a_checkpoint_ends_in_the_same_weights(name: str, tmp_path: Path) -> None:
    whole = loop_of(tmp_path / "whole", name)
    steps(whole, 0, 8)
    cut = loop_of(tmp_path / "cut", name)
    steps(cut, 0, 4)
    cut.save({})
    again = loop_of(tmp_path / "cut", name, seed=9)
    assert again.restore() == ({}, {}) and again.step == 4
    steps(again, 4, 8)
    for n, parameter in whole.parameters.items():
        assert torch.equal(again.parameters[n], parameter), n
    other = loop_of(tmp_path / "other", name)
    steps(other, 0, 4)
    other.optimizer.state.clear()  # without its moments it would end elsewhere
    steps(other, 4, 8)
    assert not torch.equal(other.parameters["adapter/w"], whole.parameters["adapter/w"])


@NAMES
def test_going_back_takes_the_moments_along(name: str, tmp_path: Path) -> None:
    loop = loop_of(tmp_path, name)
    steps(loop, 0, 3)
    loop.keep(tmp_path / "best.safetensors")
    before = {k: v.clone() for k, v in loop._flat().items()}
    steps(loop, 3, 6)
    loop.go_back(tmp_path / "best.safetensors")
    after = loop._flat()
    assert after.keys() == before.keys() and all(torch.equal(after[k], before[k]) for k in after)


@pytest.mark.parametrize(("eight", "plain"), [("adamw8bit", "adamw"), ("lion8bit", "lion")])
def test_eight_bits_are_stored_and_follow_the_full_ones(
    eight: str, plain: str, tmp_path: Path
) -> None:
    one, two = (loop_of(tmp_path / n, n) for n in (eight, plain))
    start = two.parameters["adapter/w"].detach().clone()
    for loop in (one, two):
        steps(loop, 0, 8)
    kinds = {k: v.dtype for k, v in one._flat().items()}
    assert (
        kinds["optimizer/state1/adapter/w"] == torch.uint8
        and kinds["optimizer/state1/head/b"] == torch.float32
    )
    moved = [(loop.parameters["adapter/w"].detach() - start).flatten() for loop in (one, two)]
    assert torch.nn.functional.cosine_similarity(*moved, dim=0) > 0.95
    torch.testing.assert_close(
        one.parameters["head/b"], two.parameters["head/b"], atol=1e-5, rtol=1e-5
    )


def test_lion_steps_by_the_sign_of_the_interpolated_gradient(tmp_path: Path) -> None:
    """Chen et al. 2023, algorithm 2: p - lr (sign(0.9 m + 0.1 g) + decay p), then m = 0.99 m + 0.01
    g.
    """
    weight, rate = nn.Parameter(torch.tensor([1.0, -2.0, 3.0])), 0.1
    loop = Loop(
        {"w": weight},
        OptimConfig(
            name="lion",
            learning_rate=rate,
            warmup_steps=0,
            schedule="constant",
            weight_decay=0.5,
            max_grad_norm=1e9,
        ),
        4,
        tmp_path,
    )
    expected, m = weight.detach().clone(), torch.zeros(3)
    for g in (torch.tensor([1.0, -1.0, 2.0]), torch.tensor([-0.05, 3.0, -0.01])):
        loop.update(PACK, lambda _, g=g: (weight * g).sum(), items=1)
        expected = expected - rate * ((0.9 * m + 0.1 * g).sign() + 0.5 * expected)
        m = 0.99 * m + 0.01 * g
    torch.testing.assert_close(weight.detach(), expected)


def test_an_unknown_optimizer_gets_the_nearest_and_the_list() -> None:
    with pytest.raises(
        ConfigError,
        match=(
            r"^sft.optim.name: unknown optimizer 'adam8bit' \(did you mean 'adamw8bit'\?; one of"
            r" adamw, adamw8bit, paged_adamw,"
        ),
    ):
        SFTStageConfig(optim=OptimConfig(name="adam8bit"))
    for stage in ("sft", "reward", "preference", "ppo"):
        with pytest.raises(ConfigError, match=f"^{stage}.optim.name: unknown optimizer 'x'"):
            parse([f"--{stage}.optim.name", "x"], "rlhf.py", "")
