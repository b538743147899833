"""The answers of all policies against each other, by every judge that there is. ``Evaluate`` puts
it behind the stages that sample them.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np

from prefloop.artifacts.references import BASE
from prefloop.artifacts.store import Artifact, lineage
from prefloop.base.console import say
from prefloop.base.jsonl import read_rows, write_rows
from prefloop.config import DataConfig, EvaluateConfig
from prefloop.data.overlap import Prompted, overlap
from prefloop.data.replies import Reply, reply_of, response_of
from prefloop.data.source import Source
from prefloop.data.trained import roles_read, trained_prompts
from prefloop.errors import JudgeError
from prefloop.evaluation.compare import Duel, Judged, judge_answers
from prefloop.evaluation.judges.cache import VerdictCache
from prefloop.evaluation.judges.graders import FunctionGrader
from prefloop.evaluation.judges.open import open_judge
from prefloop.evaluation.win_rates import (
    READINGS,
    SCORERS,
    Scores,
    leads_of,
    length_controlled,
    matrix,
    of_duel,
    of_scores,
    wins_of,
)
from prefloop.pipeline.stage import Stage
from prefloop.pipeline.stages.shared_judge import open_beside
from prefloop.records import Prompt, Response, from_dict, to_dict
from prefloop.runs.runtime import Runtime
from prefloop.runs.work import Work
from prefloop.stats.bradley_terry import Game, rank
from prefloop.stats.intervals import clustered_mean, win_rate
from prefloop.stats.length_control import LengthControlled, length_controlled_leaderboard

BASELINE = "sft"
AGAIN = "sft-again"
SHORT_WORDS = 5
MOST_FAILED = 0.05
"""Share of comparisons without an answer above which there is no result: what fails may be of one
kind.
"""


class Compare(Stage):
    """All policies' answers → gold means, win rates, A/A control, the matrix of all against all,
    with 95 % intervals. Produces ``judge``.
    """

    name = "judge"
    produces = "judge"

    def __init__(
        self,
        policies: Sequence[str],
        config: EvaluateConfig,
        gold: str | None,
        data: DataConfig | None = None,
        control: bool = True,
        reward: bool = True,
    ) -> None:
        """``control``: the SFT model answered twice; ``reward``: a reward model scored the
        answers.
        """
        self.policies, self.config, self.data = list(policies), config, data or DataConfig()
        self.others = [policy for policy in self.policies if policy != BASELINE]
        self.grader = FunctionGrader(gold) if gold else None
        self.scorers = (*(("gold",) if gold else ()), *(("reward",) if reward else ()))
        """What scores every answer, the most independent first."""
        self.answered = (*self.policies, *((AGAIN,) if control else ()))
        self.inputs = tuple(f"respond-{p}" for p in self.answered)

    def parts(self) -> dict[str, Any]:
        return {
            "config": self.config,
            "gold": self.grader.fingerprint() if self.grader else None,
            "trained_on": self._training(),
            "layout": self.data.layout,
            "limit": self.data.limit,
        }

    def identity(self, runtime: Runtime) -> dict[str, Any]:
        who = super().identity(runtime)
        if not self.config.judge:
            return who | {"judge": None}
        models = runtime.store.root / "models"
        with closing(open_judge(self.config.judge, self.config.asking, models=models)) as judge:
            return who | {"judge": judge.fingerprint()}

    def _training(self) -> list[Source]:
        data = self.data
        return [
            p
            for p in dict.fromkeys((data.demonstrations, data.comparisons, data.prompts))
            if p is not None
        ]

    def build(self, work: Work, inputs: dict[str, Artifact]) -> dict[str, Any]:
        answers = {p: self._read(inputs[f"respond-{p}"]) for p in self.answered}
        sft = answers[BASELINE]
        results = {}
        for policy in self.policies:
            mine = answers[policy]
            results[policy] = self._measure(mine)
            for judge, prefix in (("gold", ""), ("reward", "reward_")):
                if judge in mine:
                    results[policy] |= self._against(
                        mine[judge], sft[judge], prefix, policy == BASELINE
                    )
        control = {
            judge: self._control(answers[AGAIN][judge], sft[judge])
            for judge in self.scorers
            if AGAIN in answers
        }
        metrics: dict[str, Any] = {
            "results": results,
            "control": control,
            "samples": self._samples(answers),
        }
        if "gold" in sft:
            self._keep_gold(work, answers)
            if "reward" in sft:
                metrics["pearson_gold"] = _pearson(sft["reward"], sft["gold"])
        if len(self.policies) > 1:
            metrics |= self._judged(work, answers, results)
        same = overlap(self._trained_on(work, inputs), list(sft["prompt"].values()))
        say(f"  {same.describe()}", "yellow" if same.matches else "dim")
        metrics["contamination"] = {
            "count": len(same.seen),
            "alike": len(same.matches) - len(same.seen),
            "examples": [dataclasses.asdict(m) for m in same.matches[:20]],
        }
        return metrics

    def _trained_on(self, work: Work, inputs: Mapping[str, Artifact]) -> Iterator[Prompted]:
        """The prompts of every file that a compared policy has learnt from, one at a time."""
        answers = [inputs[f"respond-{policy}"].manifest for policy in self.answered]
        read = {
            role
            for made in answers
            for one in lineage(work.runtime.store.root, made)
            for role in one.reads
        }
        files = {
            role: source
            for role in roles_read(read)
            if (source := getattr(self.data, role)) is not None
        }
        yield from trained_prompts(files, self.data.layout, self.data.limit, work.scratch)

    def _keep_gold(self, work: Work, answers: Mapping[str, Any]) -> None:
        """Write the gold score of every response, by prompt and policy: the report sorts
        conversations by them.
        """
        rows = (
            {"id": i, "gold": {p: answers[p]["gold"][i] for p in self.policies}}
            for i in answers[BASELINE]["gold"]
        )
        write_rows(work.folder / "scores.jsonl", rows)

    def _judged(
        self, work: Work, answers: Mapping[str, Any], results: dict[str, dict[str, Any]]
    ) -> dict[str, Any]:
        """The win-rate matrix by the most independent judge, and what it says of each policy
        against SFT beyond the rate.
        """
        if not self.config.judge:
            if not self.scorers:
                return {}
            judge = self.scorers[0]
            for policy in self.others:
                results[policy] |= of_scores(
                    answers[policy], answers[BASELINE], judge, self.config.resamples
                )
            for policy, rate in self._at_equal_length(answers, judge).items():
                results[policy] |= length_controlled(SCORERS[judge], rate)
            return {"matrix": self._matrix_of_scores(answers, judge)}
        found = self._asked(work, answers)
        for duel in found.duels:
            if duel.b == BASELINE:
                results[duel.a] |= of_duel(found.judge, duel)
        rates = {(duel.a, duel.b): duel.win_rate for duel in found.duels}
        positions = [
            duel.position for duel in found.duels if duel.position and BASE not in (duel.a, duel.b)
        ]
        judging = {
            "judge": found.judge,
            "mode": self.config.asking.mode,
            **dataclasses.asdict(found.usage),
            "asked": found.n_asked,
            "cached": found.n_cached,
            "failed": sum(duel.n_failed for duel in found.duels),
            "unparsable": found.n_unparsable,
            "position_bias": (
                float(np.mean([p.first_share.mean for p in positions])) if positions else None
            ),
            "total": dataclasses.asdict(found.total),
            "unproven": found.unproven,
        }
        return {
            "matrix": matrix(found.judge, self.policies, rates, found.ranking),
            "judging": judging,
        }

    def _at_equal_length(
        self, answers: Mapping[str, Any], judge: str
    ) -> Mapping[str, LengthControlled]:
        """With two or more policies, win rates that know how much each prompt favours policies in
        general.

        The bare model is none: what it finds hard would move the policies' rates.
        """
        sft, policies = answers[BASELINE], [name for name in self.others if name != BASE]
        if len(policies) < 2:
            return {}
        wins = {p: wins_of(answers[p][judge], sft[judge]) for p in policies}
        leads = {p: leads_of(answers[p], sft) for p in policies}
        return length_controlled_leaderboard(wins, leads, resamples=self.config.resamples)

    def _asked(self, work: Work, answers: Mapping[str, Any]) -> Judged:
        """All policies against each other, the k-th answer against the k-th; SFT is always side
        b.
        """
        order = [*reversed(self.others), BASELINE]
        prompts = list(answers[BASELINE]["prompt"].values())
        sides = {
            p: {i: (answers[p]["prompt"][i], of) for i, of in answers[p]["reply"].items()}
            for p in order
        }
        judge = open_beside(work.runtime, self.config.judge or "", self.config.asking, prompts)
        with closing(judge):
            found = judge_answers(
                sides,
                judge,
                VerdictCache(work.runtime.store.root / "verdicts.jsonl"),
                pairs_per_prompt=self.config.samples,
                anchor=BASELINE,
                apart=[BASE],
                resamples=self.config.resamples,
            )
        # The bare model may answer as no policy does: what fails of its comparisons is said, and
        # stops nothing.
        failed, met = _failures(duel for duel in found.duels if BASE not in (duel.a, duel.b))
        if failed > MOST_FAILED * met:
            raise JudgeError(
                f"judge {judge.name}: {failed} of {met} comparisons failed, over {MOST_FAILED:.0%};"
                f" the first: {found.failures[0]}\n       What was answered is kept: with the judge"
                " mended, the same command asks only what is missing"
            )
        failed, met = _failures(found.duels)
        if failed:
            say(
                f"  {failed} of {met} comparisons failed and are left out; the first:"
                f" {found.failures[0]}\n  The result is kept without them; with another"
                " --evaluate.resamples they are asked again, and nothing else",
                "yellow",
            )
        return found

    def _matrix_of_scores(self, answers: Mapping[str, Any], judge: str) -> dict[str, Any]:
        scores = {p: answers[p][judge] for p in self.policies}
        rates, games = {}, []
        for a, b in itertools.combinations([*reversed(self.others), BASELINE], 2):
            rates[a, b] = win_rate(scores[a], scores[b], resamples=self.config.resamples)
            games += [
                Game(a, b, score, i)
                for i, wins in wins_of(scores[a], scores[b]).items()
                for score in wins
            ]
        rated = len(self.policies) > 2
        ranking = rank(games, anchor=BASELINE, resamples=self.config.resamples) if rated else None
        return matrix(SCORERS[judge], self.policies, rates, ranking)

    def _read(self, artifact: Artifact) -> dict[str, Any]:
        """By prompt id: prompts and each measured quantity of the responses."""
        measured = (
            "finished",
            *(("kl",) if self.config.temperature != 0 else ()),
            *(("reward",) if "reward" in self.scorers else ()),
        )
        out: dict[str, Any] = {
            name: {} for name in ("prompt", "reply", "text", "words", *measured, *self.scorers)
        }
        for row in read_rows(artifact / "responses.jsonl"):
            responses = row.pop("responses")
            prompt = from_dict(Prompt, row)
            out["prompt"][prompt.id] = prompt
            replies = [
                reply_of(from_dict(Response, {k: r[k] for k in ("text", "turns") if k in r}))
                for r in responses
            ]
            out["reply"][prompt.id] = replies
            out["text"][prompt.id] = [r["text"] for r in responses]
            out["words"][prompt.id] = [len(r["text"].split()) for r in responses]
            for name in measured:
                out[name][prompt.id] = [float(r[name]) for r in responses]
            if self.grader:
                out["gold"][prompt.id] = [self.grader.grade(prompt, reply) for reply in replies]
        return out

    def _measure(self, mine: Mapping[str, Any]) -> dict[str, Any]:
        def interval(name: str) -> tuple[float, float, float]:
            found = clustered_mean(mine[name], resamples=self.config.resamples)
            return found.mean, found.low, found.high

        words = [w for ws in mine["words"].values() for w in ws]
        kl, kl_low, kl_high = interval("kl") if "kl" in mine else (None, None, None)
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
            "reward_mean": interval("reward")[0] if "reward" in mine else None,
            "length_mean": float(np.mean(words)),
            "short_share": float(np.mean([w < SHORT_WORDS for w in words])),
            "finished_share": float(np.mean([f for fs in mine["finished"].values() for f in fs])),
            "n_prompts": len(mine["words"]),
            "n_responses": len(words),
        }

    def _against(self, mine: Scores, sft: Scores, prefix: str, itself: bool) -> dict[str, Any]:
        names = READINGS[2 if prefix else 0]
        if itself:
            return dict(zip(names, (0.5, None, None), strict=True))
        found = win_rate(mine, sft, resamples=self.config.resamples)
        return dict(zip(names, (found.rate, found.low, found.high), strict=True))

    def _control(
        self, again: Mapping[str, Sequence[float]], sft: Mapping[str, Sequence[float]]
    ) -> dict[str, float]:
        found = win_rate(again, sft, resamples=self.config.resamples)
        return {"win_rate": found.rate, "ci_low": found.low, "ci_high": found.high}

    def _samples(self, answers: Mapping[str, Any], count: int = 6) -> list[dict[str, Any]]:
        """The first answer of every policy to a few prompts, evenly spaced over the file, as the
        records are written.
        """
        ids = list(answers[BASELINE]["prompt"])
        chosen = [ids[int(k * len(ids) / count)] for k in range(min(count, len(ids)))]
        return [
            {
                **{k: v for k, v in to_dict(answers[BASELINE]["prompt"][i]).items() if k != "meta"},
                "responses": {
                    p: {
                        **_said(answers[p]["reply"][i][0]),
                        "reward": answers[p]["reward"][i][0] if "reward" in self.scorers else None,
                        "gold": answers[p]["gold"][i][0] if self.grader else None,
                    }
                    for p in self.policies
                },
            }
            for i in dict.fromkeys(chosen)
        ]


def _failures(duels: Iterable[Duel]) -> tuple[int, int]:
    """Comparisons without a verdict, and all."""
    counts = [(duel.n_failed, duel.n_failed + duel.n_comparisons) for duel in duels]
    return sum(failed for failed, _ in counts), sum(met for _, met in counts)


def _said(reply: Reply) -> dict[str, Any]:
    return {k: v for k, v in to_dict(response_of(reply)).items() if k in ("text", "turns")}


def _pearson(a: Mapping[str, Sequence[float]], b: Mapping[str, Sequence[float]]) -> float:
    x, y = (np.array([v for i in a for v in side[i]]) for side in (a, b))
    return float(np.corrcoef(x, y)[0, 1]) if x.std() > 0 and y.std() > 0 else 0.0
