"""Where the votes of a run come from: simulated annotators, people in Argilla, or a file."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, Protocol

from prefloop.artifacts.labels import Annotator, Labels
from prefloop.artifacts.store import Artifact
from prefloop.base.console import say
from prefloop.base.jsonl import read_rows
from prefloop.config import AnnotatorConfig, DataConfig, LabelConfig
from prefloop.data.replies import same_as
from prefloop.data.sources import copy_records, holds, write_jsonl
from prefloop.errors import ConfigError, DataError
from prefloop.evaluation.judges.graders import FunctionGrader
from prefloop.labeling.argilla.connection import Unreachable, place
from prefloop.labeling.argilla.forms import read_guidelines
from prefloop.labeling.pool import content_of, named
from prefloop.labeling.rounds import collect_round, connect
from prefloop.labeling.simulated import cast, simulate
from prefloop.records import Comparison, Prompt, Rating, Response, from_dict, prompt_key
from prefloop.runs.work import Work
from prefloop.stats.votes import Votes, collect, collect_thumbs

COMPARISONS, RATINGS = "comparisons.jsonl", "ratings.jsonl"
_LEFT_OUT = ("unlabelled", "drafts", "discards", "refused", "votes_of_others")


class LabelSource(Protocol):
    """Where votes come from."""

    def parts(self) -> dict[str, Any]:
        """Settings and files that determine the votes."""

    def preflight(self) -> None:
        """Raise ``PrefloopError`` for settings that cannot work, before anything runs."""

    def collect(self, work: Work, inputs: dict[str, Artifact], number: int) -> tuple[Labels, Votes]:
        """Write ``comparisons.jsonl`` into ``work.folder``; return its counts and all votes.

        ``number`` is the round. Raises ``DataError`` when there is nothing to vote on.
        """


class Gold:
    """Scores of the candidates by the disclosed scorer, looked up by prompt and response."""

    def __init__(self, spec: str) -> None:
        self.grader = FunctionGrader(spec)
        self.scores: dict[tuple[str, str], float] = {}

    def add(self, prompt: Prompt, responses: list[Response]) -> dict[int, float]:
        """Score a prompt's responses; the scores by their position."""
        scores = {i: self.grader.grade(prompt, r) for i, r in enumerate(responses)}
        self.scores |= {
            (prompt_key(prompt.prompt), json.dumps(same_as(r))): scores[i]
            for i, r in enumerate(responses)
        }
        return scores

    def of(self, pair: Comparison) -> tuple[float, float]:
        """The scores of a pair's two responses; 0 and 0 for a pair of another round, whose
        responses were not added.
        """
        first, second = (
            self.scores.get((prompt_key(pair.prompt), json.dumps(same_as(r))))
            for r in pair.responses
        )
        return (0.0, 0.0) if first is None or second is None else (first, second)


class SimulatedVotes:
    """Annotators that vote by a gold scorer with noise, on sampled candidates."""

    def __init__(self, config: LabelConfig, gold: str | None) -> None:
        self.config, self.gold = config, gold

    def parts(self) -> dict[str, Any]:
        return {
            "pairs_per_prompt": self.config.pairs_per_prompt,
            "annotators": self.config.annotators,
            "gold": FunctionGrader(self.scorer).fingerprint(),
        }

    @property
    def scorer(self) -> str:
        """The gold scorer. Raises ``ConfigError`` where none is named."""
        if self.gold is None:
            raise ConfigError(
                "simulated annotators vote by a gold scorer, and gold is not set: name one as"
                " file.py:function, or take label.source: file or argilla"
            )
        return self.gold

    def preflight(self) -> None:
        names = [annotator.name for annotator in self.config.annotators]
        if not names:
            raise ConfigError(
                "label.annotators is empty: list at least one simulated annotator with a name and a"
                " noise"
            )
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ConfigError(
                f"label.annotators: two are called '{twice}', and their votes would count as one"
                " person's: give each a name of its own"
            )

    def collect(self, work: Work, inputs: dict[str, Artifact], number: int) -> tuple[Labels, Votes]:
        gold, annotators = Gold(self.scorer), self.config.annotators
        pairs = _pairs(work, inputs, number, self.config.pairs_per_prompt, gold, annotators)
        return _keep(work, inputs, number, pairs, gold, annotators)


