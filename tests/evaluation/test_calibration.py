"""Calibration arithmetic and the reward model's measures."""

from __future__ import annotations

import math

import pytest
import torch

from prefloop.data.encode import PreferenceGroup
from prefloop.data.packing import Document
from prefloop.evaluation.reward_metrics import PairMetrics, pairwise
from prefloop.objectives.calibration import expected_calibration_error, fit_temperature, log_loss
from prefloop.objectives.reward import bradley_terry, centering
from prefloop.pipeline.stages.reward import crossed


def drawn(temperature: float, count: int = 20_000) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    margin = 3 * torch.randn(count, generator=generator)
    label = (torch.rand(count, generator=generator) < (margin / temperature).sigmoid()).float()
    return margin, label


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_temperature_that_drew_the_votes_is_found(temperature: float) -> None:
    margin, label = drawn(temperature)
    found = fit_temperature(margin, label)
    assert found == pytest.approx(temperature, rel=0.05)
    assert log_loss(margin, label, found) <= min(
        log_loss(margin, label, found * f) for f in (0.9, 1.1)
    )


def test_calibration_error_is_small_when_calibrated_and_known_when_not() -> None:
    margin, label = drawn(2.0)
    assert expected_calibration_error((margin / 2).sigmoid(), label) < 0.01
    assert expected_calibration_error(torch.full((1000,), 0.9), torch.ones(1000)) == pytest.approx(
        0.1, abs=1e-6
    )
    assert math.isnan(expected_calibration_error(torch.tensor([]), torch.tensor([])))


def test_calibration_error_does_not_depend_on_the_order_of_pairs() -> None:
    margin, label = drawn(1.0, 500)
    flip = torch.arange(500) % 3 == 0
    flipped = expected_calibration_error(
        torch.where(flip, -margin, margin).sigmoid(), torch.where(flip, 1 - label, label)
    )
    assert flipped == pytest.approx(expected_calibration_error(margin.sigmoid(), label), abs=1e-6)


def test_halves_are_judged_by_the_other_halfs_temperature() -> None:
    margin, label = drawn(4.0, 4000)
    found = PairMetrics(margin, label, torch.zeros(4000))
    after = crossed(found)
    assert after["calibrated_ece"] < 0.03 < found.metrics(1.0)["ece"]
    assert after["calibrated_loss"] < found.metrics(1.0)["loss"]
    assert crossed(PairMetrics(margin[:12], label[:12], torch.zeros(12))) == {}


def test_accuracy_leaves_ties_out_and_counts_equal_scores_half() -> None:
    found = PairMetrics(
        torch.tensor([1.0, -1.0, 0.0, 5.0]),
        torch.tensor([1.0, 0.8, 0.0, 0.5]),
        torch.tensor([30.0, 60.0, -1.0, 4.0]),
    )
    assert found.right_P.tolist() == [1.0, 0.0, 0.5]
    length = found.by_length()
    assert length["always the longer"] == pytest.approx(1.0)
    parts = length["preferred response is"]
    assert [parts[n]["pairs"] for n in parts] == [0, 0, 2, 1]
    assert (
        parts["longer by over 50"]["accuracy"] == 0.0
        and parts["shorter by over 50"]["accuracy"] is None
    )


def test_pairs_take_the_mean_of_the_members_scores() -> None:
    group = PreferenceGroup(Document([1], [[2, 3], [4]], [5, 6]), [(0, 1, 0.75, 1.0)])
    found = pairwise([group], {5: [1.0, 3.0], 6: [0.0, 1.0]})
    assert (found.margin_P.tolist(), found.label_P.tolist(), found.length_P.tolist()) == (
        [1.5],
        [0.75],
        [1.0],
    )


def test_margin_asks_for_more_and_centering_pulls_to_zero() -> None:
    margin = torch.tensor([0.0, 2.0])
    assert torch.allclose(bradley_terry(margin, 1.0, 1.0), bradley_terry(margin - 1, 1.0))
    assert torch.allclose(bradley_terry(-margin, 0.0, 1.0), bradley_terry(margin, 1.0, 1.0))
    assert centering(torch.tensor([1.0]), torch.tensor([-1.0])).item() == 0
    assert centering(torch.tensor([1.0]), torch.tensor([0.5])).item() == pytest.approx(2.25)
