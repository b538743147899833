"""vLLM's CPU build as the sampler: it runs the trainer's policy, handed over from memory in either
way, and is started anew when it dies.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from sampled import prompts_ids
from test_engine import assert_logps_are_the_trainers
from tiny import add_random_role, load, plain, tiny_model
from torch import nn

from prefloop.config import BackboneConfig, GenerationConfig
from prefloop.errors import EngineError, PrefloopError
from prefloop.models.backbone import Backbone
from prefloop.rollouts import vllm
from prefloop.rollouts.check import check
from prefloop.rollouts.engine import Restarting, Rollout, divisor
from prefloop.rollouts.handover import Writer
from prefloop.rollouts.start import start

pytestmark = pytest.mark.slow

SETTINGS = {"temperature": 0.7, "max_new_tokens": 24, "max_num_seqs": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("vllm") / "model", "llama-wide")


@pytest.fixture(scope="module", params=[("merged", "nf4"), ("adapter", "nf4"), ("adapter", "fp32")])
def pair(request: pytest.FixtureRequest, folder: Path) -> Iterator[tuple[Backbone, Any]]:
    handover, precision = request.param
    backbone = load(folder, "llama-wide", precision=precision)
    add_random_role(backbone, "policy")
    engine = start("vllm", backbone, GenerationConfig(handover=handover, **SETTINGS))
    yield backbone, engine
    engine.close()


def test_sampler_log_probs_equal_the_trainers_after_every_hand_over(
    pair: tuple[Backbone, Any],
) -> None:
    backbone, engine = pair
    before = {n: p.detach().clone() for n, p in backbone.named_parameters("policy").items()}
    engine.load_policy("policy")
    first = engine.generate(prompts_ids(backbone), n=3, seed=1)
    assert_logps_are_the_trainers(backbone, first, 0.7)
    assert all(torch.equal(p, before[n]) for n, p in backbone.named_parameters("policy").items())
    with torch.no_grad():
        for parameter in backbone.parameters("policy"):
            parameter.mul_(1.3)
    engine.pause()
    engine.load_policy("policy")
    second = engine.generate(prompts_ids(backbone), n=3, seed=1)
    assert [r.token_ids for r in second] != [r.token_ids for r in first]
    assert_logps_are_the_trainers(backbone, second, 0.7)
    with torch.no_grad():
        for name, parameter in backbone.named_parameters("policy").items():
            parameter.copy_(before[name])
    engine.load_policy("policy")
    assert engine.generate(prompts_ids(backbone), n=3, seed=1) == first
    greedy = engine.generate(prompts_ids(backbone), n=1, seed=1, temperature=0.0)
    assert greedy == engine.generate(prompts_ids(backbone), n=1, seed=2, temperature=0.0)
    assert_logps_are_the_trainers(backbone, greedy, divisor(0.0))


def test_the_bare_base_samples_after_a_policy(pair: tuple[Backbone, Any]) -> None:
    backbone, engine = pair
    engine.load_policy("policy")
    policy = engine.generate(prompts_ids(backbone), n=1, seed=1)
    engine.load_policy(None)
    assert engine.generate(prompts_ids(backbone), n=1, seed=1) != policy


@pytest.mark.parametrize("rope", [{"type": "yarn", "factor": 4}, {"type": "linear", "factor": 2}])
def test_a_longer_context_is_the_same_one_in_both(folder: Path, rope: dict[str, Any]) -> None:
    backbone = load(folder, "llama-wide", rope=rope, max_length=1000)
    add_random_role(backbone, "policy")
    prompts = [
        torch.randint(9, 400, (900,), generator=torch.Generator().manual_seed(k)).tolist()
        for k in range(2)
    ]
    engine = start("vllm", backbone, GenerationConfig(**SETTINGS))
    try:
        engine.load_policy("policy")
        assert_logps_are_the_trainers(backbone, engine.generate(prompts, n=2, seed=1), 0.7, prompts)
    finally:
        engine.close()


class Sampler(nn.Module):
    """Parameters named and joined as vLLM does it, filled from a plain model."""

    packed_modules_mapping: ClassVar = {
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }

    def __init__(self, model: nn.Module, pad: int = 0) -> None:
        super().__init__()
        weights = {n: p.detach().clone() for n, p in model.named_parameters()}
        for joint, parts in self.packed_modules_mapping.items():
            for first in [n for n in weights if f".{parts[0]}." in n]:
                names = [first.replace(parts[0], part) for part in parts]
                weights[first.replace(parts[0], joint)] = torch.cat([weights.pop(n) for n in names])
        embedding = weights["model.embed_tokens.weight"]
        weights["model.embed_tokens.weight"] = torch.cat(
            [embedding, torch.zeros(pad, embedding.shape[1])]
        )
        for name, weight in weights.items():
            self.register_parameter(name.replace(".", "/"), nn.Parameter(weight))

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in super().named_parameters(*args, **kwargs):
            yield name.replace("/", "."), parameter


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("precision", ["fp32", "nf4"])
def test_weights_are_written_where_vllm_keeps_them(
    kind: str, precision: str, tmp_path: Path
) -> None:
    """The places joined projections, biases and a padded vocabulary have, against a sampler made
    from the merged weights themselves.
    """
    model = tiny_model(tmp_path / "model", kind)
    backbone = load(model, kind, precision=precision)
    add_random_role(backbone, "policy")
    sampler = Sampler(plain(model, kind), pad=48)
    writer = Writer.find(backbone.causal_lm, sampler)
    assert writer is not None
    writer.write("policy")
    merged = plain(model, kind)
    merged.load_state_dict(dict(backbone.merged_weights("policy")), strict=False)
    expected = dict(Sampler(merged, pad=48).named_parameters())
    for name, parameter in sampler.named_parameters():
        assert torch.equal(parameter, expected[name]), name


def test_a_sampler_with_other_weights_or_places_is_left_to_its_own_loader(
    folder: Path, tmp_path: Path
) -> None:
    backbone = load(folder, "llama-wide", precision="nf4")
    other = plain(tiny_model(tmp_path / "other", "llama-wide", seed=1), "llama-wide")
    assert Writer.find(backbone.causal_lm, Sampler(other)) is None
    repacked = Sampler(plain(folder, "llama-wide"))
    name = next(n for n, _ in repacked.named_parameters() if "qkv_proj" in n)
    repacked.register_parameter(name.replace(".", "/"), nn.Parameter(torch.empty(0)))
    assert Writer.find(backbone.causal_lm, repacked) is None
    more = Sampler(plain(folder, "llama-wide"))
    more.register_parameter("model/more/weight", nn.Parameter(torch.zeros(3)))
    assert Writer.find(backbone.causal_lm, more) is None


class Mortal:
    """An engine that dies in some of its calls."""

    name = "mortal"

    def __init__(self, deaths: list[bool], log: list[Any]) -> None:
        self.deaths, self.log = deaths, log
        log.append("start")

    def load_policy(self, role: str | None) -> None:
        self.log.append(role)

    def generate(
        self,
        prompts_ids: Any,
        n: int,
        seed: int,
        advance: Any = None,
        temperature: float | None = None,
    ) -> list[Rollout]:
        if advance:
            advance(2)
        if self.deaths.pop(0):
            raise EngineError("vLLM stopped while sampling: out of memory")
        if advance:
            advance(len(prompts_ids) * n - 2)
        return [Rollout(0, [seed], [0.0], True)]

    def pause(self) -> None: ...

    def close(self) -> None:
        self.log.append("close")


def test_an_engine_that_dies_is_started_anew_with_its_policy_and_the_count_stays_right() -> None:
    log: list[Any] = []
    deaths = [True, False, False]
    counted: list[int] = []
    engine = Restarting(lambda: Mortal(deaths, log))
    engine.load_policy("policy")
    assert engine.generate([[1], [2]], 2, seed=5, advance=counted.append)[0].token_ids == [5]
    assert log == ["start", "policy", "close", "start", "policy"]
    assert sum(counted) == 4


@pytest.mark.parametrize("deaths", [[True, True], [True, False, True]])
def test_a_second_death_ends_the_run_and_says_what_is_saved(deaths: list[bool]) -> None:
    engine = Restarting(lambda: Mortal(deaths, []))
    engine.load_policy("policy")
    with pytest.raises(
        EngineError, match=r"(?s)out of memory.*same command goes on from the last one"
    ):
        for _ in range(2):
            engine.generate([[1]], 1, seed=5)


def test_a_missing_or_old_vllm_is_an_error_that_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check("vllm", GenerationConfig(), BackboneConfig())
    monkeypatch.setattr("importlib.metadata.version", lambda package: "0.9.1")
    with pytest.raises(
        EngineError,
        match=(r"0\.9\.1 is not supported; versions 0\.22 to 0\.31 are.*--rollout transformers"),
    ):
        check("vllm", GenerationConfig(), BackboneConfig())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        EngineError, match=r"vLLM is not installed\. Install it with 'make install'"
    ):
        check("vllm", GenerationConfig(), BackboneConfig())


def test_settings_that_an_engine_cannot_work_with_are_refused_before_anything_runs() -> None:
    for name, generation, backbone, words in (
        ("server", {}, {}, r"needs --generation\.server, such as http://127\.0\.0\.1:8000"),
        ("server", {"server": "http://user:pw@host"}, {}, "must hold no user"),
        ("vllm", {"weights": "nf4"}, {"precision": "fp32"}, "goes with backbone.precision nf4"),
        ("vllm", {"weights": "nf4", "handover": "merged"}, {}, "nothing can be merged into 4 bits"),
    ):
        with pytest.raises(PrefloopError, match=words) as error:
            check(name, GenerationConfig(**generation), BackboneConfig(**backbone))
        assert "pw" not in str(error.value)


def test_a_failing_start_shows_vllms_last_lines(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start_badly(engine: vllm.VLLMEngine) -> None:
        os.write(1, b"EngineCore failed to start.\n")
        raise RuntimeError("no memory for the KV cache")

    monkeypatch.setattr(vllm.VLLMEngine, "_start", start_badly)
    with pytest.raises(
        EngineError,
        match=r"(?s)EngineCore failed to start.*no memory for the KV cache.*kv_cache_gb",
    ):
        start("vllm", load(folder, "llama-wide"), GenerationConfig())


def test_an_error_inside_vllm_is_one_of_ours(
    pair: tuple[Backbone, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, engine = pair

    def die(*_: Any, **__: Any) -> None:
        raise ValueError("worker died")

    monkeypatch.setattr(
        engine.engine, "llm", SimpleNamespace(generate=die, reset_prefix_cache=lambda: None)
    )
    with pytest.raises(EngineError, match="vLLM stopped while sampling: ValueError: worker died"):
        engine.engine.generate(prompts_ids(backbone), 1, 0)
