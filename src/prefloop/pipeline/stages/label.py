"""Votes on pairs: of simulated annotators or of people in Argilla on sampled candidates, or from a
file of comparisons.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from typing import Any, Self

from prefloop.artifacts.store import Artifact
from prefloop.base.console import counted, say
from prefloop.base.jsonl import read_rows
from prefloop.config import DataConfig, LabelConfig
from prefloop.data.replies import same_as
from prefloop.data.sources import copy_records, holds, write_jsonl
from prefloop.errors import ConfigError, DataError
from prefloop.evaluation.judges.graders import FunctionGrader
from prefloop.labeling.argilla.connection import Unreachable, place
from prefloop.labeling.argilla.forms import read_guidelines
from prefloop.labeling.pool import content_of, named
from prefloop.labeling.rounds import collect_round, connect
from prefloop.labeling.show import alpha_line
from prefloop.labeling.simulated import cast, simulate
from prefloop.pipeline.stage import Stage
from prefloop.records import Comparison, Prompt, Rating, Response, from_dict, prompt_key
from prefloop.runs.work import Work
from prefloop.stats.annotator_agreement import measure
from prefloop.stats.votes import FILE, Votes, collect, collect_thumbs


class Label(Stage):
    """Candidates or a file → ``comparisons.jsonl`` with raw votes. Produces ``comparisons``.

    In rounds after the first the pairs are those of the stage ``choose``, and the comparisons of
    the rounds before are kept.
    """

    name = "label"
    produces = "comparisons"

    def __init__(
        self,
        config: LabelConfig | None = None,
        data: DataConfig | None = None,
        gold: str | None = None,
        simulate: bool = False,
    ) -> None:
        self.config = config or LabelConfig()
        self.data = data or DataConfig()
        if self.config.source == "argilla" and not (self.config.dataset or "").strip():
            raise ConfigError("label.dataset is not set: name Argilla's dataset")
        self.gold = gold
        self.simulated = simulate or self.config.source == "simulated"
        self.inputs = () if self.config.source == "file" else ("candidates",)

    def in_round(self, number: int) -> Self:
        if number > 1:
            self.inputs = ("candidates", "pairs", "comparisons")
        return super().in_round(number)

    def parts(self) -> dict[str, Any]:
        if self.config.source == "file":
            data = self.data
            return {
                "comparisons": data.comparisons,
                "layout": data.layout,
                "bad_rows": data.bad_rows,
                "limit": data.limit,
            }
        config = self.config
        parts: dict[str, Any] = {"pairs_per_prompt": self.config.pairs_per_prompt}
        if self.simulated:
            parts |= {
                "annotators": config.annotators,
                "gold": FunctionGrader(self._gold()).fingerprint(),
            }
        if config.source == "argilla":
            parts |= {"place": [place(config.home, config.url), config.workspace, config.dataset]}
            parts |= {"min_submitted": config.min_submitted}
        return parts

    def preflight(self) -> None:
        super().preflight()
        if self.simulated and not self.config.annotators:
            raise ConfigError(
                "label.annotators is empty: list at least one simulated annotator with a name and a"
                " noise"
            )
        names = [annotator.name for annotator in self.config.annotators]
        if self.simulated and (
            twice := next((name for name in names if names.count(name) > 1), None)
        ):
            raise ConfigError(
                f"label.annotators: two are called '{twice}', and their votes would count as one"
                " person's: give each a name of its own"
            )
        if self.config.source != "argilla":
            return
        if self.config.guidelines:
            read_guidelines(self.config.guidelines)
        try:
            connect(self.config).check(self.config.workspace)
        except (
            Unreachable
        ) as error:  # SFT and sampling need no server, and a finished round needs none any more
            say(f"labels: {error}. It is needed when the run gets to them", "yellow")

    def _gold(self) -> str:
        if self.gold is None:
            raise ConfigError(
                "simulated annotators vote by a gold scorer, and gold is not set: name one as"
                " file.py:function, or take label.source: file or argilla"
            )
        return self.gold

    def build(self, work: Work, inputs: dict[str, Artifact]) -> dict[str, Any]:
        if self.config.source == "file":
            return self._from_file(work)
        pairs, gold = self._pairs(work, inputs)
        unlabelled: dict[str, Any] = {}
        if self.config.source == "argilla":
            if not self.simulated:
                # people take their time, and the GPU need not wait with them
                work.runtime.release()
            pairs, unlabelled = self._through_argilla(pairs)
        comparisons = list(pairs)
        if self.round > 1:
            before = read_rows(inputs["comparisons"] / "comparisons.jsonl")
            comparisons = [from_dict(Comparison, row) for row in before] + comparisons
        write_jsonl(work.folder / "comparisons.jsonl", comparisons)
        metrics = {
            "annotators": self._people(comparisons, gold),
            **unlabelled,
            **_agreement(collect(comparisons)),
        }
        if self.round > 1:
            metrics["of_this_round"] = len(pairs)
        return self._counted(len(comparisons), sum(len(c.votes) for c in comparisons), metrics)

    def _pairs(
        self, work: Work, inputs: dict[str, Artifact]
    ) -> tuple[list[Comparison], Gold | None]:
        """The round's pairs, with the votes of simulated annotators where there are such, and the
        scores that they voted by.
        """
        annotators, gold = (
            (self.config.annotators, Gold(self._gold())) if self.simulated else ([], None)
        )
        pairs: list[Comparison] = []
        for row in read_rows(inputs["candidates"] / "candidates.jsonl"):
            responses = [from_dict(Response, r) for r in row.pop("responses")]
            prompt = from_dict(Prompt, row)
            kept = [r for r in responses if r.text.strip()]
            scores = gold.add(prompt, kept) if gold else {}
            if self.round == 1:
                pairs += simulate(
                    prompt,
                    kept,
                    scores,
                    annotators,
                    self.config.pairs_per_prompt,
                    work.runtime.seed,
                )
        if self.round > 1:
            pairs = [
                from_dict(Comparison, row) for row in read_rows(inputs["pairs"] / "pairs.jsonl")
            ]
            if gold:
                pairs = [cast(pair, gold.of(pair), annotators, work.runtime.seed) for pair in pairs]
        elif (
            self.config.source == "argilla"
        ):  # equal candidates make equal pairs; people are asked once
            pairs = list({content_of(pair): named(pair) for pair in pairs}.values())
        if not pairs:
            raise DataError(
                "no prompt has two different non-empty candidates to compare: sample more, or at a"
                " higher temperature"
            )
        return pairs, gold

    def _through_argilla(self, pairs: list[Comparison]) -> tuple[list[Comparison], dict[str, Any]]:
        simulated = {
            annotator.name: {
                pair.id: vote
                for pair in pairs
                for vote in pair.votes
                if vote.annotator == annotator.name
            }
            for annotator in (self.config.annotators if self.simulated else [])
        }
        found = collect_round(self.config, str(self.config.dataset), pairs, simulated)
        counts = {
            "unlabelled": found.unlabelled,
            "drafts": found.drafts,
            "discards": found.discards,
            "refused": found.refused,
            "votes_of_others": found.others,
        }
        said = ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in counts.items() if n)
        if said:
            say(f"  left out: {said}", "yellow")
        return found.comparisons, counts

    def _people(self, pairs: list[Comparison], gold: Gold | None) -> list[dict[str, Any]]:
        """Who voted, how often, and for simulated annotators how often as the gold scorer would."""
        votes: Counter[str] = Counter()
        agreed: dict[str, list[bool]] = defaultdict(list)
        for pair in pairs:
            votes.update(vote.annotator for vote in pair.votes)
            first, second = gold.of(pair) if gold else (0.0, 0.0)
            for vote in pair.votes:
                if first != second and vote.choice != "tie":
                    agreed[vote.annotator].append((vote.choice == 0) == (first > second))
        noise = {a.name: a.noise for a in self.config.annotators} if self.simulated else {}
        return [
            {
                "name": name,
                "simulated": name in noise,
                "noise": noise.get(name),
                "agreement_with_gold": (
                    sum(agreed[name]) / len(agreed[name]) if agreed[name] else None
                ),
                "votes": votes[name],
            }
            for name in dict.fromkeys((*noise, *sorted(votes)))
        ]

    def _counted(self, comparisons: int, votes: int, metrics: dict[str, Any]) -> dict[str, Any]:
        pairs = counted(comparisons, "comparison")
        thumbs = metrics.get("thumbs")
        say(
            f"  {counted(thumbs, 'thumb')}, which form {pairs}"
            if thumbs
            else f"  {pairs} with {counted(votes, 'vote')}"
        )
        return {"comparisons": comparisons, "votes": votes, **metrics}

    def _from_file(self, work: Work) -> dict[str, Any]:
        """Copy row by row: the file may hold more than memory does. A file of thumbs is kept as
        thumbs too, for KTO.
        """
        path = self.data.comparisons
        if path is None:
            raise ConfigError(
                "label.source is 'file' but data.comparisons is not set: name a file of labelled"
                " pairs"
            )
        options: dict[str, Any] = {
            "layout": self.data.layout,
            "bad_rows": self.data.bad_rows,
            "quarantine_dir": work.folder,
            "limit": self.data.limit,
        }
        votes: Counter[str] = Counter()
        voted = 0

        def keep(record: Comparison | Rating) -> bool:
            nonlocal voted
            voted += bool(record.votes)
            votes.update(vote.annotator for vote in record.votes)
            return bool(record.votes)

        thumbs = 0
        if holds(Rating, path, self.data.layout):
            loaded: Any = copy_records(
                Rating, path, work.folder / "ratings.jsonl", keep=keep, **options
            )
            thumbs, people, voted = voted, votes, 0
            votes = Counter()
            try:
                copy_records(
                    Comparison, path, work.folder / "comparisons.jsonl", keep=keep, **options
                )
            except (
                DataError
            ):  # no prompt has thumbs of both kinds: fine for KTO, and what needs pairs will say so
                (work.folder / "comparisons.jsonl").touch()
            votes = people
        else:
            loaded = copy_records(
                Comparison, path, work.folder / "comparisons.jsonl", keep=keep, **options
            )
        say(f"  {loaded.describe()}")
        if not voted and not thumbs:
            raise DataError(
                f"'{path}': none of {loaded.count} records has a vote: label some first"
            )
        listed = [
            {
                "name": name,
                "simulated": False,
                "noise": None,
                "agreement_with_gold": None,
                "votes": n,
            }
            for name, n in sorted(votes.items())
        ]
        if thumbs:
            cast = collect_thumbs(
                from_dict(Rating, row) for row in read_rows(work.folder / "ratings.jsonl")
            )
        else:
            cast = collect(
                from_dict(Comparison, row) for row in read_rows(work.folder / "comparisons.jsonl")
            )
        metrics = {
            **_agreement(cast),
            "annotators": listed,
            "unlabelled": loaded.count - (thumbs or voted),
            "thumbs": thumbs,
            "bad_rows": self.data.bad_rows,
        }
        return self._counted(voted, votes.total(), metrics)


class Gold:
    """Scores of the candidates by the disclosed scorer, looked up by prompt and response."""

    def __init__(self, spec: str) -> None:
        self.grader = FunctionGrader(spec)
        self.scores: dict[tuple[str, str], float] = {}

    def add(self, prompt: Prompt, responses: list[Response]) -> dict[int, float]:
        """Score a prompt's responses; by their position."""
        scores = {i: self.grader.grade(prompt, r) for i, r in enumerate(responses)}
        self.scores |= {
            (prompt_key(prompt.prompt), json.dumps(same_as(r))): scores[i]
            for i, r in enumerate(responses)
        }
        return scores

    def of(self, pair: Comparison) -> tuple[float, float]:
        """The scores of a pair's two responses; of a pair of another round, whose responses were
        not added, 0 and 0.
        """
        first, second = (
            self.scores.get((prompt_key(pair.prompt), json.dumps(same_as(r))))
            for r in pair.responses
        )
        return (0.0, 0.0) if first is None or second is None else (first, second)


def _agreement(votes: Votes) -> dict[str, Any]:
    """What annotators can be compared on; nothing for a file's own choices alone."""
    if all(name.startswith(FILE) for name in votes.annotators):
        return {}
    found = measure(votes)
    if found.alpha.items:
        say(f"  {alpha_line(found)}")
    return {"agreement": found.to_dict()}
