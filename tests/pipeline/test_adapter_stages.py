"""Every adapter method, in every precision that its card allows, through the real stages: SFT,
reward, DPO and PPO, two steps each; what a card says of merging is what happens.
``prefloop adapters --markdown`` prints the cards, so this is the proof of the table in
docs/adapters.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapted import small_data
from tiny import add_random_role, plain, random_documents, tiny_model
from tiny import load as load_lora
from torch import Tensor
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from prefloop.artifacts.store import Artifact
from prefloop.config import (
    AdapterConfig,
    AlarmConfig,
    BackboneConfig,
    DataConfig,
    GenerationConfig,
    LabelConfig,
    OptimConfig,
    PPOConfig,
    PreferenceConfig,
    RewardConfig,
    SFTStageConfig,
)
from prefloop.data.packing import pack
from prefloop.errors import ModelError
from prefloop.models.adapters import CARDS
from prefloop.models.backbone import Backbone
from prefloop.models.forward import hidden_N_H, response_logps_R
from prefloop.pipeline.stages.label import Label
from prefloop.pipeline.stages.ppo import PPO
from prefloop.pipeline.stages.preference import Preference
from prefloop.pipeline.stages.reward import RewardModel
from prefloop.pipeline.stages.sft import SFT
from prefloop.runs.runtime import Runtime

pytestmark = pytest.mark.slow
CASES = [(card.name, precision) for card in CARDS.values() for precision in card.precisions]
PACK = pack(random_documents([(10, [8, 5]), (4, [12])]))
OPTIM = OptimConfig(learning_rate=1e-2, warmup_steps=0, schedule="constant")
GENERATION = GenerationConfig(max_new_tokens=4, max_num_seqs=8)


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A tiny model whose weights are the same numbers in bfloat16 and float32; with biases for the
    method that needs them to merge.
    """
    made: dict[str, Path] = {}

    def folder(method: str) -> Path:
        kind = "llama-biased" if method == "bitfit" else "llama"
        if kind not in made:
            made[kind] = tiny_model(tmp_path_factory.mktemp("model") / kind, kind)
            AutoModelForCausalLM.from_pretrained(made[kind], dtype=torch.bfloat16).save_pretrained(
                made[kind]
            )
        return made[kind]

    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    return small_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def comparisons(tmp_path_factory: pytest.TempPathFactory, data: DataConfig) -> Artifact:
    return Label(LabelConfig(source="file"), data).run(
        Runtime(output=tmp_path_factory.mktemp("votes"))
    )


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory, model_of: Callable[[str], Path]) -> list[str]:
    """Two LoRA adapters of the tiny model, of different ranks."""
    folder = tmp_path_factory.mktemp("experts")
    for seed in (1, 2):
        backbone = load_lora(model_of("mole"), r=4 * seed)
        backbone.config = dataclasses.replace(backbone.config, model=str(model_of("mole")))
        add_random_role(backbone, "expert", seed)
        backbone.save_role("expert", folder / str(seed))
    return [str(folder / "1"), str(folder / "2")]


def config_of(method: str, precision: str, model: Path, experts: list[str]) -> BackboneConfig:
    options: dict[str, Any] = {
        "mole": {"experts": experts},
        "lora-drop": {"steps": 2, "share": 0.5},
    }.get(method, {})
    if "tokens" in CARDS[method].options:
        options = {"tokens": 4}
    return BackboneConfig(
        model=str(model),
        precision=precision,  # type: ignore[arg-type]
        compute="bf16" if precision == "bf16" else "fp32",
        max_length=64,
        adapter=AdapterConfig(method=method, r=4, alpha=8, options=options),
    )


def logps(backbone: Backbone, role: str | None) -> Tensor:
    with backbone.role(role):
        return response_logps_R(backbone, hidden_N_H(backbone, PACK), PACK)


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The log-probs of each role at the moment that a stage saves it."""
    found: list[Tensor] = []
    save = Backbone.save_role

    def noted(self: Backbone, role: str, folder: Path) -> None:
        found.append(logps(self, role))
        save(self, role, folder)

    monkeypatch.setattr(Backbone, "save_role", noted)
    return found


@pytest.mark.parametrize(("method", "precision"), CASES)
def test_a_method_goes_through_all_stages(
    method: str,
    precision: str,
    model_of: Callable[[str], Path],
    data: DataConfig,
    comparisons: Artifact,
    experts: list[str],
    saved: list[Tensor],
    tmp_path: Path,
) -> None:
    card, folder = CARDS[method], model_of(method)
    config = config_of(method, precision, folder, experts)
    runtime = Runtime(config, GENERATION, "transformers", 0, tmp_path)
    backbone = runtime.backbone
    frozen, bare = backbone.frozen_digest(), logps(backbone, None)
    artifacts: dict[str, Artifact] = {"comparisons": comparisons}
    learnt: dict[str, Tensor] = {}
    for stage in (
        SFT(SFTStageConfig(batch_size=2, optim=OPTIM), data),
        RewardModel(RewardConfig(batch_pairs=3, holdout=0.2, optim=OPTIM)),
        Preference("dpo", PreferenceConfig(batch_pairs=3, optim=OPTIM)),
        PPO(
            PPOConfig(
                steps=2,
                prompts_per_step=2,
                samples_per_prompt=2,
                minibatches=1,
                samples_every=0,
                alarm=AlarmConfig(action="none"),
                optim=OPTIM,
            ),
            data,
        ),
    ):
        made = artifacts[stage.produces] = stage.run(
            runtime, **{slot: artifacts[slot] for slot in stage.inputs}
        )
        learnt[stage.produces] = saved[-1]
        assert made.metrics["updates" if stage.name == "ppo" else "steps"] == 2
        assert any(line.startswith("weights move") for line in made.metrics["audit"])
        assert not torch.equal(saved[-1], learnt["sft"] if stage.name != "sft" else bare)
        assert saved[-1].isfinite().all()
    assert backbone.frozen_digest() == frozen and torch.equal(logps(backbone, None), bare)

    again = Backbone.load(config, folder)
    for slot, expected in learnt.items():
        again.add_role(slot, start=artifacts[slot].path)
        assert torch.equal(logps(again, slot), expected), slot
    line = f"trainable parameters: {again.method.count('sft'):,} in "
    assert any(found.startswith(line) for found in artifacts["sft"].metrics["audit"])

    if not card.merges:
        with pytest.raises(ModelError, match=rf"adapter {method}: no plain weights.*lora"):
            next(again.merged_weights("ppo"))
        return
    if (
        precision == "bf16"
    ):  # the role rounds at other places in another order; the same numbers in float32 must agree
        rounded = dict(again.merged_weights("ppo"))
        again = Backbone.load(dataclasses.replace(config, precision="fp32", compute="fp32"), folder)
        again.add_role("ppo", start=artifacts["ppo"].path)
        for name, weight in again.merged_weights("ppo"):
            assert rounded[name].dtype == torch.bfloat16
            assert (rounded[name].float() - weight).norm() <= 2**-8 * weight.norm(), name
    model = plain(folder)
    left = model.load_state_dict(dict(again.merged_weights("ppo")), strict=False)
    assert not left.unexpected_keys and set(left.missing_keys) <= {"lm_head.weight"}
    with again.role("ppo"), torch.no_grad():
        expected = again.causal_lm(PACK.tokens_N[None]).logits
        assert_close(model(PACK.tokens_N[None]).logits, expected, atol=2e-4, rtol=1e-4)
