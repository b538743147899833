"""Advantages of a rollout's tokens by one of four estimators.

All four take the same flat rollout and differ in what they compare a response with.

- ``gae``: a critic (Schulman et al. 2016). The rewards are -β KL at each token and the score at the
  end.
- ``grpo``: the other responses to the same prompt: (score - mean) / std (Shao et al. 2024, eq. 3),
  the same for every token of a response.
- ``rloo``: the mean of the other responses (Kool et al. 2019; Ahmadian et al. 2024), leave-one-out,
  of the score minus β KL of the whole response.
- ``reinforce``: the batch (REINFORCE++, Hu 2025): the return from each token on, normalized over
  the batch; its rewards are those of ``gae``.

Shape letters: B responses, R their tokens in a row (response after response).
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from prefloop.objectives import ppo as math_

ESTIMATORS = ("gae", "grpo", "rloo", "reinforce")


@dataclasses.dataclass(frozen=True)
class Advantages:
    """What a rollout teaches the policy and, where there is one, the critic."""

    advantage_R: Tensor
    return_R: Tensor | None
    """What the critic learns to predict; ``None`` without a critic."""


def estimate(
    estimator: str,
    score_B: Tensor,
    kl_R: Tensor,
    length_B: Tensor,
    kl: math_.KLPenalty,
    *,
    group: int,
    value_R: Tensor | None = None,
    gamma: float = 1.0,
    lam: float = 0.95,
    group_std: bool = True,
    whiten_rewards: bool = False,
    whiten_advantages: bool = True,
) -> Advantages:
    """Advantages of a rollout. Raises ``ValueError`` for an unknown estimator.

    Args:
        estimator: one of ``ESTIMATORS``.
        score_B: reward of each response after all penalties but the KL's.
        kl_R: KL to the reference at each token, in nats.
        length_B: tokens of each response.
        kl: the penalty; it enters here where it stands in the rewards.
        group: responses to a prompt; they are consecutive.
        value_R: the critic's values; ``gae`` needs them.
        gamma: discount. ``lam``: GAE's λ.
        group_std: ``grpo`` divides by the standard deviation of a group.
        whiten_rewards: ``gae`` divides the rewards by their standard deviation.
        whiten_advantages: ``gae`` and ``reinforce`` give advantages of mean 0 and deviation 1.
    """
    if estimator == "gae":
        assert value_R is not None
        rewards_R = math_.token_rewards(score_B, kl.in_reward(kl_R), length_B)
        if whiten_rewards:
            rewards_R = math_.whiten(rewards_R, shift_mean=False)
        rewards_B_T, value_B_T = (math_.padded_B_T(x, length_B) for x in (rewards_R, value_R))
        advantage_R, return_R = (
            math_.flat_R(x, length_B) for x in math_.gae(rewards_B_T, value_B_T, gamma, lam)
        )
        return Advantages(math_.whiten(advantage_R) if whiten_advantages else advantage_R, return_R)
    if estimator == "reinforce":
        rewards_R = math_.token_rewards(score_B, kl.in_reward(kl_R), length_B)
        return_B_T = math_.discounted(math_.padded_B_T(rewards_R, length_B), gamma)
        advantage_R = math_.flat_R(return_B_T, length_B)
        return Advantages(math_.whiten(advantage_R) if whiten_advantages else advantage_R, None)
    kl_B = torch.stack([part.sum() for part in kl_R.split(length_B.tolist())])
    total_B = score_B - kl.in_reward(kl_B)
    if estimator == "rloo":
        advantage_B = math_.leave_one_out(total_B, group)
    elif estimator == "grpo":
        advantage_B = math_.group_relative(total_B, group, group_std)
    else:
        raise ValueError(f"unknown estimator '{estimator}': one of {', '.join(ESTIMATORS)}")
    return Advantages(advantage_B.repeat_interleave(length_B), None)
