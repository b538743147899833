"""PPO: generate → score → estimate → optimise, on one backbone.

Policy, reference and reward are adapters; the value head is linear on the policy's detached hidden states, so the critic costs no pass of
its own. Reference log-probs, values and rewards come from the same packs, in which the responses of a group share their prompt. Advantages
are GAE; log-probs are at the sampling temperature throughout. Left out on purpose: a separate critic network, and gradient from the value
loss into the policy.

Shape letters: B responses of a rollout, R their tokens in a row (response after response).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from prefloop.audit import Audit
from prefloop.config import DataConfig, PPOConfig
from prefloop.console import progress, say
from prefloop.data.encode import Encoder
from prefloop.data.packing import Document, Pack, packs
from prefloop.errors import ConfigError
from prefloop.judging.judges import FunctionGrader
from prefloop.models.forward import entropy_R, hidden_N_H, response_logps_R
from prefloop.models.heads import ScalarHead
from prefloop.models.scoring import scores_B
from prefloop.objectives import ppo as math_
from prefloop.records import Prompt
from prefloop.rollouts.engine import Rollout
from prefloop.rollouts.sampling import read_prompts
from prefloop.stage import Stage, Work
from prefloop.store import Artifact
from prefloop.training.loop import Loop
from prefloop.training.policy import POLICY, REFERENCE, logps_R, policy_parameters, start_policy
from prefloop.training.scored import Clock, Scored, draw

REWARD = "reward/0"


class PPO(Stage):
    """SFT adapter, reward model and prompts → an aligned adapter. Produces ``ppo``."""

    name = "ppo"
    produces = "ppo"
    inputs = ("sft", "reward")
    uses = frozenset({"backbone", "generation"})

    def __init__(
        self, config: PPOConfig | None = None, data: DataConfig | None = None, gold: str | None = None
    ) -> None:
        self.config = config or PPOConfig()
        self.data = data or DataConfig()
        self.monitor = FunctionGrader(gold) if gold else None
        """Watches gold against proxy in the log; the policy never sees it."""

    def parts(self) -> dict[str, Any]:
        data, watch = self.data, self.monitor.fingerprint() if self.monitor else None
        return {
            "config": self.config,
            "prompts": data.prompts,
            "layout": data.layout,
            "bad_rows": data.bad_rows,
            "limit": data.limit,
            "monitor": watch,
        }

    def build(self, work: Work, inputs: dict[str, Artifact]) -> dict[str, Any]:
        runtime, audit = work.runtime, Audit(self.name)
        backbone = runtime.backbone
        if self.config.group_baseline and self.config.samples_per_prompt < 2:
            raise ConfigError(
                "ppo.group_baseline needs ppo.samples_per_prompt of at least 2: there is no other response to compare with"
            )
        prompts = read_prompts(work, self.data)
        encoder = Encoder(backbone.chat, backbone.config.max_length)
        room = runtime.generation.max_new_tokens
        prompts_ids = {p.id: encoder.prompt(p.id, p.prompt, room) for p in prompts}
        audit.prompts(backbone.chat, list(prompts_ids.values()))
        reward_head = ScalarHead.load(inputs["reward"].path).to(backbone.device)
        value_head = ScalarHead(backbone.hidden_size).to(backbone.device)
        try:
            probe = Document(prompts_ids[prompts[0].id], [backbone.chat.response_ids("A short probe.")], [0])
            start_policy(work, inputs["sft"], audit, [probe], runtime.generation.temperature)
            backbone.add_role(REWARD, start=inputs["reward"].path)
            metrics = self._train(work, audit, prompts, prompts_ids, reward_head, value_head)
            backbone.save_role(POLICY, work.folder)
            (work.folder / "value").mkdir(exist_ok=True)
            value_head.save(work.folder / "value")
        finally:
            for role in (POLICY, REFERENCE, REWARD):
                backbone.drop_role(role)
        return audit.finish(metrics)

    def _train(
        self,
        work: Work,
        audit: Audit,
        prompts: list[Prompt],
        prompts_ids: dict[str, list[int]],
        reward_head: ScalarHead,
        value_head: ScalarHead,
    ) -> dict[str, Any]:
        runtime, config = work.runtime, self.config
        backbone = runtime.backbone
        parameters = policy_parameters(backbone) | {f"value/{n}": p for n, p in value_head.named_parameters()}
        updates = config.steps * config.epochs * config.minibatches
        loop = Loop(parameters, config.optim, updates, work.checkpoints, {"value/": config.value_learning_rate})
        kl = math_.AdaptiveKL(config.kl.coef, config.kl.target, config.kl.horizon)
        restored = loop.restore()
        first = 0
        if restored is not None:
            first, kl.coef = restored[0]["round"], restored[0]["kl_coef"]
        metrics: dict[str, Any] = restored[0]["metrics"] if restored is not None else {}
        with progress(self.name, config.steps - first, "step") as advance:
            for step in range(first, config.steps):
                if restored is not None and restored[0].get("stopped"):
                    break
                batch = draw(prompts, config.prompts_per_step, step, runtime.seed)
                clock = Clock()
                rollouts = self._generate(work, batch, prompts_ids, step)
                clock.lap("generate")
                scored = self._score(work, batch, prompts_ids, rollouts, reward_head, value_head)
                clock.lap("score")
                kl_R, advantage_R, return_R = self._estimate(scored, kl.coef)
                clock.lap("estimate")
                trained = self._optimise(work, loop, scored, advantage_R, return_R, value_head, step, audit)
                clock.lap("optimise")
                metrics = self._log(work, step, batch, scored, kl_R, return_R, kl.coef, trained, clock, audit)
                sequence_kl = metrics["kl"]
                if config.kl.adaptive:
                    kl.update(sequence_kl, len(rollouts))
                stopped = config.kl.stop is not None and sequence_kl > config.kl.stop
                if (step + 1) % config.optim.checkpoint_every == 0 or stopped:
                    loop.save({"round": step + 1, "kl_coef": kl.coef, "stopped": stopped, "metrics": metrics})
                advance(
                    note=f"reward {metrics['reward_mean']:+.2f}  KL {sequence_kl:.2f}  {metrics['length_mean']:.0f} tokens"
                )
                if stopped:
                    say(
                        f"  ppo: sequence KL {sequence_kl:.1f} passed kl.stop = {config.kl.stop:g} nats after step {step + 1}; stopping",
                        "yellow",
                    )
                    break
        return {k: v for k, v in metrics.items() if isinstance(v, float | int | dict)} | {"updates": loop.step}

    def _generate(self, work: Work, batch: list[Prompt], prompts_ids: dict[str, list[int]], step: int) -> list[Rollout]:
        work.runtime.engine.load_policy(POLICY)
        ids = [prompts_ids[p.id] for p in batch]
        return work.runtime.engine.generate(
            ids, self.config.samples_per_prompt, seed=work.runtime.seed * 100_003 + step + 1
        )

    def _score(
        self,
        work: Work,
        batch: list[Prompt],
        prompts_ids: dict[str, list[int]],
        rollouts: list[Rollout],
        reward_head: ScalarHead,
        value_head: ScalarHead,
    ) -> Scored:
        backbone, config, temperature = work.runtime.backbone, self.config, work.runtime.generation.temperature
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
            length_B,
        )
        for pack in packs(documents, backbone.config.pack_tokens):
            rows, there = scored.rows(pack), pack.to(backbone.device)
            with backbone.role(POLICY):
                hidden = hidden_N_H(backbone, there)
                scored.old_logp_R[rows] = response_logps_R(backbone, hidden, there, temperature).cpu()
                scored.value_R[rows] = value_head(hidden.index_select(0, there.source_R)).cpu()
            scored.reference_logp_R[rows] = logps_R(backbone, there, REFERENCE, temperature).cpu()
            raw_B = scores_B(backbone, reward_head, there, REWARD)
            scored.reward_B[list(pack.keys)] = (
                reward_head.normalized(raw_B) if config.normalize_reward else raw_B
            ).cpu()
        return scored

    def _penalised(self, scored: Scored) -> Tensor:
        """What PPO maximises: the clipped reward minus the penalties, [B]."""
        config, score_B = self.config, scored.reward_B.clone()
        if config.reward_clip is not None:
            score_B = score_B.clamp(-config.reward_clip, config.reward_clip)
        finished_B = torch.tensor([r.finished for r in scored.rollouts])
        return score_B - config.missing_eos_penalty * (~finished_B) - config.length_penalty * scored.length_B

    def _estimate(self, scored: Scored, kl_coef: float) -> tuple[Tensor, Tensor, Tensor]:
        """Per-token KL, advantages and returns, [R] each."""
        config = self.config
        score_B = self._penalised(scored)
        kl_R = math_.kl_per_token(scored.old_logp_R, scored.reference_logp_R, config.kl.estimator)
        if config.group_baseline:
            score_B = math_.leave_one_out(score_B, config.samples_per_prompt)
        rewards_R = math_.token_rewards(score_B, kl_R, scored.length_B, kl_coef)
        if config.whiten_rewards:
            rewards_R = math_.whiten(rewards_R, shift_mean=False)
        lengths = scored.length_B.tolist()
        pieces = [
            math_.gae(r, v, config.gamma, config.gae_lambda)
            for r, v in zip(rewards_R.split(lengths), scored.value_R.split(lengths), strict=True)
        ]
        advantage_R = torch.cat([a for a, _ in pieces])
        return (
            kl_R,
            math_.whiten(advantage_R) if config.whiten_advantages else advantage_R,
            torch.cat([r for _, r in pieces]),
        )

    def _optimise(
        self,
        work: Work,
        loop: Loop,
        scored: Scored,
        advantage_R: Tensor,
        return_R: Tensor,
        value_head: ScalarHead,
        step: int,
        audit: Audit,
    ) -> dict[str, float]:
        backbone, config, temperature = work.runtime.backbone, self.config, work.runtime.generation.temperature
        importance_R = torch.ones_like(scored.old_logp_R)
        if config.importance_cap is not None:
            importance_R = math_.truncated_importance(scored.old_logp_R, scored.sampler_logp_R, config.importance_cap)
        sums = dict.fromkeys(("tokens", "clipped", "policy", "value", "ratio"), 0.0)
        policy_weight = 0.0 if step < config.value_warmup else 1.0

        def loss_of(pack: Pack) -> Tensor:
            rows = scored.rows(pack)
            old_R, advantage, returns, weight = (
                x[rows].to(backbone.device) for x in (scored.old_logp_R, advantage_R, return_R, importance_R)
            )
            with backbone.role(POLICY, train=True):
                hidden = hidden_N_H(backbone, pack)
                logp_R = response_logps_R(backbone, hidden, pack, temperature)
                value_R = value_head(hidden.index_select(0, pack.source_R).detach())
                policy_R = policy_weight * math_.policy_loss_R(logp_R, old_R, advantage, config.clip_range, weight)
                value_loss_R = math_.value_loss_R(
                    value_R, scored.value_R[rows].to(backbone.device), returns, config.value_clip_range
                )
                total = policy_R.sum() + config.value_coef * value_loss_R.sum()
                if config.entropy_coef:
                    total = (
                        total
                        - policy_weight * config.entropy_coef * entropy_R(backbone, hidden, pack, temperature).sum()
                    )
            ratio_R = (logp_R.detach() - old_R).exp()
            for name, amount in (
                ("tokens", float(len(rows))),
                ("ratio", float(ratio_R.sum())),
                ("policy", float(policy_R.detach().sum())),
                ("value", float(value_loss_R.detach().sum())),
                ("clipped", float(((ratio_R - 1).abs() > config.clip_range).sum())),
            ):
                sums[name] += amount
            return total

        frozen = backbone.frozen_digest() if step == 0 else ""
        before = {n: p.detach().clone() for n, p in loop.parameters.items()} if step == 0 else {}
        last: dict[str, float] = {}
        for number, documents in enumerate(self._minibatches(scored.documents, work.runtime.seed, step)):
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
            "value_loss": sums["value"] / tokens,
            "clip_fraction": sums["clipped"] / tokens,
            "ratio": sums["ratio"] / tokens,
        }

    def _minibatches(self, documents: Sequence[Document], seed: int, step: int) -> Iterator[list[Document]]:
        """Every epoch shuffles the rollout's prompts and deals them into equal minibatches."""
        for epoch in range(self.config.epochs):
            order = list(documents)
            random.Random(f"{seed}:{step}:{epoch}").shuffle(order)
            parts = min(self.config.minibatches, len(order))
            yield from (order[k::parts] for k in range(parts))

    def _log(
        self,
        work: Work,
        step: int,
        batch: list[Prompt],
        scored: Scored,
        kl_R: Tensor,
        return_R: Tensor,
        kl_coef: float,
        trained: dict[str, float],
        clock: Clock,
        audit: Audit,
    ) -> dict[str, Any]:
        n = self.config.samples_per_prompt
        gap = float((scored.old_logp_R - scored.sampler_logp_R).abs().mean())
        if step == 0 or gap > self.config.max_logprob_gap:
            audit.check(
                "sampler against trainer",
                gap <= self.config.max_logprob_gap,
                f"step {step + 1}: mean |log-prob gap| {gap:.6f} nats a token ({work.runtime.engine.name})",
                "The sampler does not run the policy that is trained (stale weights, temperature, precision).",
            )
        gold = None
        if self.monitor is not None:
            texts = [work.runtime.backbone.chat.decode(r.token_ids) for r in scored.rollouts]
            gold = sum(self.monitor.grade(batch[i // n], text) for i, text in enumerate(texts)) / len(texts)
        sequence_kl = float(scored.sequence_sum_B(scored.old_logp_R - scored.reference_logp_R).mean())
        tokens = int(scored.length_B.sum())
        metrics: dict[str, Any] = {
            "reward_mean": float(scored.reward_B.mean()),
            "reward_std": float(scored.reward_B.std()),
            "score_mean": float(self._penalised(scored).mean()),
            "kl": sequence_kl,
            "kl_coef": kl_coef,
            "length_mean": tokens / len(scored.rollouts),
            "finished_share": sum(r.finished for r in scored.rollouts) / len(scored.rollouts),
            "entropy": -float(scored.old_logp_R.mean()),
            "logprob_gap": gap,
            "explained_variance": math_.explained_variance(scored.value_R, return_R),
            **trained,
            "seconds": clock.laps,
            "tokens_per_second": {phase: round(tokens / s, 1) for phase, s in clock.laps.items() if s > 0.01},
        }
        work.emit("step", step=step + 1, gold_mean=gold, **metrics)
        return metrics
