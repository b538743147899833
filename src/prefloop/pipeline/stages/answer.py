"""Answers of any result to a file of prompts, sampled once and kept for ``prefloop judge``."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

from prefloop.artifacts.manifest import Manifest
from prefloop.artifacts.references import Answers, Policy, resolve
from prefloop.artifacts.store import Artifact
from prefloop.base.console import say
from prefloop.base.jsonl import write_rows
from prefloop.config import DataConfig, GenerationConfig
from prefloop.data.source import Source
from prefloop.errors import ConfigError
from prefloop.pipeline.stage import Stage
from prefloop.pipeline.stages.sampling import read_prompts, sample
from prefloop.records import to_dict
from prefloop.runs.open import runtimes_of
from prefloop.runs.work import Work

FILE = "answers.jsonl"


class AnswerPrompts(Stage):
    """Prompts and a policy, or the bare model → ``answers.jsonl``, a row a response. Produces
    ``answers``.
    """

    name = "answer"
    produces = "answers"
    uses = frozenset({"backbone", "generation"})

    def __init__(self, data: DataConfig, samples: int = 1, bare: bool = False) -> None:
        if samples < 1:
            raise ConfigError(f"samples is {samples}: at least one answer a prompt is needed")
        self.data, self.samples = data, samples
        self.inputs = () if bare else ("policy",)

    def parts(self) -> dict[str, Any]:
        data = self.data
        return {
            "samples": self.samples,
            "prompts": data.eval_prompts,
            "layout": data.layout,
            "bad_rows": data.bad_rows,
            "limit": data.eval_limit,
        }

    def build(self, work: Work, inputs: dict[str, Artifact]) -> dict[str, Any]:
        if self.samples > 1 and work.runtime.generation.temperature == 0:
            raise ConfigError(
                f"samples is {self.samples} at temperature 0: greedy answers to a prompt are all"
                " the same, so ask for 1"
            )
        prompts = read_prompts(work, self.data, evaluation=True)
        # Every policy has its own stream: shared noise would couple the two sides of a comparison.
        who = inputs["policy"].key if "policy" in inputs else "base"
        seed = int.from_bytes(
            hashlib.sha256(f"{work.runtime.seed}:answer:{who}".encode()).digest()[:6]
        )
        sampled = sample(work, prompts, inputs.get("policy"), self.samples, seed)
        rows = [
            {
                **to_dict(prompt),
                "response": response.text,
                "finished": response.finished,
                "tokens": len(response.token_ids),
            }
            for prompt, responses in zip(prompts, sampled, strict=True)
            for response in responses
        ]
        write_rows(work.folder / FILE, rows)
        finished = sum(bool(row["finished"]) for row in rows)
        return {
            "prompts": len(prompts),
            "responses": len(rows),
            "finished_share": finished / len(rows),
        }


def respond(
    references: Sequence[str | Path | Policy | Answers],
    prompts: Source | Path | None = None,
    samples: int = 1,
    *,
    layout: str = "auto",
    limit: int | None = None,
    model: str | None = None,
    generation: Mapping[str, Any] | None = None,
    rollout: str | None = None,
    seed: int = 0,
    output: Path | None = None,
    quarantine: Path | None = None,
) -> dict[str, Source]:
    """Each result's answers to the same prompts, by the result's name: rows of id, prompt and
    response, ``samples`` rows a prompt.

    The backbone is loaded once for all adapters of one method and shape. Answers are kept in the
    store under policy, prompts, sampling and seed, so the same call again costs nothing.

    Args:
        references: results such as ``runs/demo:ppo``, or files of answers, which are taken as they
            are.
        prompts: needed unless all references are files.
        generation: fields that differ from the sampling settings of the first policy's run.
        rollout: the engine; that of the first policy's run by default.
        quarantine: folder for the rows that cannot be used; without it they are an error.

    Raises ``ModelError`` for policies of different backbones, ``DataError`` for unusable prompts.
    """
    resolved = [r if isinstance(r, Policy | Answers) else resolve(r) for r in references]
    policies = [p for p in resolved if isinstance(p, Policy)]
    out = {answers.name: answers.source for answers in resolved if isinstance(answers, Answers)}
    if policies:
        if prompts is None:
            raise ConfigError(
                f"'{policies[0].name}' has to be asked: name a file of prompts with --prompts"
            )
        known = {p.name: p.generation for p in policies if p.generation}
        first = next(iter(known), "")
        for name, own in known.items():
            if not generation and _sampling(own) != _sampling(known[first]):
                say(f"  {name} is sampled as {first} is, not as in its own run", "yellow")
        bad_rows: Literal["error", "quarantine"] = "quarantine" if quarantine else "error"
        data = DataConfig(
            eval_prompts=Source.of(prompts), layout=layout, eval_limit=limit, bad_rows=bad_rows
        )
        with closing(
            runtimes_of(policies, model, generation, rollout, seed=seed, output=output)
        ) as kinds:
            for kind, runtime in kinds:
                for policy in kind:
                    bare = policy.folder is None
                    inputs = {} if bare else {"policy": _artifact(policy)}
                    say(f"{policy.name}: answers", "bold")
                    made = AnswerPrompts(data, samples, bare).run(runtime, **inputs)
                    out[policy.name] = Source.of(made / FILE)
                    if quarantine:
                        quarantine.mkdir(parents=True, exist_ok=True)
                        for rows in made.path.glob("*quarantine.jsonl"):
                            shutil.copy(rows, quarantine)
    return {one.name: out[one.name] for one in resolved}


def _sampling(config: GenerationConfig) -> tuple[float, int]:
    return config.temperature, config.max_new_tokens


def _artifact(policy: Policy) -> Artifact:
    """The policy as an input of a stage; the key of an adapter outside a store is the digest of its
    files.
    """
    assert policy.folder is not None
    return Artifact(policy.folder, Manifest(policy.name, policy.key))
