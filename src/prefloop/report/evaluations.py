"""The fields of ``bench.json`` and ``reward-eval.json`` that a report reads."""

from collections.abc import Collection
from typing import Annotated, Any, Self

from pydantic import Field

from prefloop.report.schema import Estimate, Number, Record, Text, or_empty


class Score(Record):
    """One benchmark number."""

    value: Number = None
    stderr: Number = None
    n: int | None = None

    @property
    def estimate(self) -> Estimate:
        """The number with its 95 % interval, 1.96 standard errors to each side."""
        if self.value is None or self.stderr is None:
            return Estimate(self.value)
        return Estimate(
            self.value, self.value - 1.96 * self.stderr, self.value + 1.96 * self.stderr
        )


class MetricScores(Record):
    """One metric of a task over the adapters."""

    metric: Text = ""
    higher_is_better: bool | None = True
    adapters: Annotated[dict[str, Score], or_empty(dict)] = Field(default_factory=dict)
    difference: Annotated[dict[str, Score], or_empty(dict)] = Field(default_factory=dict)


class Task(MetricScores):
    """One benchmark task: its main metric, and the others."""

    more: Annotated[list[MetricScores], or_empty(list)] = Field(default_factory=list)

    @property
    def rows(self) -> list[MetricScores]:
        """All metrics, the main one first."""
        return [self, *self.more]


class BenchFile(Record):
    """``bench.json``: the benchmark before and after training."""

    tasks: Annotated[dict[str, Task], or_empty(dict)] = Field(default_factory=dict)
    settings: Annotated[dict[str, Any], or_empty(dict)] = Field(default_factory=dict)
    adapters: Annotated[dict[str, Text], or_empty(dict)] = Field(default_factory=dict)
    """Slot → key of the adapter that was measured."""

    def without(self, slots: Collection[str]) -> Self:
        """The same but for some adapters; no differences where the one they are taken to is among
        them.
        """
        reference = self.settings.get("reference") in slots

        def kept(found: MetricScores) -> dict[str, Any]:
            mine = {slot: score for slot, score in found.adapters.items() if slot not in slots}
            changes = {
                slot: score
                for slot, score in found.difference.items()
                if slot not in slots and not reference
            }
            return {"adapters": mine, "difference": changes}

        tasks = {
            name: task.model_copy(
                update=kept(task)
                | {"more": [row.model_copy(update=kept(row)) for row in task.more]}
            )
            for name, task in self.tasks.items()
        }
        return self.model_copy(update={"tasks": tasks})


class Bin(Record):
    """Pairs to which the reward model gives about the same probability: mean probability, share
    right, how many.
    """

    p: Number = None
    share: Number = None
    n: int | None = None


class PairTest(Record):
    """The reward model on one file of labelled pairs."""

    reward: Text = ""
    """Key of the reward model that was measured."""
    pairs: int | None = None
    accuracy: Number = None
    accuracy_ci: Annotated[list[Number], or_empty(list)] = Field(default_factory=list)
    loss: Number = None
    ece: Number = None
    ece_raw: Number = None
    length: Annotated[dict[str, Any], or_empty(dict)] = Field(default_factory=dict)
    bins: Annotated[list[Bin], or_empty(list)] = Field(default_factory=list)
    subsets: Annotated[dict[str, Any], or_empty(dict)] = Field(default_factory=dict)
    overlap: Annotated[dict[str, Any], or_empty(dict)] = Field(default_factory=dict)
    """What ``data.overlap`` found of the file's prompts in the training set."""

    @property
    def right(self) -> Estimate:
        """Accuracy with its interval."""
        return (
            Estimate(self.accuracy, *self.accuracy_ci[:2])
            if len(self.accuracy_ci) >= 2
            else Estimate(self.accuracy)
        )
