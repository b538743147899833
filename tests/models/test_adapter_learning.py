"""What a method asks of the stages that train it: dropout that is on where it should be, heads that
no loss reaches, values from the weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from adapted import small_data
from tiny import _SHAPE, random_documents, tiny_tokenizer
from tiny import load as load_lora
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PhiConfig, PhiForCausalLM, PreTrainedModel

from prefloop.config import (
    AdapterConfig,
    BackboneConfig,
    GenerationConfig,
    LabelConfig,
    OptimConfig,
    PPOConfig,
    RewardConfig,
    SFTStageConfig,
)
from prefloop.data.packing import pack
from prefloop.errors import ConfigError
from prefloop.models.adapters import CARDS
from prefloop.models.adapters.adalora import AdaLoRA
from prefloop.models.adapters.pissa import OLoRA, PiSSA
from prefloop.models.backbone import Backbone
from prefloop.models.forward import hidden_N_H, response_logps_R
from prefloop.pipeline.stages.label import Label
from prefloop.pipeline.stages.ppo import PPO
from prefloop.pipeline.stages.reward import RewardModel
from prefloop.pipeline.stages.sft import SFT
from prefloop.runs.runtime import Runtime

PACK = pack(random_documents([(10, [8, 5]), (4, [12])]))


def config_of(
    folder: Path, method: str, options: dict[str, Any] | None = None, dropout: float = 0.0
) -> BackboneConfig:
    adapter = AdapterConfig(method=method, r=4, alpha=8, dropout=dropout, options=options or {})
    return BackboneConfig(
        model=str(folder), precision="fp32", compute="fp32", max_length=64, adapter=adapter
    )


def moved(backbone: Backbone, role: str, seed: int = 1) -> Backbone:
    """A role whose every parameter does something."""
    backbone.add_role(role, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in backbone.parameters(role):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return backbone


def logps(backbone: Backbone, role: str) -> Tensor:
    with backbone.role(role):
        return response_logps_R(backbone, hidden_N_H(backbone, PACK), PACK)


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> list[str]:
    folder = tmp_path_factory.mktemp("experts") / tiny_folder.name
    for seed in (1, 2):
        backbone = moved(load_lora(tiny_folder), "expert", seed)
        backbone.config = config_of(tiny_folder, "lora")
        backbone.save_role("expert", folder / str(seed))
    return [str(folder / "1"), str(folder / "2")]


# Dropout


@pytest.mark.parametrize("method", CARDS)
def test_dropout_is_on_where_a_library_trains_the_role_or_is_refused(
    method: str, tiny_folder: Path, experts: list[str]
) -> None:
    config = config_of(
        tiny_folder, method, {"experts": experts} if method == "mole" else {}, dropout=0.5
    )
    if not CARDS[method].dropout:
        with pytest.raises(
            ConfigError,
            match=rf"dropout is 0\.5, but method {method} has none: set 0, or take.*lora",
        ):
            Backbone.load(config, tiny_folder)
        return
    backbone = moved(Backbone.load(config, tiny_folder), "sft")
    ids = PACK.tokens_N[None]

    def twice() -> list[Tensor]:
        with torch.no_grad():
            return [backbone.causal_lm(ids).logits for _ in range(2)]

    backbone.activate("sft", dropout=True)
    backbone.model.train()  # as transformers' trainer does
    assert not torch.equal(*twice())
    scores = logps(backbone, "sft")
    assert torch.equal(scores, logps(backbone, "sft"))  # a look in between is without
    backbone.activate("sft")
    backbone.model.eval()
    assert torch.equal(*twice())


# Heads that no loss reaches


def saved(folder: Path, model: PreTrainedModel) -> Path:
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**_SHAPE, "tie_word_embeddings": False}))
    return saved(tmp_path_factory.mktemp("models") / "untied", model)


def test_what_lies_below_the_head_is_all_but_the_heads_own(
    untied: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    phi = saved(
        tmp_path / "phi", PhiForCausalLM(PhiConfig(**{**_SHAPE, "tie_word_embeddings": False}))
    )
    found = {}
    for name, folder, method in (
        ("untied", untied, "full"),
        ("tied", tiny_folder, "full"),
        ("biased", phi, "bitfit"),
        ("lora", untied, "lora"),
    ):
        backbone = Backbone.load(config_of(folder, method), folder)
        backbone.add_role("reward/0")
        found[name] = (
            backbone.named_parameters("reward/0").keys() - backbone.below_head("reward/0").keys()
        )
    assert found == {
        "untied": {"lm_head.weight"},
        "tied": set(),
        "biased": {"lm_head.bias"},
        "lora": set(),
    }


def test_full_fine_tuning_of_an_untied_model_goes_through_reward_and_a_critic_apart(
    untied: Path, tmp_path: Path
) -> None:
    data = small_data(tmp_path)
    runtime = Runtime(
        config_of(untied, "full"), GenerationConfig(max_new_tokens=3), "transformers", 0, tmp_path
    )
    optim = OptimConfig(learning_rate=1e-3, warmup_steps=0)
    sft = SFT(SFTStageConfig(optim=optim), data).run(runtime)
    votes = Label(LabelConfig(source="file"), data).run(runtime)
    reward = RewardModel(RewardConfig(holdout=0.0, optim=optim)).run(
        runtime, sft=sft, comparisons=votes
    )
    numbers = sum(p.numel() for p in LlamaForCausalLM.from_pretrained(untied).model.parameters())
    assert f"trainable parameters: {numbers + 64:,} in adapter and head" in reward.metrics["audit"]
    ppo = PPO(PPOConfig(steps=2, prompts_per_step=2, critic="adapter", optim=optim), data)
    assert ppo.run(runtime, sft=sft, reward=reward).metrics["updates"] == 4


# First values


@pytest.mark.parametrize("kind", [PiSSA, OLoRA])
def test_no_weight_is_decomposed_for_a_role_that_is_loaded(
    kind: type[PiSSA] | type[OLoRA],
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backbone = moved(
        Backbone.load(config_of(tiny_folder, kind.__name__.lower()), tiny_folder), "sft"
    )
    backbone.save_role("sft", tmp_path)

    def refused(*_: Any) -> Any:
        raise AssertionError("a weight was decomposed")

    monkeypatch.setattr(kind, "factors", refused)
    backbone.add_role("policy", start=tmp_path)
    assert torch.equal(logps(backbone, "policy"), logps(backbone, "sft"))
    with pytest.raises(AssertionError, match="decomposed"):
        backbone.add_role("fresh")


# AdaLoRA's budget


def test_of_values_that_matter_alike_adalora_cuts_the_smallest(tiny_folder: Path) -> None:
    backbone = Backbone.load(config_of(tiny_folder, "adalora"), tiny_folder)
    backbone.add_role("value")
    method = backbone.method
    assert isinstance(method, AdaLoRA)
    values = {n: p for n, p in backbone.named_parameters("value").items() if n.endswith("lora_E")}
    large = {name: torch.arange(len(p)) % 2 == k % 2 for k, (name, p) in enumerate(values.items())}
    for parameter in backbone.parameters("value"):
        parameter.grad = torch.zeros_like(
            parameter
        )  # as a critic's adapter gets them while its head is 0
    with torch.no_grad():
        for name, parameter in values.items():
            parameter.copy_(torch.where(large[name], 0.1, 0.01)[:, None])
    method.before_step("value", 0, 10)
    chosen = method._best("value", int(sum(part.sum() for part in large.values())))
    assert all(torch.equal(chosen[name][:, 0], large[name]) for name in values)


def test_adaloras_budget_does_not_fall_on_the_first_gradients_which_say_nothing(
    tiny_folder: Path,
) -> None:
    options = {"warmup": 0.0, "final": 0.3}
    method = Backbone.load(config_of(tiny_folder, "adalora", options), tiny_folder).method
    assert isinstance(method, AdaLoRA)
    assert [method.phases(steps) for steps in (1, 2, 10)] == [(1, 2), (1, 2), (1, 7)]
    assert [method.budget(step, 10, 14) for step in (1, 4, 7)] == [
        6 * 14,
        4 * 14 + round(28 * 0.125),
        4 * 14,
    ]
