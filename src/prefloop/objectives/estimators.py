"""What a token of a rollout was worth: one function, four estimators.

All take the same flat rollout and give an advantage a token; they differ in what they compare a
response with.

- ``gae``: a critic (Schulman et al. 2016). Rewards are -β KL a token and the score at the end.
- ``grpo``: the other responses to the same prompt: (score - mean) / std (Shao et al. 2024, eq. 3),
  the same for every token of a response.
- ``rloo``: the mean of the other responses (Kool et al. 2019; Ahmadian et al. 2024): score minus β
  KL of the whole response, leave-one-out.
- ``reinforce``: the batch (REINFORCE++, Hu 2025): what is still to come, -β KL of the tokens ahead
  plus the score, normalised over the batch.

Where β KL stands in the rewards, the optimum is π_ref · exp(score / β). As a term of the loss with
estimator k3 (GRPO's paper) the gradient is that of the *forward* KL, and the optimum another one.

Shape letters: B responses, R their tokens in a row (response after response), G responses to a
prompt, consecutive.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from prefloop.objectives import ppo as math_

ESTIMATORS = ("gae", "grpo", "rloo", "reinforce")


@dataclasses.dataclass(frozen=True)
class Advantages:
    """Advantages [R], and what a critic learns to predict [R] (None without one)."""

    advantage_R: Tensor
    return_R: Tensor | None


def estimate(
    estimator: str,
    score_B: Tensor,
    kl_R: Tensor,
    length_B: Tensor,
    kl_coef: float,
    *,
    group: int,
    value_R: Tensor | None = None,
    gamma: float = 1.0,
    lam: float = 0.95,
    group_std: bool = True,
    whiten_rewards: bool = False,
    whiten_advantages: bool = True,
) -> Advantages:
    """Advantages of a rollout.

    ``score_B`` is the reward of each response with all penalties, ``kl_R`` the per-token KL
    estimate; ``kl_coef`` is 0 where the KL is a term of the loss. ``group`` responses share a
    prompt. ``gae`` alone needs ``value_R``.
    """
    if estimator == "gae":
        assert value_R is not None
        rewards_R = math_.token_rewards(score_B, kl_R, length_B, kl_coef)
        if whiten_rewards:
            rewards_R = math_.whiten(rewards_R, shift_mean=False)
        rewards_B_T, value_B_T = (math_.padded_B_T(x, length_B) for x in (rewards_R, value_R))
        advantage_R, return_R = (
            math_.flat_R(x, length_B) for x in math_.gae(rewards_B_T, value_B_T, gamma, lam)
        )
        return Advantages(math_.whiten(advantage_R) if whiten_advantages else advantage_R, return_R)
    if estimator == "reinforce":
        rewards_R = math_.token_rewards(score_B, kl_R, length_B, kl_coef)
        ahead_R = math_.flat_R(
            math_.discounted(math_.padded_B_T(rewards_R, length_B), gamma), length_B
        )
        return Advantages(math_.whiten(ahead_R) if whiten_advantages else ahead_R, None)
    kl_B = torch.stack([part.sum() for part in kl_R.split(length_B.tolist())])
    total_B = score_B - kl_coef * kl_B
    if estimator == "rloo":
        advantage_B = math_.leave_one_out(total_B, group)
    elif estimator == "grpo":
        advantage_B = math_.group_relative(total_B, group, group_std)
    else:
        raise ValueError(f"unknown estimator '{estimator}': one of {', '.join(ESTIMATORS)}")
    return Advantages(advantage_B.repeat_interleave(length_B), None)
