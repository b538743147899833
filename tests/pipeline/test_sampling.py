"""What every stage that samples checks: prompts leave room, and the sampler ran the policy that it
was given.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from sampled import engine_of, prompts_ids
from tiny import add_random_role, load

from prefloop.errors import EngineError
from prefloop.pipeline.stages import sampling
from prefloop.rollouts import sampler_check as found
from prefloop.rollouts.sampler_check import FLOOR, SamplerAgreement, gap_bound, share_shown


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


def test_an_adapter_that_did_not_arrive_is_found_out_within_the_gap_that_rounding_explains(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = load(tiny_folder)
    add_random_role(backbone, "policy")
    ids = prompts_ids(backbone)
    engine = engine_of(backbone)
    engine.load_policy(None)
    rollouts = engine.generate(ids, n=8, seed=0)
    monkeypatch.setattr(found, "gap_bound", lambda *_: 10.0)
    with pytest.raises(
        EngineError,
        match=r"shows -?0 ± 0 % of what the policy changed: a weaker.*an adapter that did not",
    ):
        sampling._check(backbone, "vllm", ids, rollouts, 0.7)
    sampling._check(backbone, "vllm", ids, rollouts, 0.7, role=None)


def noisy(
    share: float, change: float, noise: float, spread: float = 1.0, seed: int = 0
) -> SamplerAgreement:
    """16 responses of 60 tokens from a sampler that shows a share of a policy's change; all
    log-probs with the noise of bfloat16.

    Tokens differ in how much is changed and how much is rounded, more so with a larger ``spread``.
    """
    generator = torch.Generator().manual_seed(seed)
    moved, *noises = (torch.randn(960, generator=generator, dtype=torch.float64) for _ in range(4))
    scale = (spread * torch.randn(960, generator=generator)).exp().double()
    scale /= scale.square().mean().sqrt()
    sampler, trainer, before = (noise * scale * e for e in noises)
    changed = change * scale * moved
    of = torch.arange(16).repeat_interleave(60)
    sizes = share_shown(sampler + share * changed - before, trainer + changed - before, of, FLOOR)
    return SamplerAgreement(
        float((sampler + share * changed - trainer - changed).abs().mean()), 0.1, 16, *sizes
    )


@pytest.mark.parametrize("spread", [0.3, 1.0, 1.5, 2.0])
@pytest.mark.parametrize("change", [0.0, 0.05, 0.15, 0.3, 3.0])
def test_rounding_is_never_taken_for_another_policy(change: float, spread: float) -> None:
    for seed in range(200):
        assert noisy(1, change, 0.06, spread, seed).holds


def test_what_is_within_rounding_is_not_asked() -> None:
    assert math.isnan(noisy(1, 0.05, 0.06).share) and "shows" not in str(noisy(1, 0.05, 0.06))
    few = share_shown(torch.ones(50), torch.ones(50), torch.arange(50) % 7, 1e-3)
    assert math.isnan(few[0])


@pytest.mark.parametrize("share", [0.0, -1.0])
def test_an_adapter_that_is_not_there_stops_the_run(share: float) -> None:
    held = [noisy(share, 0.3, 0.03, 1.0, seed).holds for seed in range(100)]
    assert sum(held) <= 5


@pytest.mark.parametrize(("share", "word"), [(0.5, "weaker"), (0.8, "weaker"), (2.0, "stronger")])
def test_a_share_of_a_policy_is_said(share: float, word: str) -> None:
    for seed in range(20):
        seen = noisy(share, 0.7, 0.03, 0.5, seed)
        assert seen.odd and word in str(seen)
        assert seen.share == pytest.approx(share, abs=0.1)
    whole = [noisy(1, 0.7, 0.03, 1.0, seed).odd for seed in range(100)]
    assert sum(whole) <= 3


def test_error_bars_cover_the_share() -> None:
    seen = [noisy(1, 0.7, 0.01, 1.0, seed) for seed in range(300)]
    covered = sum(abs(s.share - 1) <= 2 * s.error for s in seen) / 300
    assert covered > 0.9


def test_the_bound_knows_what_a_server_may_compute_in(tiny_folder: Path) -> None:
    backbone = load(tiny_folder)
    assert gap_bound(backbone, "vllm") == 0.005 and gap_bound(backbone, "server") == 0.1
