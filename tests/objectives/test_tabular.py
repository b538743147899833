"""On a tabular policy the optimum is known in closed form: DPO, IPO and every estimator must land
on theirs.
"""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from prefloop.objectives import ppo, preference
from prefloop.objectives.estimators import ESTIMATORS, estimate
from prefloop.objectives.ppo import KLPenalty

REWARD = torch.tensor([0.1, -0.4, 0.9, 0.3, -1.0, 0.0], dtype=torch.float64)
REFERENCE = torch.tensor([0.3, 0.2, 0.05, 0.15, 0.2, 0.1], dtype=torch.float64)
FIRST, SECOND = torch.combinations(torch.arange(6)).T
PREFERENCE = (REWARD[FIRST] - REWARD[SECOND]).sigmoid()


def trained_tabular_policy(loss_of_margin) -> Tensor:
    logits = REFERENCE.log().clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [logits],
        max_iter=500,
        tolerance_grad=1e-10,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        ratio = logits.log_softmax(0) - REFERENCE.log()
        loss = loss_of_margin(ratio[FIRST] - ratio[SECOND]).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    return logits.detach().softmax(0)


@pytest.mark.parametrize("beta", [0.2, 0.5, 2.0])
def test_dpo_lands_on_the_closed_form_optimum(beta: float) -> None:
    policy = trained_tabular_policy(lambda margin: preference.dpo(margin, beta, PREFERENCE))
    assert_close(policy, (REFERENCE.log() + REWARD / beta).softmax(0), atol=1e-3, rtol=0)


@pytest.mark.parametrize("tau", [0.1, 0.5])
def test_ipo_lands_on_its_own_closed_form_optimum(tau: float) -> None:
    """Azar et al. 2023, eq. 8 with Ψ = identity: π* ∝ π_ref · exp(p(y beats a uniform rival) /
    τ).
    """
    wins = (REWARD[:, None] - REWARD[None, :]).sigmoid().mean(1)
    policy = trained_tabular_policy(lambda margin: preference.ipo(margin, tau, PREFERENCE))
    assert_close(policy, (REFERENCE.log() + wins / tau).softmax(0), atol=1e-3, rtol=0)


PAIRS = torch.cartesian_prod(torch.arange(6), torch.arange(6)).flatten()
"""Every group of two responses of one token each: weighted by its probability, the expectation over
rollouts without noise.
"""


def trained_on_rollouts(estimator: str, beta: float, in_loss: bool = False) -> Tensor:
    """A tabular policy after rounds of two epochs on the advantages that the estimator gives for
    all groups of two.
    """
    logits = REFERENCE.log().clone().requires_grad_()
    optimizer = torch.optim.SGD([logits], lr=1.0)
    ones = torch.ones(len(PAIRS), dtype=torch.long)
    # Group-relative advantages of two are half the leave-one-out ones, hence β / 2 in the loss.
    penalty = KLPenalty(beta / 2, "loss", "k3") if in_loss else KLPenalty(beta, "reward", "k1")
    for _ in range(600):
        old = logits.detach().log_softmax(0)
        weight_B = old.exp()[PAIRS].view(-1, 2).prod(1).repeat_interleave(2)
        kl_B = ppo.kl_per_token(old, REFERENCE.log(), "k1")[PAIRS]
        critic = (old.exp() * (REWARD - beta * (old - REFERENCE.log()))).sum().expand(len(PAIRS))
        found = estimate(
            estimator, REWARD[PAIRS], kl_B, ones, penalty, group=2, value_R=critic,
            group_std=False, whiten_advantages=False,
        )  # fmt: skip
        for _ in range(2):
            optimizer.zero_grad()
            logp = logits.log_softmax(0)
            loss_B = ppo.policy_loss_R(logp[PAIRS], old[PAIRS], found.advantage_R, clip=0.2)
            loss_B = loss_B + penalty.in_loss(logp, REFERENCE.log())[PAIRS]
            (weight_B * loss_B).sum().backward()
            optimizer.step()
    return logits.detach().softmax(0)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_estimator_lands_on_the_closed_form_optimum(estimator: str) -> None:
    beta = 0.5
    policy = trained_on_rollouts(estimator, beta)
    assert_close(policy, (REFERENCE.log() + REWARD / beta).softmax(0), atol=1e-3, rtol=0)


def test_kl_in_the_loss_has_another_optimum() -> None:
    """The gradient of k3 under the policy's own samples is that of KL(reference ‖ policy): π (β +
    r̄ - r) = β π_ref, far from the one above.
    """
    beta = 0.5
    policy = trained_on_rollouts("grpo", beta, in_loss=True)
    mean = (policy * REWARD).sum()
    assert_close(policy * (beta + mean - REWARD), beta * REFERENCE, atol=1e-3, rtol=0)
    assert (policy - (REFERENCE.log() + REWARD / beta).softmax(0)).abs().max() > 0.05
