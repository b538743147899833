"""The fields of ``summary.json`` that a report reads.

A field the run did not produce is ``None`` and its section is left out; a field of the wrong type
is an error that names it. NaN and infinity count as absent: they cannot be drawn, and a diverged
number is better missing than huge.
"""

import math
from collections.abc import Iterable
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from prefloop.artifacts.references import BASE

BASELINE = "sft"


class Estimate(NamedTuple):
    """A number with its 95 % interval; any part may be absent."""

    value: float | None
    low: float | None = None
    high: float | None = None

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


def aligned(names: Iterable[str]) -> list[str]:
    """The policies among what was compared: neither SFT nor the bare model."""
    return [name for name in names if name not in (BASELINE, BASE)]


def rivals(names: Iterable[str]) -> list[str]:
    """What is compared with SFT: the policies, and behind them the bare model."""
    found = list(names)
    return [*aligned(found), *([BASE] if BASE in found else [])]


def finite(value: float | None) -> float | None:
    """The number, or ``None`` for NaN and infinity."""
    return value if value is not None and math.isfinite(value) else None


def or_empty(kind: type) -> BeforeValidator:
    """Read ``null`` as an empty value of the kind."""
    return BeforeValidator(lambda value: kind() if value is None else value)


Number = Annotated[float | None, AfterValidator(finite)]
Text = Annotated[str, or_empty(str)]


class Record(BaseModel):
    """A part of a file: unknown fields are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class PolicyResult(Record):
    """One policy on the evaluation prompts."""

    gold_mean: Number = None
    gold_low: Number = None
    gold_high: Number = None
    win_rate_vs_sft: Number = None
    ci_low: Number = None
    ci_high: Number = None
    kl: Number = None
    kl_low: Number = None
    kl_high: Number = None
    reward_mean: Number = None
    reward_win_rate: Number = None
    reward_ci_low: Number = None
    reward_ci_high: Number = None
    llm_judge: Text = ""
    llm_win_rate: Number = None
    llm_ci_low: Number = None
    llm_ci_high: Number = None
    llm_disagreement: Number = None
    lc_judge: Text = ""
    lc_win_rate: Number = None
    lc_ci_low: Number = None
    lc_ci_high: Number = None
    lc_unknown: Text = ""
    sign_test_p: Number = None
    length_mean: Number = None
    short_share: Number = None
    finished_share: Number = None
    n_prompts: int | None = None
    n_responses: int | None = None

    @property
    def gold(self) -> Estimate:
        """Mean gold score."""
        return Estimate(self.gold_mean, self.gold_low, self.gold_high)

    @property
    def win(self) -> Estimate:
        """Win rate against SFT when the gold scorer judges."""
        return Estimate(self.win_rate_vs_sft, self.ci_low, self.ci_high)

    @property
    def reward_win(self) -> Estimate:
        """Win rate against SFT when the reward model judges."""
        return Estimate(self.reward_win_rate, self.reward_ci_low, self.reward_ci_high)

    @property
    def llm_win(self) -> Estimate:
        """Win rate against SFT when ``llm_judge`` judges: a language model, or what else
        ``evaluate.judge`` names.
        """
        return Estimate(self.llm_win_rate, self.llm_ci_low, self.llm_ci_high)

    @property
    def lc_win(self) -> Estimate:
        """Win rate against SFT under ``lc_judge`` with its taste for length taken out (AlpacaEval
        2).
        """
        return Estimate(self.lc_win_rate, self.lc_ci_low, self.lc_ci_high)

    @property
    def kl_nats(self) -> Estimate:
        """Sequence KL to the reference, in nats."""
        return Estimate(self.kl, self.kl_low, self.kl_high)


class ControlResult(Record):
    """SFT against itself under one judge: a sound judge reads 50 %."""

    win_rate: Number = None
    ci_low: Number = None
    ci_high: Number = None

    @property
    def win(self) -> Estimate:
        """The win rate of one half of the SFT responses against the other."""
        return Estimate(self.win_rate, self.ci_low, self.ci_high)


class Control(Record):
    """The A/A control, a reading per judge."""

    gold: Annotated[ControlResult, or_empty(ControlResult)] = ControlResult()
    reward: Annotated[ControlResult, or_empty(ControlResult)] = ControlResult()


class EloRating(Record):
    """Elo of one policy."""

    rating: Number = None
    low: Number = None
    high: Number = None

    @property
    def elo(self) -> Estimate:
        """Rating with its interval."""
        return Estimate(self.rating, self.low, self.high)


class Matrix(Record):
    """Win rates of every policy (row) against every other (column) under one judge."""

    judge: Text = ""
    policies: Annotated[list[str], or_empty(list)] = Field(default_factory=list)
    rate: Annotated[list[list[Number]], or_empty(list)] = Field(default_factory=list)
    low: Annotated[list[list[Number]], or_empty(list)] = Field(default_factory=list)
    high: Annotated[list[list[Number]], or_empty(list)] = Field(default_factory=list)
    elo: Annotated[dict[str, EloRating], or_empty(dict)] = Field(default_factory=dict)

    def at(self, i: int, j: int) -> Estimate:
        """Win rate of policy ``i`` against policy ``j``; empty where the table has no such cell."""
        return Estimate(*(_cell(table, i, j) for table in (self.rate, self.low, self.high)))

    def against_bare(self, policy: str) -> Estimate:
        """Win rate of a policy against the bare model; empty where one of them is not in the
        table.
        """
        if policy == BASE or not {policy, BASE} <= set(self.policies):
            return Estimate(None)
        return self.at(self.policies.index(policy), self.policies.index(BASE))


def _cell(table: list[list[float | None]], i: int, j: int) -> float | None:
    return table[i][j] if i < len(table) and j < len(table[i]) else None


class Used(Record):
    """Tokens and what they cost."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost: Number = None
    unreported: int | None = None
    """Replies that did not say their tokens."""


