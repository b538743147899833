"""Votes on pairs: simulated annotators on sampled candidates, or a file of comparisons."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from prefloop.config import DataConfig, LabelConfig
from prefloop.console import say
from prefloop.data.sources import copy_records, holds, write_jsonl
from prefloop.errors import ConfigError, DataError
from prefloop.judging.judges import FunctionGrader
from prefloop.labels.agreement import measure
from prefloop.labels.show import alpha_line
from prefloop.labels.simulated import simulate
from prefloop.labels.votes import FILE, Votes, collect, collect_thumbs
from prefloop.records import Comparison, Prompt, Rating, Response, from_dict
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
        if self.config.source == "file":
            return self._from_file(work)
        comparisons, metrics = self._simulated(work, inputs["candidates"])
        write_jsonl(work.folder / "comparisons.jsonl", comparisons)
        metrics |= _agreement(collect(comparisons))
        return self._counted(len(comparisons), sum(len(c.votes) for c in comparisons), metrics)

    def _counted(self, comparisons: int, votes: int, metrics: dict[str, Any]) -> dict[str, Any]:
        say(f"  {comparisons} comparisons with {votes} votes")
        return {"comparisons": comparisons, "votes": votes, **metrics}

    def _from_file(self, work: Work) -> dict[str, Any]:
        """Copy row by row: the file may hold more than memory does. A file of thumbs is kept as thumbs too, for KTO."""
        path = self.data.comparisons
        if path is None:
            raise ConfigError("label.source is 'file' but data.comparisons is not set: name a file of labelled pairs")
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
            loaded: Any = copy_records(Rating, path, work.folder / "ratings.jsonl", keep=keep, **options)
            thumbs, people, voted = voted, votes, 0
            votes = Counter()
            try:
                copy_records(Comparison, path, work.folder / "comparisons.jsonl", keep=keep, **options)
            except DataError:  # no prompt has thumbs of both kinds: fine for KTO, and what needs pairs will say so
                (work.folder / "comparisons.jsonl").touch()
            votes = people
        else:
            loaded = copy_records(Comparison, path, work.folder / "comparisons.jsonl", keep=keep, **options)
        say(f"  {loaded.describe()}")
        if not voted and not thumbs:
            raise DataError(f"'{path}': none of {loaded.count} records has a vote: label some first")
        listed = [
            {"name": name, "simulated": False, "noise": None, "agreement_with_gold": None, "votes": n}
            for name, n in sorted(votes.items())
        ]
        if thumbs:
            cast = collect_thumbs(from_dict(Rating, row) for row in read_rows(work.folder / "ratings.jsonl"))
        else:
            cast = collect(from_dict(Comparison, row) for row in read_rows(work.folder / "comparisons.jsonl"))
        metrics = {
            **_agreement(cast),
            "annotators": listed,
            "unlabelled": loaded.count - (thumbs or voted),
            "thumbs": thumbs,
            "bad_rows": self.data.bad_rows,
        }
        return self._counted(voted, votes.total(), metrics)

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


def _agreement(votes: Votes) -> dict[str, Any]:
    """What annotators can be compared on; nothing for a file's own choices alone."""
    if all(name.startswith(FILE) for name in votes.annotators):
        return {}
    found = measure(votes)
    if found.alpha.items:
        say(f"  {alpha_line(found)}")
    return {"agreement": found.to_dict()}
