"""Votes on pairs: simulated annotators on sampled candidates, or a file of comparisons."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from prefloop.config import DataConfig, LabelConfig
from prefloop.console import say
from prefloop.data.sources import load_comparisons, write_jsonl
from prefloop.errors import ConfigError, DataError
from prefloop.judging.judges import FunctionGrader
from prefloop.labels.simulated import simulate
from prefloop.records import Comparison, Prompt, Response, from_dict
from prefloop.stage import Stage, Work
from prefloop.store import Artifact, read_rows


class Label(Stage):
    """Candidates or a file → ``comparisons.jsonl`` with raw votes. Produces ``comparisons``."""

    name = "label"
    produces = "comparisons"

    def __init__(
        self, config: LabelConfig | None = None, data: DataConfig | None = None, gold: str | None = None
    ) -> None:
        self.config = config or LabelConfig()
        self.data = data or DataConfig()
        self.gold = gold
        self.inputs = ("candidates",) if self.config.source == "simulated" else ()

    def parts(self) -> dict[str, Any]:
        if self.config.source == "file":
            data = self.data
            return {
                "comparisons": data.comparisons,
                "layout": data.layout,
                "bad_rows": data.bad_rows,
                "limit": data.limit,
            }
        return {"config": self.config, "gold": FunctionGrader(self._gold()).fingerprint()}

    def _gold(self) -> str:
        if self.gold is None:
            raise ConfigError(
                "label.source is 'simulated' but gold is not set: name a scorer as file.py:function, or set label.source: file"
            )
        return self.gold

    def build(self, work: Work, inputs: dict[str, Artifact]) -> dict[str, Any]:
        comparisons, metrics = (
            self._from_file(work) if self.config.source == "file" else self._simulated(work, inputs["candidates"])
        )
        write_jsonl(work.folder / "comparisons.jsonl", comparisons)
        votes = sum(len(c.votes) for c in comparisons)
        say(f"  {len(comparisons)} comparisons with {votes} votes")
        return {"comparisons": len(comparisons), "votes": votes, **metrics}

    def _from_file(self, work: Work) -> tuple[list[Comparison], dict[str, Any]]:
        if self.data.comparisons is None:
            raise ConfigError("label.source is 'file' but data.comparisons is not set: name a file of labelled pairs")
        loaded = load_comparisons(
            self.data.comparisons,
            layout=self.data.layout,
            bad_rows=self.data.bad_rows,
            quarantine_dir=work.folder,
            limit=self.data.limit,
        )
        say(f"  {loaded.describe()}")
        voted = [c for c in loaded.records if c.votes]
        if not voted:
            raise DataError(
                f"'{self.data.comparisons}': none of {len(loaded.records)} comparisons has a vote: label some first"
            )
        votes: dict[str, int] = defaultdict(int)
        for comparison in voted:
            for vote in comparison.votes:
                votes[vote.annotator] += 1
        people = [
            {"name": name, "simulated": False, "noise": None, "agreement_with_gold": None, "votes": n}
            for name, n in sorted(votes.items())
        ]
        return voted, {"annotators": people, "unlabelled": len(loaded.records) - len(voted)}

    def _simulated(self, work: Work, candidates: Artifact) -> tuple[list[Comparison], dict[str, Any]]:
        if not self.config.annotators:
            raise ConfigError(
                "label.annotators is empty: list at least one simulated annotator with a name and a noise"
            )
        gold = FunctionGrader(self._gold())
        comparisons: list[Comparison] = []
        agreed: dict[str, list[bool]] = defaultdict(list)
        for row in read_rows(candidates / "candidates.jsonl"):
            responses = [from_dict(Response, r) for r in row.pop("responses")]
            prompt = from_dict(Prompt, row)
            kept = [r for r in responses if r.text.strip()]
            scores = {i: gold.grade(prompt, r.text) for i, r in enumerate(kept)}
            by_text = {r.text: scores[i] for i, r in enumerate(kept)}
            for comparison in simulate(
                prompt, kept, scores, self.config.annotators, self.config.pairs_per_prompt, work.runtime.seed
            ):
                comparisons.append(comparison)
                first, second = (by_text[r.text] for r in comparison.responses)
                for vote in comparison.votes:
                    if first != second:
                        agreed[vote.annotator].append((vote.choice == 0) == (first > second))
        if not comparisons:
            raise DataError(
                "no prompt has two different non-empty candidates to compare: sample more, or at a higher temperature"
            )
        people = [
            {
                "name": a.name,
                "simulated": True,
                "noise": a.noise,
                "agreement_with_gold": sum(agreed[a.name]) / max(1, len(agreed[a.name])),
                "votes": len(comparisons),
            }
            for a in self.config.annotators
        ]
        return comparisons, {"annotators": people}
