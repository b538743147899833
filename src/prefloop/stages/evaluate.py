"""The final comparison: responses of every policy to unseen prompts, scored by the same judges, with intervals clustered by prompt.

``Evaluate`` stands for several stages: ``respond-<policy>`` samples and measures one policy (and the SFT model a second time, for the A/A
control), ``judge`` compares them. Adding a policy to a run samples that policy alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prefloop.config import DataConfig, EvaluateConfig
from prefloop.console import progress
from prefloop.data.encode import Encoder
from prefloop.data.packing import Document, packs
from prefloop.errors import JudgeError
from prefloop.judging.judges import FunctionGrader, VerdictCache, prepare
from prefloop.judging.specs import JudgeOptions, open_judge
from prefloop.judging.statistics import WinRate, clustered_mean, verdict_win_rate, win_rate
from prefloop.models.forward import sum_by_branch_B
from prefloop.models.reward import Reward
from prefloop.records import Message, Prompt, from_dict, to_dict
from prefloop.rollouts.sampling import read_prompts, sample
from prefloop.stage import Stage, Work
from prefloop.store import Artifact, read_rows, write_rows
from prefloop.training.policy import REFERENCE, logps_R

BASELINE = "sft"
AGAIN = "sft-again"
SHORT_WORDS = 5


class Evaluate(Stage):
    """Compare every policy of the run with the SFT model. Expands into ``respond-*`` and ``judge``."""

    name = "evaluate"

    def __init__(
        self, config: EvaluateConfig | None = None, data: DataConfig | None = None, gold: str | None = None
    ) -> None:
        self.config = config or EvaluateConfig()
        self.data = data or DataConfig()
        self.gold = gold

    def parts(self) -> dict[str, Any]:
        judge = FunctionGrader(self.gold).fingerprint() if self.gold else None
        return {"config": self.config, "prompts": self.data.eval_prompts, "gold": judge}

    def expand(self, run: Any) -> list[Stage]:
        policies = [BASELINE, *run.policies()]
        responds = [Respond(policy, self.config, self.data) for policy in policies]
        responds.insert(1, Respond(BASELINE, self.config, self.data, again=True))
        return [*responds, Compare(policies, self.config, self.gold)]


class Respond(Stage):
    """One policy's answers to the evaluation prompts with reward scores and KL. Produces ``respond-<policy>``."""

    uses = frozenset({"backbone", "generation"})

    def __init__(self, policy: str, config: EvaluateConfig, data: DataConfig, again: bool = False) -> None:
        self.policy, self.config, self.data, self.again = policy, config, data, again
        self.name = self.produces = f"respond-{AGAIN if again else policy}"
        self.inputs = tuple(dict.fromkeys((policy, BASELINE, "reward")))

    def parts(self) -> dict[str, Any]:
        data = self.data
        return {
            "samples": self.config.samples,
            "prompts": data.eval_prompts,
            "layout": data.layout,
            "bad_rows": data.bad_rows,
            "limit": data.eval_limit,
        }

    def build(self, work: Work, inputs: dict[str, Artifact]) -> dict[str, Any]:
        backbone = work.runtime.backbone
        prompts = read_prompts(work, self.data, evaluation=True)
        # A stream of its own for every policy: shared noise would couple the two sides of a comparison.
        seed = int.from_bytes(hashlib.sha256(f"{work.runtime.seed}:{self.name}".encode()).digest()[:6])
        responses = sample(work, prompts, inputs[self.policy], self.config.samples, seed)
        encoder = Encoder(backbone.chat, backbone.config.max_length)
        n = self.config.samples
        documents = [
            Document(encoder.prompt(p.id, p.prompt), [r.meta["token_ids"] for r in rs], list(range(i * n, (i + 1) * n)))
            for i, (p, rs) in enumerate(zip(prompts, responses, strict=True))
        ]
        reward = Reward.load(backbone, inputs["reward"].path)
        scores = reward.score(documents, f"{self.name}: reward", n * len(prompts))
        reward.drop()
        rewards = [sum(scores[k]) / len(scores[k]) for k in range(len(scores))]
        logps = [float(r.meta["logp"]) for rs in responses for r in rs]
        kl = self._kl(work, inputs, documents, logps) if self.policy != BASELINE else dict.fromkeys(scores, 0.0)
        rows = [
            {
                **to_dict(p),
                "responses": [
                    {
                        "text": r.text,
                        "finished": r.meta["finished"],
                        "tokens": r.meta["tokens"],
                        "reward": rewards[i * n + k],
                        "kl": kl[i * n + k],
                    }
                    for k, r in enumerate(rs)
                ],
            }
            for i, (p, rs) in enumerate(zip(prompts, responses, strict=True))
        ]
        write_rows(work.folder / "responses.jsonl", rows)
        return {
            "prompts": len(prompts),
            "responses": len(rewards),
            "reward_mean": float(np.mean(rewards)),
            "kl": float(np.mean(list(kl.values()))),
        }

    def _kl(
        self, work: Work, inputs: dict[str, Artifact], documents: Sequence[Document], logps: Sequence[float]
    ) -> dict[int, float]:
        """log π/π_SFT of each sampled response, nats: the k1 estimate of sequence KL. log π is the sampler's own."""
        backbone, temperature = work.runtime.backbone, work.runtime.generation.temperature
        backbone.add_role(REFERENCE, start=inputs[BASELINE].path, frozen=True)
        out: dict[int, float] = {}
        todo = packs(documents, backbone.scoring_tokens)
        with progress(f"{self.name}: KL", len(todo), "pack") as advance:
            for pack in todo:
                there = pack.to(backbone.device)
                reference_B = sum_by_branch_B(logps_R(backbone, there, REFERENCE, temperature), there)
                out.update((k, logps[k] - r) for k, r in zip(pack.keys, reference_B.tolist(), strict=True))
                advance()
        backbone.drop_role(REFERENCE)
        return out


