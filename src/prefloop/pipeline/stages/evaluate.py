"""The final comparison: responses of every policy to unseen prompts, scored by the same judges,
with intervals clustered by prompt.

``Evaluate`` stands for several stages: ``respond-<policy>`` samples and measures one policy (and
the SFT model a second time, for the A/A control), ``judge`` compares them. Adding a policy to a run
samples that policy alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from prefloop.artifacts.references import BASE
from prefloop.artifacts.results import BASELINE, RESPONSES, Responded
from prefloop.artifacts.store import Artifact
from prefloop.base.console import progress, say
from prefloop.base.jsonl import write_rows
from prefloop.config import DataConfig, EvaluateConfig
from prefloop.data.encode import Encoder
from prefloop.data.packing import Document, packs
from prefloop.errors import ConfigError
from prefloop.evaluation.judges.graders import FunctionGrader
from prefloop.evaluation.judges.open import open_judge
from prefloop.evaluation.win_rates import NO_JUDGE
from prefloop.models.backbone import Backbone
from prefloop.models.forward import sum_by_branch_B
from prefloop.models.reward_model import Reward
from prefloop.pipeline.stage import Stage
from prefloop.pipeline.stages.compare import AGAIN, Compare
from prefloop.pipeline.stages.sampling import read_prompts, sample
from prefloop.records import SampledPrompt, ScoredResponse, to_dict
from prefloop.runs.work import Work
from prefloop.training.policy import REFERENCE, logps_R


class Evaluate(Stage):
    """Compare the bare model and every policy of the run with the SFT model. Expands into
    ``respond-*`` and ``judge``.
    """

    name = "evaluate"

    def __init__(
        self,
        config: EvaluateConfig | None = None,
        data: DataConfig | None = None,
        gold: str | None = None,
        without_reward: str = "",
    ) -> None:
        self.config = config or EvaluateConfig()
        self.data = data or DataConfig()
        self.gold = gold
        self.without_reward = without_reward
        """The algorithm of a run that trains no reward model."""

    def parts(self) -> dict[str, Any]:
        judge = FunctionGrader(self.gold).fingerprint() if self.gold else None
        data = self.data
        return {
            "config": self.config,
            "prompts": data.eval_prompts,
            "layout": data.layout,
            "gold": judge,
        }

    def preflight(self) -> None:
        super().preflight()
        if self.data.eval_prompts is None:
            raise ConfigError(
                "data.eval_prompts is not set: name a file of prompts on which the policies are"
                " compared"
            )
        if self.config.judge:
            open_judge(self.config.judge, self.config.asking).close()
        if self.without_reward:
            judges = [
                name
                for name, there in (
                    ("the gold scorer", self.gold),
                    (self.config.judge, self.config.judge),
                )
                if there
            ]
            judged = (
                f"policies are judged by {' and '.join(map(str, judges))}"
                if judges
                else f"{NO_JUDGE}"
            )
            say(
                f"{self.without_reward} learns without a reward model, and none is trained:"
                f" {judged} (evaluate.reward_model)"
            )

    def expand(self, run: Any) -> list[Stage]:
        if self.config.temperature is None and run.runtime.generation.temperature == 0:
            self.config = dataclasses.replace(self.config, temperature=0.0)
        if self.config.temperature == 0 and self.config.samples > 1:
            say(
                "greedy answers to a prompt are all the same: 1 is taken instead of"
                f" evaluate.samples {self.config.samples}"
            )
            self.config = dataclasses.replace(self.config, samples=1)
        policies, reward = (
            [*([BASE] if self.config.base else []), BASELINE, *run.policies()],
            run.has("reward"),
        )
        responds = [Respond(policy, self.config, self.data, reward=reward) for policy in policies]
        # Greedy, SFT answers the same twice: there is nothing to control.
        if control := (reward or self.gold is not None) and self.config.temperature != 0:
            after = policies.index(BASELINE) + 1
            responds.insert(
                after, Respond(BASELINE, self.config, self.data, again=True, reward=reward)
            )
        if not (reward or self.gold or self.config.judge):
            say(f"{NO_JUDGE}: name one with evaluate.judge or gold", "yellow")
        return [*responds, Compare(policies, self.config, self.gold, self.data, control, reward)]


class Respond(Stage):
    """Answers of one policy, or of the bare model, to the evaluation prompts, with reward scores
    and KL. Produces ``respond-<policy>``.
    """

    uses = frozenset({"backbone", "generation"})

    def __init__(
        self,
        policy: str,
        config: EvaluateConfig,
        data: DataConfig,
        again: bool = False,
        reward: bool = True,
    ) -> None:
        self.policy, self.config, self.data, self.again = policy, config, data, again
        self.name = self.produces = f"respond-{AGAIN if again else policy}"
        adapters = (
            *(() if policy == BASE else (policy,)),
            BASELINE,
            *(("reward",) if reward else ()),
        )
        self.inputs = tuple(dict.fromkeys(adapters))

    def parts(self) -> dict[str, Any]:
        data = self.data
        return {
            "samples": self.config.samples,
            "temperature": self.config.temperature,
            "prompts": data.eval_prompts,
            "layout": data.layout,
            "bad_rows": data.bad_rows,
            "limit": data.eval_limit,
        }

    def build(self, work: Work, inputs: dict[str, Artifact]) -> Responded:
        backbone = work.runtime.backbone
        prompts = read_prompts(work, self.data, evaluation=True)
        # A stream of its own for every policy: shared noise would couple the two sides of a
        # comparison.
        seed = int.from_bytes(
            hashlib.sha256(f"{work.runtime.seed}:{self.name}".encode()).digest()[:6]
        )
        responses = sample(
            work,
            prompts,
            inputs.get(self.policy),
            self.config.samples,
            seed,
            self.config.temperature,
        )
        encoder = Encoder(backbone.chat, backbone.config.max_length)
        n = self.config.samples
        documents = [
            Document(
                encoder.prompt(p.id, p.prompt),
                [r.token_ids for r in rs],
                list(range(i * n, (i + 1) * n)),
            )
            for i, (p, rs) in enumerate(zip(prompts, responses, strict=True))
        ]
        rewards = (
            self._rewards(backbone, inputs["reward"], documents) if "reward" in inputs else None
        )
        logps = [r.logp for rs in responses for r in rs]
        kl: list[float] | None = [0.0] * len(logps)
        if self.config.temperature == 0:
            kl = None  # the log-ratio of the one likeliest answer estimates no KL
        elif self.policy != BASELINE:
            kl = self._kl(work, inputs, documents, logps)
        scored = [
            [
                ScoredResponse(
                    r.text,
                    finished=r.finished,
                    tokens=len(r.token_ids),
                    reward=rewards[i * n + k] if rewards else None,
                    kl=kl[i * n + k] if kl else None,
                )
                for k, r in enumerate(rs)
            ]
            for i, rs in enumerate(responses)
        ]
        write_rows(
            work.folder / RESPONSES,
            (
                to_dict(SampledPrompt(p.id, p.prompt, rs, p.meta))
                for p, rs in zip(prompts, scored, strict=True)
            ),
        )
        return Responded(
            len(prompts),
            len(logps),
            float(np.mean(rewards)) if rewards else None,
            float(np.mean(kl)) if kl else None,
        )

    def _rewards(
        self, backbone: Backbone, artifact: Artifact, documents: Sequence[Document]
    ) -> list[float]:
        """The reward model's mean score of each response."""
        reward = Reward.load(backbone, artifact.path)
        scores = reward.score(
            documents, f"{self.name}: reward", sum(len(d.keys) for d in documents)
        )
        reward.drop()
        return [sum(scores[k]) / len(scores[k]) for k in range(len(scores))]

    def _kl(
        self,
        work: Work,
        inputs: dict[str, Artifact],
        documents: Sequence[Document],
        logps: Sequence[float],
    ) -> list[float]:
        """log π/π_SFT of each sampled response, nats: the k1 estimate of sequence KL. log π is the
        sampler's own.
        """
        backbone, own = work.runtime.backbone, self.config.temperature
        temperature = work.runtime.generation.temperature if own is None else own
        backbone.add_role(REFERENCE, start=inputs[BASELINE].path, frozen=True)
        out: dict[int, float] = {}
        todo = packs(documents, backbone.scoring_tokens)
        with progress(f"{self.name}: KL", len(todo), "pack") as advance:
            for pack in todo:
                on_device = pack.to(backbone.device)
                reference_B = sum_by_branch_B(
                    logps_R(backbone, on_device, REFERENCE, temperature), on_device
                )
                out.update(
                    (k, logps[k] - r) for k, r in zip(pack.keys, reference_B.tolist(), strict=True)
                )
                advance()
        backbone.drop_role(REFERENCE)
        return [out[k] for k in range(len(out))]
