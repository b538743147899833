"""Scalar heads: saved and loaded without a bit lost, and never missing unnoticed."""

from pathlib import Path

import pytest
import torch
from tiny import load
from torch.testing import assert_close

from prefloop.errors import ModelError
from prefloop.models.heads import ScalarHead


@pytest.mark.parametrize("init", ["normal", "zero"])
def test_a_head_loaded_again_gives_identical_scores(init: str, tmp_path: Path) -> None:
    head = ScalarHead(64, init, seed=3)
    head.calibrate(torch.tensor([1.0, 2.0, 4.0]))
    hidden = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    head.save(tmp_path)
    again = ScalarHead.load(tmp_path)
    assert torch.equal(again(hidden), head(hidden))
    assert torch.equal(again.normalized(again(hidden)), head.normalized(head(hidden)))
    assert bool(head(hidden).any()) == (init == "normal")


def test_calibration_gives_the_reference_set_mean_zero_and_std_one() -> None:
    head = ScalarHead(4)
    scores = torch.tensor([3.0, 5.0, 10.0, -2.0])
    head.calibrate(scores)
    assert_close(head.normalized(scores).mean(), torch.tensor(0.0), atol=1e-6, rtol=0)
    assert_close(head.normalized(scores).std(), torch.tensor(1.0))


def test_reward_head_starts_small_and_from_its_seed() -> None:
    weight = ScalarHead(4000, "normal", seed=1).linear.weight.detach()
    assert float(weight.std()) == pytest.approx(1 / 4001, rel=0.05)
    assert torch.equal(weight, ScalarHead(4000, "normal", seed=1).linear.weight)
    assert not torch.equal(weight, ScalarHead(4000, "normal", seed=2).linear.weight)


def test_an_adapter_without_its_head_is_a_model_error(tiny_folder: Path, tmp_path: Path) -> None:
    backbone = load(tiny_folder)
    backbone.add_role("reward/0")
    backbone.save_role("reward/0", tmp_path / "reward")
    with pytest.raises(
        ModelError,
        match=r"'reward' holds an adapter without its scalar head \(head.safetensors is missing\)",
    ):
        ScalarHead.load(tmp_path / "reward")
