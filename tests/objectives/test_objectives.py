"""Losses on pairs, thumbs and reward models against published numbers, finite differences and
invariants.
"""

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.testing import assert_close

from prefloop.objectives import preference
from prefloop.objectives.reward import bradley_terry

MARGINS = torch.tensor([0.0, 10.0, 20.0])
POLICY_CHOSEN = torch.tensor([-0.5, -10.0, -1.0])
POLICY_REJECTED = torch.tensor([-0.1, -30.0, -21.0])
REFERENCE_CHOSEN = torch.tensor([-0.5, -10.1, -0.1])
REFERENCE_REJECTED = torch.tensor([-0.1, -20.1, -0.1])


def golden(found: Tensor, expected: list[float]) -> None:
    assert_close(found.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-5)


def test_dpo_golden_vector() -> None:
    golden(preference.dpo(MARGINS, beta=0.1), [0.693147, 0.313262, 0.126928])


def test_conservative_dpo_golden_vector() -> None:
    golden(preference.dpo(MARGINS, beta=0.1, label_smoothing=0.1), [0.693147, 0.413262, 0.326928])


def test_hinge_golden_vector() -> None:
    golden(preference.hinge(MARGINS, beta=0.1), [1, 0, 0])


def test_ipo_on_summed_log_probs_golden_vector() -> None:
    golden(preference.ipo(MARGINS, tau=0.1), [25, 25, 225])


def test_ipo_on_mean_log_probs_golden_vector() -> None:
    margin = (POLICY_CHOSEN - REFERENCE_CHOSEN) / 5 - (POLICY_REJECTED - REFERENCE_REJECTED) / 10
    golden(preference.ipo(margin, tau=0.1), [25, 15.9201, 9.5481])


@pytest.mark.parametrize(
    ("logratio", "desirable", "expected"),
    [
        (POLICY_CHOSEN - REFERENCE_CHOSEN, True, [0.507499, 0.505, 0.529964]),
        (POLICY_REJECTED - REFERENCE_REJECTED, False, [0.492501, 0.265027, 0.107168]),
    ],
)
def test_kto_golden_vectors(logratio: Tensor, desirable: bool, expected: list[float]) -> None:
    golden(
        preference.kto(logratio, torch.full((3,), desirable), z0=torch.tensor(0.3), beta=0.1),
        expected,
    )


@pytest.mark.parametrize(
    ("chosen", "rejected", "ratio_loss", "total"),
    [(-0.5, -1.0, 0.3203, 0.53203), (-1.0, -0.5, 1.294377, 1.129438)],
)
def test_orpo_golden_vectors(
    chosen: float, rejected: float, ratio_loss: float, total: float
) -> None:
    means = torch.tensor([chosen]), torch.tensor([rejected])
    golden(preference.log_odds(*means).abs(), [0.974077])
    golden(preference.orpo(*means, weight=0.1), [total])
    golden((preference.orpo(*means, weight=0.1) + means[0]) / 0.1, [ratio_loss])


@pytest.mark.parametrize(("margin", "expected"), [(0.5, 0.693147), (-0.5, 2.126928)])
def test_simpo_golden_vectors(margin: float, expected: float) -> None:
    golden(
        preference.simpo(torch.tensor([margin - 1.0]), torch.tensor([-1.0]), beta=2, gamma=1),
        [expected],
    )


def test_bradley_terry_golden_vector() -> None:
    golden(bradley_terry(torch.tensor([0.0, 1.0, 2.0])), [0.693147, 0.313262, 0.126928])


LOSSES = {
    "dpo": lambda c, r, label: preference.dpo(c - r, 0.3, label),
    "hinge": lambda c, r, label: preference.hinge(c - r, 0.3, label),
    "ipo": lambda c, r, label: preference.ipo(c - r, 0.3, label),
    "orpo": lambda c, r, label: preference.orpo(c, r, 0.3, label),
    "simpo": lambda c, r, label: preference.simpo(c, r, 2.0, 1.0, label),
    "bradley_terry": lambda c, r, label: bradley_terry(c - r, label),
}


@pytest.mark.parametrize("name", LOSSES)
def test_soft_label_is_the_mixture_of_both_hard_ones(name: str) -> None:
    loss = LOSSES[name]
    chosen, rejected = torch.tensor([-0.5, -2.0, -1.3]), torch.tensor([-1.0, -0.7, -1.3])
    label = torch.tensor([0.8, 0.25, 0.5])
    assert_close(
        loss(chosen, rejected, label),
        label * loss(chosen, rejected, 1.0) + (1 - label) * loss(rejected, chosen, 1.0),
    )


@pytest.mark.parametrize("name", LOSSES)
def test_loss_pulls_the_chosen_up_and_the_rejected_down(name: str) -> None:
    chosen = torch.tensor([-0.9, -1.2], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([-1.0, -0.7], dtype=torch.float64, requires_grad=True)
    up, down = torch.autograd.grad(LOSSES[name](chosen, rejected, 1.0).sum(), [chosen, rejected])
    assert (up < 0).all()
    assert (down > 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_agree_with_finite_differences(name: str) -> None:
    chosen = torch.tensor([-0.9, -2.0], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([-1.0, -0.7], dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda c, r: LOSSES[name](c, r, 0.8), (chosen, rejected))


@pytest.mark.parametrize("name", ["dpo", "hinge", "bradley_terry"])
def test_extreme_margins_keep_loss_and_gradient_finite(name: str) -> None:
    chosen = torch.tensor([-1e4, 0.0, -3e4], requires_grad=True)
    loss = LOSSES[name](chosen, torch.tensor([0.0, -1e4, -3e4]), 0.9)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert chosen.grad is not None
    assert chosen.grad.isfinite().all()


def test_kto_baseline_is_detached_and_never_negative() -> None:
    logratio = torch.tensor([0.4, -0.2], requires_grad=True)
    desirable = torch.tensor([True, False])
    z0 = torch.tensor(0.3, requires_grad=True)
    preference.kto(logratio, desirable, z0, beta=0.1).sum().backward()
    assert z0.grad is None
    assert logratio.grad is not None
    assert logratio.grad[0] < 0 < logratio.grad[1]
    negative, zero = (
        preference.kto(logratio, desirable, torch.tensor(z), beta=0.1) for z in (-5.0, 0.0)
    )
    assert_close(negative, zero)


def test_kto_weights_scale_each_kind_alone() -> None:
    logratio, desirable = torch.tensor([0.4, -0.2]), torch.tensor([True, False])
    plain = preference.kto(logratio, desirable, 0.3, beta=0.1)
    weighted = preference.kto(logratio, desirable, 0.3, beta=0.1, weight_up=2.0, weight_down=3.0)
    assert_close(weighted, plain * torch.tensor([2.0, 3.0]))
