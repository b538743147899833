"""Reads the prompts of a run, and samples responses to them from a saved policy."""

from __future__ import annotations

import dataclasses

from prefloop.artifacts.store import Artifact
from prefloop.base.console import progress, say
from prefloop.config import DataConfig
from prefloop.data.encode import Encoder
from prefloop.data.quarantine import TOO_LONG, Unusable, encoded
from prefloop.data.sources import load_prompts
from prefloop.errors import ConfigError, EngineError
from prefloop.models.backbone import Backbone
from prefloop.records import Prompt, Response
from prefloop.rollouts.engine import Rollout, divisor
from prefloop.rollouts.sampler_check import agreement
from prefloop.runs.work import Work

POLICY = "policy"


@dataclasses.dataclass(frozen=True)
class SampledResponse:
    """A response of a policy (or the bare base) with the tokens that were sampled."""

    text: str
    source: str
    """The stage that made the policy, or "base"."""
    token_ids: list[int]
    logp: float
    """Log-prob of the whole response under the sampler, in nats."""
    finished: bool
    """Whether it ended by itself."""

    @property
    def record(self) -> Response:
        """The response as files hold it."""
        meta = {"finished": self.finished, "tokens": len(self.token_ids)}
        return Response(self.text, self.source, meta)


def read_prompts(work: Work, data: DataConfig, evaluation: bool = False) -> list[Prompt]:
    """The training or evaluation prompts of the run; prints how many were read.

    A prompt that the model cannot take, such as one that leaves no room for a response, is an error
    that names the prompt, or goes into a quarantine file where ``data.bad_rows`` is quarantine.
    Raises ``ConfigError`` where no file of prompts is set.
    """
    path = data.eval_prompts if evaluation else data.prompts
    name, limit = ("eval_prompts", data.eval_limit) if evaluation else ("prompts", data.limit)
    if path is None:
        raise ConfigError(f"data.{name} is not set: name a file of prompts")
    loaded = load_prompts(
        path, layout=data.layout, bad_rows=data.bad_rows, quarantine_dir=work.folder, limit=limit
    )
    say(f"  {loaded.describe()}")
    backbone, room = work.runtime.backbone, work.runtime.generation.max_new_tokens
    encoder = Encoder(backbone.chat, backbone.config.max_length)
    quarantine = (
        work.folder / f"{name}.{TOO_LONG}.quarantine.jsonl"
        if data.bad_rows == "quarantine"
        else None
    )
    usable = encoded(
        loaded.records,
        lambda p: encoder.prompt(p.id, p.prompt, room),
        Unusable(quarantine, "prompt"),
    )
    return [prompt for prompt, _ in usable]


def _check(
    backbone: Backbone,
    engine: str,
    prompts_ids: list[list[int]],
    rollouts: list[Rollout],
    temperature: float,
    role: str | None = POLICY,
) -> None:
    """Raise ``EngineError`` where the sampler runs another policy than it was given; else print how
    well sampler and trainer agree.
    """
    seen = agreement(backbone, engine, prompts_ids, rollouts, temperature, role)
    if not seen.holds:
        raise EngineError(
            f"{engine} samples from another policy than it was given: {seen} ({seen.responses}"
            " responses). Another base model or precision, stale weights, an adapter that did not"
            " arrive, or a server without --logprobs-mode processed_logprobs"
        )
    say(f"  {engine} against the trainer: {seen}", "yellow" if seen.odd else "dim")


def sample(
    work: Work,
    prompts: list[Prompt],
    policy: Artifact | None,
    n: int,
    seed: int,
    temperature: float | None = None,
) -> list[list[SampledResponse]]:
    """``n`` responses to each prompt from a saved policy (``None``: the bare base).

    ``temperature`` is the run's unless given. Raises ``EngineError`` where the sampler runs another
    policy than it was given.
    """
    runtime, backbone = work.runtime, work.runtime.backbone
    heat = runtime.generation.temperature if temperature is None else temperature
    encoder = Encoder(backbone.chat, backbone.config.max_length)
    prompts_ids = [
        encoder.prompt(p.id, p.prompt, room=runtime.generation.max_new_tokens) for p in prompts
    ]
    role = POLICY if policy else None
    if policy:
        backbone.add_role(POLICY, start=policy.path)
    try:
        engine = runtime.engine
        engine.load_policy(role)
        with progress(f"{work.stage}: responses", len(prompts) * n, "response") as advance:
            rollouts = engine.generate(prompts_ids, n, seed, advance, heat)
        engine.pause()
        _check(backbone, engine.name, prompts_ids, rollouts, divisor(heat), role)
    finally:
        backbone.drop_role(POLICY)
    source = policy.stage if policy else "base"
    responses: list[list[SampledResponse]] = [[] for _ in prompts]
    for r in rollouts:
        text = backbone.chat.decode(r.token_ids)
        sampled = SampledResponse(text, source, r.token_ids, sum(r.logps), r.finished)
        responses[r.prompt].append(sampled)
    return responses
