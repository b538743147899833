"""The answers of all policies against each other, by every judge that there is. ``Evaluate`` puts
it behind the stages that sample them.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from prefloop.artifacts.codec import to_json
from prefloop.artifacts.references import BASE
from prefloop.artifacts.results import (
    BASELINE,
    GOLD,
    RESPONSES,
    REWARD,
    SCORES,
    Contamination,
    Estimate,
    Evaluation,
    GoldScores,
    Judging,
    Matrix,
    PolicyResult,
    Used,
)
from prefloop.artifacts.store import Artifact, lineage
from prefloop.base.console import say
from prefloop.base.jsonl import read_rows, write_rows
from prefloop.config import DataConfig, EvaluateConfig
from prefloop.data.overlap import Prompted, overlap
from prefloop.data.replies import reply_of
from prefloop.data.source import Source
from prefloop.data.trained import roles_read, trained_prompts
from prefloop.errors import JudgeError
from prefloop.evaluation.compare import Duel, Judged, judge_answers
from prefloop.evaluation.judges.cache import VerdictCache
from prefloop.evaluation.judges.graders import FunctionGrader
from prefloop.evaluation.judges.open import open_judge
from prefloop.evaluation.win_rates import (
    SCORERS,
    Scores,
    at_equal_length,
    estimate_of,
    leads_of,
    matrix,
    of_duel,
    of_scores,
    wins_of,
)
from prefloop.pipeline.stage import Stage
from prefloop.pipeline.stages.shared_judge import open_beside
from prefloop.records import (
    Prompt,
    SampledConversation,
    SampledPrompt,
    ScoredResponse,
    from_dict,
)
from prefloop.runs.runtime import Runtime
from prefloop.runs.work import Work
from prefloop.stats.bradley_terry import Game, rank
from prefloop.stats.intervals import clustered_mean, win_rate
from prefloop.stats.length_control import length_controlled_leaderboard

AGAIN = "sft-again"
SHORT_WORDS = 5
MOST_FAILED = 0.05
"""Share of comparisons without an answer above which there is no result: what fails may be of one
kind.
"""


@dataclass(frozen=True)
class ScoredAnswers:
    """The answers of one policy, by prompt id."""

    prompts: dict[str, Prompt]
    responses: dict[str, list[ScoredResponse]]

    def scores(self, quantity: str) -> dict[str, list[float]]:
        """``gold``, ``reward`` or ``kl`` of every response."""
        return {i: [getattr(r, quantity) for r in rs] for i, rs in self.responses.items()}

    @property
    def lengths(self) -> dict[str, list[float]]:
        """Characters of every response."""
        return {i: [float(len(r.text)) for r in rs] for i, rs in self.responses.items()}


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
        self.scorers = (*((GOLD,) if gold else ()), *((REWARD,) if reward else ()))
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

    def build(self, work: Work, inputs: dict[str, Artifact]) -> Evaluation:
        answers = {p: self._read(inputs[f"respond-{p}"]) for p in self.answered}
        sft = answers[BASELINE]
        results = {policy: self._measure(policy, answers) for policy in self.policies}
        control = {}
        if AGAIN in answers:
            control = {judge: self._win(answers[AGAIN], sft, judge) for judge in self.scorers}
        correlation = None
        if self.grader:
            self._keep_gold(work, answers)
            if REWARD in self.scorers:
                correlation = _pearson(sft.scores(REWARD), sft.scores(GOLD))
        table, judging = Matrix(), Judging()
        if len(self.policies) > 1 and self.config.judge:
            judged = self._asked(work, answers)
            for duel in judged.duels:
                if duel.b == BASELINE:
                    results[duel.a] = of_duel(results[duel.a], judged.judge, duel)
            rates = {(duel.a, duel.b): duel.win_rate for duel in judged.duels}
            table = matrix(judged.judge, self.policies, rates, judged.ranking)
            judging = self._judging(judged)
        elif len(self.policies) > 1 and self.scorers:
            results = self._by_scores(results, answers, self.scorers[0])
            table = self._matrix_of_scores(answers, self.scorers[0])
        same = overlap(self._trained_on(work, inputs), list(sft.prompts.values()))
        say(f"  {same.describe()}", "yellow" if same.matches else "dim")
        seen = Contamination(len(same.seen), len(same.matches) - len(same.seen), same.matches[:20])
        samples = self._samples(answers)
        return Evaluation(results, control, table, judging, seen, samples, correlation)

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

    def _keep_gold(self, work: Work, answers: Mapping[str, ScoredAnswers]) -> None:
        """Write the gold score of every response, by prompt and policy: the report sorts
        conversations by them.
        """
        scores = {policy: answers[policy].scores(GOLD) for policy in self.policies}
        rows = (
            GoldScores(i, {policy: scores[policy][i] for policy in self.policies})
            for i in answers[BASELINE].prompts
        )
        write_rows(work.folder / SCORES, map(to_json, rows))

    def _judging(self, judged: Judged) -> Judging:
        """What asking the judge took; the bare model's duels say nothing about the order of
        showing.
        """
        first_shares = [
            duel.position.first_share.mean
            for duel in judged.duels
            if duel.position and BASE not in (duel.a, duel.b)
        ]
        return Judging(
            judge=judged.judge,
            mode=self.config.asking.mode,
            used=Used(**dataclasses.asdict(judged.usage)),
            total=Used(**dataclasses.asdict(judged.total)),
            asked=judged.n_asked,
            cached=judged.n_cached,
            failed=sum(duel.n_failed for duel in judged.duels),
            unparsable=judged.n_unparsable,
            position_bias=Estimate(float(np.mean(first_shares)) if first_shares else None),
            unproven=judged.unproven,
        )

    def _by_scores(
        self, results: Mapping[str, PolicyResult], answers: Mapping[str, ScoredAnswers], judge: str
    ) -> dict[str, PolicyResult]:
        """The results with the scorer's sign test and rate at equal length, where no judge is
        asked.

        With two or more policies these rates know how much each prompt favors policies in general.
        The bare model is none: what it finds hard would move the policies' rates.
        """
        sft, resamples = answers[BASELINE], self.config.resamples
        wins = {p: wins_of(answers[p].scores(judge), sft.scores(judge)) for p in self.others}
        leads = {p: leads_of(answers[p].lengths, sft.lengths) for p in self.others}
        out = dict(results)
        for policy in self.others:
            out[policy] = of_scores(results[policy], judge, wins[policy], leads[policy], resamples)
        policies = [name for name in self.others if name != BASE]
        if len(policies) > 1:
            together = length_controlled_leaderboard(
                {p: wins[p] for p in policies}, {p: leads[p] for p in policies}, resamples=resamples
            )
            for policy, rate in together.items():
                level = at_equal_length(SCORERS[judge], rate)
                out[policy] = dataclasses.replace(out[policy], at_equal_length=level)
        return out

    def _asked(self, work: Work, answers: Mapping[str, ScoredAnswers]) -> Judged:
        """All policies against each other, the k-th answer against the k-th; SFT is always side
        b.
        """
        order = [*reversed(self.others), BASELINE]
        prompts = list(answers[BASELINE].prompts.values())
        sides = {
            p: {
                i: (answers[p].prompts[i], [reply_of(r.response) for r in responses])
                for i, responses in answers[p].responses.items()
            }
            for p in order
        }
        judge = open_beside(work.runtime, self.config.judge or "", self.config.asking, prompts)
        with closing(judge):
            judged = judge_answers(
                sides,
                judge,
                VerdictCache(work.runtime.store.root / "verdicts.jsonl"),
                pairs_per_prompt=self.config.samples,
                anchor=BASELINE,
                apart=[BASE],
                resamples=self.config.resamples,
            )
        # The bare model may answer as no policy does: its failures are reported and stop nothing.
        failed, met = _failures(duel for duel in judged.duels if BASE not in (duel.a, duel.b))
        if failed > MOST_FAILED * met:
            raise JudgeError(
                f"judge {judge.name}: {failed} of {met} comparisons failed, over {MOST_FAILED:.0%};"
                f" the first: {judged.failures[0]}\n       Answered comparisons are kept: once the"
                " judge works, the same command asks only the missing ones"
            )
        failed, met = _failures(judged.duels)
        if failed:
            say(
                f"  {failed} of {met} comparisons failed and are left out; the first:"
                f" {judged.failures[0]}\n  The result is kept without them. To ask them again, and"
                " nothing else, run with another --evaluate.resamples",
                "yellow",
            )
        return judged

    def _matrix_of_scores(self, answers: Mapping[str, ScoredAnswers], judge: str) -> Matrix:
        scores = {p: answers[p].scores(judge) for p in self.policies}
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

    def _read(self, artifact: Artifact) -> ScoredAnswers:
        """The responses that an artifact holds, with their gold scores where there is a gold
        scorer.
        """
        prompts, responses = {}, {}
        for row in read_rows(artifact / RESPONSES):
            sampled = from_dict(SampledPrompt, row)
            prompts[sampled.id] = prompt = Prompt(sampled.id, sampled.prompt, sampled.meta)
            responses[prompt.id] = [
                dataclasses.replace(r, gold=self.grader.grade(prompt, reply_of(r.response)))
                if self.grader
                else r
                for r in sampled.responses
            ]
        return ScoredAnswers(prompts, responses)

    def _measure(self, policy: str, answers: Mapping[str, ScoredAnswers]) -> PolicyResult:
        """One policy by everything that is measured of each response."""
        mine, sft = answers[policy], answers[BASELINE]
        responses = [r for rs in mine.responses.values() for r in rs]
        words = [len(r.text.split()) for r in responses]

        def mean(quantity: str) -> Estimate:
            return estimate_of(
                clustered_mean(mine.scores(quantity), resamples=self.config.resamples)
            )

        wins = {
            judge: Estimate(0.5) if policy == BASELINE else self._win(mine, sft, judge)
            for judge in self.scorers
        }
        # The log-ratio of the one likeliest answer estimates no KL.
        kl = mean("kl") if self.config.temperature != 0 else Estimate()
        return PolicyResult(
            n_prompts=len(mine.prompts),
            n_responses=len(responses),
            gold=mean(GOLD) if self.grader else Estimate(),
            reward_mean=mean(REWARD).value if REWARD in self.scorers else None,
            kl=kl,
            wins=wins,
            length_mean=float(np.mean(words)),
            short_share=float(np.mean([count < SHORT_WORDS for count in words])),
            finished_share=float(np.mean([bool(r.finished) for r in responses])),
        )

    def _win(self, mine: ScoredAnswers, sft: ScoredAnswers, judge: str) -> Estimate:
        """The win rate against SFT by a scorer."""
        scores = mine.scores(judge), sft.scores(judge)
        return estimate_of(win_rate(*scores, resamples=self.config.resamples))

    def _samples(
        self, answers: Mapping[str, ScoredAnswers], count: int = 6
    ) -> list[SampledConversation]:
        """The first answer of every policy to a few prompts, evenly spaced over the file."""
        prompts = list(answers[BASELINE].prompts.values())
        chosen = [int(k * len(prompts) / count) for k in range(min(count, len(prompts)))]
        return [
            SampledConversation(
                prompts[at].id,
                prompts[at].prompt,
                {p: answers[p].responses[prompts[at].id][0] for p in self.policies},
            )
            for at in dict.fromkeys(chosen)
        ]


def _failures(duels: Iterable[Duel]) -> tuple[int, int]:
    """Comparisons without a verdict, and all."""
    counts = [(duel.n_failed, duel.n_failed + duel.n_comparisons) for duel in duels]
    return sum(failed for failed, _ in counts), sum(met for _, met in counts)


def _pearson(a: Scores, b: Scores) -> float:
    x, y = (np.array([v for i in a for v in side[i]]) for side in (a, b))
    return float(np.corrcoef(x, y)[0, 1]) if x.std() > 0 and y.std() > 0 else 0.0
