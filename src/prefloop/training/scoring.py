"""A rollout with everything that PPO learns from: log-probs, the critic's values and rewards.

All of them come from the same packs, in which the responses of a group share their prompt.
Log-probs are at the sampling temperature. ``ppo`` alone has a critic.

Shape letters: B responses of a rollout, R their tokens in a row (response after response), K
members of a reward ensemble, N tokens of a pack, H hidden size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from prefloop.config import PPOConfig
from prefloop.data.packing import Document, Pack, packs
from prefloop.errors import EngineError
from prefloop.models.backbone import Backbone
from prefloop.models.forward import hidden_N_H, response_logps_R
from prefloop.models.heads import ScalarHead
from prefloop.models.reward_model import Reward
from prefloop.records import Prompt
from prefloop.rollouts.engine import SAVED, Rollout
from prefloop.rollouts.sampler_check import SamplerAgreement, agreement, gap_bound
from prefloop.training.audit import Audit
from prefloop.training.loop import NonFiniteLoss
from prefloop.training.policy import POLICY, REFERENCE, logps_R
from prefloop.training.rewards import REWARD_MODEL, Rewards, combined_B

VALUE = "value"


class Critic:
    """The critic of PPO: a value for every response token.

    ``shared``: linear on the policy's hidden states, detached, so it costs no pass of its own and
    cannot bend the policy. ``adapter``: an adapter of its own on the backbone with a linear head,
    started from the reward model's adapter (as InstructGPT's critic was, Ouyang et al. 2022, arXiv
    2203.02155).
    """

    def __init__(self, backbone: Backbone, kind: str, start: Path | None = None) -> None:
        self.backbone = backbone
        self.own = kind == "adapter"
        self.head = ScalarHead(backbone.hidden_size).to(backbone.device)
        if self.own:
            backbone.add_role(VALUE, start=start)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The trained parameters by a stable name. The part before the slash is clipped apart."""
        parameters = {f"value_head/{name}": p for name, p in self.head.named_parameters()}
        if self.own:
            below_head = self.backbone.below_head(VALUE)
            parameters |= {f"value_adapter/{name}": p for name, p in below_head.items()}
        return parameters

    def values_R(self, pack: Pack, policy_N_H: Tensor | None, train: bool = False) -> Tensor:
        """The value where each response token is chosen, [R].

        ``policy_N_H`` are the policy's hidden states; a critic with an adapter does not read them.
        With ``train`` and an adapter the backbone is left under the critic's role: call
        ``backward`` before any other role.
        """
        if not self.own:
            assert policy_N_H is not None
            return self.head(policy_N_H.index_select(0, pack.source_R).detach())
        with self.backbone.role(VALUE, train=train):
            return self.head(hidden_N_H(self.backbone, pack).index_select(0, pack.source_R))

    def save(self, folder: Path) -> None:
        """Write the head, and the critic's adapter in the form that its method ends in."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.own:
            self.backbone.method.finish(VALUE)
            self.backbone.save_role(VALUE, folder)
        self.head.save(folder)


@dataclasses.dataclass(frozen=True)
class Scored:
    """A rollout and its scores, on the host; responses are in rollout order."""

    rollouts: list[Rollout]
    documents: list[Document]
    """A prompt each with its responses, whose keys are their places in ``rollouts``."""
    length_B: Tensor
    """Tokens of each response."""
    sampler_logp_R: Tensor
    old_logp_R: Tensor
    """Log-probs under the policy before it learns from the rollout."""
    reference_logp_R: Tensor
    value_R: Tensor
    """Zeros without a critic."""
    reward_B: Tensor
    """The weighted sum of ``source_B``."""
    spread_B: Tensor
    """Standard deviation over the members of a reward ensemble; 0 with one member."""
    source_B: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    """The score of each source of the reward before its weight."""

    def rows(self, pack: Pack) -> Tensor:
        """The places of the pack's response tokens in the flat tensors, [tokens of the pack]."""
        return _rows(pack, self.length_B)

    def sequence_sum_B(self, values_R: Tensor) -> Tensor:
        """The sum over each response's tokens, [B]."""
        return torch.stack([part.sum() for part in values_R.split(self.length_B.tolist())])

    @property
    def kl_B(self) -> Tensor:
        """The k1 estimate of each response's KL to the reference, in nats, [B]."""
        return self.sequence_sum_B(self.old_logp_R - self.reference_logp_R)


