"""What PPO, GRPO, RLOO and REINFORCE++ do with a scored rollout: estimate advantages, update.

The four differ in the estimator of advantages (``objectives/estimators.py``) and in whether there
is a critic. ``scoring.py`` makes the scored rollout, ``pipeline/stages/ppo.py`` has the loop. Left
out on purpose: a gradient from the value loss into the policy.

Shape letters: B responses of a rollout, R their tokens in a row (response after response).
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from prefloop.config import KLConfig, PPOConfig
from prefloop.data.packing import Document, Pack, packs
from prefloop.models.forward import entropy_R, hidden_N_H, response_logps_R
from prefloop.objectives import estimators
from prefloop.objectives import ppo as math_
from prefloop.objectives.estimators import Advantages
from prefloop.objectives.ppo import KLPenalty
from prefloop.records import Prompt
from prefloop.training.audit import Audit
from prefloop.training.loop import Loop
from prefloop.training.policy import POLICY
from prefloop.training.scoring import Scored, Scorer, penalized_B
from prefloop.training.step_metrics import UpdateMetrics


def kl_penalty(config: KLConfig, estimator: str) -> KLPenalty:
    """The KL penalty of a run whose advantages come from ``estimator``: settles what ``auto`` means
    for placement and estimator.
    """
    placement, kind = config.placement, config.estimator
    if placement == "auto":
        placement = "loss" if estimator == "grpo" else "reward"
    if kind == "auto":
        kind = "k3" if placement == "loss" else "k1"
    return KLPenalty(config.coef, placement, kind)


def draw(prompts: Sequence[Prompt], count: int, step: int, seed: int) -> list[Prompt]:
    """The prompts of a step: consecutive slices of an endless series of seeded shuffles."""
    count = min(count, len(prompts))
    batch: list[Prompt] = []
    position = step * count
    while len(batch) < count:
        epoch, offset = divmod(position + len(batch), len(prompts))
        order = list(prompts)
        random.Random(f"{seed}:ppo:{epoch}").shuffle(order)
        batch += order[offset : offset + count - len(batch)]
    return batch


class PPOTrainer:
    """Learns from scored rollouts, one after another."""

    def __init__(self, scorer: Scorer, estimator: str, loop: Loop, audit: Audit, seed: int) -> None:
        """``scorer`` holds the models and settings that rollouts are scored with, ``loop`` the
        trained parameters.
        """
        self.scorer = scorer
        self.backbone, self.config = scorer.backbone, scorer.config
        self.estimator, self.loop, self.audit, self.seed = estimator, loop, audit, seed
        self.warmup = self.config.value_warmup if scorer.critic is not None else 0
        """Steps in which the critic learns alone."""
        self._ratio_audited = False

    def estimate(self, scored: Scored, kl: KLPenalty) -> Advantages:
        """Advantages of a rollout, and with a critic its returns."""
        config, score_B = self.config, penalized_B(self.config, scored)
        if self.estimator == "gae" and config.group_baseline:
            score_B = math_.leave_one_out(score_B, config.samples_per_prompt)
        return estimators.estimate(
            self.estimator,
            score_B,
            math_.kl_per_token(scored.old_logp_R, scored.reference_logp_R, kl.estimator),
            scored.length_B,
            kl,
            group=config.samples_per_prompt,
            value_R=scored.value_R,
            gamma=config.gamma,
            lam=config.gae_lambda,
            group_std=config.group_std,
            whiten_rewards=config.whiten_rewards,
            whiten_advantages=config.whiten_advantages,
        )

    def update(
        self, scored: Scored, advantages: Advantages, kl: KLPenalty, step: int
    ) -> UpdateMetrics:
        """All epochs and minibatches over one rollout, that of the 0-based ``step``.

        Raises ``NonFiniteLoss`` from the loop, and ``AuditError`` where the first minibatch shows
        that training does not work.
        """
        losses = PackLosses(self.scorer, scored, advantages, kl, step >= self.warmup)
        first, *rest = minibatches(self.config, scored.documents, self.seed, step)
        with self._audited(losses, step):
            last = self._minibatch(first, losses)
        for documents in rest:
            last = self._minibatch(documents, losses)
        return losses.metrics(last["grad_norm"], last["lr"])

    def _minibatch(self, documents: list[Document], losses: PackLosses) -> dict[str, float]:
        tokens = sum(len(ids) for d in documents for ids in d.responses_ids)
        return self.loop.update(packs(documents, self.backbone.config.pack_tokens), losses, tokens)

    @contextlib.contextmanager
    def _audited(self, losses: PackLosses, step: int) -> Iterator[None]:
        """Audit a minibatch. In the first rollout of a process the ratio must be 1; in the policy's
        first update of all, the trained weights must also move and the backbone's must not.
        """
        policy_starts = step == self.warmup
        frozen = self.backbone.frozen_digest() if policy_starts else ""
        before = self._free_to_move() if policy_starts else {}
        yield
        if policy_starts or not self._ratio_audited:
            self.audit.equal(
                "ratio before the first update",
                float(losses.ratio_sum) / losses.tokens,
                1.0,
                1e-3 if self.backbone.compute_dtype == torch.float32 else 2e-2,
                "The first pass over a rollout must see the policy that made it.",
            )
            self._ratio_audited = True
        if policy_starts:
            after = {n: p.detach() for n, p in self.loop.parameters.items()}
            waits = self.backbone.method.waits
            self.audit.moved(before, after, frozen, self.backbone.frozen_digest(), waits)

    def _free_to_move(self) -> dict[str, Tensor]:
        """Copies of the parameters that get a gradient in the policy's first update."""
        critic, waiting = self.scorer.critic, []
        if self.config.group_baseline:
            # Scores less those of their own group add up to 0, and where all responses are equally
            # long so do the gradients of the head's bias.
            waiting.append("value_head/linear.bias")
        if critic is not None and critic.own and not critic.head.linear.weight.any():
            # A critic's adapter gets a gradient through its head alone, and the head starts at 0.
            waiting.append("value_adapter/")
        return {
            name: parameter.detach().clone()
            for name, parameter in self.loop.parameters.items()
            if not name.startswith(tuple(waiting))
        }


