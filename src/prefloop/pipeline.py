"""Stages one after another, wired by the slots they need and fill; a run is a folder of links, a summary and a report."""

from __future__ import annotations

import datetime
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from prefloop.algorithms import ALGORITHMS
from prefloop.console import console, duration, say
from prefloop.runtime import Runtime, environment
from prefloop.stage import Stage
from prefloop.store import Artifact, run_lock, write_json


class Run:
    """A run in progress: its folder and the artifacts that have filled slots so far."""

    def __init__(self, folder: Path, runtime: Runtime) -> None:
        self.folder = folder
        self.runtime = runtime
        self.artifacts: dict[str, Artifact] = {}
        self.stages: list[dict[str, Any]] = []

    def policies(self) -> list[str]:
        """Aligned policies to compare: of this process, and of earlier commands in this run that started from the same SFT adapter."""
        for slot in ALGORITHMS:
            link = self.folder / "artifacts" / slot
            if slot in self.artifacts or not (link / "manifest.json").is_file():
                continue
            manifest = json.loads((link / "manifest.json").read_text(encoding="utf-8"))
            wanted = {s: self.artifacts[s].key for s in manifest["inputs"] if s in self.artifacts}
            if wanted == manifest["inputs"]:
                self.artifacts[slot] = Artifact(link.resolve(), manifest)
                self._record(slot, self.artifacts[slot])
                say(
                    f"reused {slot} {manifest['key'][:8]} of an earlier command in this run ({duration(manifest['seconds'])} saved)",
                    "green",
                )
            else:
                say(
                    f"left out {slot}: it was trained on other artifacts than this run now has; run it again to compare",
                    "yellow",
                )
        return [slot for slot in ALGORITHMS if slot in self.artifacts]

    def execute(self, stage: Stage) -> None:
        """Run one stage, link its artifact and put its events into the run's log."""
        inputs = {slot: self.artifacts[slot] for slot in stage.inputs if slot in self.artifacts}
        log = self.folder / "events.jsonl"
        with self.runtime.events_to(log):
            artifact = stage.run(self.runtime, **inputs)
            # The artifact's own log is whole even when it was built in another run or over several processes.
            self.runtime.emit(stage=stage.name, event="stage", status="started")
        events = artifact / "events.jsonl"
        if events.is_file():
            with log.open("a", encoding="utf-8") as file:
                file.write(events.read_text(encoding="utf-8"))
        with self.runtime.events_to(log):
            self.runtime.emit(stage=stage.name, event="stage", status=artifact.status)
        self.artifacts[stage.produces] = artifact
        self._record(stage.name, artifact)
        link(self.folder / "artifacts" / stage.produces, artifact.path)

    def _record(self, name: str, artifact: Artifact) -> None:
        reused = artifact.status == "reused"
        self.stages.append(
            {
                "name": name,
                "key": artifact.key,
                "status": artifact.status,
                "seconds": 0.0 if reused else artifact.seconds,
                "saved_seconds": artifact.seconds if reused else 0.0,
                "metrics": {
                    k: v
                    for k, v in artifact.metrics.items()
                    if k not in ("results", "control", "samples", "annotators")
                },
            }
        )


class Pipeline:
    """Composable stages: ``Pipeline([SFT(...), Sample(...), Label(...), RewardModel(), PPO(), Evaluate()]).run("runs/first")``."""

    def __init__(self, stages: Sequence[Stage], runtime: Runtime | None = None, notes: Sequence[str] = ()) -> None:
        self.stages = list(stages)
        self.runtime = runtime or Runtime()
        self.notes = list(notes)

    def run(self, folder: Path | str, command: str = "", algo: str = "") -> dict[str, Any]:
        """Run or reuse every stage, then write ``summary.json`` and ``report.html``; returns the summary.

        Raises ``StoreError`` when another process works on the same folder.
        """
        from prefloop.report.html import write_report

        folder = Path(folder)
        started, clock = datetime.datetime.now(datetime.UTC), time.monotonic()
        with run_lock(folder):
            (folder / "artifacts").mkdir(exist_ok=True)
            run = Run(folder, self.runtime)
            try:
                for stage in self.stages:
                    for part in stage.expand(run):
                        run.execute(part)
            finally:
                self.runtime.close()
            seconds = time.monotonic() - clock
            summary = summarise(run, started, seconds, command, algo, self.notes)
            write_json(folder / "summary.json", summary)
            report = write_report(folder)
        show(summary, report)
        return summary


def summarise(
    run: Run, started: datetime.datetime, seconds: float, command: str, algo: str, notes: Sequence[str]
) -> dict[str, Any]:
    """What ``summary.json`` holds."""
    found = {slot: artifact.metrics for slot, artifact in run.artifacts.items()}
    judged, reward, label = found.get("judge", {}), found.get("reward", {}), found.get("comparisons", {})
    reward_model = {k: reward[k] for k in ("accuracy", "loss", "train_accuracy", "held_out_pairs") if k in reward}
    if "pearson_gold" in judged:
        reward_model["pearson_gold"] = judged["pearson_gold"]
    config = run.runtime.backbone_config
    return {
        "run": run.folder.name,
        "algo": algo,
        "model": config.model,
        "precision": config.precision,
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "command": command,
        "stages": run.stages,
        "results": judged.get("results", {}),
        "control": judged.get("control", {}),
        "annotators": label.get("annotators", []),
        "reward_model": reward_model,
        "disclosure": list(notes),
        "samples": judged.get("samples", []),
        "environment": environment(),
    }


def show(summary: dict[str, Any], report: Path) -> None:
    """The closing table."""
    table = Table(title=f"{summary['run']}: {summary['model']}", title_justify="left")
    for column in (
        "policy",
        "gold mean",
        "wins against SFT (gold)",
        "(reward model)",
        "KL, nats",
        "words",
        "< 5 words",
    ):
        table.add_column(column, justify="left" if column == "policy" else "right")

    def rate(row: dict[str, Any], name: str, low: str, high: str) -> str:
        if row.get(name) is None:
            return "-"
        return f"{row[name]:.1%}" + (f" [{row[low]:.1%}, {row[high]:.1%}]" if row.get(low) is not None else "")

    for name, row in summary["results"].items():
        gold = "-" if row.get("gold_mean") is None else f"{row['gold_mean']:.3f}"
        table.add_row(
            name,
            gold,
            rate(row, "win_rate_vs_sft", "ci_low", "ci_high"),
            rate(row, "reward_win_rate", "reward_ci_low", "reward_ci_high"),
            f"{row['kl']:.2f}",
            f"{row['length_mean']:.1f}",
            f"{row['short_share']:.1%}",
        )
    control = {judge: rate(row, "win_rate", "ci_low", "ci_high") for judge, row in summary["control"].items()}
    if control:
        table.add_row("A/A control", "", control.get("gold", "-"), control.get("reward", "-"), "", "", "")
    if summary["results"]:
        console.print(table)
    reused = [s for s in summary["stages"] if s["status"] == "reused"]
    if reused:
        saved = sum(s["saved_seconds"] for s in reused)
        say(f"reused {', '.join(s['name'] for s in reused)}: {duration(saved)} saved", "green")
    say(f"{duration(summary['seconds'])} in all. Report: {report}")


def link(path: Path, target: Path) -> None:
    """Point a symbolic link at an artifact, replacing an older one in one step."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(os.path.relpath(target, path.parent))
    fresh.replace(path)
