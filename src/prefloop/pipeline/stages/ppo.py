"""PPO, GRPO, RLOO and REINFORCE++: generate, score, estimate, update, on one backbone.

Policy, reference, reward members and, with ``ppo.critic adapter``, the critic are adapters of one
base model. The loop is in ``PPO._train``; ``training/scoring.py`` scores a rollout,
``training/ppo.py`` estimates and updates, ``objectives/`` holds the formulas.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from prefloop.artifacts.store import Artifact
from prefloop.base.console import progress, say
from prefloop.base.interrupt import Ended, at_once, deferred
from prefloop.config import DataConfig, PPOConfig
from prefloop.data.encode import Encoder
from prefloop.data.packing import Document
from prefloop.errors import ConfigError, StoreError
from prefloop.evaluation.judges.graders import FunctionGrader
from prefloop.models.backbone import Backbone
from prefloop.models.reward_model import Reward
from prefloop.pipeline.stage import Stage
from prefloop.pipeline.stages.sampling import read_prompts
from prefloop.records import Prompt, Response
from prefloop.rollouts.engine import Rollout
from prefloop.runs.work import Work
from prefloop.training.adapter_hooks import Learner
from prefloop.training.audit import Audit
from prefloop.training.loop import Loop
from prefloop.training.memory_check import dry_pass, largest_pack
from prefloop.training.policy import POLICY, policy_parameters, save_policy, start_policy
from prefloop.training.ppo import PPOTrainer, draw, kl_penalty
from prefloop.training.reward_guard import GuardState, RewardGuard, reading_of
from prefloop.training.rewards import Rewards
from prefloop.training.samples import SampleLog
from prefloop.training.scoring import VALUE, Critic, SamplerAudit, Scored, Scorer
from prefloop.training.step_metrics import PhaseClock, StepMetrics
from prefloop.training.step_table import Bounds, StepTable


@dataclasses.dataclass(frozen=True)
class PPOState:
    """What a checkpoint holds besides the parameters and the optimizer."""

    step: int
    """Steps done."""
    kl_coef: float
    """Of the next step."""
    stopped: bool
    """Training ended before ``ppo.steps``."""
    metrics: StepMetrics | None
    """Of the last step done."""
    audit: list[str]
    guard: GuardState

    @classmethod
    def restore(cls, loop: Loop, kl_coef: float) -> PPOState:
        """The state of the newest checkpoint, whose parameters are then in ``loop``; that of the
        start with ``kl_coef`` where there is no checkpoint.

        Raises ``StoreError`` for a checkpoint that another version of prefloop wrote.
        """
        restored = loop.restore()
        if restored is None:
            return cls(0, kl_coef, False, None, [], GuardState())
        try:
            return TypeAdapter(cls).validate_python(restored[0])
        except ValidationError as error:
            raise StoreError(
                f"the checkpoints in {loop.folder} are of another version of prefloop: delete that"
                " folder, and the stage starts anew"
            ) from error

    def save(self, loop: Loop, guard: RewardGuard) -> None:
        """Write a checkpoint, then delete the kept policies that no checkpoint needs any more."""
        loop.save(dataclasses.asdict(self), needed=guard.needed())
        guard.forget_older()


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
        self.kl = kl_penalty(self.config.kl, self.estimator)
        self._refuse_what_cannot_work()
        self.data = data or DataConfig()
        self.rewards = Rewards(self.config.rewards)
        self.monitor = FunctionGrader(gold) if gold else None
        """Grades rollouts for the log and the alarm; the policy never learns from it."""

    def parts(self) -> dict[str, Any]:
        data = self.data
        return {
            "config": self.config,
            "prompts": data.prompts,
            "layout": data.layout,
            "bad_rows": data.bad_rows,
            "limit": data.limit,
            "monitor": self.monitor.fingerprint() if self.monitor else None,
            "rewards": self.rewards.parts(),
        }

    def _refuse_what_cannot_work(self) -> None:
        config = self.config
        by_group = self.estimator in ("grpo", "rloo")
        if (config.group_baseline or by_group) and config.samples_per_prompt < 2:
            raise ConfigError(
                f"{self.name if by_group else 'ppo.group_baseline'} needs ppo.samples_per_prompt of"
                " at least 2: there is no other response to compare with"
            )
        if not config.reward_model_weight and not any(config.rewards.values()):
            raise ConfigError(
                "ppo.reward_model_weight is 0 and ppo.rewards gives no source a weight: there is no"
                " reward to learn from"
            )
        if config.uncertainty_penalty and not config.reward_model_weight:
            raise ConfigError(
                "ppo.uncertainty_penalty needs the reward model's members, and"
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
        if (self.kl.placement, self.kl.estimator) == ("loss", "k1"):
            raise ConfigError(
                "ppo.kl: k1 as a term of the loss has a gradient of 0 on average: take k2 or k3, or"
                " ppo.kl.placement reward"
            )

    def build(self, work: Work, inputs: dict[str, Artifact]) -> dict[str, Any]:
        runtime, audit = work.runtime, Audit(self.name)
        backbone, temperature = runtime.backbone, runtime.generation.temperature
        prompts = read_prompts(work, self.data)
        encoder = Encoder(backbone.chat, backbone.config.max_length)
        room = runtime.generation.max_new_tokens
        prompts_ids = {p.id: encoder.prompt(p.id, p.prompt, room) for p in prompts}
        audit.prompts(backbone.chat, list(prompts_ids.values()))
        answer = Response("A short probe.", meta={"finished": True})
        answer_ids = backbone.chat.answer(prompts[0].prompt, answer).ids
        probe = Document(prompts_ids[prompts[0].id], [answer_ids], [0])
        try:
            start_policy(work, inputs["sft"], audit, [probe], temperature)
            reward = Reward.load(backbone, inputs["reward"].path)
            critic = None
            if self.estimator == "gae":
                critic = Critic(backbone, self.config.critic, inputs["reward"].path)
            if backbone.device.type == "cuda":
                self._check_memory(backbone, critic, max(map(len, prompts_ids.values())), room)
            scorer = Scorer(backbone, self.config, temperature, reward, critic, self.rewards)
            metrics = self._train(work, audit, prompts, prompts_ids, scorer)
            save_policy(backbone, work.folder)
            if critic is not None:
                critic.save(work.folder / "value")
        finally:
            for role in list(backbone.roles):
                backbone.drop_role(role)
        return audit.finish(metrics)

    def _check_memory(
        self, backbone: Backbone, critic: Critic | None, prompt: int, response: int
    ) -> None:
        """Try the largest packs: prompts and responses of at most so many tokens."""
        learning = [POLICY, *([VALUE] if critic is not None and critic.own else [])]
        training, scoring = (
            largest_pack(prompt, response, self.config.samples_per_prompt, budget)
            for budget in (backbone.config.pack_tokens, backbone.scoring_tokens)
        )
        dry_pass(backbone, learning, [POLICY], training, scoring)

    def _train(
        self,
        work: Work,
        audit: Audit,
        prompts: list[Prompt],
        prompts_ids: dict[str, list[int]],
        scorer: Scorer,
    ) -> dict[str, Any]:
        """The loop: each step draws prompts, samples, scores, estimates and updates."""
        runtime, config, critic = work.runtime, self.config, scorer.critic
        loop = self._loop(work, critic, len(prompts))
        state = PPOState.restore(loop, self.kl.coef)
        kl = dataclasses.replace(self.kl, coef=state.kl_coef)
        audit.lines = list(dict.fromkeys([*state.audit, *audit.lines]))
        trainer = PPOTrainer(scorer, self.estimator, loop, audit, runtime.seed)
        members = len(scorer.reward.heads) if config.reward_model_weight else 1
        gold = self.monitor is not None
        guard = RewardGuard(work, config, loop, state.guard, gold, members)
        sampler = SamplerAudit(scorer, runtime.engine_name, audit)
        table = StepTable(self.name, config.steps, Bounds(sampler.bound, config.kl.stop))
        log = SampleLog(self.name, work.folder, config.samples_every, state.step)
        bar = progress(self.name, config.steps, "step", lines=False, done=state.step)
        with deferred(), bar as advance:
            for step in range(state.step, state.step if state.stopped else config.steps):
                clock = PhaseClock()
                batch = draw(prompts, config.prompts_per_step, step, runtime.seed)
                batch_ids = [prompts_ids[p.id] for p in batch]
                with _interruptible(state, loop, guard):
                    rollouts = self._generate(work, batch_ids, step)
                    clock.lap("generate")
                    scored = scorer.score(batch, batch_ids, rollouts)
                    gap = sampler.require_policy(scored, step)
                    reading = reading_of(config, scored, step + 1, self._gold(work, batch, scored))
                guard.observe(reading)
                clock.lap("score")
                advantages = trainer.estimate(scored, kl)
                clock.lap("estimate")
                update = trainer.update(scored, advantages, kl, step)
                clock.lap("optimise")
                metrics = StepMetrics.of(
                    config, scored, advantages, kl.coef, gap, reading, update, clock.seconds
                )
                fields = metrics.to_dict()
                work.emit("step", step=step + 1, gold_mean=metrics.gold_mean, **fields)
                table.show(step + 1, metrics)
                log.write(step, scorer.backbone.chat, batch, scored)
                if config.kl.adaptive:
                    kl = kl.adapted(metrics.kl, len(rollouts), config.kl.target, config.kl.horizon)
                kl, ended = guard.act(kl, metrics)
                passed = config.kl.stop is not None and metrics.kl > config.kl.stop
                stopped = ended or passed
                state = PPOState(step + 1, kl.coef, stopped, metrics, [*audit.lines], guard.state)
                if stopped or loop.due():
                    state.save(loop, guard)
                advance()
                if passed and not ended:
                    say(
                        f"  {self.name}: the KL of a response is {metrics.kl:.1f} nats after step"
                        f" {step + 1}, above kl.stop = {config.kl.stop:g}; stopping",
                        "yellow",
                    )
                if stopped:
                    break
        audit.stepped(loop.step)
        return guard.finish(state.metrics, critic) | {"updates": loop.step}

    def _loop(self, work: Work, critic: Critic | None, prompts: int) -> Loop:
        config, backbone = self.config, work.runtime.backbone
        parameters = policy_parameters(backbone)
        learners = [Learner(backbone, POLICY)]
        if critic is not None:
            parameters |= critic.parameters
        if critic is not None and critic.own:
            learners.append(Learner(backbone, VALUE, "value_adapter/"))
        updates = config.epochs * min(config.minibatches, config.prompts_per_step, prompts)
        return Loop(
            parameters,
            config.optim,
            config.steps * updates,
            work.checkpoints,
            {"value": config.value_learning_rate},
            learners=learners,
            updates=updates,
        )

    def _generate(
        self, work: Work, prompts_ids: Sequence[Sequence[int]], step: int
    ) -> list[Rollout]:
        engine, seed = work.runtime.engine, work.runtime.seed * 100_003 + step + 1
        engine.load_policy(POLICY)
        rollouts = engine.generate(prompts_ids, self.config.samples_per_prompt, seed)
        engine.pause()
        return rollouts

    def _gold(self, work: Work, batch: list[Prompt], scored: Scored) -> list[float] | None:
        """The monitor's grade of each response."""
        if self.monitor is None:
            return None
        texts = [work.runtime.backbone.chat.decode(r.token_ids) for r in scored.rollouts]
        return [
            self.monitor.grade(batch[i // self.config.samples_per_prompt], text)
            for i, text in enumerate(texts)
        ]


@contextlib.contextmanager
def _interruptible(state: PPOState, loop: Loop, guard: RewardGuard) -> Iterator[None]:
    """End at once on a signal, and save the state of the last step if no checkpoint holds it: a
    rollout may take minutes, and nothing was learnt from it yet.
    """
    try:
        with at_once():
            yield
    except (KeyboardInterrupt, Ended):
        if loop.saved < loop.step:
            state.save(loop, guard)
        raise
