"""What every stage that samples checks: prompts leave room, and the sampler ran the policy that it was given."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from test_engine import engine_of, prompts_ids
from tiny import add_random_role, load

from prefloop.errors import EngineError
from prefloop.rollouts import sampling


def test_a_sampler_with_another_policy_or_temperature_is_found_out(tiny_folder: Path) -> None:
    backbone = load(tiny_folder)
    add_random_role(backbone, "policy")
    ids = prompts_ids(backbone)
    rollouts = engine_of(backbone).generate(ids, n=8, seed=0)
    sampling._check(backbone, "transformers", ids, rollouts, 0.7)
    with pytest.raises(EngineError, match="samples from another policy than it was given"):
        sampling._check(backbone, "transformers", ids, rollouts, 1.0)
    strange = [dataclasses.replace(r, logps=[float("nan")] * len(r.logps)) for r in rollouts]
    with pytest.raises(EngineError, match="nan"):
        sampling._check(backbone, "transformers", ids, strange, 0.7)
    with torch.no_grad():
        for parameter in backbone.parameters("policy"):
            parameter.mul_(1.1)
    with pytest.raises(EngineError, match="stale weights"):
        sampling._check(backbone, "transformers", ids, rollouts, 0.7)


def test_the_bound_knows_what_a_server_may_compute_in(tiny_folder: Path) -> None:
    backbone = load(tiny_folder)
    assert sampling.gap_bound(backbone, "vllm") == 0.005 and sampling.gap_bound(backbone, "server") == 0.1
