"""On a tabular policy the optimum is known in closed form: DPO, IPO and PPO must land on theirs."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from prefloop.objectives import ppo, preference

REWARD = torch.tensor([0.1, -0.4, 0.9, 0.3, -1.0, 0.0], dtype=torch.float64)
REFERENCE = torch.tensor([0.3, 0.2, 0.05, 0.15, 0.2, 0.1], dtype=torch.float64)
FIRST, SECOND = torch.combinations(torch.arange(6)).T
PREFERENCE = (REWARD[FIRST] - REWARD[SECOND]).sigmoid()


def trained_tabular_policy(loss_of_margin) -> Tensor:
    logits = REFERENCE.log().clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=500, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe"
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
    """Azar et al. 2023, eq. 8 with Ψ = identity: π* ∝ π_ref · exp(p(y beats a uniform rival) / τ)."""
    wins = (REWARD[:, None] - REWARD[None, :]).sigmoid().mean(1)
    policy = trained_tabular_policy(lambda margin: preference.ipo(margin, tau, PREFERENCE))
    assert_close(policy, (REFERENCE.log() + wins / tau).softmax(0), atol=1e-3, rtol=0)


def test_ppo_lands_on_the_closed_form_optimum() -> None:
    """Every action once, weighted by its probability under the policy that 'sampled' it: the expectation without noise."""
    beta = 0.5
    logits = REFERENCE.log().clone().requires_grad_()
    optimizer = torch.optim.SGD([logits], lr=1.0)
    for _ in range(300):
        old = logits.detach().log_softmax(0)
        score = ppo.token_rewards(
            REWARD, ppo.kl_per_token(old, REFERENCE.log(), "k1"), torch.ones(6, dtype=torch.long), beta
        )
        advantage = score - (old.exp() * score).sum()
        for _ in range(2):
            optimizer.zero_grad()
            (old.exp() * ppo.policy_loss_R(logits.log_softmax(0), old, advantage, clip=0.2)).sum().backward()
            optimizer.step()
    assert_close(logits.detach().softmax(0), (REFERENCE.log() + REWARD / beta).softmax(0), atol=1e-3, rtol=0)
