"""All tasks on all adapters of a run, with the backbone loaded once; what is measured is kept beside the run.

``bench.json`` holds ``tasks`` (``compare.compare`` says how), ``settings``, ``adapters`` (adapter → the key of its artifact) and
``environment``. ``bench/<key>.json`` holds one adapter's numbers on one name, question by question, under a key of everything that they
depend on: a bench that was killed goes on after its last finished task, one that is repeated loads no model.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefloop.bench import compare, domain, harness, tasks
from prefloop.bench.harness import Measured, Metric, Settings
from prefloop.bench.tasks import TaskSpec
from prefloop.console import progress, say
from prefloop.data.encode import Encoder
from prefloop.errors import ConfigError
from prefloop.models.plain import plain
from prefloop.results import BASE, Policy, policy_of, policy_slots, runtime_of
from prefloop.runtime import Runtime, environment
from prefloop.store import digest, file_digest, write_json

FILE = "bench.json"
ROLE = "bench"


@dataclasses.dataclass(frozen=True)
class Domain:
    """A set of prompts with references, and how it is answered."""

    path: Path
    max_new_tokens: int = 128
    rollout: str = "transformers"
    """Engine that answers, greedily."""

    @property
    def name(self) -> str:
        return domain.name_of(self.path)


Job = TaskSpec | Domain


def bench(
    run: Path,
    specs: Sequence[TaskSpec],
    adapters: Sequence[str] = (),
    settings: Settings | None = None,
    domains: Sequence[Domain] = (),
    model: str | None = None,
    output: Path | None = None,
) -> dict[str, Any]:
    """Measure ``adapters`` (slots of the run and ``base``; all of them unless named), write ``output`` (``bench.json`` of the run) and return it.

    Differences are taken to ``base`` where it is among them, else to the first. Raises ``ModelError`` for adapters that are not there or
    belong to different backbones, ``ConfigError`` when there is nothing to run.
    """
    settings = settings or Settings()
    jobs: list[Job] = [*specs, *domains]
    if not jobs:
        raise ConfigError("nothing to run: name tasks with --tasks, or a set of prompts and references with --domain")
    names = [job.name for job in jobs]
    if len(set(names)) < len(names):
        raise ConfigError(f"two sets are called '{next(n for n in names if names.count(n) > 1)}': rename a file")
    version = tasks.version()
    slots = list(dict.fromkeys(adapters)) or [BASE, *(slot for slot in policy_slots(run) if slot != BASE)]
    policies = {slot: policy_of(f"{run}:{slot}") for slot in slots}
    runtime = runtime_of(list(policies.values()), model, {"temperature": 0.0}, rollout="transformers")
    cache = Cache(run / "bench", runtime, settings, version)
    todo = [(slot, job) for slot in slots for job in jobs if cache.get(policies[slot], job) is None]
    kept = len(slots) * len(jobs) - len(todo)
    if kept:
        say(f"{kept} of {len(slots) * len(jobs)} results are there from before", "green")
    if todo:
        _measure(runtime, policies, todo, cache, settings)
    found: dict[str, Measured] = {}
    for slot in slots:
        parts = [cache.get(policies[slot], job) for job in jobs]
        found[slot] = {task: metrics for part in parts if part for task, metrics in part.items()}
    reference = BASE if BASE in slots else slots[0]
    content = {
        "tasks": compare.compare(found, reference),
        "settings": {
            **dataclasses.asdict(settings),
            "reference": reference,
            "model": runtime.backbone_config.model,
            "precision": runtime.backbone_config.precision,
            "lm_eval": version,
            **({"max_new_tokens": domains[0].max_new_tokens} if domains else {}),
        },
        "adapters": {slot: policy.key for slot, policy in policies.items()},
        "environment": environment(),
    }
    write_json(output or run / FILE, content)
    return content


class Cache:
    """Numbers of one adapter on one name, a file each, written whole."""

    def __init__(self, folder: Path, runtime: Runtime, settings: Settings, version: str) -> None:
        self.folder, self.settings = folder, settings
        versions = environment()["versions"]
        self.shared = {
            "model": runtime.model_fingerprint,
            "precision": runtime.backbone_config.precision,
            "compute": runtime.compute,
            "lm_eval": version,
            "versions": {name: versions.get(name) for name in ("torch", "transformers", "peft", "bitsandbytes")},
        }
        self.chat_template = runtime.backbone_config.chat_template

    def path(self, policy: Policy, job: Job) -> Path:
        """Where the numbers are: a file named by all that they depend on."""
        if isinstance(job, Domain):
            what: dict[str, Any] = {
                "file": file_digest(job.path),
                "max_new_tokens": job.max_new_tokens,
                "rollout": job.rollout,
                "limit": self.settings.limit,
                "chat_template": self.chat_template,
            }
        else:
            what = {"task": job.digest, "settings": dataclasses.asdict(self.settings)}
            if self.settings.apply_chat_template:
                what["chat_template"] = self.chat_template
        return self.folder / f"{digest({**self.shared, 'adapter': policy.key, **what})[:24]}.json"

    def get(self, policy: Policy, job: Job) -> Measured | None:
        """The numbers, if they are there."""
        path = self.path(policy, job)
        if not path.is_file():
            return None
        rows = json.loads(path.read_text(encoding="utf-8"))["measured"]
        return {task: [Metric(**metric) for metric in metrics] for task, metrics in rows.items()}

    def put(self, policy: Policy, job: Job, measured: Measured) -> None:
        """Keep them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        rows = {task: [dataclasses.asdict(metric) for metric in metrics] for task, metrics in measured.items()}
        write_json(self.path(policy, job), {"adapter": policy.name, "name": job.name, "measured": rows})