class Judging(Used):
    """What asking the judge took and how it behaved; tokens and cost are those of the process that
    finished it.
    """

    judge: Text = ""
    mode: Text = ""
    requests: int | None = None
    total: Annotated[Used, or_empty(Used)] = Used()
    """Of all answers, those from the cache too: what a killed run paid for before."""
    failed: int | None = None
    unparsable: int | None = None
    position_bias: Any = None


class Contamination(Record):
    """Evaluation prompts that training has seen, and those that only share words with one that it
    has (``data.overlap``).
    """

    count: int = 0
    alike: int = 0
    examples: Annotated[list[Any], or_empty(list)] = Field(default_factory=list)


class StageRun(Record):
    """What one stage cost and measured."""

    name: str
    key: Text = ""
    status: Text = "ran"
    seconds: Number = None
    saved_seconds: Number = None
    metrics: Annotated[dict[str, Any], or_empty(dict)] = Field(default_factory=dict)


class Annotator(Record):
    """Who voted, and how well."""

    name: str
    simulated: bool | None = None
    noise: Number = None
    agreement_with_gold: Number = None
    votes: int | None = None


class RewardModelFigures(Record):
    """How good the reward model is on held-out pairs."""

    accuracy: Number = None
    accuracy_low: Number = None
    accuracy_high: Number = None
    loss: Number = None
    held_out_pairs: int | None = None
    pearson_gold: Number = None


class SampleResponse(Record):
    """One answer of one policy with its scores."""

    text: Text = ""
    turns: Annotated[list[Any], or_empty(list)] = Field(default_factory=list)
    gold: Number = None
    reward: Number = None


class SampledPrompt(Record):
    """One prompt and what every policy answered."""

    id: Text = ""
    prompt: Annotated[str | list[Any], or_empty(str)] = ""
    """Messages; a text in summaries of old."""
    tools: Annotated[list[Any], or_empty(list)] = Field(default_factory=list)
    responses: dict[str, SampleResponse] = Field(default_factory=dict)


class Environment(Record):
    """Where the run happened."""

    versions: Annotated[dict[str, Text], or_empty(dict)] = Field(default_factory=dict)
    device: Text = ""
    python: Text = ""
    commit: Text = ""
    platform: Text = ""


class Summary(Record):
    """``summary.json`` of a run."""

    run: Text = ""
    algo: Text = ""
    model: Text = ""
    adapter: Text = ""
    """Method and rank, where it is not plain LoRA."""
    started: Text = ""
    seconds: Number = None
    command: Text = ""
    stages: Annotated[list[StageRun], or_empty(list)] = Field(default_factory=list)
    results: Annotated[dict[str, PolicyResult], or_empty(dict)] = Field(default_factory=dict)
    control: Annotated[Control, or_empty(Control)] = Control()
    matrix: Annotated[Matrix, or_empty(Matrix)] = Matrix()
    judging: Annotated[Judging, or_empty(Judging)] = Judging()
    contamination: Annotated[Contamination, or_empty(Contamination)] = Contamination()
    config: Annotated[dict[str, Any], or_empty(dict)] = Field(default_factory=dict)
    annotators: Annotated[list[Annotator], or_empty(list)] = Field(default_factory=list)
    reward_model: Annotated[RewardModelFigures, or_empty(RewardModelFigures)] = RewardModelFigures()
    unquoted: Text = ""
    """Why what the reward model says is left out, as a sentence; empty where it is not
    (``evaluation.standing``).
    """
    disclosure: Annotated[list[str], or_empty(list)] = Field(default_factory=list)
    samples: Annotated[list[SampledPrompt], or_empty(list)] = Field(default_factory=list)
    environment: Annotated[Environment, or_empty(Environment)] = Environment()
