"""A reward model on a file of labeled pairs, human judgments, or several responses of which some
are good.

The result is JSON (``reward-eval.json`` holds one result for each file). Pairs::

    {kind: "pairs", layout, pairs, truncated, too_long, equal, accuracy, accuracy_ci, loss, loss_ci,
    ece, ece_raw, bins: [{p, share, n}],
     length: {"always the longer", "preferred response is": {...}}, agreement, agreement_ci, longer,
     longer_ci, people, people_ci, member_spread, subsets: {name: the same}, sections: {name:
     accuracy}}

``agreement`` is how often the model's choice is that of one person drawn from those who voted.
``longer`` is the same for always taking the longer response, ``people`` for a second person who
voted (``None`` without two votes on a pair). A tie counts as a coin flip. Best of n::

    {kind: "best_of", layout, prompts, truncated, too_long, accuracy, accuracy_ci, separated,
    separated_ci, longest, random,
     subsets: {name: the same}}

``accuracy``: the response with the highest score is a good one. ``separated``: every good response
is above every other one, which is how RewardBench 2 (Malik et al. 2025) counts prompts with several
good answers. Equal scores share the point.

``subsets`` are the values of ``subset``, ``category`` or ``source`` in the rows, ``sections`` those
of RewardBench.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prefloop.artifacts.manifest import MANIFEST, read_manifest
from prefloop.base.console import counted, listed
from prefloop.base.jsonl import read_rows, write_rows
from prefloop.data.encode import Encoder
from prefloop.data.groups import Groups, write_groups
from prefloop.data.packing import Document, document_of
from prefloop.data.quarantine import TOO_LONG, Unusable
from prefloop.data.source import Source
from prefloop.data.sources import copy_records, holds
from prefloop.errors import DataError
from prefloop.evaluation.reward_metrics import PairMetrics, interval, pairwise
from prefloop.evaluation.rewardbench import sections
from prefloop.labeling.aggregation import aggregation
from prefloop.labeling.scoring import reward_folder
from prefloop.models.reward_model import Reward
from prefloop.records import BestOf, Comparison, from_dict, prompt_key

_WAY = "reward eval --quarantine FOLDER, data.bad_rows: quarantine"
CATEGORIES = ("subset", "category", "source")
MOST_SUBSETS = 200


@dataclasses.dataclass(frozen=True)
class FileReading:
    """How a file is read, and the folders for its rows meanwhile."""

    scratch: Path
    """Folder for tokenized rows, which the caller removes."""
    quarantine: Path
    """Folder for rows that cannot be used."""
    layout: str = "auto"
    bad_rows: str = "error"
    limit: int | None = None
    by: str | None = None
    """Field that names the subsets; detected by default."""
    left_out: frozenset[str] = frozenset()
    """Ids of records to leave out."""

    def unusable(self, path: Source, part: int = 0) -> Unusable:
        """Where rows that the model cannot take go."""
        name = f"{part}-{path.file_name}.{TOO_LONG}.jsonl"
        return Unusable(self.quarantine / name if self.bad_rows == "quarantine" else None, way=_WAY)


def evaluate_file(reward: Reward, path: Source | Path, reading: FileReading) -> dict[str, Any]:
    """Measure a reward model on one file. Raises ``DataError`` when nothing in it can be used."""
    path = Source.of(path)
    kind = BestOf if holds(BestOf, path, reading.layout) else Comparison
    parts, layout = _split(kind, path, reading)
    measure = _best_of if kind is BestOf else _pairs
    return {
        "kind": "best_of" if kind is BestOf else "pairs",
        "layout": layout,
        **measure(reward, path, reading, parts),
    }


def _split(kind: Any, path: Source, reading: FileReading) -> tuple[dict[str, Path], str]:
    """A file of checked records for each subset. Without subsets, or with too many of them, one
    file called ''.
    """
    reading.scratch.mkdir(parents=True, exist_ok=True)
    whole = reading.scratch / "records.jsonl"
    checked = copy_records(
        kind,
        path,
        whole,
        layout=reading.layout,
        bad_rows=reading.bad_rows,
        quarantine_dir=reading.quarantine,
        limit=reading.limit,
        keep=lambda record: record.id not in reading.left_out,
    )
    if next(iter(read_rows(whole)), None) is None:
        raise DataError(f"'{path}': every row is left out: all prompts are in the training set")
    key = _category(whole, reading.by)
    if key is None:
        return {"": whole}, checked.layout
    parts: dict[str, Path] = {}
    names = list(dict.fromkeys(str(row["meta"].get(key, "none")) for row in read_rows(whole)))
    for number, name in enumerate(names):
        parts[name] = reading.scratch / f"part-{number}.jsonl"
        write_rows(
            parts[name],
            (row for row in read_rows(whole) if str(row["meta"].get(key, "none")) == name),
        )
    return parts, checked.layout


def _category(records: Path, by: str | None) -> str | None:
    first = next(iter(read_rows(records)))["meta"]
    if by is not None and by not in first:
        raise DataError(
            f"no field '{by}' to tell subsets by (the rows have"
            f" {listed(first) or 'no other fields'})"
        )
    for key in [by] if by else [key for key in CATEGORIES if key in first]:
        values = {str(row["meta"].get(key, "none")) for row in read_rows(records)}
        if by or 1 < len(values) <= MOST_SUBSETS:
            return key
    return None


def _pairs(
    reward: Reward, path: Source, reading: FileReading, parts: Mapping[str, Path]
) -> dict[str, Any]:
    backbone, raw = reward.backbone, 1 / float(torch.stack([h.std for h in reward.heads]).mean())
    encoder = Encoder(backbone.chat, backbone.config.max_length)
    metrics: dict[str, PairMetrics] = {}
    votes: dict[str, dict[str, list[float]]] = {}
    spreads: list[float] = []
    too_long = equal = 0
    problem: DataError | None = None
    for number, (name, part) in enumerate(parts.items()):
        unusable = reading.unusable(path, number)
        try:
            target, labels = reading.scratch / f"{number}.arrow", aggregation("share")
            groups = write_groups(part, target, encoder, labels, unusable=unusable)
        except DataError as error:
            if reading.bad_rows != "quarantine":
                raise DataError(f"{path.name}: {error}") from None
            problem = error  # the other subsets may have shorter prompts
        else:
            scores = _score(reward, groups, f"{path.name} {name}".strip())
            metrics[name] = pairwise(groups, scores)
            spreads += [float(np.std(s)) for s in scores.values()]
            votes[name] = _between_people(part)
            equal += groups.left_out.equal
        too_long += unusable.count
    if not metrics:
        assert problem is not None
        raise problem
    everyone = {
        f"{name}/{prompt}": values
        for name, by_prompt in votes.items()
        for prompt, values in by_prompt.items()
    }
    out = _measured(PairMetrics.join(list(metrics.values())), everyone, reward.temperature, raw)
    out |= {"truncated": encoder.cut, "too_long": too_long, "equal": equal}
    out["member_spread"] = float(np.mean(spreads)) if len(reward.heads) > 1 else None
    if "" not in metrics:
        out["subsets"] = {
            name: _measured(p, votes[name], reward.temperature, raw) for name, p in metrics.items()
        }
        if averages := sections(
            {name: (s["accuracy"], s["pairs"]) for name, s in out["subsets"].items()}
        ):
            out["sections"] = averages
    return out


def _score(reward: Reward, groups: Groups, what: str) -> dict[int, list[float]]:
    responses = groups[len(groups) - 1].document.keys[-1] + 1
    return reward.score((g.document for g in groups), what, responses)


def _measured(
    pairs: PairMetrics, votes: Mapping[str, Sequence[float]], temperature: float, raw: float
) -> dict[str, Any]:
    out = pairs.measured(temperature, raw)
    for name, lead_P in (("agreement", pairs.margin_P), ("longer", pairs.length_P)):
        choice_P = (lead_P.sign() + 1) / 2
        agreed_P = choice_P * pairs.label_P + (1 - choice_P) * (1 - pairs.label_P)
        out |= interval(name, agreed_P.tolist(), pairs.prompts)
    flat = [(prompt, value) for prompt, values in votes.items() for value in values]
    return out | interval("people", [value for _, value in flat], [prompt for prompt, _ in flat])


def _between_people(records: Path) -> dict[str, list[float]]:
    """By prompt: for each pair with two votes or more, how often two different voters agree, with a
    tie as a coin flip.
    """
    out: dict[str, list[float]] = {}
    for row in read_rows(records):
        record = from_dict(Comparison, row)
        for_first = [0.5 if v.choice == "tie" else float(v.choice == 0) for v in record.votes]
        both = [a * b + (1 - a) * (1 - b) for a, b in itertools.combinations(for_first, 2)]
        if both:
            out.setdefault(prompt_key(record.prompt), []).append(float(np.mean(both)))
    return out


@dataclasses.dataclass
class _Choices:
    """For each prompt: whether the response with the highest score is good, whether all good ones
    are above the others, whether the longest is good, and the share of good ones.
    """

    right: list[float] = dataclasses.field(default_factory=list)
    separated: list[float] = dataclasses.field(default_factory=list)
    longest: list[float] = dataclasses.field(default_factory=list)
    random: list[float] = dataclasses.field(default_factory=list)
    prompts: list[str] = dataclasses.field(default_factory=list)

    def add(
        self, prompt: str, scores: Sequence[float], sizes: Sequence[int], best: Sequence[int]
    ) -> None:
        self.prompts.append(prompt)
        self.right.append(_share_good(scores, best))
        self.longest.append(_share_good(sizes, best))
        self.random.append(len(set(best)) / len(scores))
        lowest_good = min(scores[i] for i in best)
        highest_other = max(s for i, s in enumerate(scores) if i not in best)
        self.separated.append(
            0.5 if lowest_good == highest_other else float(lowest_good > highest_other)
        )

    def measured(self) -> dict[str, Any]:
        return {
            "prompts": len(self.prompts),
            **interval("accuracy", self.right, self.prompts),
            **interval("separated", self.separated, self.prompts),
            **interval("longest", self.longest, self.prompts),
            "random": float(np.mean(self.random)),
        }


def _share_good(values: Sequence[float], best: Sequence[int]) -> float:
    """Share of good responses among those with the highest value."""
    top = [i for i, value in enumerate(values) if value == max(values)]
    return sum(i in best for i in top) / len(top)


def _best_of(
    reward: Reward, path: Source, reading: FileReading, parts: Mapping[str, Path]
) -> dict[str, Any]:
    backbone = reward.backbone
    encoder = Encoder(backbone.chat, backbone.config.max_length)
    by_subset: dict[str, _Choices] = {}
    unusable, read = reading.unusable(path), 0
    for name, part in parts.items():
        kept: list[tuple[str, list[int], list[int], int]] = []

        def documents(part: Path = part, kept: list[Any] = kept) -> Iterator[Document]:
            nonlocal read
            key = 0
            for row in read_rows(part):
                read += 1
                record = from_dict(BestOf, row)
                try:
                    prompt_ids = encoder.prompt(record.id, record.prompt)
                    answers = [
                        encoder.response(record.id, record.prompt, r, len(prompt_ids))
                        for r in record.responses
                    ]
                except DataError as error:
                    unusable.add([record.id], error)
                    continue
                kept.append(
                    (
                        prompt_key(record.prompt),
                        [len(answer.ids) for answer in answers],
                        record.best,
                        key,
                    )
                )
                yield document_of(prompt_ids, answers, key)
                key += len(answers)

        scores = reward.score(documents(), f"{path.name} {name}".strip())
        choices = _Choices()
        for prompt, sizes, best, key in kept:
            choices.add(
                prompt, [float(np.mean(scores[key + i])) for i in range(len(sizes))], sizes, best
            )
        if kept:
            by_subset[name] = choices
    try:
        unusable.settle(read)
    except DataError as error:
        raise DataError(f"{path.name}: {error}") from None
    if not by_subset:
        raise DataError(
            f"{path.name}: none of {counted(read, 'row')} can be used, the first: {unusable.first}"
        )
    whole = _Choices(
        *(
            [v for c in by_subset.values() for v in getattr(c, f.name)]
            for f in dataclasses.fields(_Choices)
        )
    )
    out = whole.measured() | {"truncated": encoder.cut, "too_long": unusable.count}
    if "" not in by_subset:
        out["subsets"] = {name: choices.measured() for name, choices in by_subset.items()}
    return out


def training_prompts(place: Path) -> Iterator[Comparison] | None:
    """The comparisons that the reward model of a run (or the artifact) was trained on, for
    ``data.overlap``; ``None`` when the store no longer holds them.
    """
    folder = reward_folder(place)
    if not (folder / MANIFEST).is_file():
        return None  # an exported model
    key = read_manifest(folder, required=False).inputs.get("comparisons", "none")
    files = sorted(folder.parent.glob(f"*-{key[:16]}/comparisons.jsonl"))
    return (from_dict(Comparison, row) for row in read_rows(files[0])) if files else None