def _measure(
    runtime: Runtime, policies: Mapping[str, Policy], todo: Sequence[tuple[str, Job]], cache: Cache, settings: Settings
) -> None:
    """Measure what is missing, an adapter at a time. Tasks and their data are found before the model is loaded."""
    jobs = {job.name: job for _, job in todo}
    loaded = {name: tasks.load(job) for name, job in jobs.items() if isinstance(job, TaskSpec)}
    rows = {name: domain.read(job.path, settings.limit) for name, job in jobs.items() if isinstance(job, Domain)}
    backbone = runtime.backbone
    try:
        with progress("bench", len(todo), "task") as advance:
            for slot, policy in policies.items():
                mine = [job for where, job in todo if where == slot]
                if not mine:
                    continue
                if policy.folder:
                    backbone.add_role(ROLE, start=policy.folder)
                role = ROLE if policy.folder else None
                if asked := [job for job in mine if isinstance(job, TaskSpec)]:
                    with plain(backbone):
                        model = harness.language_model(backbone, settings.batch_size)
                        backbone.activate(role)
                        for task in asked:
                            cache.put(policy, task, harness.measure(model, loaded[task.name], settings))
                            advance(note=f"{slot}: {task.name}")
                for job in mine:
                    if isinstance(job, Domain):
                        answers = _answers(runtime, role, job, rows[job.name])
                        cache.put(policy, job, {job.name: domain.score(rows[job.name], answers)})
                        advance(note=f"{slot}: {job.name}")
                backbone.drop_role(ROLE)
    finally:
        runtime.close()


def _answers(runtime: Runtime, role: str | None, job: Domain, rows: Sequence[Any]) -> list[str]:
    """What a role answers to every prompt of a set, greedily."""
    generation = dataclasses.replace(runtime.generation, temperature=0.0, max_new_tokens=job.max_new_tokens)
    if (runtime.rollout, runtime.generation) != (job.rollout, generation):
        runtime.close()
        runtime.rollout, runtime.generation = job.rollout, generation
        runtime.__dict__.pop("engine_name", None)
    backbone, engine = runtime.backbone, runtime.engine
    encoder = Encoder(backbone.chat, backbone.config.max_length)
    engine.load_policy(role)
    found = engine.generate([encoder.prompt(r.id, r.prompt, job.max_new_tokens) for r in rows], 1, seed=0)
    engine.pause()
    return [backbone.chat.decode(rollout.token_ids) for rollout in found]
