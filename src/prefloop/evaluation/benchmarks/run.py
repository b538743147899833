"""All tasks on all adapters of a run, with the backbone loaded once; what is measured is kept
beside the run.

``bench.json`` holds ``tasks`` (``compare.compare`` says how), ``settings``, ``adapters`` (adapter →
the key of its artifact) and ``environment``. ``bench/<key>.json`` holds one adapter's numbers on
one name, question by question, under a key of everything that they depend on: a bench that was
killed goes on after its last finished task, one that is repeated loads no model.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefloop.artifacts.references import BASE, locate, policy_of, policy_slots, run_of
from prefloop.base.console import progress, say
from prefloop.base.sealed import digest, read_sealed, write_sealed
from prefloop.data.encode import Encoder
from prefloop.data.quarantine import TOO_LONG, Unusable, encoded
from prefloop.data.source import Source
from prefloop.errors import ConfigError, StoreError
from prefloop.evaluation.benchmarks import compare, domain, harness, tasks
from prefloop.evaluation.benchmarks.harness import (
    HarnessSettings,
    Measured,
    Metric,
    require_positive,
)
from prefloop.evaluation.benchmarks.tasks import TaskSpec
from prefloop.models.backbone import Backbone
from prefloop.models.unfused import plain
from prefloop.records import Demonstration
from prefloop.rollouts.start import start
from prefloop.runs.open import runtime_of
from prefloop.runs.runtime import Runtime, environment

FILE = "bench.json"
ROLE = "bench"


@dataclasses.dataclass(frozen=True)
class Domain:
    """A set of prompts with references, and how it is answered."""

    source: Source
    max_new_tokens: int = 128
    rollout: str = "transformers"
    """Engine that answers, greedily."""
    quarantine: Path | None = None
    """Folder for rows that cannot be read or asked; without one they are an error."""

    @property
    def name(self) -> str:
        return domain.name_of(self.source)

    def __post_init__(self) -> None:
        require_positive(max_new_tokens=self.max_new_tokens)

    def identity(self) -> dict[str, Any]:
        """What its numbers depend on besides the adapter: the rows, how they are answered, who
        scores them.
        """
        return {
            "file": self.source.digest(),
            "max_new_tokens": self.max_new_tokens,
            "rollout": self.rollout,
            "bad_rows": "quarantine" if self.quarantine else "error",
            "scorers": [importlib.metadata.version(name) for name in ("rouge_score", "sacrebleu")],
        }


@dataclasses.dataclass(frozen=True)
class Adapter:
    """What is measured: the adapter in ``folder``, ``None`` for the bare model."""

    name: str
    folder: Path | None
    key: str
    """Identifies its content."""


Job = TaskSpec | Domain


def bench(
    run: Path,
    specs: Sequence[TaskSpec],
    adapters: Sequence[str] = (),
    settings: HarnessSettings | None = None,
    domains: Sequence[Domain] = (),
    model: str | None = None,
    output: Path | None = None,
) -> dict[str, Any]:
    """Measure ``adapters`` (slots of the run and ``base``; all of them unless named), write
    ``output`` (``bench.json`` of the run) and return it.

    Differences are taken to ``base`` where it is among them, else to the first. Raises
    ``ModelError`` for adapters that are not there or belong to different backbones, ``ConfigError``
    when there is nothing to run.
    """
    settings = settings or HarnessSettings()
    jobs = jobs_of(specs, domains)
    if inside := run_of(str(run)):
        slot = str(run).rpartition(":")[2]
        raise ConfigError(
            f"'{run}' is one result of a run: give the run's folder and name it, {inside}"
            f" --adapters {slot}"
        )
    locate(f"{run}:{BASE}")  # says so where there is no run
    slots = list(dict.fromkeys(adapters)) or [
        BASE,
        *(slot for slot in policy_slots(run) if slot != BASE),
    ]
    policies = {slot: policy_of(f"{run}:{slot}") for slot in slots}
    runtime = runtime_of(list(policies.values()), model)
    asked = [Adapter(slot, policy.folder, policy.key) for slot, policy in policies.items()]
    content = table_of(
        measured(runtime, asked, jobs, settings, run / "bench"), asked, runtime, settings, jobs
    )
    if output is None and (run / FILE).is_symlink():
        (
            run / FILE
        ).unlink()  # to the pipeline's own table, which is an artifact and stays as it is
    write_sealed(output or run / FILE, content)
    return content


def jobs_of(specs: Sequence[TaskSpec], domains: Sequence[Domain]) -> list[Job]:
    """Everything to run. Raises ``ConfigError`` when that is nothing or when two sets share a
    name.
    """
    jobs: list[Job] = [*specs, *domains]
    if not jobs:
        raise ConfigError(
            "nothing to run: name tasks with --tasks, or a set of prompts and references with"
            " --domain"
        )
    names = [job.name for job in jobs]
    if len(set(names)) < len(names):
        raise ConfigError(
            f"two sets are called '{next(n for n in names if names.count(n) > 1)}': rename a file"
        )
    return jobs


def measured(
    runtime: Runtime,
    adapters: Sequence[Adapter],
    jobs: Sequence[Job],
    settings: HarnessSettings,
    folder: Path,
) -> dict[str, Measured]:
    """The numbers of each adapter on every job: those kept in ``folder``, the others measured now
    and kept there.
    """
    cache = Cache(folder, runtime, settings)
    todo = [
        (adapter, job) for adapter in adapters for job in jobs if cache.get(adapter, job) is None
    ]
    if kept := len(adapters) * len(jobs) - len(todo):
        say(f"{kept} of {len(adapters) * len(jobs)} results are there from before", "green")
    if todo:
        _measure(runtime, todo, cache, settings)
    found: dict[str, Measured] = {}
    for adapter in adapters:
        parts = [cache.get(adapter, job) for job in jobs]
        found[adapter.name] = {
            task: metrics for part in parts if part for task, metrics in part.items()
        }
    return found


def table_of(
    found: Mapping[str, Measured],
    adapters: Sequence[Adapter],
    runtime: Runtime,
    settings: HarnessSettings,
    jobs: Sequence[Job],
) -> dict[str, Any]:
    """The content of ``bench.json``."""
    reference = BASE if BASE in found else next(iter(found))
    domains = [job for job in jobs if isinstance(job, Domain)]
    return {
        "tasks": compare.compare(found, reference),
        "settings": {
            **dataclasses.asdict(settings),
            "reference": reference,
            "model": runtime.backbone_config.model,
            "precision": runtime.backbone_config.precision,
            "lm_eval": tasks.version(),
            **({"max_new_tokens": domains[0].max_new_tokens} if domains else {}),
        },
        "adapters": {adapter.name: adapter.key for adapter in adapters},
        "environment": environment(),
    }


def plainly(rows: Measured) -> dict[str, Any]:
    """As JSON."""
    return {
        task: [dataclasses.asdict(metric) for metric in metrics] for task, metrics in rows.items()
    }


def from_plain(rows: Mapping[str, Any]) -> Measured:
    """Back from it."""
    return {task: [Metric(**metric) for metric in metrics] for task, metrics in rows.items()}


class Cache:
    """Numbers of one adapter on one name, a file each, written whole."""

    def __init__(self, folder: Path, runtime: Runtime, settings: HarnessSettings) -> None:
        self.folder, self.settings = folder, settings
        versions = environment()["versions"]
        self.shared = {
            "model": runtime.model_fingerprint,
            "precision": runtime.backbone_config.precision,
            "compute": runtime.compute,
            "lm_eval": tasks.version(),
            "versions": {
                name: versions.get(name)
                for name in ("torch", "transformers", "peft", "bitsandbytes")
            },
        }
        self.chat_template = runtime.backbone_config.chat_template

    def path(self, adapter: Adapter, job: Job) -> Path:
        """Where the numbers are: a file named by all that they depend on."""
        if isinstance(job, Domain):
            what = {
                **job.identity(),
                "limit": self.settings.limit,
                "chat_template": self.chat_template,
            }
        else:
            what = {"task": job.digest, "settings": dataclasses.asdict(self.settings)}
            if self.settings.apply_chat_template:
                what["chat_template"] = self.chat_template
        return self.folder / f"{digest({**self.shared, 'adapter': adapter.key, **what})[:24]}.json"

    def get(self, adapter: Adapter, job: Job) -> Measured | None:
        """The numbers, if they are there and whole."""
        try:
            return from_plain(read_sealed(self.path(adapter, job))["measured"])
        except StoreError:
            return None

    def put(self, adapter: Adapter, job: Job, rows: Measured) -> None:
        """Keep them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_sealed(
            self.path(adapter, job),
            {"adapter": adapter.name, "name": job.name, "measured": plainly(rows)},
        )


