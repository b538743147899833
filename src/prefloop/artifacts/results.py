"""What stages measure, as manifests and ``summary.json`` hold it; ``docs/results.md`` lists the
fields.

``artifacts.codec`` writes and reads it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from pydantic.dataclasses import dataclass

from prefloop.artifacts.codec import FILE, Number, Stored
from prefloop.artifacts.references import BASE
from prefloop.data.overlap import Match
from prefloop.records import SampledConversation

BASELINE = "sft"
"""The policy that all others are compared with."""
GOLD, JUDGE, REWARD = "gold", "judge", "reward"
"""Who compares: the gold scorer, the judge that ``evaluate.judge`` names, the run's reward
model.
"""
RESPONSES, SCORES = "responses.jsonl", "scores.jsonl"
"""Every response of one policy (``SampledPrompt``), and the gold scores of all of them
(``GoldScores``).
"""


@dataclass(frozen=True, config=FILE)
class Estimate(Stored):
    """A number with its 95 % interval; any part may be ``None``."""

    value: Number = None
    low: Number = None
    high: Number = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The interval, unless a bound is absent or it has no width (a number that is exact by
        definition).
        """
        return (
            None
            if self.low is None or self.high is None or self.low == self.high
            else (self.low, self.high)
        )

    @property
    def side_of_half(self) -> int | None:
        """For a win rate: +1 when the interval lies above 50 %, -1 below, 0 around it, ``None``
        without an interval.
        """
        if self.interval is None:
            return None
        low, high = self.interval
        return (low > 0.5) - (high < 0.5)


UNKNOWN = Estimate()


@dataclass(frozen=True, config=FILE)
class AtEqualLength(Stored):
    """The win rate against SFT with the judge's taste for length taken out (AlpacaEval 2)."""

    judge: str = ""
    win: Estimate = UNKNOWN
    unknown: str = ""
    """Why there is no rate; empty where there is one."""


@dataclass(frozen=True, config=FILE)
class PolicyResult(Stored):
    """One policy on the evaluation prompts."""

    n_prompts: int | None = None
    n_responses: int | None = None
    gold: Estimate = UNKNOWN
    """Mean gold score."""
    reward_mean: Number = None
    kl: Estimate = UNKNOWN
    """KL to the SFT model, nats a response."""
    wins: dict[str, Estimate] = dataclasses.field(default_factory=dict)
    """Win rate against SFT under ``gold``, ``judge`` and ``reward``; a rate of SFT itself has no
    interval.
    """
    judge: str = ""
    """The name of the judge that ``wins["judge"]`` is of."""
    disagreement: Number = None
    """Share of that judge's comparisons whose two orders disagreed."""
    failed: int | None = None
    """Comparisons without a verdict of that judge."""
    at_equal_length: AtEqualLength = AtEqualLength()
    sign_test_p: Number = None
    length_mean: Number = None
    """Words a response."""
    short_share: Number = None
    finished_share: Number = None

    def win(self, judge: str) -> Estimate:
        """Win rate against SFT under a judge: ``gold``, ``judge`` or ``reward``."""
        return self.wins.get(judge, UNKNOWN)


@dataclass(frozen=True, config=FILE)
class Matrix(Stored):
    """Win rates of every policy (row) against every other (column) under one judge, and Elo of more
    than two.
    """

    judge: str = ""
    policies: list[str] = dataclasses.field(default_factory=list)
    rate: list[list[Number]] = dataclasses.field(default_factory=list)
    low: list[list[Number]] = dataclasses.field(default_factory=list)
    high: list[list[Number]] = dataclasses.field(default_factory=list)
    elo: dict[str, Estimate] = dataclasses.field(default_factory=dict)

    def at(self, i: int, j: int) -> Estimate:
        """Win rate of policy ``i`` against policy ``j``; unknown where the table has no such
        cell.
        """
        return Estimate(*(_cell(table, i, j) for table in (self.rate, self.low, self.high)))

    def against_bare(self, policy: str) -> Estimate:
        """Win rate of a policy against the bare model; unknown where one of them is not in the
        table.
        """
        if policy == BASE or not {policy, BASE} <= set(self.policies):
            return UNKNOWN
        return self.at(self.policies.index(policy), self.policies.index(BASE))


def _cell(table: list[list[float | None]], i: int, j: int) -> float | None:
    return table[i][j] if i < len(table) and j < len(table[i]) else None


@dataclass(frozen=True, config=FILE)
class Used(Stored):
    """Requests to a judge, tokens, and what they cost."""

    requests: int | None = None
    retries: int | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost: Number = None
    unreported: int | None = None
    """Replies that did not say their tokens."""


@dataclass(frozen=True, config=FILE)
class Judging(Stored):
    """What asking the judge took and how it behaved."""

    judge: str = ""
    mode: str = ""
    used: Used = Used()
    """Of the process that finished the stage."""
    total: Used = Used()
    """Of all answers, those from the cache too: what a killed run paid for before."""
    asked: int | None = None
    cached: int | None = None
    failed: int | None = None
    unparsable: int | None = None
    position_bias: Estimate = UNKNOWN
    """Share of answers for the response shown first."""
    unproven: str = ""
    """Why a judge that is a reward model names no winner; empty where it may."""


@dataclass(frozen=True, config=FILE)
class Contamination(Stored):
    """Evaluation prompts that training has seen, and those that only share words with one that it
    has (``data.overlap``).
    """

    count: int = 0
    alike: int = 0
    examples: list[Match] = dataclasses.field(default_factory=list)


@dataclass(frozen=True, config=FILE)
class Evaluation(Stored):
    """All policies on the same prompts: what the stage ``judge`` measures."""

    results: dict[str, PolicyResult] = dataclasses.field(default_factory=dict)
    control: dict[str, Estimate] = dataclasses.field(default_factory=dict)
    """Win rate of SFT against fresh samples of itself, by judge: a sound one is near 50 %."""
    matrix: Matrix = Matrix()
    judging: Judging = Judging()
    contamination: Contamination = Contamination()
    samples: list[SampledConversation] = dataclasses.field(default_factory=list)
    """A few prompts with the first response of every policy."""
    pearson_gold: Number = None
    """Correlation of reward and gold over the SFT model's responses."""


@dataclass(frozen=True, config=FILE)
class GoldScores(Stored):
    """The gold scores of every response to one prompt, by policy."""

    id: str
    gold: Mapping[str, Sequence[Number]]


@dataclass(frozen=True, config=FILE)
class Responded(Stored):
    """The responses of one policy: what a stage ``respond-*`` measures."""

    prompts: int
    responses: int
    reward_mean: Number = None
    kl: Number = None


def aligned(names: Iterable[str]) -> list[str]:
    """The policies among what was compared: neither SFT nor the bare model."""
    return [name for name in names if name not in (BASELINE, BASE)]


def rivals(names: Iterable[str]) -> list[str]:
    """What is compared with SFT: the policies, and behind them the bare model."""
    compared = list(names)
    return [*aligned(compared), *([BASE] if BASE in compared else [])]