class PackLosses:
    """The losses of each pack of an update; adds up figures for its metrics on the device."""

    def __init__(
        self,
        scorer: Scorer,
        scored: Scored,
        advantages: Advantages,
        kl: KLPenalty,
        policy_learns: bool,
    ) -> None:
        self.scorer, self.scored, self.advantages, self.kl = scorer, scored, advantages, kl
        self.config, self.critic, self.device = scorer.config, scorer.critic, scorer.backbone.device
        self.policy_learns = policy_learns
        cap, old_R = self.config.importance_cap, scored.old_logp_R
        self.importance_R = (
            torch.ones_like(old_R)
            if cap is None
            else math_.truncated_importance(old_R, scored.sampler_logp_R, cap)
        )
        self.tokens = 0
        self.ratio_sum, self.clipped_sum, self.policy_sum, self.value_sum = (
            torch.zeros((), device=self.device) for _ in range(4)
        )

    def __call__(self, pack: Pack) -> Iterator[Tensor]:
        """The summed losses of the pack's tokens, policy and critic together or one after the
        other; each must be backpropagated before the next is asked for.
        """
        rows = self.scored.rows(pack)
        self.tokens += len(rows)
        policy_N_H, policy_loss = self._policy(pack, rows)
        if self.critic is None or self.advantages.return_R is None:
            yield policy_loss
            return
        # While the critic warms up the policy gets no gradient at all: one of zeros would count in
        # Adam's moments and decay the weights.
        if self.critic.own and self.policy_learns:
            yield policy_loss
        value_R = self.critic.values_R(pack, policy_N_H, train=True)
        old_value_R = self._on_device(self.scored.value_R, rows)
        return_R = self._on_device(self.advantages.return_R, rows)
        clip = self.config.value_clip_range
        value_loss = math_.value_loss_R(value_R, old_value_R, return_R, clip).sum()
        self.value_sum += value_loss.detach()
        shared = self.policy_learns and not self.critic.own
        yield self.config.value_coef * value_loss + (policy_loss if shared else 0.0)

    def _policy(self, pack: Pack, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The policy's hidden states [N, H], and its summed loss."""
        backbone, temperature, config = self.scorer.backbone, self.scorer.temperature, self.config
        old_R = self._on_device(self.scored.old_logp_R, rows)
        advantage_R = self._on_device(self.advantages.advantage_R, rows)
        importance_R = self._on_device(self.importance_R, rows)
        with backbone.role(POLICY, train=self.policy_learns):
            policy_N_H = hidden_N_H(backbone, pack)
            logp_R = response_logps_R(backbone, policy_N_H, pack, temperature)
            loss_R = math_.policy_loss_R(
                logp_R, old_R, advantage_R, config.clip_range, importance_R
            )
            if self.kl.placement == "loss":
                reference_R = self._on_device(self.scored.reference_logp_R, rows)
                loss_R = loss_R + self.kl.in_loss(logp_R, reference_R)
            loss = loss_R.sum()
            if config.entropy_coef:
                entropy = entropy_R(backbone, policy_N_H, pack, temperature).sum()
                loss = loss - config.entropy_coef * entropy
        ratio_R = (logp_R.detach() - old_R).exp()
        self.ratio_sum += ratio_R.sum()
        self.policy_sum += loss_R.detach().sum()
        self.clipped_sum += ((ratio_R - 1).abs() > config.clip_range).sum()
        return policy_N_H, loss

    def _on_device(self, values_R: Tensor, rows: Tensor) -> Tensor:
        return values_R[rows].to(self.device)

    def metrics(self, grad_norm: float, lr: float) -> UpdateMetrics:
        """Means over the tokens of all packs so far; the host waits for the device here."""
        tokens = max(1, self.tokens)
        return UpdateMetrics(
            grad_norm,
            lr,
            policy_loss=float(self.policy_sum) / tokens,
            value_loss=None if self.critic is None else float(self.value_sum) / tokens,
            clip_fraction=float(self.clipped_sum) / tokens,
            ratio=float(self.ratio_sum) / tokens,
        )


def minibatches(
    config: PPOConfig, documents: Sequence[Document], seed: int, step: int
) -> Iterator[list[Document]]:
    """Every epoch shuffles the rollout's prompts and deals them into equal minibatches."""
    for epoch in range(config.epochs):
        order = list(documents)
        random.Random(f"{seed}:{step}:{epoch}").shuffle(order)
        parts = min(config.minibatches, len(order))
        yield from (order[k::parts] for k in range(parts))
