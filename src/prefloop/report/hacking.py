"""Did the policy game its reward? What the alarm watched, when it spoke, what was done, and the
curves that it read.

Reward and gold are drawn apart: where curves on unrelated scales cross means nothing.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pydantic.dataclasses import dataclass

from prefloop.artifacts.codec import FILE, Number, Stored, read
from prefloop.config.algorithms import ROLLOUTS, kind_of
from prefloop.errors import DataError
from prefloop.report import plots
from prefloop.report.inputs import Curve
from prefloop.report.page import decimal, stage_label
from prefloop.report.plots import Plot
from prefloop.report.summary import StageRun, Summary

_CURVES = (
    ("reward_mean", "proxy reward (reward-model score)", 1, 1.0),
    ("gold_mean", "gold score (never trained on)", 5, 1.0),
    ("kl", "KL to reference (nats per response)", 2, 1.0),
    ("length_mean", "response length (tokens)", 3, 1.0),
    ("repetition", "repeated 4-grams (%)", 4, 100.0),
    ("reward_spread", "spread of the reward ensemble (score)", 6, 1.0),
)
_WATCHED = {"gold": "gold against the reward", "spread": "the spread of the reward ensemble"}


@dataclass(frozen=True, config=FILE)
class Raised(Stored):
    """One time that the alarm was raised, as ``training.reward_guard`` writes it."""

    step: int | None = None
    reasons: list[str] = dataclasses.field(default_factory=list)
    action: str = ""
    """warn, stop or rollback."""
    best_step: int | None = None
    kl_coef: Number = None


@dataclass(frozen=True, config=FILE)
class StoredAlarm(Stored):
    """What a stage's alarm watched and did."""

    watched: list[str] = dataclasses.field(default_factory=list)
    steps: int = 0
    raised: list[Raised] = dataclasses.field(default_factory=list)
    best_step: int | None = None
    result_step: int | None = None
    """Step whose policy is the result, where it is not the last one."""


def alarm_of(stage: StageRun) -> StoredAlarm | None:
    """What the alarm of a stage did; ``None`` where it had none. An algorithm of the user's own may
    have one too.

    Raises ``DataError`` naming the stage and the field.
    """
    metrics = stage.metrics.get("alarm")
    ours = kind_of(stage.name) in ROLLOUTS
    if metrics is None or not (ours or (isinstance(metrics, dict) and "watched" in metrics)):
        return None
    try:
        return read(StoredAlarm, metrics)
    except ValueError as error:
        if not ours:  # a stage of the user's own may mean something else by the name
            return None
        raise DataError(
            f"summary.json: stage {stage.name}: alarm: {error}. Run the pipeline again to rewrite"
            " it"
        ) from None


class HackingSection(NamedTuple):
    """The part of the report about one stage."""

    stage: str
    raised: bool
    sentences: list[str]
    note: str
    plots: list[Plot]


def sections(summary: Summary, curves: Mapping[str, Curve]) -> list[HackingSection]:
    """A section for every stage that was watched."""
    found = []
    for stage in summary.stages:
        if (alarm := alarm_of(stage)) is None:
            continue
        sentences = [_sentence(event) for event in alarm.raised] or [_silence(alarm)]
        drawn = _plots(stage.name, curves.get(stage.name), alarm.raised)
        note = _note(stage.name, alarm)
        found.append(HackingSection(stage.name, bool(alarm.raised), sentences, note, drawn))
    return found


def _plots(stage: str, curve: Curve | None, raised: Sequence[Raised]) -> list[Plot]:
    if curve is None:
        return []
    marks = [(float(event.step), "alarm") for event in raised if event.step is not None]
    drawn = [
        plots.line(
            f"{stage}-alarm-{field.replace('_', '-')}",
            curve,
            (field,),
            text,
            series=series,
            scale=scale,
            width=3.6,
            marks=marks,
            **_band(curve, field),
        )
        for field, text, series, scale in _CURVES
    ]
    return [plot for plot in drawn if plot]


def _band(curve: Curve, field: str) -> dict[str, Any]:
    if field != "reward_mean" or not curve.has("reward_std"):
        return {}
    return {"band": "reward_std", "caption": "Band: one standard deviation across responses."}


def _sentence(event: Raised) -> str:
    reasons = "; ".join(event.reasons) or "a limit was passed"
    best = f"the policy of step {_step(event.best_step)}, the best until then"
    done = {
        "warn": "Training went on.",
        "stop": f"Training was stopped; the result is {best}.",
        "rollback": (
            f"Training went back to {best}, with the KL coefficient doubled to"
            f" {decimal(event.kl_coef, 3)}."
        ),
    }.get(event.action, "")
    return f"Step {_step(event.step)}: {reasons}. {done}".strip()


def _silence(alarm: StoredAlarm) -> str:
    return f"No alarm in {alarm.steps} step{'' if alarm.steps == 1 else 's'}."


def _note(stage: str, alarm: StoredAlarm) -> str:
    """What was watched, and which policy the result is."""
    watched = [_WATCHED.get(name, name) for name in alarm.watched]
    text = f"Watched: {', '.join(watched)}." if watched else "Nothing was watched."
    if "gold" not in alarm.watched:
        text += (
            " Gold was not: without it a reward that rises while answers get worse shows only in"
            " the rest."
        )
    if alarm.result_step is not None:
        return (
            f"{text} The {stage_label(stage)} result is the policy that the rollouts of step"
            f" {_step(alarm.result_step)} came from."
        )
    if alarm.raised:
        text += (
            f" The {stage_label(stage)} result is the policy after the last update; that of step"
            f" {_step(alarm.best_step)}, the best one measured, lies beside it in the folder"
            " best."
        )
    return text


def _step(step: int | None) -> str:
    return decimal(step, 0)
