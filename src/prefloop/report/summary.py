"""``summary.json``: a finished run in one file, as the pipeline writes it and a report reads it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic.dataclasses import dataclass

from prefloop.artifacts.codec import FILE, Number, Stored
from prefloop.artifacts.labels import Annotator
from prefloop.artifacts.results import (
    JUDGE,
    REWARD,
    AtEqualLength,
    Evaluation,
    Matrix,
    PolicyResult,
)
from prefloop.evaluation.standing import REWARD_MODEL, unproven

E = TypeVar("E", bound=Evaluation)


@dataclass(frozen=True, config=FILE)
class StageRun(Stored):
    """What one stage cost and measured."""

    name: str
    key: str = ""
    status: str = "ran"
    """ran, resumed or reused."""
    seconds: Number = None
    saved_seconds: Number = None
    """What a reused artifact took when it was built."""
    metrics: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What the stage returned, but for the parts that the summary holds itself."""


@dataclass(frozen=True, config=FILE)
class RewardModelFigures(Stored):
    """How good the reward model is on held-out pairs."""

    accuracy: Number = None
    accuracy_low: Number = None
    accuracy_high: Number = None
    loss: Number = None
    train_accuracy: Number = None
    held_out_pairs: int | None = None
    pearson_gold: Number = None


@dataclass(frozen=True, config=FILE)
class Environment(Stored):
    """Where the run happened."""

    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    device: str = ""
    python: str = ""
    commit: str = ""
    platform: str = ""


@dataclass(frozen=True, config=FILE)
class Summary(Evaluation):
    """A run: its stages, and the parts of its evaluation."""

    run: str = ""
    algo: str = ""
    model: str = ""
    precision: str = ""
    adapter: str = ""
    """Method and rank, where it is not plain LoRA."""
    started: str = ""
    seconds: Number = None
    command: str = ""
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Every setting, without secrets."""
    stages: list[StageRun] = dataclasses.field(default_factory=list)
    annotators: list[Annotator] = dataclasses.field(default_factory=list)
    reward_model: RewardModelFigures = RewardModelFigures()
    disclosure: list[str] = dataclasses.field(default_factory=list)
    environment: Environment = Environment()
    unquoted: str = ""
    """Why the verdicts of a reward model are left out, as sentences; set by ``quoted``."""


def quoted(summary: Summary) -> Summary:
    """The summary without the verdicts of a reward model at chance; ``unquoted`` says why."""
    kept, why = quotable(summary, dataclasses.asdict(summary.reward_model))
    return dataclasses.replace(kept, unquoted=why)


def quotable(evaluation: E, reward: Mapping[str, Any]) -> tuple[E, str]:
    """A comparison without the verdicts of an unproven reward model, and why they are left out.

    That is the run's own, whose metrics are ``reward``, and one that ``evaluate.judge`` asks.
    """
    asked = evaluation.judging
    reasons = []
    for judge, name, why in (
        (REWARD, REWARD_MODEL, unproven(reward)),
        (JUDGE, asked.judge, asked.unproven),
    ):
        if not why:
            continue
        shown = name if judge == REWARD else f"judge {name}"
        reasons.append(f"The {shown} {why}: its verdicts name no winner, and are not shown.")
        evaluation = dataclasses.replace(
            evaluation,
            results={n: _without(row, judge, name) for n, row in evaluation.results.items()},
            control={n: win for n, win in evaluation.control.items() if n != judge},
            matrix=Matrix() if evaluation.matrix.judge == name else evaluation.matrix,
        )
    return evaluation, " ".join(reasons)


def _without(row: PolicyResult, judge: str, name: str) -> PolicyResult:
    row = dataclasses.replace(row, wins={n: win for n, win in row.wins.items() if n != judge})
    if judge == JUDGE:
        row = dataclasses.replace(row, disagreement=None)
    if row.at_equal_length.judge == name:
        row = dataclasses.replace(row, at_equal_length=AtEqualLength(), sign_test_p=None)
    return row
