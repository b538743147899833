"""Benchmarks as stages: ``bench-<adapter>`` measures one, ``bench`` puts them side by side. Adding
a policy to a run measures that policy alone.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefloop.artifacts.references import BASE
from prefloop.artifacts.store import Artifact
from prefloop.base.console import console, say
from prefloop.base.sealed import digest, read_sealed, write_json
from prefloop.config import BenchConfig
from prefloop.errors import StoreError
from prefloop.evaluation.benchmarks import compare
from prefloop.evaluation.benchmarks.harness import HarnessSettings
from prefloop.evaluation.benchmarks.run import (
    FILE,
    Adapter,
    Domain,
    Job,
    from_plain,
    jobs_of,
    measured,
    plainly,
    table_of,
)
from prefloop.evaluation.benchmarks.tasks import files_of, find, version
from prefloop.pipeline.stage import Stage
from prefloop.runs.work import Work


def _jobs(config: BenchConfig, quarantine: Path | None = None) -> list[Job]:
    domains = [Domain(path, config.max_new_tokens, quarantine=quarantine) for path in config.domain]
    return jobs_of(find(config.tasks, files_of(config.data)), domains)


def _settings(config: BenchConfig) -> HarnessSettings:
    return HarnessSettings(
        config.limit, config.batch_size, config.num_fewshot, config.apply_chat_template
    )


class Bench(Stage):
    """lm-eval and domain sets on the base, the SFT model and every policy of the run. Expands into
    ``bench-*`` and ``bench``.
    """

    name = "bench"

    def __init__(self, config: BenchConfig, bad_rows: str = "error") -> None:
        self.config, self.bad_rows = config, bad_rows

    def parts(self) -> dict[str, Any]:
        return {"version": version(), "jobs": [job.name for job in _jobs(self.config)]}

    def expand(self, run: Any) -> list[Stage]:
        from prefloop.base.atomic import link

        slots = [BASE, *(["sft"] if "sft" in run.artifacts else []), *run.policies()]
        if _keeps(run, slots):
            say(
                f"{FILE} was written by prefloop bench and stays; this command's table is"
                f" artifacts/bench/{FILE}",
                "yellow",
            )
        elif run.writable:
            link(
                run.folder / FILE, run.folder / "artifacts" / "bench" / FILE
            )  # where `prefloop bench` puts it too
        return [
            *(BenchOne(slot, self.config, self.bad_rows) for slot in slots),
            BenchTable(slots, self.config),
        ]


def _keeps(run: Any, slots: Sequence[str]) -> bool:
    """Whether ``prefloop bench`` wrote the run's table and it is up to date for every adapter."""
    path = run.folder / FILE
    if path.is_symlink() or not path.is_file():
        return False
    try:
        measured = read_sealed(path, required=False)["adapters"]
        current = all(slot in measured for slot in slots) and all(
            measured[slot] == run.artifacts[slot].key for slot in slots if slot != BASE
        )
    except (StoreError, KeyError, TypeError):
        current = False
    if not current:
        say(
            f"{FILE} of prefloop bench belongs to earlier adapters of this run and is replaced",
            "yellow",
        )
    return current


class BenchOne(Stage):
    """One adapter, or the bare model, on every task. Produces ``bench-<adapter>``."""

    uses = frozenset({"backbone"})

    def __init__(self, slot: str, config: BenchConfig, bad_rows: str = "error") -> None:
        self.slot, self.config, self.bad_rows = slot, config, bad_rows
        self.name = self.produces = f"bench-{slot}"
        self.inputs = () if slot == BASE else (slot,)

    def parts(self) -> dict[str, Any]:
        # The key holds that there is a folder, not which one.
        quarantine = Path() if self.bad_rows == "quarantine" else None
        jobs = [
            job.identity() if isinstance(job, Domain) else job.digest
            for job in _jobs(self.config, quarantine)
        ]
        return {
            "lm_eval": version(),
            "jobs": jobs,
            "settings": dataclasses.asdict(_settings(self.config)),
        }

    def build(self, work: Work, inputs: dict[str, Artifact]) -> dict[str, dict[str, float]]:
        artifact = inputs.get(self.slot)
        key = artifact.key if artifact else digest({"base": work.runtime.model_fingerprint})
        adapter = Adapter(self.slot, artifact.path if artifact else None, key)
        # In the checkpoints, so that a kill costs one task at most.
        place = work.checkpoints / "finished-tasks"
        jobs = _jobs(self.config, work.folder if self.bad_rows == "quarantine" else None)
        scores = measured(work.runtime, [adapter], jobs, _settings(self.config), place)[self.slot]
        write_json(work.folder / "measured.json", {"key": key, "tasks": plainly(scores)})
        return {task: {m.name: m.value for m in metrics} for task, metrics in scores.items()}


class BenchTable(Stage):
    """Before and after, with paired differences. Produces ``bench``."""

    name = "bench"
    produces = "bench"

    def __init__(self, slots: Sequence[str], config: BenchConfig) -> None:
        self.slots, self.config = list(slots), config
        self.inputs = tuple(f"bench-{slot}" for slot in slots)

    def parts(self) -> dict[str, Any]:
        return {"slots": self.slots}

    def build(self, work: Work, inputs: dict[str, Artifact]) -> dict[str, int]:
        kept = {
            s: json.loads((inputs[f"bench-{s}"] / "measured.json").read_text(encoding="utf-8"))
            for s in self.slots
        }
        scores = {slot: from_plain(row["tasks"]) for slot, row in kept.items()}
        adapters = [Adapter(slot, None, row["key"]) for slot, row in kept.items()]
        content = table_of(
            scores, adapters, work.runtime, _settings(self.config), _jobs(self.config)
        )
        write_json(work.folder / FILE, content)
        console.print(compare.table(content["tasks"], content["settings"]["reference"]))
        return {"tasks": len(content["tasks"])}