@dataclasses.dataclass(frozen=True)
class Scorer:
    """Scores the rollouts of one training."""

    backbone: Backbone
    config: PPOConfig
    temperature: float
    """The sampler's, by which logits are divided."""
    reward: Reward
    critic: Critic | None
    rewards: Rewards
    """The sources of ``ppo.rewards``."""

    def score(
        self,
        batch: Sequence[Prompt],
        prompts_ids: Sequence[Sequence[int]],
        rollouts: list[Rollout],
    ) -> Scored:
        """Log-probs under policy and reference, values and rewards of a rollout.

        Args:
            batch: the prompts.
            prompts_ids: their token ids.
            rollouts: ``samples_per_prompt`` responses to each prompt, prompt after prompt.

        Raises ``RewardError`` naming source and response when a source of ``ppo.rewards`` fails or
        gives no finite number, and ``NonFiniteLoss`` naming the prompts when a score or a log-prob
        is not finite. Nothing was learnt from the rollout then.
        """
        backbone, config, n = self.backbone, self.config, self.config.samples_per_prompt
        documents = [
            Document(ids, [r.token_ids for r in rollouts[k : k + n]], range(k, k + n))
            for k, ids in zip(range(0, len(rollouts), n), prompts_ids, strict=True)
        ]
        length_B = torch.tensor([len(r.token_ids) for r in rollouts])
        places_R: list[Tensor] = []
        places_B: list[Tensor] = []
        old_R: list[Tensor] = []
        reference_R: list[Tensor] = []
        value_R: list[Tensor] = []
        model_B: list[Tensor] = []
        spread_B: list[Tensor] = []
        for pack in (p.to(backbone.device) for p in packs(documents, backbone.scoring_tokens)):
            places_R.append(_rows(pack, length_B))
            places_B.append(torch.tensor(pack.keys))
            with backbone.role(POLICY):
                policy_N_H = hidden_N_H(backbone, pack)
                old_R.append(response_logps_R(backbone, policy_N_H, pack, self.temperature))
                if self.critic is not None:
                    value_R.append(self.critic.values_R(pack, policy_N_H))
            del policy_N_H  # its memory is needed for the next role's pass
            reference_R.append(logps_R(backbone, pack, REFERENCE, self.temperature))
            if config.reward_model_weight:
                normalize, reward = config.normalize_reward, self.reward
                score_K_B = reward.scores_K_B(pack) if normalize else reward.raw_K_B(pack)
                model_B.append(score_K_B.mean(0))
                if len(reward.heads) > 1:
                    spread_B.append(abs(config.reward_model_weight) * score_K_B.std(0))
        # To the host at the end: copying pack by pack would let the device wait each time.
        at_R, at_B = torch.cat(places_R), torch.cat(places_B)
        source_B = {REWARD_MODEL: _in_order(model_B, at_B)} if config.reward_model_weight else {}
        if self.rewards.sources:
            texts = [backbone.chat.decode(r.token_ids) for r in rollouts]
            source_B |= self.rewards.scores_B([p for p in batch for _ in range(n)], texts)
        weights = {REWARD_MODEL: config.reward_model_weight, **self.rewards.weights}
        scored = Scored(
            rollouts,
            documents,
            length_B,
            sampler_logp_R=torch.tensor([logp for r in rollouts for logp in r.logps]),
            old_logp_R=_in_order(old_R, at_R),
            reference_logp_R=_in_order(reference_R, at_R),
            value_R=_in_order(value_R, at_R),
            reward_B=combined_B(source_B, weights),
            spread_B=_in_order(spread_B, at_B),
            source_B=source_B,
        )
        _require_finite(scored, [p.id for p in batch for _ in range(n)])
        return scored


