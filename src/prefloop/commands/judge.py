"""``prefloop judge``: which of two results is better, and how far the judge can be trusted."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import tyro

from prefloop.config import DataSource, JudgeConfig
from prefloop.config.ranges import Count, Draws, Seed

if TYPE_CHECKING:
    from prefloop.data.check import Checked
    from prefloop.data.source import Source
    from prefloop.evaluation.answers import Answers
    from prefloop.evaluation.compare import Votes
    from prefloop.records import Comparison, Prompt

R = TypeVar("R")


@dataclasses.dataclass
class _Judge:
    judge: str
    """openai:<model>@<base_url>, local:<model>, reward:<run>, or a Python function
    file.py:function.
    """
    asking: tyro.conf.OmitArgPrefixes[JudgeConfig] = dataclasses.field(
        default_factory=JudgeConfig, kw_only=True
    )
    cache: Path = dataclasses.field(default=Path("verdicts.jsonl"), kw_only=True)
    """File for the judge's answers. A killed evaluation resumes; a repeated one asks nothing."""
    output: Path | None = dataclasses.field(default=None, kw_only=True)
    """Also write everything as JSON."""
    seed: Seed = dataclasses.field(default=0, kw_only=True)
    """Seed of the sampling and of the bootstrap."""
    resamples: Draws = dataclasses.field(default=2000, kw_only=True)
    """Bootstrap resamples behind each 95 % interval."""
    quarantine: Path | None = dataclasses.field(default=None, kw_only=True)
    """Folder for rows that cannot be used; without one they are an error."""

    def _checked(
        self, load: Callable[..., Checked[R]], path: Source, limit: int | None = None
    ) -> list[R]:
        from prefloop.base.console import say

        if self.quarantine is None:
            return load(path, limit=limit).records
        self.quarantine.mkdir(parents=True, exist_ok=True)
        read = load(path, bad_rows="quarantine", quarantine_dir=self.quarantine, limit=limit)
        say(read.describe())
        return read.records


