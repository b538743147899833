"""Responses of a saved policy to the prompts of a file."""

from __future__ import annotations

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


def read_prompts(work: Work, data: DataConfig, evaluation: bool = False) -> list[Prompt]:
    """The training or evaluation prompts of the run, checked; says what was read.

    A prompt that the model cannot take, as one that leaves no room for a response, is an error that
    names it, or set aside where ``data.bad_rows`` says so.
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
    aside = (
        work.folder / f"{name}.{TOO_LONG}.quarantine.jsonl"
        if data.bad_rows == "quarantine"
        else None
    )
    found = encoded(
        loaded.records, lambda p: encoder.prompt(p.id, p.prompt, room), Unusable(aside, "prompt")
    )
    return [prompt for prompt, _ in found]


def _check(
    backbone: Backbone,
    engine: str,
    prompts_ids: list[list[int]],
    rollouts: list[Rollout],
    temperature: float,
    role: str | None = POLICY,
) -> None:
    """Stop where the sampler runs another policy than it was given; a line says how well the two
    agree.
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
) -> list[list[Response]]:
    """``n`` responses to each prompt from a saved policy (``None``: the bare base); ``meta`` says
    whether each ended by itself, and its tokens.

    ``temperature`` is the run's unless given.
    """
    runtime = work.runtime
    heat = runtime.generation.temperature if temperature is None else temperature
    backbone = runtime.backbone
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
    out: list[list[Response]] = [[] for _ in prompts]
    for r in rollouts:
        meta = {
            "finished": r.finished,
            "tokens": len(r.token_ids),
            "token_ids": r.token_ids,
            "logp": sum(r.logps),
        }
        source = policy.stage if policy else "base"
        out[r.prompt].append(Response(backbone.chat.decode(r.token_ids), source=source, meta=meta))
    return out
