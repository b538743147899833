"""Responses of a saved policy to the prompts of a file."""

from __future__ import annotations

import torch
from torch import Tensor

from prefloop.config import DataConfig
from prefloop.console import progress, say
from prefloop.data.encode import Encoder
from prefloop.data.packing import Document, packs
from prefloop.data.sources import load_prompts
from prefloop.errors import ConfigError, DataError, EngineError
from prefloop.models.backbone import Backbone
from prefloop.models.forward import hidden_N_H, response_logps_R
from prefloop.records import Prompt, Response
from prefloop.rollouts.agreement import agreement
from prefloop.rollouts.engine import Rollout
from prefloop.stage import Work
from prefloop.store import Artifact, write_rows

POLICY = "policy"
COMPARED = 16
"""Responses of a stage whose log-probs are compared with the trainer's."""


def read_prompts(work: Work, data: DataConfig, evaluation: bool = False) -> list[Prompt]:
    """The training or evaluation prompts of the run, checked; says what was read.

    A prompt that leaves no room for a response is an error that names it, or set aside with the bad rows where ``data.bad_rows`` says so.
    """
    path = data.eval_prompts if evaluation else data.prompts
    name, limit = ("eval_prompts", data.eval_limit) if evaluation else ("prompts", data.limit)
    if path is None:
        raise ConfigError(f"data.{name} is not set: name a file of prompts")
    loaded = load_prompts(path, layout=data.layout, bad_rows=data.bad_rows, quarantine_dir=work.folder, limit=limit)
    say(f"  {loaded.describe()}")
    backbone, room = work.runtime.backbone, work.runtime.generation.max_new_tokens
    encoder = Encoder(backbone.chat, backbone.config.max_length)
    fitting: list[Prompt] = []
    set_aside: list[dict[str, str]] = []
    for prompt in loaded.records:
        try:
            encoder.prompt(prompt.id, prompt.prompt, room)
            fitting.append(prompt)
        except DataError as error:
            if data.bad_rows != "quarantine":
                raise
            set_aside.append({"id": prompt.id, "problem": str(error)})
    if set_aside:
        file = work.folder / f"{name}.too-long.quarantine.jsonl"
        write_rows(file, set_aside)
        say(f"  {len(set_aside)} prompt(s) set aside in {file.name}: {set_aside[0]['problem']}", "yellow")
    if not fitting:
        raise DataError(
            f"data.{name}: no prompt in '{path.name}' leaves room for {room} new tokens in backbone.max_length"
        )
    return fitting


def _check(
    backbone: Backbone,
    engine: str,
    prompts_ids: list[list[int]],
    rollouts: list[Rollout],
    temperature: float,
    role: str | None = POLICY,
) -> None:
    """Compare the sampler's log-probs of some responses with those of the policy that it was given, and of the bare base."""
    some = rollouts[:: max(1, len(rollouts) // COMPARED)][:COMPARED]
    documents = [Document(prompts_ids[r.prompt], [r.token_ids], [k]) for k, r in enumerate(some) if r.token_ids]
    found: dict[str | None, list[Tensor]] = {role: [], None: []}
    sampled: list[Tensor] = []
    for pack in packs(documents, backbone.scoring_tokens):
        there = pack.to(backbone.device)
        for who, logps in found.items():
            with backbone.role(who):
                logps.append(response_logps_R(backbone, hidden_N_H(backbone, there), there, temperature).cpu())
        sampled.append(torch.tensor([logp for k in pack.keys for logp in some[k].logps]))
    if not documents:
        return
    trainer_R, base_R = torch.cat(found[role]), torch.cat(found[None])
    seen = agreement(backbone, engine, torch.cat(sampled), trainer_R, None if role is None else base_R)
    if seen.holds:
        say(f"  {engine} against the trainer: {seen}", "dim")
    else:
        raise EngineError(
            f"{engine} samples from another policy than it was given: {seen} ({len(documents)} responses). "
            "Another base model or precision, stale weights, an adapter that did not arrive whole, or a server without --logprobs-mode processed_logprobs"
        )


def sample(work: Work, prompts: list[Prompt], policy: Artifact | None, n: int, seed: int) -> list[list[Response]]:
    """``n`` responses to each prompt from a saved policy (``None``: the bare base); ``meta`` says whether each ended by itself, and its tokens."""
    runtime = work.runtime
    backbone = runtime.backbone
    encoder = Encoder(backbone.chat, backbone.config.max_length)
    prompts_ids = [encoder.prompt(p.id, p.prompt, room=runtime.generation.max_new_tokens) for p in prompts]
    role = POLICY if policy else None
    if policy:
        backbone.add_role(POLICY, start=policy.path)
    try:
        engine = runtime.engine
        engine.load_policy(role)
        with progress(f"{work.stage}: responses", len(prompts) * n, "response") as advance:
            rollouts = engine.generate(prompts_ids, n, seed, advance)
        engine.pause()
        _check(backbone, engine.name, prompts_ids, rollouts, runtime.generation.temperature, role)
    finally:
        backbone.drop_role(POLICY)
    out: list[list[Response]] = [[] for _ in prompts]
    for r in rollouts:
        meta = {"finished": r.finished, "tokens": len(r.token_ids), "token_ids": r.token_ids, "logp": sum(r.logps)}
        source = policy.stage if policy else "base"
        out[r.prompt].append(Response(backbone.chat.decode(r.token_ids), source=source, meta=meta))
    return out