class ArgillaVotes:
    """People in Argilla on sampled candidates; ``simulated`` annotators in their place, where there
    are any.
    """

    def __init__(self, config: LabelConfig, simulated: SimulatedVotes | None) -> None:
        if not (config.dataset or "").strip():
            raise ConfigError("label.dataset is not set: name Argilla's dataset")
        self.config, self.simulated = config, simulated

    def parts(self) -> dict[str, Any]:
        config = self.config
        own = {
            "pairs_per_prompt": config.pairs_per_prompt,
            "place": [place(config.home, config.url), config.workspace, config.dataset],
            "min_submitted": config.min_submitted,
        }
        return own | (self.simulated.parts() if self.simulated else {})

    def preflight(self) -> None:
        if self.simulated:
            self.simulated.preflight()
        if self.config.guidelines:
            read_guidelines(self.config.guidelines)
        try:
            connect(self.config).check(self.config.workspace)
        except Unreachable as error:
            # SFT and sampling need no server, and a finished round no longer needs one.
            say(f"labels: {error}. The run needs the server once it collects votes", "yellow")

    def collect(self, work: Work, inputs: dict[str, Artifact], number: int) -> tuple[Labels, Votes]:
        gold = Gold(self.simulated.scorer) if self.simulated else None
        annotators = self.config.annotators if self.simulated else []
        pairs = _pairs(work, inputs, number, self.config.pairs_per_prompt, gold, annotators)
        if number == 1:  # equal candidates make equal pairs; people are asked once
            pairs = list({content_of(pair): named(pair) for pair in pairs}.values())
        if not self.simulated:
            work.runtime.release()  # people take their time, and the GPU need not wait with them
        votes = {
            annotator.name: {
                pair.id: vote
                for pair in pairs
                for vote in pair.votes
                if vote.annotator == annotator.name
            }
            for annotator in annotators
        }
        answered = collect_round(self.config, str(self.config.dataset), pairs, votes)
        labels, cast_votes = _keep(work, inputs, number, answered.comparisons, gold, annotators)
        labels = dataclasses.replace(
            labels,
            unlabelled=answered.unlabelled,
            drafts=answered.drafts,
            discards=answered.discards,
            refused=answered.refused,
            votes_of_others=answered.others,
        )
        counts = {name.replace("_", " "): getattr(labels, name) for name in _LEFT_OUT}
        if left_out := ", ".join(f"{count} {name}" for name, count in counts.items() if count):
            say(f"  left out: {left_out}", "yellow")
        return labels, cast_votes


class FileVotes:
    """A file of labeled pairs or of thumbs, copied row by row: it may be larger than memory."""

    def __init__(self, data: DataConfig) -> None:
        self.data = data

    def parts(self) -> dict[str, Any]:
        data = self.data
        return {
            "comparisons": data.comparisons,
            "layout": data.layout,
            "bad_rows": data.bad_rows,
            "limit": data.limit,
        }

    def preflight(self) -> None:
        """The stage checks its file itself."""

    def collect(self, work: Work, inputs: dict[str, Artifact], number: int) -> tuple[Labels, Votes]:
        path, data = self.data.comparisons, self.data
        if path is None:
            raise ConfigError(
                "label.source is 'file' but data.comparisons is not set: name a file of labeled"
                " pairs"
            )
        options: dict[str, Any] = {
            "layout": data.layout,
            "bad_rows": data.bad_rows,
            "quarantine_dir": work.folder,
            "limit": data.limit,
        }
        comparisons, ratings = work.folder / COMPARISONS, work.folder / RATINGS
        pairs, thumbs = _Voted(), _Voted()
        if holds(Rating, path, data.layout):
            # The thumbs are kept for KTO, and what pairs they form for everything else.
            loaded: Any = copy_records(Rating, path, ratings, keep=thumbs, **options)
            try:
                copy_records(Comparison, path, comparisons, keep=pairs, **options)
            except DataError:
                # No prompt has thumbs of both kinds. KTO needs none; other stages will say so.
                comparisons.touch()
        else:
            loaded = copy_records(Comparison, path, comparisons, keep=pairs, **options)
        say(f"  {loaded.describe()}")
        if not pairs.records and not thumbs.records:
            raise DataError(
                f"'{path}': none of {loaded.count} records has a vote: label some first"
            )
        voters = thumbs.votes if thumbs.records else pairs.votes
        if thumbs.records:
            votes = collect_thumbs(from_dict(Rating, row) for row in read_rows(ratings))
        else:
            votes = collect(from_dict(Comparison, row) for row in read_rows(comparisons))
        labels = Labels(
            pairs.records,
            voters.total(),
            thumbs.records,
            [Annotator(name, simulated=False, votes=n) for name, n in sorted(voters.items())],
            unlabelled=loaded.count - (thumbs.records or pairs.records),
            bad_rows=data.bad_rows,
        )
        return labels, votes


