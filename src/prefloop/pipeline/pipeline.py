"""Stages one after another, wired by the slots they need and fill; a run is a folder of links, a
summary and a report.
"""

from __future__ import annotations

import dataclasses
import datetime
import errno
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from pydantic import TypeAdapter

from prefloop.artifacts.codec import read, read_metrics, to_json
from prefloop.artifacts.labels import Labels
from prefloop.artifacts.results import Evaluation
from prefloop.artifacts.store import run_lock
from prefloop.base.console import say
from prefloop.base.redact import tree_without_secrets, value_without_secrets, without_secrets
from prefloop.base.sealed import write_sealed
from prefloop.config import AdapterConfig, RLHFConfig
from prefloop.config.presets import WITHOUT_RANK
from prefloop.errors import PrefloopError, StoreError
from prefloop.pipeline.run import Run, require_links
from prefloop.pipeline.stage import Stage
from prefloop.pipeline.trackers import check_trackers
from prefloop.report.closing import show, untrained
from prefloop.report.former import modern
from prefloop.report.summary import Environment, RewardModelFigures, Summary
from prefloop.runs.runtime import Runtime, environment


class Pipeline:
    """Composable stages.

    ``Pipeline([SFT(...), Sample(...), Label(...), RewardModel(), PPO()]).run("runs/first")``.
    """

    def __init__(
        self, stages: Sequence[Stage], runtime: Runtime | None = None, notes: Sequence[str] = ()
    ) -> None:
        self.stages = list(stages)
        self.runtime = runtime or Runtime()
        self.notes = list(notes)

    def run(
        self,
        folder: Path | str,
        command: str = "",
        algo: str = "",
        config: RLHFConfig | None = None,
    ) -> Summary:
        """Run or reuse every stage, then write ``summary.json`` and ``report.html``; returns the
        summary.

        ``config`` is what the stages were composed from; the summary keeps it without secrets.

        Raises ``StoreError`` when another process works on the same folder.
        """
        folder = Path(folder)
        self._preflight()
        try:
            return self._run(folder, command, algo, config)
        except Exception as error:
            if full_disk(error):
                raise StoreError(
                    f"the disk that holds '{self.runtime.store.root}' is full. Nothing incomplete"
                    " entered the store: free some space (old artifacts in it may be deleted) and"
                    " run the same command again"
                ) from error
            if isinstance(error, OSError) and _of_ours(error, self.runtime.output, folder):
                raise StoreError(
                    f"'{error.filename}': {error.strerror}. A run reads and writes there: move away"
                    " what is in the way, or name another place with --output"
                ) from error
            raise

    def _preflight(self) -> None:
        """Check every file, tracker and the rollout engine, and report all that is wrong at once;
        then check the adapter on the model.
        """
        errors: list[PrefloopError] = []
        samples = any("generation" in stage.uses for stage in self.stages)
        checks: list[Callable[[], None]] = [
            partial(check_trackers, self.runtime.trackers),
            *([self.runtime.check_engine] if samples else []),
            *(
                partial(stage.check_temperature, self.runtime.generation.temperature)
                for stage in self.stages
                if stage.uses & {"generation", "temperature"}
            ),
            *(stage.check_names for stage in self.stages),
            *(stage.preflight for stage in self.stages),
        ]
        for check in checks:
            try:
                check()
            except PrefloopError as error:
                if str(error) not in map(str, errors):
                    errors.append(error)
        if errors:
            raise type(errors[0])("\n       ".join(map(str, errors)))
        if any(
            "backbone" in stage.uses for stage in self.stages
        ):  # last: the model may have to be fetched
            self.runtime.check_adapter(samples)

    def _run(self, folder: Path, command: str, algo: str, settings: RLHFConfig | None) -> Summary:
        from prefloop.report.html import write_report

        started, clock = datetime.datetime.now(datetime.UTC), time.monotonic()
        with run_lock(folder) as writable:
            if writable:
                require_links(folder / "artifacts", [stage.produces for stage in self.stages])
            else:
                self.runtime.store.closed = (
                    f"'{folder}' cannot be written: make it writable, or name another place with"
                    " --output"
                )
            run = Run(folder, self.runtime, writable)
            try:
                for stage in self.stages:
                    for part in stage.expand(run):
                        run.execute(part)
            finally:
                # another run of the same runtime may be one that can be written
                self.runtime.store.closed = ""
                self.runtime.close()
            seconds = time.monotonic() - clock
            summary = summarize(run, started, seconds, command, algo, self.notes, settings)
            report = None
            if writable:
                write_sealed(folder / "summary.json", to_json(summary))
                report = write_report(folder)
        show(summary, report)
        if not writable:
            say(
                f"'{folder}' cannot be written: no summary, links or report of this command are"
                " in it",
                "yellow",
            )
        return summary


def summarize(
    run: Run,
    started: datetime.datetime,
    seconds: float,
    command: str,
    algo: str,
    notes: Sequence[str],
    settings: RLHFConfig | None = None,
) -> Summary:
    """The content of ``summary.json``."""
    metrics = {slot: artifact.metrics for slot, artifact in run.artifacts.items()}
    evaluation = read_metrics(Evaluation, modern(metrics.get("judge", {})), "judge")
    labels = read_metrics(Labels, metrics.get("comparisons", {}), "comparisons")
    figures = metrics.get("reward", {}) | {"pearson_gold": evaluation.pearson_gold}
    reward_model = read_metrics(RewardModelFigures, figures, "reward")
    backbone = run.runtime.backbone_config
    return Summary(
        **{field.name: getattr(evaluation, field.name) for field in dataclasses.fields(evaluation)},
        run=run.folder.name,
        algo=algo,
        model=value_without_secrets(backbone.model),
        precision=backbone.precision,
        adapter=named(backbone.adapter),
        started=started.isoformat(timespec="seconds"),
        seconds=round(seconds, 1),
        command=without_secrets(command),
        config=(
            tree_without_secrets(TypeAdapter(RLHFConfig).dump_python(settings, mode="json"))
            if settings
            else {}
        ),
        stages=run.stages,
        annotators=labels.annotators,
        reward_model=reward_model,
        disclosure=[*untrained(metrics), *tree_without_secrets(list(notes))],
        environment=read(Environment, environment()),
    )


def named(adapter: AdapterConfig) -> str:
    """The method of a run for its heading, with the rank where it has one; empty for LoRA."""
    if adapter.method == "lora":
        return ""
    return adapter.method if adapter.method in WITHOUT_RANK else f"{adapter.method}, r {adapter.r}"


def full_disk(error: BaseException | None) -> bool:
    """Whether an error, or its cause, is that no space is left; safetensors gives no error
    number.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(words in str(error) for words in ("No space left", "os error 28")):
            return True
        error = error.__cause__ or error.__context__
    return False


def _of_ours(error: OSError, *folders: Path) -> bool:
    """Whether an error is of a file in one of these folders."""
    if not isinstance(error.filename, str | os.PathLike):
        return False
    place = Path(os.path.abspath(error.filename))
    return any(place.is_relative_to(os.path.abspath(folder)) for folder in folders)