class SamplerAudit:
    """Checks for every rollout that the sampler ran the policy that is trained."""

    def __init__(self, scorer: Scorer, engine: str, audit: Audit) -> None:
        self.scorer, self.engine, self.audit = scorer, engine, audit
        limit = scorer.config.max_logprob_gap
        self.bound = gap_bound(scorer.backbone, engine) if limit is None else limit
        """The largest mean |log-prob gap| that is tolerated, nats a token."""
        self._first = True

    def require_policy(self, scored: Scored, step: int) -> float:
        """The mean |log-prob gap| between sampler and trainer in the rollout of the 0-based
        ``step``, nats a token.

        In the first rollout of a process, the sampler must also show what the policy changed of the
        bare model. Nothing may be learnt from a rollout of another policy: raises ``AuditError`` in
        step 0, and in later steps ``EngineError``, which keeps the checkpoints.
        """
        gap = float((scored.old_logp_R - scored.sampler_logp_R).abs().mean())
        seen = SamplerAgreement(gap, self.bound, len(scored.rollouts))
        if self._first:
            backbone, temperature = self.scorer.backbone, self.scorer.temperature
            prompts_ids = [document.prompt_ids for document in scored.documents]
            shown = agreement(
                backbone, self.engine, prompts_ids, scored.rollouts, temperature, POLICY
            )
            seen = dataclasses.replace(seen, share=shown.share, error=shown.error)
        self._first = False
        line = f"step {step + 1}: {seen} ({self.engine})"
        fix = (
            "The sampler does not run the policy that is trained (stale weights, temperature,"
            " precision)."
        )
        if step == 0:
            self.audit.check("sampler against trainer", seen.holds, line, fix)
        elif not seen.holds:
            raise EngineError(
                f"sampler against trainer, {line}. {fix} Nothing was learnt from this rollout."
                f" {SAVED}"
            )
        return gap


def penalized_B(config: PPOConfig, scored: Scored) -> Tensor:
    """The score that training maximizes, before the KL penalty, [B]: the clipped reward less the
    members' spread, minus the penalties on length and on a missing end.
    """
    score_B = scored.reward_B - config.uncertainty_penalty * scored.spread_B
    if config.reward_clip is not None:
        score_B = score_B.clamp(-config.reward_clip, config.reward_clip)
    finished_B = torch.tensor([r.finished for r in scored.rollouts])
    return (
        score_B
        - config.missing_eos_penalty * (~finished_B)
        - config.length_penalty * scored.length_B
    )


def _rows(pack: Pack, length_B: Tensor) -> Tensor:
    ends = length_B.cumsum(0)
    return torch.cat([torch.arange(int(ends[k] - length_B[k]), int(ends[k])) for k in pack.keys])


def _in_order(parts: list[Tensor], places: Tensor) -> Tensor:
    """The values of all packs on the host, each at its place; zeros where there are no values."""
    values = torch.zeros(len(places))
    if parts:
        values[places] = torch.cat(parts).float().cpu()
    return values


def _require_finite(scored: Scored, prompt_ids: list[str]) -> None:
    """Raise ``NonFiniteLoss`` naming the prompts whose scores or log-probs are NaN or infinite:
    whitening would spread them over the whole rollout.
    """
    values_R = {
        "sampler_logp": scored.sampler_logp_R,
        "old_logp": scored.old_logp_R,
        "reference_logp": scored.reference_logp_R,
        "value": scored.value_R,
    }
    bad_B = {
        name: scored.sequence_sum_B((~value_R.isfinite()).float()) > 0
        for name, value_R in values_R.items()
    }
    for name, bad in (bad_B | {"reward": ~scored.reward_B.isfinite()}).items():
        if bad.any():
            ids = dict.fromkeys(prompt_ids[int(k)] for k in bad.nonzero()[:, 0])
            raise NonFiniteLoss(
                f"{name} is not finite in {int(bad.sum())} responses, to prompts"
                f" {', '.join(list(ids)[:8])}; nothing was learnt from this rollout"
            )
