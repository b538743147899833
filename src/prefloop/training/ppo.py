"""The three steps of PPO after generation: score, estimate, optimise.

Reference log-probs, values and rewards come from the same packs, in which the responses of a group
share their prompt. The critic of ``ppo`` is in ``critic.py``; grpo, rloo and reinforce have none.
Log-probs are at the sampling temperature throughout.

Shape letters: B responses of a rollout, R their tokens in a row (response after response).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from prefloop.config import PPOConfig
from prefloop.data.packing import Document, Pack, packs
from prefloop.models.backbone import Backbone
from prefloop.models.forward import entropy_R, hidden_N_H, response_logps_R
from prefloop.models.reward_model import Reward
from prefloop.objectives import estimators
from prefloop.objectives import ppo as math_
from prefloop.objectives.estimators import Advantages
from prefloop.records import Prompt
from prefloop.rollouts import sampler_check as agreement
from prefloop.rollouts.engine import Rollout
from prefloop.runs.work import Work
from prefloop.training.audit import Audit
from prefloop.training.critic import Critic
from prefloop.training.loop import Loop, NonFiniteLoss
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
    critic: Critic | None,
    rewards: Rewards,
) -> Scored:
    """Log-probs under policy and reference, values and rewards of a rollout, from the same packs.

    Raises ``RewardError`` naming source and response when one of ``rewards`` fails or gives no
    finite number; nothing was learnt from the rollout then.
    """
    backbone, temperature = work.runtime.backbone, work.runtime.generation.temperature
    n = config.samples_per_prompt
    documents = [
        Document(
            prompts_ids[p.id],
            [r.token_ids for r in rollouts[i * n : (i + 1) * n]],
            list(range(i * n, (i + 1) * n)),
        )
        for i, p in enumerate(batch)
    ]
    length_B = torch.tensor([len(r.token_ids) for r in rollouts])
    tokens, responses = int(length_B.sum()), len(rollouts)
    scored = Scored(
        rollouts,
        documents,
        sampler_logp_R=torch.tensor([logp for r in rollouts for logp in r.logps]),
        old_logp_R=torch.zeros(tokens),
        reference_logp_R=torch.zeros(tokens),
        value_R=torch.zeros(tokens),
        reward_B=torch.zeros(responses),
        spread_B=torch.zeros(responses),
        length_B=length_B,
    )
    rows, keys = [], []
    of_R: dict[str, list[Tensor]] = {"old_logp_R": [], "reference_logp_R": [], "value_R": []}
    of_B: dict[str, list[Tensor]] = {"reward_B": [], "spread_B": []}
    for pack in (p.to(backbone.device) for p in packs(documents, backbone.scoring_tokens)):
        rows.append(scored.rows(pack))
        keys += list(pack.keys)
        with backbone.role(POLICY):
            hidden = hidden_N_H(backbone, pack)
            of_R["old_logp_R"].append(response_logps_R(backbone, hidden, pack, temperature))
            if critic is not None:
                of_R["value_R"].append(critic.values_R(pack, hidden))
        del hidden
        of_R["reference_logp_R"].append(logps_R(backbone, pack, REFERENCE, temperature))
        if config.reward_model_weight:
            score_K_B = reward.scores_K_B(pack) if config.normalize_reward else reward.raw_K_B(pack)
            of_B["reward_B"].append(score_K_B.mean(0))
            if len(reward.heads) > 1:
                of_B["spread_B"].append(abs(config.reward_model_weight) * score_K_B.std(0))
    # To the host at the end: copying pack by pack would let the device wait each time.
    for where, found in ((torch.cat(rows), of_R), (torch.tensor(keys), of_B)):
        for name, parts in found.items():
            if parts:
                getattr(scored, name)[where] = torch.cat(parts).float().cpu()
    if config.reward_model_weight:
        scored.source_B[REWARD_MODEL] = scored.reward_B
    if rewards.sources:
        texts = [backbone.chat.decode(r.token_ids) for r in rollouts]
        scored.source_B |= rewards.scores_B([p for p in batch for _ in range(n)], texts)
    _refuse_what_is_not_finite(scored, batch, n)
    scored.reward_B = combined_B(
        scored.source_B, {REWARD_MODEL: config.reward_model_weight, **rewards.weights}
    )
    return scored


def _refuse_what_is_not_finite(scored: Scored, batch: list[Prompt], n: int) -> None:
    """Raise ``NonFiniteLoss`` naming the prompts whose scores or log-probs are NaN or infinite:
    whitening would spread them over all.
    """
    for name in ("sampler_logp_R", "old_logp_R", "reference_logp_R", "value_R", "reward_B"):
        found = ~getattr(scored, name).isfinite()
        bad_B = found if name.endswith("_B") else scored.sequence_sum_B(found.float()) > 0
        if bad_B.any():
            ids = dict.fromkeys(batch[int(k) // n].id for k in bad_B.nonzero()[:, 0])
            raise NonFiniteLoss(
                f"{name[:-2]} is not finite in {int(bad_B.sum())} responses, to prompts"
                f" {', '.join(list(ids)[:8])}; nothing was learnt from this rollout"
            )


def penalised_B(config: PPOConfig, scored: Scored) -> Tensor:
    """What is maximised: the clipped reward (less the members' spread) minus the penalties, [B]."""
    score_B = scored.reward_B - config.uncertainty_penalty * scored.spread_B
    if config.reward_clip is not None:
        score_B = score_B.clamp(-config.reward_clip, config.reward_clip)
    finished_B = torch.tensor([r.finished for r in scored.rollouts])
    return (
        score_B
        - config.missing_eos_penalty * (~finished_B)
        - config.length_penalty * scored.length_B
    )


def kl_settings(config: PPOConfig, estimator: str) -> tuple[str, str]:
    """Where the KL stands and how it is estimated: ('reward' | 'loss', 'k1' | 'k2' | 'k3')."""
    kl = config.kl
    placement = (
        kl.placement if kl.placement != "auto" else "loss" if estimator == "grpo" else "reward"
    )
    kind = kl.estimator if kl.estimator != "auto" else "k3" if placement == "loss" else "k1"
    return placement, kind


def gap_bound(config: PPOConfig, backbone: Backbone, engine: str) -> float:
    """The mean |log-prob gap| between sampler and trainer that is tolerated, nats a token."""
    return (
        agreement.gap_bound(backbone, engine)
        if config.max_logprob_gap is None
        else config.max_logprob_gap
    )


def estimate(config: PPOConfig, estimator: str, scored: Scored, kl_coef: float) -> Advantages:
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
    estimate: Advantages,
    critic: Critic | None,
    step: int,
    audit: Audit,
    loss_kl: tuple[float, str] | None = None,
    first: bool = False,
) -> dict[str, float]:
    """All epochs and minibatches over one rollout; the policy's first update is audited (ratio 1,
    weights move, backbone does not).

    ``loss_kl`` is coefficient and estimator of a KL term in the loss. ``first``: the ratio is
    audited too, as in the first rollout of a process.
    """
    backbone, temperature = work.runtime.backbone, work.runtime.generation.temperature
    importance_R = torch.ones_like(scored.old_logp_R)
    if config.importance_cap is not None:
        importance_R = math_.truncated_importance(
            scored.old_logp_R, scored.sampler_logp_R, config.importance_cap
        )
    warm_up = config.value_warmup if critic is not None else 0
    learns = step >= warm_up
    tokens = 0
    sums = {
        name: torch.zeros((), device=backbone.device)
        for name in ("clipped", "policy", "value", "ratio")
    }

    def losses_of(pack: Pack) -> Iterator[Tensor]:
        nonlocal tokens
        rows = scored.rows(pack)
        tokens += len(rows)
        old_R, advantage_R, weight_R = (
            x[rows].to(backbone.device)
            for x in (scored.old_logp_R, estimate.advantage_R, importance_R)
        )
        with backbone.role(POLICY, train=learns):
            hidden = hidden_N_H(backbone, pack)
            logp_R = response_logps_R(backbone, hidden, pack, temperature)
            policy_R = math_.policy_loss_R(logp_R, old_R, advantage_R, config.clip_range, weight_R)
            if loss_kl is not None:
                reference_R = scored.reference_logp_R[rows].to(backbone.device)
                policy_R = policy_R + loss_kl[0] * math_.kl_per_token(
                    logp_R, reference_R, loss_kl[1]
                )
            total = policy_R.sum()
            if config.entropy_coef:
                entropy = entropy_R(backbone, hidden, pack, temperature).sum()
                total = total - config.entropy_coef * entropy
        ratio_R = (logp_R.detach() - old_R).exp()
        sums["ratio"] += ratio_R.sum()
        sums["policy"] += policy_R.detach().sum()
        sums["clipped"] += ((ratio_R - 1).abs() > config.clip_range).sum()
        if critic is None or estimate.return_R is None:
            yield total
            return
        # While the critic warms up the policy gets no gradient at all: one of zeros would count in
        # Adam's moments and decay the weights.
        if critic.own and learns:
            yield total
        value_R = critic.values_R(pack, hidden, train=True)
        before_R, return_R = (
            x[rows].to(backbone.device) for x in (scored.value_R, estimate.return_R)
        )
        value_loss = math_.value_loss_R(value_R, before_R, return_R, config.value_clip_range).sum()
        sums["value"] += value_loss.detach()
        yield config.value_coef * value_loss + (total if learns and not critic.own else 0.0)

    frozen = backbone.frozen_digest() if step == warm_up else ""
    before = {}
    if step == warm_up:
        # A critic's adapter gets a gradient through its head alone, and the head starts at 0.
        # Scores less those of their own group add up to 0, and where all responses are equally long
        # so do the gradients of the head's bias.
        waits = ["value_head/linear.bias"] if config.group_baseline else []
        waits += (
            ["value_adapter/"]
            if critic is not None and critic.own and not critic.head.linear.weight.any()
            else []
        )
        before = {
            n: p.detach().clone()
            for n, p in loop.parameters.items()
            if not n.startswith(tuple(waits))
        }
    last: dict[str, float] = {}
    for number, documents in enumerate(
        minibatches(config, scored.documents, work.runtime.seed, step)
    ):
        items = sum(len(ids) for d in documents for ids in d.responses_ids)
        last = loop.update(packs(documents, backbone.config.pack_tokens), losses_of, items)
        if number == 0 and (first or step == warm_up):
            audit.equal(
                "ratio before the first update",
                float(sums["ratio"]) / tokens,
                1.0,
                1e-3 if backbone.compute_dtype == torch.float32 else 2e-2,
                "The first pass over a rollout must see the policy that made it.",
            )
            if step == warm_up:
                after = {n: p.detach() for n, p in loop.parameters.items()}
                audit.moved(before, after, frozen, backbone.frozen_digest(), backbone.method.waits)
    means = {name: float(total) / max(1, tokens) for name, total in sums.items()}
    return {
        "grad_norm": last["grad_norm"],
        "lr": last["lr"],
        "policy_loss": means["policy"],
        **({"value_loss": means["value"]} if critic is not None else {}),
        "clip_fraction": means["clipped"],
        "ratio": means["ratio"],
    }


def minibatches(
    config: PPOConfig, documents: Sequence[Document], seed: int, step: int
) -> Iterator[list[Document]]:
    """Every epoch shuffles the rollout's prompts and deals them into equal minibatches."""
    for epoch in range(config.epochs):
        order = list(documents)
        random.Random(f"{seed}:{step}:{epoch}").shuffle(order)
        parts = min(config.minibatches, len(order))
        yield from (order[k::parts] for k in range(parts))