def _measure(
    runtime: Runtime, todo: Sequence[tuple[Adapter, Job]], cache: Cache, settings: HarnessSettings
) -> None:
    """Measure what is missing, an adapter at a time. Tasks and their data are found before the
    model is loaded.
    """
    jobs = {job.name: job for _, job in todo}
    loaded = {name: tasks.load(job) for name, job in jobs.items() if isinstance(job, TaskSpec)}
    read = {
        name: (job, domain.read(job.source, settings.limit, job.quarantine))
        for name, job in jobs.items()
        if isinstance(job, Domain)
    }
    backbone = runtime.backbone
    rows = {name: _fitting(backbone, job, found) for name, (job, found) in read.items()}
    with progress("bench", len(todo), "task") as advance:
        for adapter in dict.fromkeys(adapter for adapter, _ in todo):
            mine = [job for which, job in todo if which == adapter]
            role = ROLE if adapter.folder else None
            if adapter.folder:
                backbone.add_role(ROLE, start=adapter.folder)
            try:
                if asked := [job for job in mine if isinstance(job, TaskSpec)]:
                    with plain(backbone):
                        model = harness.language_model(backbone, settings.batch_size)
                        backbone.activate(role)
                        for task in asked:
                            cache.put(
                                adapter, task, harness.measure(model, loaded[task.name], settings)
                            )
                            advance(note=f"{adapter.name}: {task.name}")
                for job in mine:
                    if isinstance(job, Domain):
                        asked_of = rows[job.name]
                        answers = _answers(runtime, role, job, [ids for _, ids in asked_of])
                        cache.put(
                            adapter,
                            job,
                            {job.name: domain.score([row for row, _ in asked_of], answers)},
                        )
                        advance(note=f"{adapter.name}: {job.name}")
            finally:
                backbone.drop_role(ROLE)


Asked = list[tuple[Demonstration, list[int]]]
"""The rows of a set that can be asked, each with the ids of its prompt."""


def _fitting(backbone: Backbone, job: Domain, rows: Sequence[Demonstration]) -> Asked:
    encoder = Encoder(backbone.chat, backbone.config.max_length)
    aside = job.quarantine / f"{job.name}.{TOO_LONG}.quarantine.jsonl" if job.quarantine else None
    unusable = Unusable(aside, way="bench --quarantine FOLDER, data.bad_rows: quarantine")
    return encoded(
        rows, lambda row: encoder.prompt(row.id, row.prompt, job.max_new_tokens), unusable
    )


def _answers(
    runtime: Runtime, role: str | None, job: Domain, prompts_ids: Sequence[Sequence[int]]
) -> list[str]:
    """What a role answers to every prompt of a set, greedily."""
    backbone = runtime.backbone
    generation = dataclasses.replace(
        runtime.generation, temperature=0.0, max_new_tokens=job.max_new_tokens
    )
    engine = start(job.rollout, backbone, generation)
    try:
        engine.load_policy(role)
        found = engine.generate(prompts_ids, 1, seed=0)
    finally:
        engine.close()
    return [backbone.chat.decode(rollout.token_ids) for rollout in found]
