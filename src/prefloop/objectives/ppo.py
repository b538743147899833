"""PPO's arithmetic as pure functions. Shape letters: T response tokens of one response, R response
tokens of a batch, B responses.

A batch of responses is flat: values of all tokens, response after response, with ``length_B``
tokens each.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor


def kl_per_token(logp: Tensor, ref_logp: Tensor, estimator: str) -> Tensor:
    """Estimate of KL(policy ‖ reference) at each sampled token, in nats (Schulman, "Approximating
    KL divergence", 2020).
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
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16) of finished responses:
    advantages and returns.

    All of one shape, [T] or [B, T]; shorter responses have zeros behind them, which change nothing
    before them.
    """
    advantages = torch.zeros_like(rewards)
    running = torch.zeros_like(rewards[..., 0])
    following = torch.zeros_like(running)
    for t in reversed(range(rewards.shape[-1])):
        running = rewards[..., t] + gamma * following - values[..., t] + gamma * lam * running
        following = values[..., t]
        advantages[..., t] = running
    return advantages, advantages + values


def token_rewards(score_B: Tensor, kl_R: Tensor, length_B: Tensor, kl_coef: float) -> Tensor:
    """-coef · KL at every token, plus the response's score at its last token, [R]."""
    rewards_R = -kl_coef * kl_R
    rewards_R[length_B.cumsum(0) - 1] += score_B
    return rewards_R


def leave_one_out(score_B: Tensor, group: int) -> Tensor:
    """Scores minus the mean of the other ``group - 1`` responses to the same prompt (Kool et al.
    2019); groups are consecutive.
    """
    score_P_G = score_B.view(-1, group)
    others_P_G = (score_P_G.sum(1, keepdim=True) - score_P_G) / (group - 1)
    return (score_P_G - others_P_G).flatten()


def group_relative(score_B: Tensor, group: int, scale: bool = True) -> Tensor:
    """Scores minus the mean of their group of consecutive responses, with ``scale`` divided by its
    standard deviation (Shao et al. 2024, eq. 3).

    The deviation is the sample's (n - 1), as in TRL. A group of equal scores teaches nothing:
    zeros.
    """
    score_P_G = score_B.view(-1, group)
    centred_P_G = score_P_G - score_P_G.mean(1, keepdim=True)
    if scale:
        centred_P_G = centred_P_G / (score_P_G.std(1, keepdim=True) + 1e-4)
    return centred_P_G.flatten()


def discounted(rewards: Tensor, gamma: float) -> Tensor:
    """Sum of what is still to come at each token, Σ_k γ^k r_{t+k}; [T] or [B, T], zeros behind
    shorter responses.
    """
    out = torch.zeros_like(rewards)
    running = torch.zeros_like(rewards[..., 0])
    for t in reversed(range(rewards.shape[-1])):
        running = rewards[..., t] + gamma * running
        out[..., t] = running
    return out


def padded_B_T(flat_R: Tensor, length_B: Tensor) -> Tensor:
    """A flat batch as rows with zeros behind them."""
    return torch.nn.utils.rnn.pad_sequence(list(flat_R.split(length_B.tolist())), batch_first=True)


def flat_R(padded_B_T: Tensor, length_B: Tensor) -> Tensor:
    """The opposite of ``padded_B_T``."""
    return padded_B_T[torch.arange(padded_B_T.shape[1]) < length_B[:, None]]


def whiten(values: Tensor, shift_mean: bool = True) -> Tensor:
    """Divide by the standard deviation; also subtract the mean unless told to keep it (Huang et al.
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
    """Clipped surrogate (Schulman et al. 2017, eq. 7), negated, for each token; ``importance_R``
    corrects sampler against trainer.
    """
    ratio_R = (logp_R - old_logp_R).exp()
    clipped_R = ratio_R.clamp(1 - clip, 1 + clip)
    return -importance_R * torch.minimum(ratio_R * advantage_R, clipped_R * advantage_R)


def value_loss_R(
    value_R: Tensor, old_value_R: Tensor, return_R: Tensor, clip: float | None
) -> Tensor:
    """Half the squared error, the larger of the clipped and the plain one (Huang et al. 2023), for
    each token.
    """
    loss_R = (value_R - return_R) ** 2
    if clip is not None:
        clipped_R = old_value_R + (value_R - old_value_R).clamp(-clip, clip)
        loss_R = torch.maximum(loss_R, (clipped_R - return_R) ** 2)
    return loss_R / 2


def truncated_importance(trainer_logp_R: Tensor, sampler_logp_R: Tensor, cap: float) -> Tensor:
    """min(π_trainer / π_sampler, cap) for each token: corrects rollouts whose sampler computes
    slightly other log-probs.
    """
    return (trainer_logp_R - sampler_logp_R).exp().clamp(max=cap)


def explained_variance(value_R: Tensor, return_R: Tensor) -> float:
    """1 - Var(return - value) / Var(return); 1 is a perfect critic, 0 no better than the mean."""
    variance = return_R.var(unbiased=False)
    return (
        float("nan")
        if variance == 0
        else float(1 - (return_R - value_R).var(unbiased=False) / variance)
    )


@dataclasses.dataclass
class AdaptiveKL:
    """Proportional controller of the KL coefficient (Ziegler et al. 2019, section 2.2)."""

    coef: float
    target: float
    horizon: int

    def update(self, sequence_kl: float, responses: int) -> None:
        """Raise coef when the sequence KL (nats) is above target, lower it when below; the error is
        clipped to ± 0.2, and a rollout larger than the horizon halves coef at most.
        """
        error = max(-0.2, min(0.2, sequence_kl / self.target - 1))
        self.coef *= max(0.5, 1 + error * responses / self.horizon)
