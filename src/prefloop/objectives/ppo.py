"""PPO's arithmetic as pure functions.

A batch of responses is flat: the values of all tokens, response after response, with ``length_B``
tokens each. Shape letters: B responses, R the tokens of a batch, T the tokens of one response, P
prompts, G responses to a prompt.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from torch import Tensor

KLEstimator = Literal["k1", "k2", "k3"]
KLPlacement = Literal["reward", "loss"]


@dataclasses.dataclass(frozen=True)
class KLPenalty:
    """What the policy pays for leaving the reference: ``coef`` times the KL, in one of two places.

    In the rewards, the optimum is π_ref · exp(score / coef). In the loss with estimator k3, as in
    GRPO's paper, the gradient is that of the *forward* KL, and the optimum is another one.
    """

    coef: float
    """Weight of the KL in nats."""
    placement: KLPlacement
    estimator: KLEstimator

    def in_reward(self, kl: Tensor) -> Tensor:
        """What to subtract from rewards for a KL per token [R] or per response [B]; zeros where the
        penalty stands in the loss.
        """
        return (self.coef if self.placement == "reward" else 0.0) * kl

    def in_loss(self, logp_R: Tensor, reference_logp_R: Tensor) -> Tensor:
        """What to add to the loss of each token, [R]; zeros where the penalty stands in the
        rewards.
        """
        coef = self.coef if self.placement == "loss" else 0.0
        return coef * kl_per_token(logp_R, reference_logp_R, self.estimator)

    def adapted(self, sequence_kl: float, responses: int, target: float, horizon: int) -> KLPenalty:
        """The penalty of the next step by a proportional controller (Ziegler et al. 2019, section
        2.2).

        ``coef`` rises when the KL of a response (nats) is above ``target`` and falls when it is
        below. The relative error is clipped to ± 0.2, and a rollout larger than ``horizon``
        responses at most halves ``coef``.
        """
        error = max(-0.2, min(0.2, sequence_kl / target - 1))
        factor = max(0.5, 1 + error * responses / horizon)
        return dataclasses.replace(self, coef=self.coef * factor)


def kl_per_token(logp: Tensor, ref_logp: Tensor, estimator: str) -> Tensor:
    """Estimate of KL(policy ‖ reference) at each sampled token, in nats (Schulman, "Approximating
    KL divergence", 2020). Raises ``ValueError`` for an unknown estimator.
    """
    log_ratio = logp - ref_logp
    if estimator == "k1":
        return log_ratio
    if estimator == "k2":
        return log_ratio**2 / 2
    if estimator == "k3":
        return (-log_ratio).exp() - 1 + log_ratio
    raise ValueError(f"unknown KL estimator '{estimator}': k1, k2 or k3")


def gae(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimation (Schulman et al. 2016, eq. 16) of finished responses:
    advantages and returns.

    All tensors are [T], or all are [B, T]. Zeros pad shorter responses at the end and do not change
    the values before them.
    """
    advantages = torch.zeros_like(rewards)
    running = torch.zeros_like(rewards[..., 0])
    following = torch.zeros_like(running)
    for t in reversed(range(rewards.shape[-1])):
        running = rewards[..., t] + gamma * following - values[..., t] + gamma * lam * running
        following = values[..., t]
        advantages[..., t] = running
    return advantages, advantages + values


def token_rewards(score_B: Tensor, penalty_R: Tensor, length_B: Tensor) -> Tensor:
    """Minus the penalty at every token, plus the response's score at its last token, [R]."""
    rewards_R = -penalty_R
    rewards_R[length_B.cumsum(0) - 1] += score_B
    return rewards_R


def leave_one_out(score_B: Tensor, group: int) -> Tensor:
    """Scores minus the mean score of the other ``group - 1`` responses to the same prompt (Kool et
    al. 2019), [B]; the responses of a group are consecutive.
    """
    score_P_G = score_B.view(-1, group)
    others_P_G = (score_P_G.sum(1, keepdim=True) - score_P_G) / (group - 1)
    return (score_P_G - others_P_G).flatten()


def group_relative(score_B: Tensor, group: int, scale: bool = True) -> Tensor:
    """Scores minus the mean of their group of consecutive responses (Shao et al. 2024, eq. 3), [B].

    ``scale`` also divides by the group's standard deviation, that of a sample (n - 1), as in TRL.
    A group of equal scores gives zeros.
    """
    score_P_G = score_B.view(-1, group)
    centered_P_G = score_P_G - score_P_G.mean(1, keepdim=True)
    if scale:
        centered_P_G = centered_P_G / (score_P_G.std(1, keepdim=True) + 1e-4)
    return centered_P_G.flatten()


def discounted(rewards: Tensor, gamma: float) -> Tensor:
    """Discounted return at each token, Σ_k γ^k r_{t+k}; [T], or [B, T] with zeros at the end of
    shorter responses.
    """
    out = torch.zeros_like(rewards)
    running = torch.zeros_like(rewards[..., 0])
    for t in reversed(range(rewards.shape[-1])):
        running = rewards[..., t] + gamma * running
        out[..., t] = running
    return out


def padded_B_T(flat_R: Tensor, length_B: Tensor) -> Tensor:
    """A flat batch [R] as one row a response, with zeros at the end of shorter ones, [B, T]."""
    return torch.nn.utils.rnn.pad_sequence(list(flat_R.split(length_B.tolist())), batch_first=True)


def flat_R(padded_B_T: Tensor, length_B: Tensor) -> Tensor:
    """The flat batch [R] of rows [B, T]: the inverse of ``padded_B_T``."""
    return padded_B_T[torch.arange(padded_B_T.shape[1]) < length_B[:, None]]


def whiten(values: Tensor, shift_mean: bool = True) -> Tensor:
    """Divide by the standard deviation, and with ``shift_mean`` subtract the mean (Huang et al.
    2023, detail 3.9).
    """
    mean, std = values.mean(), values.std(unbiased=False)
    whitened = (values - mean) / (std + 1e-8)
    return whitened if shift_mean else whitened + mean


def policy_loss_R(
    logp_R: Tensor,
    old_logp_R: Tensor,
    advantage_R: Tensor,
    clip: float,
    importance_R: Tensor | float = 1.0,
) -> Tensor:
    """Negated clipped surrogate (Schulman et al. 2017, eq. 7) of each token, [R].

    ``importance_R`` weights each token by trainer / sampler probability (``truncated_importance``).
    """
    ratio_R = (logp_R - old_logp_R).exp()
    clipped_R = ratio_R.clamp(1 - clip, 1 + clip)
    return -importance_R * torch.minimum(ratio_R * advantage_R, clipped_R * advantage_R)


def value_loss_R(
    value_R: Tensor, old_value_R: Tensor, return_R: Tensor, clip: float | None
) -> Tensor:
    """Half the squared error of each token, [R]; with ``clip``, the larger one of the plain error
    and that of the clipped value (Huang et al. 2023).
    """
    loss_R = (value_R - return_R) ** 2
    if clip is not None:
        clipped_R = old_value_R + (value_R - old_value_R).clamp(-clip, clip)
        loss_R = torch.maximum(loss_R, (clipped_R - return_R) ** 2)
    return loss_R / 2


def truncated_importance(trainer_logp_R: Tensor, sampler_logp_R: Tensor, cap: float) -> Tensor:
    """min(π_trainer / π_sampler, cap) of each token, [R]: corrects for a sampler whose log-probs
    differ slightly from the trainer's.
    """
    return (trainer_logp_R - sampler_logp_R).exp().clamp(max=cap)


def explained_variance(value_R: Tensor, return_R: Tensor) -> float:
    """1 - Var(return - value) / Var(return): 1 for a perfect critic, 0 for one no better than the
    mean, NaN where all returns are equal.
    """
    variance = return_R.var(unbiased=False)
    return (
        float("nan")
        if variance == 0
        else float(1 - (return_R - value_R).var(unbiased=False) / variance)
    )
