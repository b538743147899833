"""Preference losses as pure functions of log-probs.

Shape letters: P pairs. ``chosen``/``rejected`` are the log-probs of whole responses: summed over
tokens unless a loss says *mean*. Every function returns the loss of each pair, float32 [P]; the
caller weights and averages. ``label`` is the probability that 'chosen' is better (1 when nothing
else is known): losses that are linear in the label take a soft one.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def _soft(loss_forward_P: Tensor, loss_backward_P: Tensor, label_P: Tensor | float) -> Tensor:
    return label_P * loss_forward_P + (1 - label_P) * loss_backward_P


def dpo(
    margin_P: Tensor, beta: float, label_P: Tensor | float = 1.0, label_smoothing: float = 0.0
) -> Tensor:
    """Rafailov et al. 2023, eq. 7, on margins h = (log π/π_ref)(chosen) - (log π/π_ref)(rejected).

    ``label_smoothing`` ε is conservative DPO (Mitchell 2023); a soft label is the same with its own
    ε for each pair.
    """
    label = label_P * (1 - label_smoothing) + (1 - label_P) * label_smoothing
    return _soft(-F.logsigmoid(beta * margin_P), -F.logsigmoid(-beta * margin_P), label)


def robust(margin_P: Tensor, beta: float, flipped: float, label_P: Tensor | float = 1.0) -> Tensor:
    """Robust DPO (Chowdhury et al. 2024, eq. 12): the unbiased estimate of the clean loss when a
    share of votes is flipped.

    Raises ``ValueError`` unless 0 <= flipped < 1/2.
    """
    if not 0 <= flipped < 0.5:
        raise ValueError(f"robust DPO needs a share of flipped votes in [0, 0.5), found {flipped}")
    clean_P, wrong_P = -F.logsigmoid(beta * margin_P), -F.logsigmoid(-beta * margin_P)
    as_voted_P = ((1 - flipped) * clean_P - flipped * wrong_P) / (1 - 2 * flipped)
    against_P = ((1 - flipped) * wrong_P - flipped * clean_P) / (1 - 2 * flipped)
    return _soft(as_voted_P, against_P, label_P)


def hinge(margin_P: Tensor, beta: float, label_P: Tensor | float = 1.0) -> Tensor:
    """SLiC-HF (Zhao et al. 2023): max(0, 1 - β h)."""
    return _soft(F.relu(1 - beta * margin_P), F.relu(1 + beta * margin_P), label_P)


def ipo(margin_P: Tensor, tau: float, label_P: Tensor | float = 1.0) -> Tensor:
    """Azar et al. 2023, eq. 17: (h - 1/(2τ))².

    The paper's code sums log-probs over tokens; TRL takes per-token means. Both are offered: pass
    margins of sums or of means.
    """
    target = 1 / (2 * tau)
    return _soft((margin_P - target) ** 2, (margin_P + target) ** 2, label_P)


def orpo(
    chosen_mean_P: Tensor, rejected_mean_P: Tensor, weight: float, label_P: Tensor | float = 1.0
) -> Tensor:
    """Hong et al. 2024, eq. 6: negative mean log-prob of the preferred response plus λ times the
    odds-ratio loss; no reference.
    """
    odds_P = log_odds(chosen_mean_P, rejected_mean_P)
    return _soft(
        -chosen_mean_P - weight * F.logsigmoid(odds_P),
        -rejected_mean_P - weight * F.logsigmoid(-odds_P),
        label_P,
    )


def log_odds(chosen_mean_P: Tensor, rejected_mean_P: Tensor) -> Tensor:
    """log odds(chosen) - log odds(rejected) with odds p/(1-p) of the per-token mean log-probs.

    A mean log-prob of 0 (certainty) has infinite odds; it counts as -1e-6, the nearest that float32
    keeps apart from 1 - p = 0.
    """
    chosen_mean_P, rejected_mean_P = (
        chosen_mean_P.clamp(max=-1e-6),
        rejected_mean_P.clamp(max=-1e-6),
    )
    return (chosen_mean_P - rejected_mean_P) - (
        (-chosen_mean_P.expm1()).log() - (-rejected_mean_P.expm1()).log()
    )


def simpo(
    chosen_mean_P: Tensor,
    rejected_mean_P: Tensor,
    beta: float,
    gamma: float,
    label_P: Tensor | float = 1.0,
) -> Tensor:
    """Meng et al. 2024, eq. 6: Bradley-Terry on β times the mean log-prob margin, minus the target
    margin γ; no reference.
    """
    margin_P = beta * (chosen_mean_P - rejected_mean_P)
    return _soft(-F.logsigmoid(margin_P - gamma), -F.logsigmoid(-margin_P - gamma), label_P)


def cpo(
    chosen_sum_P: Tensor,
    rejected_sum_P: Tensor,
    chosen_mean_P: Tensor,
    rejected_mean_P: Tensor,
    beta: float,
    weight: float,
    label_P: Tensor | float = 1.0,
) -> Tensor:
    """Xu et al. 2024, eq. 3 and 5: DPO with a uniform reference plus ``weight`` times the negative
    mean log-prob of the preferred one.
    """
    margin_P = beta * (chosen_sum_P - rejected_sum_P)
    return _soft(
        -F.logsigmoid(margin_P) - weight * chosen_mean_P,
        -F.logsigmoid(-margin_P) - weight * rejected_mean_P,
        label_P,
    )


def apo_zero(
    chosen_ratio_P: Tensor, rejected_ratio_P: Tensor, beta: float, label_P: Tensor | float = 1.0
) -> Tensor:
    """D'Oosterlinck et al. 2024, eq. 7, on log(π/π_ref) of each response: the preferred one goes
    up, the other one down.
    """

    def one(up_P: Tensor, down_P: Tensor) -> Tensor:
        return 1 - (beta * up_P).sigmoid() + (beta * down_P).sigmoid()

    return _soft(
        one(chosen_ratio_P, rejected_ratio_P), one(rejected_ratio_P, chosen_ratio_P), label_P
    )


def apo_down(
    chosen_ratio_P: Tensor, rejected_ratio_P: Tensor, beta: float, label_P: Tensor | float = 1.0
) -> Tensor:
    """D'Oosterlinck et al. 2024, eq. 8: both go down, the other one further; for preferred
    responses that are still bad.
    """

    def one(better_P: Tensor, worse_P: Tensor) -> Tensor:
        return (beta * better_P).sigmoid() + 1 - (beta * (better_P - worse_P)).sigmoid()

    return _soft(
        one(chosen_ratio_P, rejected_ratio_P), one(rejected_ratio_P, chosen_ratio_P), label_P
    )


def kto(
    logratio_B: Tensor,
    desirable_B: Tensor,
    z0: Tensor | float,
    beta: float,
    weight_up: float = 1.0,
    weight_down: float = 1.0,
) -> Tensor:
    """Ethayarajh et al. 2024, eq. 8, for B single responses: 1 - σ(β(log π/π_ref - z0)) if
    desirable, mirrored if not.

    ``z0`` is the policy's KL estimate from mismatched prompts and responses; it is detached and
    clamped at 0 here.
    """
    z0 = z0.detach().clamp_min(0) if isinstance(z0, Tensor) else max(z0, 0.0)
    up = weight_up * (1 - (beta * (logratio_B - z0)).sigmoid())
    down = weight_down * (1 - (beta * (z0 - logratio_B)).sigmoid())
    return up.where(desirable_B, down)
