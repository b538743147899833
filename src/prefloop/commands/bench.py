"""``prefloop bench``: lm-eval and domain sets on the adapters of a run, before and after."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from prefloop.config import DataSource
from prefloop.config.ranges import Count, Seed, Whole


@dataclasses.dataclass
class BenchCommand:
    """Run lm-eval's tasks, and sets of prompts with references, on the base model and the adapters
    of a run; show what training changed.
    """

    run_folder: tyro.conf.Positional[Path]
    """Folder of the run, such as runs/demo."""
    tasks: list[str] = dataclasses.field(default_factory=list)
    """Names of lm-eval's tasks and groups, YAML files, folders of YAML files."""
    domain: list[DataSource] = dataclasses.field(default_factory=list)
    """Files (or hub data sets) of prompts with references. Greedy answers get ROUGE, BLEU, F1 and
    exact match.
    """
    adapters: list[str] = dataclasses.field(default_factory=list)
    """Slots of the run, such as base sft ppo; base and every policy by default."""
    data: list[str] = dataclasses.field(default_factory=list)
    """TASK=FILE: other rows for a local task."""
    limit: Count | None = None
    """Use only the first LIMIT questions of each task."""
    batch_size: Count = 8
    """Sequences of one forward pass."""
    num_fewshot: Whole | None = None
    """Examples before each question, 0 for none, where the task leaves it open."""
    apply_chat_template: bool = False
    """Ask through the run's chat template instead of as plain text."""
    seed: Seed | None = None
    """Seed of lm-eval's draws; its own seeds by default."""
    max_new_tokens: Count = 128
    """Longest answer to a prompt of a domain set."""
    rollout: Literal["vllm", "server", "transformers"] = "transformers"
    """Engine that answers domain sets."""
    quarantine: Path | None = None
    """Folder for rows of domain sets that cannot be read or asked; without one they are an
    error.
    """
    model: str | None = None
    """Path or name of the run's base model, if it has moved since training."""
    trust_task_code: bool = False
    """Let local task files run the Python files in their folder. Use it only for files that you
    wrote or read.
    """
    output: Path | None = None
    """File for the result; bench.json of the run folder by default."""

    def run(self) -> None:
        from prefloop.base.console import console, say
        from prefloop.evaluation.benchmarks import compare
        from prefloop.evaluation.benchmarks.harness import HarnessSettings
        from prefloop.evaluation.benchmarks.run import FILE, Domain, bench
        from prefloop.evaluation.benchmarks.tasks import files_of, find, version

        version()
        settings = HarnessSettings(
            self.limit, self.batch_size, self.num_fewshot, self.apply_chat_template, self.seed
        )
        specs = find(self.tasks, files_of(self.data), self.trust_task_code)
        if self.quarantine:
            self.quarantine.mkdir(parents=True, exist_ok=True)
        domains = [
            Domain(path, self.max_new_tokens, self.rollout, self.quarantine) for path in self.domain
        ]
        results = bench(
            self.run_folder, specs, self.adapters, settings, domains, self.model, self.output
        )
        console.print(compare.table(results["tasks"], results["settings"]["reference"]))
        say(
            "± is one standard error; differences are paired by question. Written to"
            f" {self.output or self.run_folder / FILE}",
            "dim",
        )