class _Voted:
    """Keeps records that have votes, and counts both."""

    def __init__(self) -> None:
        self.records = 0
        self.votes: Counter[str] = Counter()

    def __call__(self, record: Comparison | Rating) -> bool:
        self.records += bool(record.votes)
        self.votes.update(vote.annotator for vote in record.votes)
        return bool(record.votes)


def _pairs(
    work: Work,
    inputs: dict[str, Artifact],
    number: int,
    pairs_per_prompt: int,
    gold: Gold | None,
    annotators: Sequence[AnnotatorConfig],
) -> list[Comparison]:
    """The pairs of a round, with the votes of ``annotators`` by the scores of ``gold``.

    Raises ``DataError`` where the candidates form none.
    """
    seed = work.runtime.seed
    pairs: list[Comparison] = []
    for row in read_rows(inputs["candidates"] / "candidates.jsonl"):
        responses = [from_dict(Response, r) for r in row.pop("responses")]
        prompt = from_dict(Prompt, row)
        kept = [r for r in responses if r.text.strip()]
        scores = gold.add(prompt, kept) if gold else {}
        if number == 1:
            pairs += simulate(prompt, kept, scores, annotators, pairs_per_prompt, seed)
    if number > 1:
        pairs = [from_dict(Comparison, row) for row in read_rows(inputs["pairs"] / "pairs.jsonl")]
        if gold:
            pairs = [cast(pair, gold.of(pair), annotators, seed) for pair in pairs]
    if not pairs:
        raise DataError(
            "no prompt has two different non-empty candidates to compare: sample more, or at a"
            " higher temperature"
        )
    return pairs


def _keep(
    work: Work,
    inputs: dict[str, Artifact],
    number: int,
    pairs: list[Comparison],
    gold: Gold | None,
    simulated: Sequence[AnnotatorConfig],
) -> tuple[Labels, Votes]:
    """Write the pairs of a round behind those of the rounds before."""
    comparisons = list(pairs)
    if number > 1:
        before = read_rows(inputs["comparisons"] / COMPARISONS)
        comparisons = [from_dict(Comparison, row) for row in before] + comparisons
    write_jsonl(work.folder / COMPARISONS, comparisons)
    labels = Labels(
        len(comparisons),
        sum(len(c.votes) for c in comparisons),
        annotators=_annotators(comparisons, gold, simulated),
        of_this_round=len(pairs) if number > 1 else None,
    )
    return labels, collect(comparisons)


def _annotators(
    pairs: list[Comparison], gold: Gold | None, simulated: Sequence[AnnotatorConfig]
) -> list[Annotator]:
    """Who voted, how often, and for simulated annotators how often as the gold scorer would."""
    votes: Counter[str] = Counter()
    agreed: dict[str, list[bool]] = defaultdict(list)
    for pair in pairs:
        votes.update(vote.annotator for vote in pair.votes)
        first, second = gold.of(pair) if gold else (0.0, 0.0)
        for vote in pair.votes:
            if first != second and vote.choice != "tie":
                agreed[vote.annotator].append((vote.choice == 0) == (first > second))
    noise = {annotator.name: annotator.noise for annotator in simulated}
    return [
        Annotator(
            name,
            name in noise,
            noise.get(name),
            sum(agreed[name]) / len(agreed[name]) if agreed[name] else None,
            votes[name],
        )
        for name in dict.fromkeys((*noise, *sorted(votes)))
    ]
