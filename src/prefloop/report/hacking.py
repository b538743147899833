"""Did the policy game its reward? What the alarm watched, when it spoke, what was done, and the
curves that it read.

Reward and gold are drawn apart: where curves on unrelated scales cross means nothing.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from prefloop.report import plots
from prefloop.report.inputs import Curve, number
from prefloop.report.page import decimal, stage_label
from prefloop.report.plots import Plot
from prefloop.report.summary import Summary

_CURVES = (
    ("reward_mean", "proxy reward (reward-model score)", 1, 1.0),
    ("gold_mean", "gold score (never trained on)", 5, 1.0),
    ("kl", "KL to reference (nats per response)", 2, 1.0),
    ("length_mean", "response length (tokens)", 3, 1.0),
    ("repetition", "repeated 4-grams (%)", 4, 100.0),
    ("reward_spread", "spread of the reward ensemble (score)", 6, 1.0),
)
_WATCHED = {"gold": "gold against the reward", "spread": "the spread of the reward ensemble"}


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
        alarm = stage.metrics.get("alarm")
        if isinstance(alarm, dict):
            raised = [event for event in _list(alarm, "raised") if isinstance(event, dict)]
            sentences = [_sentence(event) for event in raised] or [_silence(alarm)]
            drawn = _plots(stage.name, curves.get(stage.name), raised)
            found.append(
                HackingSection(stage.name, bool(raised), sentences, _note(stage.name, alarm), drawn)
            )
    return found


def _plots(stage: str, curve: Curve | None, raised: list[dict[str, Any]]) -> list[Plot]:
    if curve is None:
        return []
    marks = [(step, "alarm") for event in raised if (step := number(event, "step")) is not None]
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


def _sentence(event: dict[str, Any]) -> str:
    reasons = "; ".join(map(str, _list(event, "reasons"))) or "a limit was passed"
    best = f"the policy of step {_step(event, 'best_step')}, the best until then"
    done = {
        "warn": "Training went on.",
        "stop": f"Training was stopped; the result is {best}.",
        "rollback": (
            f"Training went back to {best}, with the KL coefficient doubled to"
            f" {decimal(number(event, 'kl_coef'), 3)}."
        ),
    }.get(str(event.get("action")), "")
    return f"Step {_step(event, 'step')}: {reasons}. {done}".strip()


def _silence(alarm: dict[str, Any]) -> str:
    steps = number(alarm, "steps") or 0
    return f"No alarm in {steps:g} step{'' if steps == 1 else 's'}."


def _note(stage: str, alarm: dict[str, Any]) -> str:
    """What was watched, and which policy the result is."""
    watched = [_WATCHED.get(str(name), str(name)) for name in _list(alarm, "watched")]
    text = f"Watched: {', '.join(watched)}." if watched else "Nothing was watched."
    if "gold" not in _list(alarm, "watched"):
        text += (
            " Gold was not: without it a reward that rises while answers get worse shows only in"
            " the rest."
        )
    if number(alarm, "result_step") is not None:
        return (
            f"{text} The {stage_label(stage)} result is the policy that the rollouts of step"
            f" {_step(alarm, 'result_step')} came from."
        )
    if _list(alarm, "raised"):
        text += (
            f" The {stage_label(stage)} result is the policy after the last update; that of step"
            f" {_step(alarm, 'best_step')}, the best one measured, lies beside it in the folder"
            " best."
        )
    return text


def _step(record: dict[str, Any], name: str) -> str:
    return decimal(number(record, name), 0)


def _list(record: dict[str, Any], name: str) -> list[Any]:
    value = record.get(name)
    return value if isinstance(value, list) else []
