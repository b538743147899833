"""The fields of ``bench.json`` and ``reward-eval.json`` that a report reads."""

from typing import Annotated, Any

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
        return Estimate(self.value, self.value - 1.96 * self.stderr, self.value + 1.96 * self.stderr)


class Task(Record):
    """One benchmark task over the adapters."""

    metric: Text = ""
    higher_is_better: bool | None = True
    adapters: Annotated[dict[str, Score], or_empty(dict)] = Field(default_factory=dict)
    difference: Annotated[dict[str, Score], or_empty(dict)] = Field(default_factory=dict)


class Bench(Record):
    """``bench.json``: the benchmark before and after training."""

    tasks: Annotated[dict[str, Task], or_empty(dict)] = Field(default_factory=dict)
    settings: Annotated[dict[str, Any], or_empty(dict)] = Field(default_factory=dict)


class Bin(Record):
    """Pairs to which the reward model gives about the same probability: mean probability, share right, how many."""

    p: Number = None
    share: Number = None
    n: int | None = None


class PairTest(Record):
    """The reward model on one file of labelled pairs."""

    pairs: int | None = None
    accuracy: Number = None
    accuracy_ci: Annotated[list[Number], or_empty(list)] = Field(default_factory=list)
    loss: Number = None
    ece: Number = None
    ece_raw: Number = None
    length: Annotated[dict[str, Any], or_empty(dict)] = Field(default_factory=dict)
    bins: Annotated[list[Bin], or_empty(list)] = Field(default_factory=list)
    subsets: Annotated[dict[str, Any], or_empty(dict)] = Field(default_factory=dict)

    @property
    def right(self) -> Estimate:
        """Accuracy with its interval."""
        return Estimate(self.accuracy, *self.accuracy_ci[:2]) if len(self.accuracy_ci) >= 2 else Estimate(self.accuracy)
