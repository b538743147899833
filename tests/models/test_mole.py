"""MoLE: gates over frozen LoRA experts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from adapted import PACK, load, logps, train, two_experts
from tiny import add_random_role, random_documents
from tiny import load as load_lora
from torch.testing import assert_close

from prefloop.data.packing import pack
from prefloop.errors import ModelError
from prefloop.models.adapters.mole import MoLE
from prefloop.models.backbone import Backbone
from prefloop.models.forward import hidden_N_H


@pytest.fixture(scope="module")
def experts(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return two_experts(tmp_path_factory.mktemp("experts"), tiny_folder)


def force(backbone: Backbone, expert: int) -> None:
    with torch.no_grad():
        for name, parameter in backbone.named_parameters("policy").items():
            parameter.zero_()
            if name.endswith("bias"):
                parameter[expert] = 100.0


@pytest.mark.parametrize("expert", [0, 1])
@pytest.mark.parametrize("top_k", [1, 2])
def test_a_gate_forced_to_one_expert_is_that_experts_lora(
    expert: int, top_k: int, tiny_folder: Path, experts: list[str]
) -> None:
    mixed = load(tiny_folder, "mole", options={"experts": experts, "top_k": top_k})
    mixed.add_role("policy")
    force(mixed, expert)
    alone = load_lora(tiny_folder, r=(4, 8)[expert])
    alone.add_role("policy", start=Path(experts[expert]))
    assert_close(logps(mixed, "policy"), logps(alone, "policy"), atol=1e-4, rtol=1e-4)


def test_an_expert_that_does_not_name_its_model_is_mixed(
    tiny_folder: Path, experts: list[str], tmp_path: Path
) -> None:
    nameless = Path(shutil.copytree(experts[0], tmp_path / "nameless"))
    file = nameless / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": None}))
    mixed = load(tiny_folder, "mole", options={"experts": [str(nameless), experts[1]]})
    same = load(tiny_folder, "mole", options={"experts": experts})
    for backbone in (mixed, same):
        backbone.add_role("policy")
        force(backbone, 0)
    assert torch.equal(logps(mixed, "policy"), logps(same, "policy"))


def test_a_fresh_gate_is_the_mean_of_the_experts(tiny_folder: Path, experts: list[str]) -> None:
    backbone = load(tiny_folder, "mole", options={"experts": experts})
    backbone.add_role("policy")
    name, x = "model.layers.0.self_attn.q_proj", torch.randn(5, 64)
    layer = backbone.causal_lm.get_submodule(name)
    updates = []
    for folder, rank in zip(experts, (4, 8), strict=True):
        alone = load_lora(tiny_folder, r=rank)
        alone.add_role("policy", start=Path(folder))
        updates.append(dict(alone.merged_weights("policy"))[f"{name}.weight"])
    with backbone.role("policy"):
        assert_close(layer(x), x @ (sum(updates) / 2).T, atol=1e-4, rtol=1e-4)


def test_only_gates_learn_and_temperature_and_top_k_shape_them(
    tiny_folder: Path, experts: list[str]
) -> None:
    backbone = load(
        tiny_folder,
        "mole",
        options={"experts": [*experts, experts[0]], "top_k": 2, "temperature": 2.0},
    )
    add_random_role(backbone, "policy")
    names = backbone.named_parameters("policy")
    assert {n.rpartition("proj.")[2] for n in names} == {"gate.weight", "gate.bias"} and len(
        names
    ) == 2 * 14
    method = backbone.method
    assert isinstance(method, MoLE)
    layer = "model.layers.0.mlp.down_proj"
    x = torch.randn(6, 128)
    score = (x @ names[f"{layer}.gate.weight"].T + names[f"{layer}.gate.bias"]).detach() / 2.0
    lowest = score.argmin(-1, keepdim=True)
    expected = score.exp().scatter(-1, lowest, 0.0)
    assert_close(
        method.gates("policy", layer, x).detach(), expected / expected.sum(-1, keepdim=True)
    )


@pytest.mark.parametrize("top_k", [1, 2, 0])
def test_a_gate_goes_on_learning_after_its_first_step(
    top_k: int, tiny_folder: Path, experts: list[str]
) -> None:
    backbone = load(tiny_folder, "mole", options={"experts": experts, "top_k": top_k})
    backbone.add_role("policy")
    for _ in range(3):
        train(backbone, "policy", steps=1)
        norms = [p.grad.norm() for p in backbone.parameters("policy") if p.grad is not None]
        assert len(norms) == 28 and float(torch.stack(norms).norm()) > 1e-3


@pytest.mark.parametrize("top_k", [1, 2])
def test_exactly_k_experts_run_where_gates_are_tied(
    top_k: int, tiny_folder: Path, experts: list[str]
) -> None:
    backbone = load(
        tiny_folder, "mole", options={"experts": [*experts, experts[0]], "top_k": top_k}
    )
    backbone.add_role("policy")
    method = backbone.method
    assert isinstance(method, MoLE)
    weights = method.gates("policy", "model.layers.0.mlp.down_proj", torch.randn(6, 128))
    # One alone keeps its own weight, 1 of 3; of two each gets half.
    assert_close(
        weights.sort(-1, descending=True).values,
        torch.tensor([[[1 / 3, 0, 0], [0.5, 0.5, 0]][top_k - 1]] * 6),
    )


def test_the_balance_term_is_least_at_even_gates_and_pulls_towards_them(
    tiny_folder: Path, experts: list[str]
) -> None:
    backbone = load(tiny_folder, "mole", options={"experts": experts, "balance": 0.5})
    backbone.add_role("policy")
    with backbone.role("policy", train=True):
        hidden_N_H(backbone, PACK)
        even = backbone.method.penalty("policy")
        assert even is not None and float(even.detach()) == pytest.approx(
            0.5 * 2 * torch.tensor(2.0).log().item()
        )
        with torch.no_grad():
            for name, parameter in backbone.named_parameters("policy").items():
                if name.endswith("bias"):
                    parameter[0] = 1.0
        uneven = backbone.method.penalty("policy")
        assert uneven is not None and uneven > even
        uneven.backward()
    biases = [p.grad for n, p in backbone.named_parameters("policy").items() if n.endswith("bias")]
    assert all(g is not None and g[0] > 0 > g[1] for g in biases)


def test_a_gate_is_not_loaded_over_other_experts(
    tiny_folder: Path, experts: list[str], tmp_path: Path
) -> None:
    backbone = load(tiny_folder, "mole", options={"experts": experts})
    backbone.add_role("policy")
    backbone.save_role("policy", tmp_path / "gate")
    other = load(tiny_folder, "mole", options={"experts": experts[::-1]})
    with pytest.raises(ModelError, match="trained with other experts"):
        other.add_role("policy", start=tmp_path / "gate")


def test_a_gate_is_not_loaded_over_experts_of_another_scale(
    tiny_folder: Path, experts: list[str], tmp_path: Path
) -> None:
    backbone = load(tiny_folder, "mole", options={"experts": experts})
    backbone.add_role("policy")
    backbone.save_role("policy", tmp_path / "gate")
    louder = Path(shutil.copytree(Path(experts[0]).parent, tmp_path / "experts"))
    config = louder / "expert-1" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": 80}))
    other = load(
        tiny_folder, "mole", options={"experts": [str(louder / Path(e).name) for e in experts]}
    )
    with pytest.raises(ModelError, match="trained with other experts"):
        other.add_role("policy", start=tmp_path / "gate")


def test_the_balance_term_of_a_role_is_of_its_own_last_pass(
    tiny_folder: Path, experts: list[str]
) -> None:
    backbone = load(tiny_folder, "mole", options={"experts": experts, "balance": 0.5})
    for role in ("policy", "critic"):
        add_random_role(backbone, role)
        with backbone.role(role, train=True):
            hidden_N_H(backbone, PACK)
    alone = backbone.method.penalty("policy")
    other = pack(random_documents([(6, [7, 9])], seed=9))
    with backbone.role("critic", train=True):
        hidden_N_H(backbone, other)
    assert torch.equal(backbone.method.penalty("policy"), alone)
    backbone.drop_role("policy")
    assert backbone.method.penalty("policy") is None