class Compare(Stage):
    """All policies' answers → gold means, win rates against SFT, A/A control, with 95 % intervals. Produces ``judge``."""

    name = "judge"
    produces = "judge"

    def __init__(self, policies: Sequence[str], config: EvaluateConfig, gold: str | None) -> None:
        self.policies, self.config = list(policies), config
        self.grader = FunctionGrader(gold) if gold else None
        self.inputs = tuple(f"respond-{p}" for p in (*self.policies, AGAIN))

    def parts(self) -> dict[str, Any]:
        return {"config": self.config, "gold": self.grader.fingerprint() if self.grader else None}

    def build(self, work: Work, inputs: dict[str, Artifact]) -> dict[str, Any]:
        answers = {p: self._read(inputs[f"respond-{p}"]) for p in (*self.policies, AGAIN)}
        base = answers[BASELINE]
        results = {}
        for policy in self.policies:
            mine = answers[policy]
            results[policy] = self._measure(mine)
            for judge, prefix in (("gold", ""), ("reward", "reward_")):
                if judge in mine:
                    results[policy] |= self._against(mine[judge], base[judge], prefix, policy == BASELINE)
            if self.config.openai.base_url and policy != BASELINE:
                results[policy] |= self._asked(work, mine, base)
        control = {
            judge: self._control(answers[AGAIN][judge], base[judge]) for judge in ("gold", "reward") if judge in base
        }
        metrics: dict[str, Any] = {"results": results, "control": control, "samples": self._samples(answers)}
        if "gold" in base:
            metrics["pearson_gold"] = _pearson(base["reward"], base["gold"])
        return metrics

    def _read(self, artifact: Artifact) -> dict[str, Any]:
        """By prompt id: prompts and each measured quantity of the responses."""
        out: dict[str, Any] = {name: {} for name in ("prompt", "text", "reward", "kl", "words", "finished")}
        if self.grader:
            out["gold"] = {}
        for row in read_rows(artifact / "responses.jsonl"):
            responses = row.pop("responses")
            prompt = from_dict(Prompt, row)
            out["prompt"][prompt.id] = prompt
            out["text"][prompt.id] = [r["text"] for r in responses]
            out["words"][prompt.id] = [len(r["text"].split()) for r in responses]
            for name in ("reward", "kl", "finished"):
                out[name][prompt.id] = [float(r[name]) for r in responses]
            if self.grader:
                out["gold"][prompt.id] = [self.grader.grade(prompt, r["text"]) for r in responses]
        return out

    def _measure(self, mine: Mapping[str, Any]) -> dict[str, Any]:
        def interval(name: str) -> tuple[float, float, float]:
            found = clustered_mean(mine[name], resamples=self.config.resamples)
            return found.mean, found.low, found.high

        words = [w for ws in mine["words"].values() for w in ws]
        kl, kl_low, kl_high = interval("kl")
        out: dict[str, Any] = {
            "kl": kl,
            "kl_low": kl_low,
            "kl_high": kl_high,
            "gold_mean": None,
            "gold_low": None,
            "gold_high": None,
        }
        if "gold" in mine:
            out["gold_mean"], out["gold_low"], out["gold_high"] = interval("gold")
        return out | {
            "reward_mean": interval("reward")[0],
            "length_mean": float(np.mean(words)),
            "short_share": float(np.mean([w < SHORT_WORDS for w in words])),
            "finished_share": float(np.mean([f for fs in mine["finished"].values() for f in fs])),
            "n_prompts": len(mine["words"]),
            "n_responses": len(words),
        }

    def _against(
        self, mine: Mapping[str, Sequence[float]], base: Mapping[str, Sequence[float]], prefix: str, itself: bool
    ) -> dict[str, Any]:
        names = (
            ("win_rate_vs_sft", "ci_low", "ci_high")
            if not prefix
            else ("reward_win_rate", "reward_ci_low", "reward_ci_high")
        )
        if itself:
            return dict(zip(names, (0.5, None, None), strict=True))
        found = win_rate(mine, base, resamples=self.config.resamples)
        return dict(zip(names, (found.rate, found.low, found.high), strict=True))

    def _control(self, again: Mapping[str, Sequence[float]], base: Mapping[str, Sequence[float]]) -> dict[str, float]:
        found = win_rate(again, base, resamples=self.config.resamples)
        return {"win_rate": found.rate, "ci_low": found.low, "ci_high": found.high}

    def _asked(self, work: Work, mine: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
        """Win rate by the LLM judge: the k-th answer against SFT's k-th, both orders, disagreement a tie."""
        asked = self.config.openai
        options = JudgeOptions(api_key_env=asked.api_key_env, max_concurrency=asked.max_concurrency)
        judge = prepare(
            open_judge(f"openai:{asked.model}@{asked.base_url}", options, prompts=mine["prompt"].values()),
            VerdictCache(work.runtime.store.root / "verdicts.jsonl"),
        )
        items: list[tuple[list[Message], str, str]] = []
        owners = []
        for prompt_id, texts in mine["text"].items():
            for ours, theirs in zip(texts, base["text"][prompt_id], strict=True):
                items.append((mine["prompt"][prompt_id].prompt, ours, theirs))
                owners.append(prompt_id)
        with progress("judge: LLM verdicts", len(items), "pair") as advance:
            verdicts = judge.compare_many(items, lambda i, verdict: advance())
        by_prompt: dict[str, list[float]] = {}
        given = [(owner, verdict) for owner, verdict in zip(owners, verdicts, strict=True) if not verdict.failed]
        if not given:
            raise JudgeError(f"judge {judge.name}: no pair has a verdict; the last failure: {verdicts[-1].failed}")
        for owner, verdict in given:
            by_prompt.setdefault(owner, []).append(verdict.score)
        found: WinRate = verdict_win_rate(by_prompt, resamples=self.config.resamples)
        return {
            "llm_judge": asked.model,
            "llm_win_rate": found.rate,
            "llm_ci_low": found.low,
            "llm_ci_high": found.high,
            "llm_disagreement": sum(verdict.orders_agree is False for _, verdict in given) / max(1, len(given)),
            "llm_failed": len(verdicts) - len(given),
        }

    def _samples(self, answers: Mapping[str, Any], count: int = 6) -> list[dict[str, Any]]:
        """The first answer of every policy to a few prompts, evenly spaced over the file."""
        ids = list(answers[BASELINE]["prompt"])
        chosen = [ids[int(k * len(ids) / count)] for k in range(min(count, len(ids)))]
        return [
            {
                "id": i,
                "prompt": answers[BASELINE]["prompt"][i].prompt[-1].content,
                "responses": {
                    p: {
                        "text": answers[p]["text"][i][0],
                        "reward": answers[p]["reward"][i][0],
                        "gold": answers[p]["gold"][i][0] if self.grader else None,
                    }
                    for p in self.policies
                },
            }
            for i in dict.fromkeys(chosen)
        ]


def _pearson(a: Mapping[str, Sequence[float]], b: Mapping[str, Sequence[float]]) -> float:
    x, y = (np.array([v for i in a for v in side[i]]) for side in (a, b))
    return float(np.corrcoef(x, y)[0, 1]) if x.std() > 0 and y.std() > 0 else 0.0
