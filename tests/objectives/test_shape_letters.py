"""The check behind this folder's tests finds tensors of other shapes than their names promise."""

from __future__ import annotations

import pytest
import torch
from shape_letters import checked
from torch import Tensor

from prefloop.objectives import ppo, preference
from prefloop.objectives.estimators import estimate

KL = ppo.KLPenalty(0.1, "reward", "k1")


def test_two_sizes_for_one_letter_are_refused() -> None:
    with pytest.raises(TypeError, match=r"value_loss_R: return_R has shape \[1\].*'R': 3"):
        ppo.value_loss_R(torch.zeros(3), torch.zeros(3), torch.zeros(1), None)  # would broadcast


def test_another_number_of_dimensions_is_refused() -> None:
    with pytest.raises(TypeError, match=r"dpo: margin_P has shape \[2, 1\]"):
        preference.dpo(torch.zeros(2, 1), 0.1)
    with pytest.raises(TypeError, match="score_B has shape"):
        estimate("rloo", torch.zeros(2, 1), torch.zeros(4), torch.tensor([2, 2]), KL, group=2)


def test_the_result_is_checked_too() -> None:
    @checked
    def summed_B(values_B: Tensor) -> Tensor:
        return values_B.sum()

    with pytest.raises(TypeError, match=r"summed_B: summed_B has shape \[\]"):
        summed_B(torch.zeros(3))


def test_numbers_in_the_place_of_tensors_pass() -> None:
    assert preference.hinge(torch.zeros(2), 0.1, 0.5).shape == (2,)
