"""The fields of ``bench.json`` and ``reward-eval.json`` that a report reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any, Self, TypeVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from prefloop.artifacts.codec import FILE, Number, Stored
from prefloop.artifacts.results import Estimate
from prefloop.data.overlap import Match


@dataclass(frozen=True, config=FILE)
class Score(Stored):
    """One benchmark number."""

    value: Number = None
    stderr: Number = None
    n: int | None = None


@dataclass(frozen=True, config=FILE)
class MetricScores(Stored):
    """One metric of a task over the adapters."""

    metric: str = ""
    higher_is_better: bool | None = True
    adapters: dict[str, Score] = dataclasses.field(default_factory=dict)
    difference: dict[str, Score] = dataclasses.field(default_factory=dict)


M = TypeVar("M", bound=MetricScores)


@dataclass(frozen=True, config=FILE)
class Task(MetricScores):
    """One benchmark task: its main metric, and the others."""

    more: list[MetricScores] = dataclasses.field(default_factory=list)

    @property
    def rows(self) -> list[MetricScores]:
        """All metrics, the main one first."""
        return [self, *self.more]


@dataclass(frozen=True, config=FILE)
class BenchFile(Stored):
    """``bench.json``: the benchmark before and after training."""

    tasks: dict[str, Task] = dataclasses.field(default_factory=dict)
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    adapters: dict[str, str] = dataclasses.field(default_factory=dict)
    """Slot → key of the adapter that was measured."""

    def without(self, slots: Collection[str]) -> Self:
        """The same but for some adapters; no differences where the one they are taken to is among
        them.
        """
        reference = self.settings.get("reference") in slots

        def kept(scores: dict[str, Score]) -> dict[str, Score]:
            return {slot: score for slot, score in scores.items() if slot not in slots}

        def without(row: M) -> M:
            difference = {} if reference else kept(row.difference)
            return dataclasses.replace(row, adapters=kept(row.adapters), difference=difference)

        tasks = {
            name: dataclasses.replace(without(task), more=[without(row) for row in task.more])
            for name, task in self.tasks.items()
        }
        return dataclasses.replace(self, tasks=tasks)


@dataclass(frozen=True, config=FILE)
class Bin(Stored):
    """Pairs to which the reward model gives about the same probability: mean probability, share
    right, how many.
    """

    p: Number = None
    share: Number = None
    n: int | None = None


@dataclass(frozen=True, config=FILE)
class LengthPart(Stored):
    """The pairs of one length difference."""

    pairs: int | None = None
    accuracy: Number = None


@dataclass(frozen=True, config=FILE)
class ByLength(Stored):
    """How much of the accuracy is length."""

    always_longer: Number = Field(default=None, alias="always the longer")
    """Accuracy of taking the longer response."""
    parts: dict[str, LengthPart] = Field(default_factory=dict, alias="preferred response is")


@dataclass(frozen=True, config=FILE)
class SeenInTraining(Stored):
    """The file's prompts that the training set holds (``data.overlap``)."""

    prompts: int | None = None
    distinct: int | None = None
    overlapping: int | None = None
    matches: list[Match] = dataclasses.field(default_factory=list)
    left_out: bool = False


@dataclass(frozen=True, config=FILE)
class PairTest(Stored):
    """The reward model on one file of labeled pairs."""

    reward: str = ""
    """Key of the reward model that was measured."""
    pairs: int | None = None
    accuracy: Number = None
    accuracy_ci: list[Number] = dataclasses.field(default_factory=list)
    loss: Number = None
    ece: Number = None
    ece_raw: Number = None
    length: ByLength = ByLength()
    bins: list[Bin] = dataclasses.field(default_factory=list)
    subsets: dict[str, PairTest] = dataclasses.field(default_factory=dict)
    overlap: SeenInTraining = SeenInTraining()

    @property
    def right(self) -> Estimate:
        """Accuracy with its interval."""
        return (
            Estimate(self.accuracy, *self.accuracy_ci[:2])
            if len(self.accuracy_ci) >= 2
            else Estimate(self.accuracy)
        )
