"""Preference losses as pure functions of log-probs.

Shape letters: P pairs, B single responses. ``chosen`` and ``rejected`` are log-probs of whole
responses: sums over tokens, or means where the name says *mean*. Every function returns the loss of
each pair, float32 [P]; the caller weights and averages. ``label`` is the probability that 'chosen'
is better, 1 when nothing else is known: all losses of pairs are linear in it.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def _soft(loss_forward_P: Tensor, loss_backward_P: Tensor, label_P: Tensor | float) -> Tensor:
    return label_P * loss_forward_P + (1 - label_P) * loss_backward_P


def dpo(
    margin_P: Tensor, beta: float, label_P: Tensor | float = 1.0, label_smoothing: float = 0.0
) -> Tensor:
    """DPO (Rafailov et al. 2023, eq. 7) on margins h = (log π/π_ref)(chosen) - (log
    π/π_ref)(rejected).

    ``label_smoothing`` ε gives conservative DPO (Mitchell 2023). A soft label does the same with an
    ε of its own for each pair.
    """
    label = label_P * (1 - label_smoothing) + (1 - label_P) * label_smoothing
    return _soft(-F.logsigmoid(beta * margin_P), -F.logsigmoid(-beta * margin_P), label)


def robust(margin_P: Tensor, beta: float, flipped: float, label_P: Tensor | float = 1.0) -> Tensor:
    """Robust DPO (Chowdhury et al. 2024, eq. 12): an unbiased estimate of the loss on clean votes
    when a share ``flipped`` of the votes is wrong.

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
    """IPO (Azar et al. 2023, eq. 17): (h - 1/(2τ))².

    Takes margins of sums over tokens, as in the paper's code, or of means, as in TRL.
    """
    target = 1 / (2 * tau)
    return _soft((margin_P - target) ** 2, (margin_P + target) ** 2, label_P)


def orpo(
    chosen_mean_P: Tensor, rejected_mean_P: Tensor, weight: float, label_P: Tensor | float = 1.0
) -> Tensor:
    """ORPO (Hong et al. 2024, eq. 6): negative mean log-prob of the preferred response plus
    ``weight`` (λ) times the odds-ratio loss; no reference.
    """
    odds_P = log_odds(chosen_mean_P, rejected_mean_P)
    return _soft(
        -chosen_mean_P - weight * F.logsigmoid(odds_P),
        -rejected_mean_P - weight * F.logsigmoid(-odds_P),
        label_P,
    )


def log_odds(chosen_mean_P: Tensor, rejected_mean_P: Tensor) -> Tensor:
    """log odds(chosen) - log odds(rejected), where log p is the mean log-prob of a token and the
    odds are p/(1-p).

    A mean log-prob of 0 (certainty) has infinite odds. It counts as -1e-6, the nearest value for
    which float32 keeps 1 - p apart from 0.
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
    """SimPO (Meng et al. 2024, eq. 6): Bradley-Terry on β times the margin of mean log-probs, minus
    the target margin γ; no reference.
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
    """CPO (Xu et al. 2024, eq. 3 and 5): DPO with a uniform reference plus ``weight`` times the
    negative mean log-prob of the preferred response.
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
    """APO-zero (D'Oosterlinck et al. 2024, eq. 7) on log(π/π_ref) of each response: the preferred
    response becomes more likely, the other one less.
    """

    def one(up_P: Tensor, down_P: Tensor) -> Tensor:
        return 1 - (beta * up_P).sigmoid() + (beta * down_P).sigmoid()

    return _soft(
        one(chosen_ratio_P, rejected_ratio_P), one(rejected_ratio_P, chosen_ratio_P), label_P
    )


def apo_down(
    chosen_ratio_P: Tensor, rejected_ratio_P: Tensor, beta: float, label_P: Tensor | float = 1.0
) -> Tensor:
    """APO-down (D'Oosterlinck et al. 2024, eq. 8) on log(π/π_ref) of each response: both become
    less likely, the preferred one by less; for preferred responses that are still bad.
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
    """KTO (Ethayarajh et al. 2024, eq. 8) for single responses: 1 - σ(β(log π/π_ref - z0)) if
    desirable, mirrored if not, [B].

    ``z0`` estimates the policy's KL from mismatched prompts and responses; it is detached and
    clamped at 0 here.
    """
    z0 = z0.detach().clamp_min(0) if isinstance(z0, Tensor) else max(z0, 0.0)
    up = weight_up * (1 - (beta * (logratio_B - z0)).sigmoid())
    down = weight_down * (1 - (beta * (z0 - logratio_B)).sigmoid())
    return up.where(desirable_B, down)
