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
from prefloop.rollouts.agreement import Agreement, agreement, gap_bound


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


def test_an_adapter_that_did_not_arrive_is_found_out_within_the_gap_that_rounding_explains(tiny_folder: Path) -> None:
    backbone = load(tiny_folder)
    add_random_role(backbone, "policy")
    with torch.no_grad():
        for parameter in backbone.parameters("policy"):
            parameter.mul_(0.2)
    ids = prompts_ids(backbone)
    engine = engine_of(backbone)
    engine.load_policy(None)
    rollouts = engine.generate(ids, n=8, seed=0)
    with pytest.raises(
        EngineError,
        match=r"gap\| 0.0\d+ .*the sampler shows -?0% of the policy's change, at least 70%.*an adapter that did not",
    ):
        sampling._check(backbone, "server", ids, rollouts, 0.7)  # whose mean gap may be 0.1
    sampling._check(backbone, "server", ids, rollouts, 0.7, role=None)


def noisy(share: float, change: float, noise: float, n: int = 2000) -> Agreement:
    """A sampler that shows a share of a policy's change, all log-probs with the noise of bfloat16."""
    generator = torch.Generator().manual_seed(0)
    before, moved, *noises = (torch.randn(n, generator=generator) for _ in range(5))
    trainer = before + change * moved
    sampler = before + share * change * moved
    backbone = type("Bfloat16", (), {"compute_dtype": torch.bfloat16})()
    logps = [x + noise * e for x, e in zip((sampler, trainer, before), noises, strict=True)]
    return agreement(backbone, "vllm", *logps)


@pytest.mark.parametrize("change", [0.0, 0.003, 0.03, 0.3, 3.0])
def test_rounding_is_not_taken_for_another_policy(change: float) -> None:
    found = noisy(1, change, 0.03)
    assert not found.share < found.least


@pytest.mark.parametrize(("share", "change"), [(0, 0.1), (0.5, 0.2), (-1, 0.1)])
def test_a_share_of_a_policy_is_not_taken_for_it(share: float, change: float) -> None:
    found = noisy(share, change, 0.03)
    assert found.share < found.least and not found.holds


def test_a_share_is_measured() -> None:
    assert noisy(0.8, 3.0, 0.001).share == pytest.approx(0.8, abs=0.01)
    assert noisy(0.8, 3.0, 0.001).gap > 0.1


def test_the_bound_knows_what_a_server_may_compute_in(tiny_folder: Path) -> None:
    backbone = load(tiny_folder)
    assert gap_bound(backbone, "vllm") == 0.005 and gap_bound(backbone, "server") == 0.1
