"""The run report: one HTML file that needs nothing else.

No font, no image and no style comes from outside, and a content security policy in the page forbids
it and every script but the page's own, known by its hash: text that a model wrote can neither run
nor call home. The page reads without its script too, which only searches and sorts. Choices
dropped: an interactive plotting library (megabytes of script for ten curves) and raster images
(which suit neither theme nor printer).
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from prefloop.base.atomic import replacing
from prefloop.base.redact import tree_without_secrets
from prefloop.report import (
    agreement,
    benchmarks,
    conversations,
    hacking,
    overoptimization,
    page,
    plots,
    results,
    reward_model,
    stages,
)  # fmt: skip
from prefloop.report import headline as headlines
from prefloop.report.cautions import cautions
from prefloop.report.current import bench_of, reward_tests_of
from prefloop.report.curves import (
    POLICY_FIELDS,
    diagnostics,
    loss_plots,
    policy_plots,
    source_plots,
)
from prefloop.report.evaluations import BenchFile, PairTest
from prefloop.report.inputs import Curve, curves_of, read_summary
from prefloop.report.plots import Plot
from prefloop.report.settings import read_identities
from prefloop.report.summary import Summary

_HERE = Path(__file__).parent


def write_report(run_dir: Path, target: Path | None = None) -> Path:
    """Write ``run_dir/report.html``, or ``target``, from the files of the run and return its path.

    ``summary.json`` is needed; ``events.jsonl`` gives the curves, ``artifacts`` the conversations,
    ``bench.json`` and ``reward-eval.json`` their tables. Raises ``DataError`` when the summary is
    missing or one of these files is not JSON or has a field of the wrong type.
    """
    run_dir = Path(run_dir)
    summary = read_summary(run_dir / "summary.json")
    damaged: list[str] = []
    curves, unreadable = curves_of(run_dir, summary, damaged)
    bench, left_out = bench_of(run_dir, summary)
    tests, also = reward_tests_of(run_dir, summary)
    text = render(
        summary,
        curves,
        unreadable,
        run_dir=run_dir,
        bench=bench,
        reward_eval=tests,
        notes=[*damaged, *left_out, *also],
    )
    return write_page(target or run_dir / "report.html", text)


def write_page(target: Path, text: str) -> Path:
    """Write a page that is complete or untouched. Raises ``DataError`` where nothing can be
    written.
    """
    with replacing(target) as file:
        file.write(text.encode("utf-8", "replace"))
    return target


def fill(template: str, **context: Any) -> str:
    """A page from a template, with the style, the script and the policy that lets this script alone
    run.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "label": page.label,
        "decimal": page.decimal,
        "percent": page.percent,
        "duration": page.duration,
        "metric": page.metric,
        "stage_label": page.stage_label,
    }
    script = (_HERE / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(
        css=Markup((_HERE / "report.css").read_text(encoding="utf-8")), script=Markup(script),
        script_hash=Markup(f"sha256-{digest}"), **context,
    )  # fmt: skip


def render(
    summary: Summary,
    curves: dict[str, Curve],
    unreadable: int = 0,
    *,
    run_dir: Path | None = None,
    bench: BenchFile | None = None,
    reward_eval: Mapping[str, PairTest] | None = None,
    notes: Sequence[str] = (),
) -> str:
    """The page as text.

    Curves of stages that the summary does not list are of an earlier run and are left out.
    ``notes`` are shown among the cautions.
    """
    remarks = list(notes)
    listed = {stage.name for stage in summary.stages}
    curves = {stage: curve for stage, curve in curves.items() if not listed or stage in listed}
    rl = {
        stage: curve
        for stage, curve in curves.items()
        if all(curve.has(field) for field in POLICY_FIELDS)
    }
    watched = hacking.sections(summary, curves)
    drawn = {
        section.stage for section in watched if section.plots
    }  # what the alarm read is drawn there
    headline = headlines.headline(summary)
    columns, rows = results.results_table(summary)
    parts: dict[str, Any] = {
        "forests": results.forests(summary),
        "matrix": results.matrix(summary),
        "judging": results.judging(summary),
        "bench": benchmarks.section(bench),
        "flow": stages.picture(summary),
        "timeline": stages.timeline(summary),
        "overoptimization": _overoptimization(summary, rl),
        "hacking": watched,
        "rl_stages": [
            (
                stage,
                [] if stage in drawn else policy_plots(stage, curve),
                source_plots(stage, curve),
                diagnostics(stage, curve),
            )
            for stage, curve in rl.items()
        ],
        "losses": [
            plot
            for stage, curve in curves.items()
            if stage not in rl
            for plot in loss_plots(stage, curve)
        ],
        "agreement": agreement.section(summary),
        "reward_model": reward_model.section(summary, reward_eval or {}),
        "talks": conversations.section(run_dir, summary, remarks),
        "grown": conversations.over_training(run_dir, summary, remarks),
        "audits": stages.audits(summary),
        "settings": _settings(summary, run_dir),
    }
    return fill(
        "report.html.j2",
        title=summary.run or "run",
        nav=_nav(summary, bool(rows), parts),
        s=summary,
        headline=headline,
        cautions=[*(headline.cautions if headline else cautions(summary, None)), *remarks],
        columns=columns,
        rows=rows,
        control=results.CONTROL,
        counts=results.shared_count(summary),
        saved=page.saved(summary),
        series=plots.colors(list(summary.results)),
        open=conversations.OPEN,
        unreadable=unreadable,
        **parts,
    )


def _nav(summary: Summary, results: bool, parts: Mapping[str, Any]) -> list[tuple[str, str, bool]]:
    """Anchors of the sections, their names in short, and whether this page has them."""
    curves = any(any(lists) for _, *lists in parts["rl_stages"])
    return [
        ("results", "Results", results),
        ("matrix", "All against all", bool(parts["matrix"])),
        ("benchmarks", "Benchmarks", bool(parts["bench"])),
        ("pipeline", "Pipeline", bool(parts["flow"])),
        ("overoptimization", "Gold and proxy", bool(parts["overoptimization"])),
        ("hacking-1", "Reward hacking", bool(parts["hacking"])),
        ("curves-1", "Curves", curves),
        ("losses", "Losses", bool(parts["losses"])),
        ("labels", "Labels", bool(summary.annotators)),
        ("reward-model", "Reward model", bool(parts["reward_model"])),
        ("conversations", "Conversations", bool(parts["talks"])),
        ("audit", "Audit", bool(parts["audits"])),
        ("settings", "Settings", bool(parts["settings"])),
    ]


def _settings(summary: Summary, run_dir: Path | None) -> str:
    """The configuration as YAML; for a summary without one, what the artifacts of the run were made
    from.
    """
    found: Mapping[str, Any] = summary.config or (
        read_identities(run_dir, summary) if run_dir else {}
    )
    return (
        str(yaml.safe_dump(tree_without_secrets(dict(found)), sort_keys=False, allow_unicode=True))
        if found
        else ""
    )


def _overoptimization(summary: Summary, rl: dict[str, Curve]) -> Plot | None:
    stage = next(iter(rl), None)
    plot = overoptimization.draw("overoptimization", stage, rl[stage] if stage else None, summary)
    return plot and plot._replace(caption=page.overoptimization_note(stage, rl.get(stage or "")))
