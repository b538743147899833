"""What a report is made from: ``summary.json``, checked field by field, and the curves in ``events.jsonl``.

A field the run did not produce is ``None`` and its section is left out; a field of the wrong type is an error that
names it. NaN and infinity count as absent: they cannot be drawn, and a diverged number is better missing than huge.
"""

import json
import math
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from prefloop.errors import DataError

BASELINE = "sft"


class Estimate(NamedTuple):
    """A number with its 95 % interval; any part may be absent."""

    value: float | None
    low: float | None = None
    high: float | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The interval, unless a bound is absent or it has no width (a number that is exact by definition)."""
        return None if self.low is None or self.high is None or self.low == self.high else (self.low, self.high)

    @property
    def side_of_half(self) -> int | None:
        """For a win rate: +1 when the interval lies above 50 %, -1 below, 0 around it, ``None`` without an interval."""
        if self.interval is None:
            return None
        low, high = self.interval
        return (low > 0.5) - (high < 0.5)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _or_empty(kind: type) -> BeforeValidator:
    return BeforeValidator(lambda value: kind() if value is None else value)


Number = Annotated[float | None, AfterValidator(_finite)]
Text = Annotated[str, _or_empty(str)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class PolicyResult(_Record):
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
    def kl_nats(self) -> Estimate:
        """Sequence KL to the reference, in nats."""
        return Estimate(self.kl, self.kl_low, self.kl_high)


class ControlResult(_Record):
    """SFT against itself under one judge: a sound judge reads 50 %."""

    win_rate: Number = None
    ci_low: Number = None
    ci_high: Number = None

    @property
    def win(self) -> Estimate:
        """The win rate of one half of the SFT responses against the other."""
        return Estimate(self.win_rate, self.ci_low, self.ci_high)


class Control(_Record):
    """The A/A control, a reading per judge."""

    gold: Annotated[ControlResult, _or_empty(ControlResult)] = ControlResult()
    reward: Annotated[ControlResult, _or_empty(ControlResult)] = ControlResult()


class StageRun(_Record):
    """What one stage cost and measured."""

    name: str
    key: Text = ""
    status: Text = "ran"
    seconds: Number = None
    saved_seconds: Number = None
    metrics: Annotated[dict[str, Any], _or_empty(dict)] = Field(default_factory=dict)


class Annotator(_Record):
    """Who voted, and how well."""

    name: str
    simulated: bool | None = None
    noise: Number = None
    agreement_with_gold: Number = None
    votes: int | None = None


class RewardModel(_Record):
    """How good the reward model is on held-out pairs."""

    accuracy: Number = None
    pearson_gold: Number = None


class SampleResponse(_Record):
    """One answer of one policy with its scores."""

    text: Text = ""
    gold: Number = None
    reward: Number = None


class Sample(_Record):
    """One prompt and what every policy answered."""

    id: Text = ""
    prompt: Text = ""
    responses: dict[str, SampleResponse] = Field(default_factory=dict)


class Environment(_Record):
    """Where the run happened."""

    versions: Annotated[dict[str, Text], _or_empty(dict)] = Field(default_factory=dict)
    device: Text = ""
    python: Text = ""
    commit: Text = ""
    platform: Text = ""


class Summary(_Record):
    """``summary.json`` of a run."""

    run: Text = ""
    algo: Text = ""
    model: Text = ""
    started: Text = ""
    seconds: Number = None
    command: Text = ""
    stages: Annotated[list[StageRun], _or_empty(list)] = Field(default_factory=list)
    results: Annotated[dict[str, PolicyResult], _or_empty(dict)] = Field(default_factory=dict)
    control: Annotated[Control, _or_empty(Control)] = Control()
    annotators: Annotated[list[Annotator], _or_empty(list)] = Field(default_factory=list)
    reward_model: Annotated[RewardModel, _or_empty(RewardModel)] = RewardModel()
    disclosure: Annotated[list[str], _or_empty(list)] = Field(default_factory=list)
    samples: Annotated[list[Sample], _or_empty(list)] = Field(default_factory=list)
    environment: Annotated[Environment, _or_empty(Environment)] = Environment()


class Curve:
    """The steps of one stage, in order; ``series(field)`` gives the points that have the field."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def series(self, *path: str) -> tuple[list[float], list[float]]:
        """Steps and values of a field (``"kl"`` or ``"seconds", "generate"``) where it is a finite number."""
        points = [(row["step"], number(row, *path)) for row in self.rows]
        return [step for step, value in points if value is not None], [v for _, v in points if v is not None]

    def has(self, *path: str) -> bool:
        """Whether any step has the field."""
        return bool(self.series(*path)[0])


def number(row: Any, *path: str) -> float | None:
    """The finite number at ``path`` inside nested dictionaries, or ``None``."""
    for name in path:
        row = row.get(name) if isinstance(row, dict) else None
    return _finite(float(row)) if isinstance(row, int | float) and not isinstance(row, bool) else None


def read_summary(path: Path) -> Summary:
    """Read and check ``summary.json``; raises ``DataError`` naming the field and what was found."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: not found. A report needs a run that has finished; run the pipeline first") from None
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}). Run the pipeline again to rewrite it") from None
    try:
        return Summary.model_validate(_encodable(raw))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole file"
        found = repr(first["input"])[:80]
        raise DataError(
            f"{path}: field '{where}': {first['msg']} (found {found}). Run the pipeline again to rewrite it"
        ) from None


def read_curves(path: Path) -> tuple[dict[str, Curve], int]:
    """Curves by stage from ``events.jsonl`` and the number of lines that could not be read.

    A killed process leaves a torn line and a rerun appends, so unreadable lines are skipped and counted. A stage that
    starts again forgets its earlier steps; one that resumes from a checkpoint rewinds to the first step it repeats. No
    file means no curves.
    """
    if not path.exists():
        return {}, 0
    curves: dict[str, dict[int, dict[str, Any]]] = {}
    unreadable = 0
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in filter(str.strip, lines):
            try:
                event = json.loads(line)
            except ValueError:
                unreadable += 1
                continue
            if isinstance(event, dict) and isinstance(event.get("stage"), str):
                _apply(event, curves.setdefault(event["stage"], {}))
    return {stage: Curve(list(steps.values())) for stage, steps in curves.items() if steps}, unreadable


def _apply(event: dict[str, Any], steps: dict[int, dict[str, Any]]) -> None:
    """Take one event into the steps of its stage; kinds of event that are not known here change nothing."""
    step = event.get("step")
    if event.get("event") == "stage" and event.get("status") == "started":
        steps.clear()
    elif event.get("event") == "step" and isinstance(step, int):
        for stale in [known for known in steps if known >= step]:
            del steps[stale]
        steps[step] = event


def _encodable(value: Any) -> Any:
    """Replace lone surrogates, which JSON can carry and UTF-8 cannot: one odd response must not cost the report."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, list):
        return [_encodable(item) for item in value]
    if isinstance(value, dict):
        return {_encodable(key): _encodable(item) for key, item in value.items()}
    return value
