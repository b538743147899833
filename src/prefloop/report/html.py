"""The run report: one HTML file that needs nothing else.

No script, no font, no image and no style comes from outside, and a content security policy in the page forbids it, so
that text a model wrote can neither run nor call home. Choices dropped: an interactive plotting library (megabytes of
script for ten curves) and raster images (which suit neither theme nor printer).
"""

import os
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from prefloop.report import agreement, hacking, overoptimisation, page, plots
from prefloop.report.inputs import Curve, Summary, read_curves, read_summary
from prefloop.report.plots import Plot

_HERE = Path(__file__).parent
_MOST_SAMPLES = 6
_RL_FIELDS = ("reward_mean", "kl")
_STATUSES = ("ran", "reused", "resumed")


def write_report(run_dir: Path) -> Path:
    """Write ``run_dir/report.html`` from ``summary.json`` and ``events.jsonl`` and return its path.

    The file is complete or untouched: it is written beside its place and renamed into it. Raises ``DataError`` when the
    summary is missing, is not JSON or has a field of the wrong type; missing events only leave the curves out.
    """
    run_dir = Path(run_dir)
    summary = read_summary(run_dir / "summary.json")
    curves, unreadable = read_curves(run_dir / "events.jsonl")
    target, draft = run_dir / "report.html", run_dir / f".report.html.{os.getpid()}"
    try:
        with draft.open("w", encoding="utf-8", errors="replace") as file:
            file.write(render(summary, curves, unreadable))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
    return target


def render(summary: Summary, curves: dict[str, Curve], unreadable: int = 0) -> str:
    """The page as text. Curves of stages that the summary does not list are of an earlier run and are left out."""
    listed = {stage.name for stage in summary.stages}
    curves = {stage: curve for stage, curve in curves.items() if not listed or stage in listed}
    rl = {stage: curve for stage, curve in curves.items() if all(curve.has(field) for field in _RL_FIELDS)}
    watched = hacking.sections(summary, curves)
    drawn = {section.stage for section in watched if section.plots}  # what the alarm read is drawn there
    columns, rows = page.results_table(summary)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "label": page.label, "decimal": page.decimal, "percent": page.percent, "duration": page.duration,
        "metric": page.metric, "stage_label": page.stage_label,
    }  # fmt: skip
    return environment.get_template("report.html.j2").render(
        css=Markup((_HERE / "report.css").read_text(encoding="utf-8")),
        s=summary,
        headline=page.headline(summary),
        columns=columns,
        rows=rows,
        control=page.CONTROL,
        counts=page.shared_count(summary),
        saved=page.saved(summary),
        series=plots.colours(list(summary.results)),
        forests=_forests(summary),
        rl_stages=[
            (stage, [] if stage in drawn else _rl_plots(stage, curve), _diagnostics(stage, curve))
            for stage, curve in rl.items()
        ],
        hacking=watched,
        agreement=agreement.section(summary),
        overoptimisation=_overoptimisation(summary, rl),
        losses=[plot for stage, curve in curves.items() if stage not in rl for plot in _loss_plots(stage, curve)],
        timeline=_timeline(summary),
        audits=_audits(summary),
        samples=summary.samples[:_MOST_SAMPLES],
        unreadable=unreadable,
    )


def _forests(summary: Summary) -> list[Plot]:
    judges = (("gold", "gold scorer", summary.control.gold), ("reward", "reward model", summary.control.reward))
    drawn = (
        plots.forest(
            f"forest-{judge}",
            title,
            {name: page.win_of(result, judge) for name, result in summary.results.items()},
            control.win,
        )
        for judge, title, control in judges
    )
    return [plot for plot in drawn if plot]


def _overoptimisation(summary: Summary, rl: dict[str, Curve]) -> Plot | None:
    stage = next(iter(rl), None)
    plot = overoptimisation.draw("overoptimisation", stage, rl[stage] if stage else None, summary)
    return plot and plot._replace(caption=page.overoptimisation_note(stage, rl.get(stage or "")))


def _rl_plots(stage: str, curve: Curve) -> list[Plot]:
    """The four curves that say whether training worked."""
    band = "reward_std" if curve.has("reward_std") else ""
    drawn = [
        plots.line(
            f"{stage}-reward", curve, ("reward_mean",), "proxy reward (reward-model score)", band=band,
            caption="Band: one standard deviation across responses." if band else "",
        ),
        plots.line(f"{stage}-kl", curve, ("kl",), "KL to reference (nats per response)", series=2),
        plots.line(f"{stage}-length", curve, ("length_mean",), "response length (tokens)", series=3),
        plots.line(f"{stage}-gold", curve, ("gold_mean",), "gold score (never trained on)", series=5),
    ]  # fmt: skip
    return [plot for plot in drawn if plot]


def _diagnostics(stage: str, curve: Curve) -> list[Plot]:
    """The curves that say why, when it did not."""
    fields = {
        "entropy": ("entropy (nats per token)", 1),
        "clip_fraction": ("clipped ratios (%)", 100),
        "value_loss": ("value loss", 1),
        "explained_variance": ("explained variance of returns", 1),
        "logprob_gap": ("sampler-trainer log-prob gap (nats)", 1),
    }
    drawn = [
        plots.line(f"{stage}-{field.replace('_', '-')}", curve, (field,), text, scale=scale, width=3.6)
        for field, (text, scale) in fields.items()
    ]
    drawn.append(plots.phases(f"{stage}-seconds", curve, ("generate", "score", "optimise")))
    return [plot for plot in drawn if plot]


def _loss_plots(stage: str, curve: Curve) -> list[Plot]:
    """Loss, accuracy and margin of a supervised or preference stage; pairwise losses carry their chance level, ln 2."""
    name = plots.short(page.stage_label(stage))
    pairwise: dict[str, Any] = (
        {"chance": plots.LN2, "chance_label": "ln 2"} if stage.partition("-")[0] in ("reward", "dpo") else {}
    )
    drawn = [
        plots.line(f"{stage}-loss", curve, ("loss",), f"{name}: loss (nats)", width=3.6, **pairwise),
        plots.line(
            f"{stage}-accuracy", curve, ("accuracy",), f"{name}: pair accuracy (%)", width=3.6, series=3, scale=100,
            chance=50, chance_label="chance",
        ),
        plots.line(f"{stage}-margin", curve, ("margin",), f"{name}: reward margin (nats)", width=3.6, series=4),
    ]  # fmt: skip
    return [plot for plot in drawn if plot]


def _timeline(summary: Summary) -> list[dict[str, Any]]:
    """A bar a stage: where it starts and how long it is, in percent of the time that all stages took."""
    total = sum(stage.seconds or 0.0 for stage in summary.stages)
    rows, start = [], 0.0
    for stage in summary.stages:
        seconds = max(0.0, stage.seconds or 0.0)
        rows.append(
            {
                "stage": stage,
                "status": stage.status if stage.status in _STATUSES else "other",
                "left": f"{100 * start / total:.2f}" if total else "0",
                "width": f"{100 * seconds / total:.2f}" if total else "0",
            }
        )
        start += seconds
    return rows


def _audits(summary: Summary) -> list[dict[str, Any]]:
    """Per stage its scalar metrics and the lines its step-0 audit printed."""
    found = []
    for stage in summary.stages:
        audit = stage.metrics.get("audit")
        lines = [str(line) for line in audit] if isinstance(audit, list) else []
        scalars = {name: value for name, value in stage.metrics.items() if isinstance(value, int | float | str)}
        if lines or scalars:
            found.append({"name": stage.name, "lines": lines, "scalars": scalars})
    return found
