"""PPO, GRPO, RLOO and REINFORCE++: generate → score → estimate → optimise, on one backbone.

Policy, reference, reward members and, where asked for, the critic are adapters
(``training/critic.py``). The three steps after generation are in ``training/ppo.py``, the
estimators in ``objectives/estimators.py``. Left out on purpose: gradient from the value loss into
the policy.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from prefloop.artifacts.store import Artifact
from prefloop.base.console import progress, say
from prefloop.base.interrupt import Ended, at_once, deferred
from prefloop.config import DataConfig, PPOConfig
from prefloop.data.encode import Encoder
from prefloop.data.packing import Document
from prefloop.errors import ConfigError, EngineError
from prefloop.evaluation.judges.graders import FunctionGrader
from prefloop.models.reward_model import Reward
from prefloop.objectives import ppo as math_
from prefloop.objectives.estimators import Advantages
from prefloop.pipeline.stage import Stage
from prefloop.pipeline.stages.sampling import read_prompts
from prefloop.records import Prompt, Response
from prefloop.rollouts.engine import SAVED, Rollout
from prefloop.rollouts.sampler_check import SamplerAgreement, agreement
from prefloop.runs.work import Work
from prefloop.training import ppo as steps
from prefloop.training import samples
from prefloop.training.adapter_hooks import Learner
from prefloop.training.alarm import Reading
from prefloop.training.audit import Audit
from prefloop.training.critic import VALUE, Critic
from prefloop.training.loop import Loop
from prefloop.training.memory_check import dry_pass, largest_pack
from prefloop.training.policy import POLICY, policy_parameters, save_policy, start_policy
from prefloop.training.reward_guard import Watch, read
from prefloop.training.rewards import Rewards
from prefloop.training.scored import PhaseClock, Scored, draw
from prefloop.training.step_table import Bounds, StepTable


class PPO(Stage):
    """SFT adapter, reward model and prompts → an aligned adapter. Produces the slot called
    ``algo``: ppo, grpo, rloo or reinforce.
    """

    inputs = ("sft", "reward")
    uses = frozenset({"backbone", "generation"})
    needs_temperature = "divides log-probs by it"

    def __init__(
        self,
        config: PPOConfig | None = None,
        data: DataConfig | None = None,
        gold: str | None = None,
        algo: str = "ppo",
    ) -> None:
        self.config = config or PPOConfig()
        self.name = self.produces = algo
        self.estimator = "gae" if algo == "ppo" else algo
        self.kl_placement, self.kl_kind = steps.kl_settings(self.config, self.estimator)
        self._refuse_what_cannot_work()
        self.data = data or DataConfig()
        self.rewards = Rewards(self.config.rewards)
        self.monitor = FunctionGrader(gold) if gold else None
        """Watches gold against proxy for the log and the alarm; the policy never sees it."""

    def parts(self) -> dict[str, Any]:
        data, watch = self.data, self.monitor.fingerprint() if self.monitor else None
        return {
            "config": self.config,
            "prompts": data.prompts,
            "layout": data.layout,
            "bad_rows": data.bad_rows,
            "limit": data.limit,
            "monitor": watch,
            "rewards": self.rewards.parts(),
        }

    def _refuse_what_cannot_work(self) -> None:
        config = self.config
        grouped = self.name if self.estimator in ("grpo", "rloo") else "ppo.group_baseline"
        if (
            config.group_baseline or self.estimator in ("grpo", "rloo")
        ) and config.samples_per_prompt < 2:
            raise ConfigError(
                f"{grouped} needs ppo.samples_per_prompt of at least 2: there is no other response"
                " to compare with"
            )
        if not config.reward_model_weight and not any(config.rewards.values()):
            raise ConfigError(
                "ppo.reward_model_weight is 0 and ppo.rewards gives no source a weight: there is no"
                " reward to learn from"
            )
        if config.uncertainty_penalty and not config.reward_model_weight:
            raise ConfigError(
                "ppo.uncertainty_penalty is of the reward model's members, and"
                " ppo.reward_model_weight is 0"
            )
        if config.minibatches > config.prompts_per_step:
            raise ConfigError(
                f"ppo.minibatches is {config.minibatches}, and a rollout of ppo.prompts_per_step"
                f" {config.prompts_per_step} has no more prompts to deal out: lower the one or"
                " raise the other"
            )
        if self.estimator == "gae" and config.value_warmup >= config.steps:
            raise ConfigError(
                f"ppo.value_warmup is {config.value_warmup} of ppo.steps {config.steps}: the critic"
                " would learn in all of them and the policy in none; lower the one or raise the"
                " other"
            )
        if (self.kl_placement, self.kl_kind) == ("loss", "k1"):
            raise ConfigError(
                "ppo.kl: k1 as a term of the loss has a gradient of 0 on average: take k2 or k3, or"
                " ppo.kl.placement reward"
            )

    def build(self, work: Work, inputs: dict[str, Artifact]) -> dict[str, Any]:
        runtime, audit = work.runtime, Audit(self.name)
        backbone = runtime.backbone
        prompts = read_prompts(work, self.data)
        encoder = Encoder(backbone.chat, backbone.config.max_length)
        room = runtime.generation.max_new_tokens
        prompts_ids = {p.id: encoder.prompt(p.id, p.prompt, room) for p in prompts}
        audit.prompts(backbone.chat, list(prompts_ids.values()))
        try:
            probe = Document(
                prompts_ids[prompts[0].id],
                [
                    backbone.chat.answer(
                        prompts[0].prompt, Response("A short probe.", meta={"finished": True})
                    ).ids
                ],
                [0],
            )
            start_policy(work, inputs["sft"], audit, [probe], runtime.generation.temperature)
            reward = Reward.load(backbone, inputs["reward"].path)
            critic = (
                Critic(backbone, self.config.critic, inputs["reward"].path)
                if self.estimator == "gae"
                else None
            )
            if backbone.device.type == "cuda":
                shape = max(map(len, prompts_ids.values())), room, self.config.samples_per_prompt
                own = [VALUE] if critic is not None and critic.own else []
                whole, scored = (
                    largest_pack(*shape, b)
                    for b in (backbone.config.pack_tokens, backbone.scoring_tokens)
                )
                dry_pass(backbone, [POLICY, *own], [POLICY], whole, scored)
            metrics = self._train(work, audit, prompts, prompts_ids, reward, critic)
            save_policy(backbone, work.folder)
            if critic is not None:
                critic.save(work.folder / "value")
        finally:
            for role in list(backbone.roles):
                backbone.drop_role(role)
        return audit.finish(metrics)

    def _train(
        self,
        work: Work,
        audit: Audit,
        prompts: list[Prompt],
        prompts_ids: dict[str, list[int]],
        reward: Reward,
        critic: Critic | None,
    ) -> dict[str, Any]:
        runtime, config = work.runtime, self.config
        backbone = runtime.backbone
        parameters = policy_parameters(backbone)
        if critic is not None:
            parameters |= critic.parameters
        minibatches = min(config.minibatches, config.prompts_per_step, len(prompts))
        updates = config.epochs * minibatches
        learners = [Learner(backbone, POLICY)]
        if critic is not None and critic.own:
            learners.append(Learner(backbone, VALUE, "value_adapter/"))
        rates = {"value": config.value_learning_rate}
        total = config.steps * updates
        loop = Loop(
            parameters,
            config.optim,
            total,
            work.checkpoints,
            rates,
            learners=learners,
            updates=updates,
        )
        kl = math_.AdaptiveKL(config.kl.coef, config.kl.target, config.kl.horizon)
        restored = loop.restore()
        first = 0
        if restored is not None:
            first, kl.coef = restored[0]["round"], restored[0]["kl_coef"]
        metrics: dict[str, Any] = restored[0]["metrics"] if restored is not None else {}
        if restored is not None:
            audit.lines = list(dict.fromkeys([*restored[0]["audit"], *audit.lines]))
        watch = Watch(work, config, loop, restored[0]["watch"] if restored is not None else None)
        watch.announce(
            self.monitor is not None, len(reward.heads) if config.reward_model_weight else 1
        )
        table = StepTable(
            self.name,
            config.steps,
            Bounds(steps.gap_bound(config, backbone, runtime.engine_name), config.kl.stop),
        )
        written = work.folder / samples.FILE
        if config.samples_every:
            samples.keep_until(written, first)
            say(f"  {self.name}: sample responses go to {written}", "dim")
        bar = progress(self.name, config.steps, "step", lines=False, done=first)

        def save(stopped: bool = False) -> None:
            state = {
                "round": loop.stage_step,
                "kl_coef": kl.coef,
                "stopped": stopped,
                "metrics": metrics,
            }
            state["audit"] = audit.lines
            loop.save(state | {"watch": watch.state}, needed=watch.needed())
            watch.forget_older()

        with runtime.watched(table), deferred(), bar as advance:
            for step in range(first, config.steps):
                if restored is not None and restored[0].get("stopped"):
                    break
                batch = draw(prompts, config.prompts_per_step, step, runtime.seed)
                clock = PhaseClock()
                try:
                    with at_once():
                        rollouts = self._generate(work, batch, prompts_ids, step)
                        clock.lap("generate")
                        scored = steps.score(
                            work, config, batch, prompts_ids, rollouts, reward, critic, self.rewards
                        )
                        ids = [prompts_ids[p.id] for p in batch]
                        gap = self._check_gap(work, step, scored, audit, ids, step == first)
                        reading = read(config, scored, step + 1, self._gold(work, batch, scored))
                except (KeyboardInterrupt, Ended):
                    # A rollout may take minutes, and until something is learnt from it all is as
                    # the step before left it.
                    if loop.saved < loop.step:
                        save()
                    raise
                watch.look(reading)
                clock.lap("score")
                found = steps.estimate(self.config, self.estimator, scored, kl.coef)
                clock.lap("estimate")
                loss_kl = (kl.coef, self.kl_kind) if self.kl_placement == "loss" else None
                trained = steps.optimise(
                    work,
                    self.config,
                    loop,
                    scored,
                    found,
                    critic,
                    step,
                    audit,
                    loss_kl,
                    step == first,
                )
                clock.lap("optimise")
                metrics = self._log(
                    work, step, scored, found, reading, kl.coef, trained, clock, gap
                )
                if config.samples_every and step % config.samples_every == 0:
                    samples.append(written, samples.rows(backbone.chat, batch, scored, step + 1))
                sequence_kl = metrics["kl"]
                if config.kl.adaptive:
                    kl.update(sequence_kl, len(rollouts))
                ended = watch.act(kl, metrics)
                stopped = ended or (config.kl.stop is not None and sequence_kl > config.kl.stop)
                if stopped or loop.due():
                    save(stopped)
                advance()
                if stopped and not ended:
                    say(
                        f"  {self.name}: sequence KL {sequence_kl:.1f} passed kl.stop ="
                        f" {config.kl.stop:g} nats after step {step + 1}; stopping",
                        "yellow",
                    )
                if stopped:
                    break
        audit.stepped(loop.step)
        metrics = watch.finish(metrics, critic)
        return {k: v for k, v in metrics.items() if isinstance(v, float | int | dict)} | {
            "updates": loop.step
        }

    def _generate(
        self, work: Work, batch: list[Prompt], prompts_ids: dict[str, list[int]], step: int
    ) -> list[Rollout]:
        engine = work.runtime.engine
        engine.load_policy(POLICY)
        seed = work.runtime.seed * 100_003 + step + 1
        rollouts = engine.generate(
            [prompts_ids[p.id] for p in batch], self.config.samples_per_prompt, seed
        )
        engine.pause()
        return rollouts

    def _gold(self, work: Work, batch: list[Prompt], scored: Scored) -> list[float] | None:
        if self.monitor is None:
            return None
        texts = [work.runtime.backbone.chat.decode(r.token_ids) for r in scored.rollouts]
        return [
            self.monitor.grade(batch[i // self.config.samples_per_prompt], text)
            for i, text in enumerate(texts)
        ]

    def _check_gap(
        self,
        work: Work,
        step: int,
        scored: Scored,
        audit: Audit,
        prompts_ids: list[list[int]],
        whole: bool,
    ) -> float:
        """Mean |log-prob gap| of a rollout; nothing is learnt from one that another policy sampled,
        and checkpoints from before it stay.

        With ``whole`` the sampler must also show what the policy changed of the bare model.
        """
        backbone, engine = work.runtime.backbone, work.runtime.engine.name
        gap = float((scored.old_logp_R - scored.sampler_logp_R).abs().mean())
        seen = SamplerAgreement(
            gap, steps.gap_bound(self.config, backbone, engine), len(scored.rollouts)
        )
        if whole:
            temperature = work.runtime.generation.temperature
            some = agreement(backbone, engine, prompts_ids, scored.rollouts, temperature, POLICY)
            seen = dataclasses.replace(seen, share=some.share, error=some.error)
        found = f"step {step + 1}: {seen} ({engine})"
        fix = (
            "The sampler does not run the policy that is trained (stale weights, temperature,"
            " precision)."
        )
        if step == 0:
            audit.check("sampler against trainer", seen.holds, found, fix)
        elif not seen.holds:
            raise EngineError(
                f"sampler against trainer, {found}. {fix} Nothing was learnt from this rollout."
                f" {SAVED}"
            )
        return gap

    def _log(
        self,
        work: Work,
        step: int,
        scored: Scored,
        found: Advantages,
        reading: Reading,
        kl_coef: float,
        trained: dict[str, float],
        clock: PhaseClock,
        gap: float,
    ) -> dict[str, Any]:
        sequence_kl = float(
            scored.sequence_sum_B(scored.old_logp_R - scored.reference_logp_R).mean()
        )
        tokens = int(scored.length_B.sum())
        metrics: dict[str, Any] = {
            "reward_mean": float(scored.reward_B.mean()),
            "reward_std": float(scored.reward_B.std()),
            "rewards": {name: float(score_B.mean()) for name, score_B in scored.source_B.items()},
            "score_mean": float(steps.penalised_B(self.config, scored).mean()),
            "kl": sequence_kl,
            "kl_coef": kl_coef,
            "length_mean": tokens / len(scored.rollouts),
            "finished_share": sum(r.finished for r in scored.rollouts) / len(scored.rollouts),
            "repetition": reading.repetition.value,
            "entropy": -float(scored.old_logp_R.mean()),
            "logprob_gap": gap,
            **(
                {"explained_variance": math_.explained_variance(scored.value_R, found.return_R)}
                if found.return_R is not None
                else {}
            ),
            **({"reward_spread": float(scored.spread_B.mean())} if scored.spread_B.any() else {}),
            **trained,
            "seconds": clock.laps,
            "tokens_per_second": {
                phase: round(tokens / s, 1) for phase, s in clock.laps.items() if s > 0.01
            },
        }
        work.emit("step", step=step + 1, gold_mean=reading.gold and reading.gold.value, **metrics)
        return metrics
