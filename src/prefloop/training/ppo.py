"""The three steps of PPO after generation: score, estimate, optimise.

Reference log-probs, values and rewards come from the same packs, in which the responses of a group share their prompt. The value head of
``ppo`` is linear on the policy's detached hidden states; grpo, rloo and reinforce have none. Log-probs are at the sampling temperature throughout.

Shape letters: B responses of a rollout, R their tokens in a row (response after response).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from prefloop.audit import Audit
from prefloop.config import PPOConfig
from prefloop.data.packing import Document, Pack, packs
from prefloop.models.forward import entropy_R, hidden_N_H, response_logps_R
from prefloop.models.heads import ScalarHead
from prefloop.models.reward import Reward
from prefloop.objectives import estimators
from prefloop.objectives import ppo as math_
from prefloop.objectives.estimators import Estimate
from prefloop.records import Prompt
from prefloop.rollouts.engine import Rollout
from prefloop.stage import Work
from prefloop.training.loop import Loop
from prefloop.training.policy import POLICY, REFERENCE, logps_R
from prefloop.training.rewards import REWARD_MODEL, Rewards, combined_B
from prefloop.training.scored import Scored


def score(
    work: Work,
    config: PPOConfig,
    batch: list[Prompt],
    prompts_ids: dict[str, list[int]],
    rollouts: list[Rollout],
    reward: Reward,
    value_head: ScalarHead | None,
    rewards: Rewards,
) -> Scored:
    """Log-probs under policy and reference, values and rewards of a rollout, from the same packs.

    Raises ``JudgeError`` naming source and response when one of ``rewards`` fails or gives no finite number; nothing was learnt from the
    rollout then.
    """
    backbone, temperature = work.runtime.backbone, work.runtime.generation.temperature
    n = config.samples_per_prompt
    documents = [
        Document(
            prompts_ids[p.id], [r.token_ids for r in rollouts[i * n : (i + 1) * n]], list(range(i * n, (i + 1) * n))
        )
        for i, p in enumerate(batch)
    ]
    length_B = torch.tensor([len(r.token_ids) for r in rollouts])
    flat = {name: torch.zeros(int(length_B.sum())) for name in ("old", "reference", "value")}
    sampler_R = torch.tensor([logp for r in rollouts for logp in r.logps])
    scored = Scored(
        rollouts,
        documents,
        sampler_R,
        flat["old"],
        flat["reference"],
        flat["value"],
        torch.zeros(len(rollouts)),
        torch.zeros(len(rollouts)),
        length_B,
    )
    model_B = torch.zeros(len(rollouts))
    for pack in packs(documents, backbone.scoring_tokens):
        rows, there = scored.rows(pack), pack.to(backbone.device)
        with backbone.role(POLICY):
            hidden = hidden_N_H(backbone, there)
            scored.old_logp_R[rows] = response_logps_R(backbone, hidden, there, temperature).cpu()
            if value_head is not None:
                scored.value_R[rows] = value_head(hidden.index_select(0, there.source_R)).cpu()
        scored.reference_logp_R[rows] = logps_R(backbone, there, REFERENCE, temperature).cpu()
        if config.reward_model_weight:
            score_K_B = reward.scores_K_B(there) if config.normalize_reward else reward.raw_K_B(there)
            model_B[list(pack.keys)] = score_K_B.mean(0).cpu()
            if len(reward.heads) > 1:
                scored.spread_B[list(pack.keys)] = abs(config.reward_model_weight) * score_K_B.std(0).cpu()
    if config.reward_model_weight:
        scored.source_B[REWARD_MODEL] = model_B
    if rewards.sources:
        texts = [backbone.chat.decode(r.token_ids) for r in rollouts]
        scored.source_B |= rewards.scores_B([p for p in batch for _ in range(n)], texts)
    scored.reward_B = combined_B(scored.source_B, {REWARD_MODEL: config.reward_model_weight, **rewards.weights})
    return scored


def penalised_B(config: PPOConfig, scored: Scored) -> Tensor:
    """What is maximised: the clipped reward (less the members' spread) minus the penalties, [B]."""
    score_B = scored.reward_B - config.uncertainty_penalty * scored.spread_B
    if config.reward_clip is not None:
        score_B = score_B.clamp(-config.reward_clip, config.reward_clip)
    finished_B = torch.tensor([r.finished for r in scored.rollouts])
    return score_B - config.missing_eos_penalty * (~finished_B) - config.length_penalty * scored.length_B


def kl_settings(config: PPOConfig, estimator: str) -> tuple[str, str]:
    """Where the KL stands and how it is estimated: ('reward' | 'loss', 'k1' | 'k2' | 'k3')."""
    kl = config.kl
    placement = kl.placement if kl.placement != "auto" else "loss" if estimator == "grpo" else "reward"
    kind = kl.estimator if kl.estimator != "auto" else "k3" if placement == "loss" else "k1"
    return placement, kind


def estimate(config: PPOConfig, estimator: str, scored: Scored, kl_coef: float) -> Estimate:
    """Advantages and returns."""
    score_B = penalised_B(config, scored)
    placement, kind = kl_settings(config, estimator)
    kl_R = math_.kl_per_token(scored.old_logp_R, scored.reference_logp_R, kind)
    if estimator == "gae" and config.group_baseline:
        score_B = math_.leave_one_out(score_B, config.samples_per_prompt)
    return estimators.estimate(
        estimator,
        score_B,
        kl_R,
        scored.length_B,
        kl_coef if placement == "reward" else 0.0,
        group=config.samples_per_prompt,
        value_R=scored.value_R,
        gamma=config.gamma,
        lam=config.gae_lambda,
        group_std=config.group_std,
        whiten_rewards=config.whiten_rewards,
        whiten_advantages=config.whiten_advantages,
    )


def optimise(
    work: Work,
    config: PPOConfig,
    loop: Loop,
    scored: Scored,
    estimate: Estimate,
    value_head: ScalarHead | None,
    step: int,
    audit: Audit,
    loss_kl: tuple[float, str] | None = None,
) -> dict[str, float]:
    """All epochs and minibatches over one rollout; the first update ever is audited (ratio 1, weights move, backbone does not).

    ``loss_kl`` is coefficient and estimator of a KL term in the loss.
    """
    backbone, temperature = work.runtime.backbone, work.runtime.generation.temperature
    importance_R = torch.ones_like(scored.old_logp_R)
    if config.importance_cap is not None:
        importance_R = math_.truncated_importance(scored.old_logp_R, scored.sampler_logp_R, config.importance_cap)
    sums = dict.fromkeys(("tokens", "clipped", "policy", "value", "ratio"), 0.0)
    policy_weight = 0.0 if value_head is not None and step < config.value_warmup else 1.0

    def loss_of(pack: Pack) -> Tensor:
        rows = scored.rows(pack)
        old_R, advantage, weight = (
            x[rows].to(backbone.device) for x in (scored.old_logp_R, estimate.advantage_R, importance_R)
        )
        with backbone.role(POLICY, train=True):
            hidden = hidden_N_H(backbone, pack)
            logp_R = response_logps_R(backbone, hidden, pack, temperature)
            policy_R = math_.policy_loss_R(logp_R, old_R, advantage, config.clip_range, weight)
            if loss_kl is not None:
                reference_R = scored.reference_logp_R[rows].to(backbone.device)
                policy_R = policy_R + loss_kl[0] * math_.kl_per_token(logp_R, reference_R, loss_kl[1])
            total = policy_weight * policy_R.sum()
            value_loss = torch.zeros(())
            if value_head is not None and estimate.return_R is not None:
                value_R = value_head(hidden.index_select(0, pack.source_R).detach())
                before_R, return_R = (x[rows].to(backbone.device) for x in (scored.value_R, estimate.return_R))
                value_loss = math_.value_loss_R(value_R, before_R, return_R, config.value_clip_range).sum()
                total = total + config.value_coef * value_loss
            if config.entropy_coef:
                total = (
                    total - policy_weight * config.entropy_coef * entropy_R(backbone, hidden, pack, temperature).sum()
                )
        ratio_R = (logp_R.detach() - old_R).exp()
        for name, amount in (
            ("tokens", float(len(rows))),
            ("ratio", float(ratio_R.sum())),
            ("policy", policy_weight * float(policy_R.detach().sum())),
            ("value", float(value_loss.detach())),
            ("clipped", float(((ratio_R - 1).abs() > config.clip_range).sum())),
        ):
            sums[name] += amount
        return total

    frozen = backbone.frozen_digest() if step == 0 else ""
    before = {n: p.detach().clone() for n, p in loop.parameters.items()} if step == 0 else {}
    last: dict[str, float] = {}
    for number, documents in enumerate(minibatches(config, scored.documents, work.runtime.seed, step)):
        items = sum(len(ids) for d in documents for ids in d.responses_ids)
        last = loop.update(packs(documents, backbone.config.pack_tokens), loss_of, items)
        if step == 0 and number == 0:
            audit.equal(
                "ratio before the first update",
                sums["ratio"] / sums["tokens"],
                1.0,
                1e-3 if backbone.compute_dtype == torch.float32 else 2e-2,
                "The first pass over a rollout must see the policy that made it.",
            )
            if policy_weight:
                audit.moved(
                    before, {n: p.detach() for n, p in loop.parameters.items()}, frozen, backbone.frozen_digest()
                )
    tokens = max(1.0, sums["tokens"])
    return {
        "grad_norm": last["grad_norm"],
        "lr": last["lr"],
        "policy_loss": sums["policy"] / tokens,
        **({"value_loss": sums["value"] / tokens} if value_head is not None else {}),
        "clip_fraction": sums["clipped"] / tokens,
        "ratio": sums["ratio"] / tokens,
    }


def minibatches(config: PPOConfig, documents: Sequence[Document], seed: int, step: int) -> Iterator[list[Document]]:
    """Every epoch shuffles the rollout's prompts and deals them into equal minibatches."""
    for epoch in range(config.epochs):
        order = list(documents)
        random.Random(f"{seed}:{step}:{epoch}").shuffle(order)
        parts = min(config.minibatches, len(order))
        yield from (order[k::parts] for k in range(parts))
