"""Responses of a saved policy to the prompts of a file."""

from __future__ import annotations

from prefloop.config import DataConfig
from prefloop.console import progress, say
from prefloop.data.encode import Encoder
from prefloop.data.sources import load_prompts
from prefloop.errors import ConfigError
from prefloop.records import Prompt, Response
from prefloop.stage import Work
from prefloop.store import Artifact


def read_prompts(work: Work, data: DataConfig, evaluation: bool = False) -> list[Prompt]:
    """The training or evaluation prompts of the run, checked; says what was read."""
    path = data.eval_prompts if evaluation else data.prompts
    name, limit = ("eval_prompts", data.eval_limit) if evaluation else ("prompts", data.limit)
    if path is None:
        raise ConfigError(f"data.{name} is not set: name a file of prompts")
    loaded = load_prompts(path, layout=data.layout, bad_rows=data.bad_rows, quarantine_dir=work.folder, limit=limit)
    say(f"  {loaded.describe()}")
    return loaded.records


def sample(work: Work, prompts: list[Prompt], policy: Artifact, n: int, seed: int) -> list[list[Response]]:
    """``n`` responses to each prompt from a saved policy; ``meta`` says whether each ended by itself, and its tokens."""
    runtime = work.runtime
    backbone = runtime.backbone
    encoder = Encoder(backbone.chat, backbone.config.max_length)
    prompts_ids = [encoder.prompt(p.id, p.prompt, room=runtime.generation.max_new_tokens) for p in prompts]
    backbone.add_role("policy", start=policy.path)
    try:
        engine = runtime.engine
        engine.load_policy("policy")
        with progress(f"{work.stage}: responses", len(prompts) * n, "response") as advance:
            rollouts = engine.generate(prompts_ids, n, seed, advance)
        engine.pause()
    finally:
        backbone.drop_role("policy")
    out: list[list[Response]] = [[] for _ in prompts]
    for r in rollouts:
        meta = {"finished": r.finished, "tokens": len(r.token_ids), "token_ids": r.token_ids, "logp": sum(r.logps)}
        out[r.prompt].append(Response(backbone.chat.decode(r.token_ids), source=policy.stage, meta=meta))
    return out
