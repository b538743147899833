"""Preference losses as pure functions of log-probs.

Shape letters: P pairs. ``chosen``/``rejected`` are the log-probs of whole responses: summed over tokens unless a loss says *mean*. Every
function returns the loss of each pair, float32 [P]; the caller weights and averages. ``label`` is the probability that 'chosen' is
better (1 when nothing else is known): losses that are linear in the label take a soft one.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def _soft(loss_forward_P: Tensor, loss_backward_P: Tensor, label_P: Tensor | float) -> Tensor:
    return label_P * loss_forward_P + (1 - label_P) * loss_backward_P


def dpo(margin_P: Tensor, beta: float, label_P: Tensor | float = 1.0, label_smoothing: float = 0.0) -> Tensor:
    """Rafailov et al. 2023, eq. 7, on margins h = (log π/π_ref)(chosen) - (log π/π_ref)(rejected).

    ``label_smoothing`` ε is conservative DPO (Mitchell 2023); a soft label is the same with its own ε for each pair.
    """
    label = label_P * (1 - label_smoothing) + (1 - label_P) * label_smoothing
    return _soft(-F.logsigmoid(beta * margin_P), -F.logsigmoid(-beta * margin_P), label)


def hinge(margin_P: Tensor, beta: float, label_P: Tensor | float = 1.0) -> Tensor:
    """SLiC-HF (Zhao et al. 2023): max(0, 1 - β h)."""
    return _soft(F.relu(1 - beta * margin_P), F.relu(1 + beta * margin_P), label_P)


def ipo(margin_P: Tensor, tau: float, label_P: Tensor | float = 1.0) -> Tensor:
    """Azar et al. 2023, eq. 17: (h - 1/(2τ))².

    The paper's code sums log-probs over tokens; TRL takes per-token means. Both are offered: pass margins of sums or of means.
    """
    target = 1 / (2 * tau)
    return _soft((margin_P - target) ** 2, (margin_P + target) ** 2, label_P)


def orpo(chosen_mean_P: Tensor, rejected_mean_P: Tensor, weight: float, label_P: Tensor | float = 1.0) -> Tensor:
    """Hong et al. 2024, eq. 6: negative mean log-prob of the preferred response plus λ times the odds-ratio loss; no reference."""
    odds_P = log_odds(chosen_mean_P, rejected_mean_P)
    return _soft(
        -chosen_mean_P - weight * F.logsigmoid(odds_P), -rejected_mean_P - weight * F.logsigmoid(-odds_P), label_P
    )


def log_odds(chosen_mean_P: Tensor, rejected_mean_P: Tensor) -> Tensor:
    """log odds(chosen) - log odds(rejected) with odds p/(1-p) of the per-token mean log-probs."""
    return (chosen_mean_P - rejected_mean_P) - ((-chosen_mean_P.exp()).log1p() - (-rejected_mean_P.exp()).log1p())


def simpo(
    chosen_mean_P: Tensor, rejected_mean_P: Tensor, beta: float, gamma: float, label_P: Tensor | float = 1.0
) -> Tensor:
    """Meng et al. 2024, eq. 6: Bradley-Terry on β times the mean log-prob margin, minus the target margin γ; no reference."""
    margin_P = beta * (chosen_mean_P - rejected_mean_P)
    return _soft(-F.logsigmoid(margin_P - gamma), -F.logsigmoid(-margin_P - gamma), label_P)


def kto(
    logratio_B: Tensor,
    desirable_B: Tensor,
    z0: Tensor | float,
    beta: float,
    weight_up: float = 1.0,
    weight_down: float = 1.0,
) -> Tensor:
    """Ethayarajh et al. 2024, eq. 8, for B single responses: 1 - σ(β(log π/π_ref - z0)) if desirable, mirrored if not.

    ``z0`` is the policy's KL estimate from mismatched prompts and responses; it is detached and clamped at 0 here.
    """
    z0 = z0.detach().clamp_min(0) if isinstance(z0, Tensor) else max(z0, 0.0)
    up = weight_up * (1 - (beta * (logratio_B - z0)).sigmoid())
    down = weight_down * (1 - (beta * (z0 - logratio_B)).sigmoid())
    return up.where(desirable_B, down)