@dataclasses.dataclass
class JudgeCommand(_Judge):
    """Compare results on the same prompts with a judge that is asked in both orders.
    `prefloop judge calibrate` measures a judge against people.
    """

    a: str = dataclasses.field(kw_only=True)
    """runs/demo:ppo, runs/demo:base, an adapter's folder, or answers: a file, folder or hub data
    set with one response per row, in any layout that `prefloop check` reads.
    """
    b: str = dataclasses.field(kw_only=True)
    """The result that a is compared with."""
    also: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)
    """Further results: all are compared with all and ranked."""
    prompts: DataSource | None = dataclasses.field(default=None, kw_only=True)
    """Prompts to answer, in any layout that `prefloop check` reads. Files of answers need none; if
    prompts are given, only answers to them are judged.
    """
    human: DataSource | None = dataclasses.field(default=None, kw_only=True)
    """People's votes on some of these answers, by which the win rates are corrected."""
    samples: Count = dataclasses.field(default=1, kw_only=True)
    """Answers per prompt and result."""
    limit: Count | None = dataclasses.field(default=None, kw_only=True)
    """Use only the first LIMIT prompts."""
    pairs_per_prompt: Count | None = dataclasses.field(default=None, kw_only=True)
    """Comparisons per prompt; all pairs of answers by default."""
    model: str | None = dataclasses.field(default=None, kw_only=True)
    """Path or name of the base model, if it has moved since training."""
    rollout: str | None = dataclasses.field(default=None, kw_only=True)
    """Engine that samples the answers: vllm or transformers; the run's own by default."""

    def run(self) -> None:
        from prefloop.base.sealed import write_json
        from prefloop.evaluation.answers import prompts_of, require_same_prompts
        from prefloop.evaluation.compare import judge_answers
        from prefloop.evaluation.judges.cache import VerdictCache
        from prefloop.evaluation.judges.open import open_judge
        from prefloop.evaluation.show import show_judged

        open_judge(self.judge, self.asking).close()  # its errors come before any sampling
        sides = self._answers()
        require_same_prompts(sides)
        prompts = prompts_of(sides)
        self._say_overlap(prompts)
        with closing(open_judge(self.judge, self.asking, prompts=prompts)) as judge:
            judged = judge_answers(
                sides,
                judge,
                VerdictCache(self.cache),
                pairs_per_prompt=self.pairs_per_prompt,
                people=self._people(),
                seed=self.seed,
                resamples=self.resamples,
            )
        show_judged(judged)
        if self.output:
            write_json(self.output, dataclasses.asdict(judged))

    def _answers(self) -> dict[str, Answers]:
        from prefloop.artifacts.references import answers_of
        from prefloop.base.console import say
        from prefloop.data.sources import load_prompts
        from prefloop.errors import ConfigError
        from prefloop.evaluation.answers import empty_answers, read_answers, restricted
        from prefloop.pipeline.stages.answer import respond

        names = [self.a, self.b, *self.also]
        if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            raise ConfigError(
                f"'{twice[0]}' is named twice: a result cannot be compared with itself"
            )
        sources = respond(
            names,
            self.prompts,
            self.samples,
            limit=self.limit,
            model=self.model,
            rollout=self.rollout,
            seed=self.seed,
            quarantine=self.quarantine,
        )
        options: dict[str, Any] = (
            {"bad_rows": "quarantine", "quarantine_dir": self.quarantine} if self.quarantine else {}
        )
        asked_in = self.prompts
        questions = (lambda: self._checked(load_prompts, asked_in)) if asked_in else None
        sides = {
            name: read_answers(source, questions=questions, **options)
            for name, source in sources.items()
        }
        if self.prompts and all(answers_of(name) for name in names):
            asked = self._checked(load_prompts, self.prompts)
            sides = restricted(sides, asked)
            if any(len(side) < len(asked) for side in sides.values()):
                least = min(map(len, sides.values()))
                say(
                    f"only {least} of the {len(asked)} prompts of {self.prompts} are answered in"
                    " every file",
                    "yellow",
                )
        sides = {name: dict(islice(side.items(), self.limit)) for name, side in sides.items()}
        if empty := empty_answers(sides):
            counts = ", ".join(f"{count} of {name}" for name, count in empty.items())
            say(f"empty responses, judged as they are: {counts}", "yellow")
        for name, path in sources.items():
            if str(path) != name:
                say(f"answers of {name}: {path}", "dim")
        return sides

    def _people(self) -> Votes | None:
        """By pair of responses all votes on it, from all rows and from both orders."""
        from prefloop.data.replies import differ
        from prefloop.data.sources import load_comparisons
        from prefloop.labeling.pool import content_of

        if self.human is None:
            return None
        votes: dict[bytes, Comparison] = {}
        for row in self._checked(load_comparisons, self.human):
            key, before = content_of(row), votes.get(content_of(row))
            if before is not None:
                alike = not differ(before.responses[0], row.responses[0])
                row = dataclasses.replace(
                    before, votes=[*before.votes, *(row if alike else row.swap()).votes]
                )
            votes[key] = row
        return votes

    def _say_overlap(self, prompts: list[Prompt]) -> None:
        """Name the prompts that the runs behind the results were trained on."""
        from prefloop.artifacts.references import run_of, trained_on, untraced
        from prefloop.base.console import say
        from prefloop.data.overlap import overlap

        for run in dict.fromkeys(run_of(name) for name in (self.a, self.b, *self.also)):
            if run is None:
                continue
            training = trained_on(run)
            if training is None:
                say(f"{run}: overlap with its training is unknown, as {untraced(run)}", "yellow")
            else:
                same = overlap(training, prompts)
                say(f"{run}: {same.describe()}", "yellow" if same.matches else "dim")


@dataclasses.dataclass
class Calibrate(_Judge):
    """Measure how often a judge agrees with people, next to how often people agree with each other
    and how often the longer response is preferred.
    """

    human: DataSource = dataclasses.field(kw_only=True)
    """Comparisons with people's votes, in any layout that `prefloop check` reads. Each
    meta["source"] has its own agreement.
    """
    limit: Count | None = dataclasses.field(default=None, kw_only=True)
    """Use only the first LIMIT comparisons."""

    def run(self) -> None:
        from prefloop.base.sealed import write_json
        from prefloop.data.sources import load_comparisons
        from prefloop.evaluation.calibrate import calibrate
        from prefloop.evaluation.judges.cache import VerdictCache
        from prefloop.evaluation.judges.open import open_judge
        from prefloop.evaluation.show import show_agreement

        comparisons = self._checked(load_comparisons, self.human, self.limit)
        with closing(open_judge(self.judge, self.asking)) as judge:
            calibration = calibrate(
                comparisons,
                judge,
                VerdictCache(self.cache),
                seed=self.seed,
                resamples=self.resamples,
            )
        show_agreement(calibration)
        if self.output:
            write_json(self.output, dataclasses.asdict(calibration))
