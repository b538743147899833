"""Every adapter method in the planner: counts to the element, what its passes keep, optimizers."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny import add_random_role, random_documents
from tiny import load as load_lora
from torch import nn

from prefloop.config import AdapterConfig, BackboneConfig, RLHFConfig
from prefloop.config.adapters import CARDS
from prefloop.config.common import OPTIMIZERS
from prefloop.data.packing import pack
from prefloop.errors import ConfigError
from prefloop.models.adapters import method_of
from prefloop.models.adapters.mole import MoLE
from prefloop.models.backbone import Backbone
from prefloop.models.forward import run_N_H
from prefloop.planning.adapters import BITS_FROM
from prefloop.planning.memory import Device, PackSize
from prefloop.planning.shapes import SHAPES, Shape, shape_of
from prefloop.planning.stages import ERROR_UNFUSED, Planner
from prefloop.training import optimizers

R = 4


@pytest.fixture(scope="module")
def experts(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two LoRA adapters of the tiny backbone, of different ranks."""
    folder = tmp_path_factory.mktemp("experts")
    for rank in (4, 8):
        backbone = load_lora(tiny_folder, r=rank)
        add_random_role(backbone, "expert")
        backbone.save_role("expert", folder / str(rank))
    return [str(folder / "4"), str(folder / "8")]


def adapter(method: str, experts: list[str], **settings: Any) -> AdapterConfig:
    options = {"mole": {"experts": experts}}.get(method, {})
    return AdapterConfig(method=method, r=R, alpha=8, options=options, **settings)


def held(model: nn.Module) -> int:
    """Four-byte units of all parameters and buffers, each once."""
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return sum(t.numel() * t.element_size() // 4 for n, t in tensors.items())


@pytest.mark.parametrize("method", CARDS)
def test_counts_of_a_role_are_those_of_its_tensors(
    tiny_folder: Path, experts: list[str], method: str
) -> None:
    config = BackboneConfig(
        model="tiny-llama",
        precision="fp32",
        compute="fp32",
        attention="sdpa",
        max_length=256,
        adapter=adapter(method, experts),
    )
    backbone = Backbone.load(config, tiny_folder, torch.device("cpu"))
    before = held(backbone.model)
    backbone.add_role("policy")
    role = Device.of(shape_of(str(tiny_folder), Path("x")), config).role
    assert role.trained == backbone.method.count("policy")
    assert sorted(role.tensors.learn) == sorted(p.numel() for p in backbone.parameters("policy"))
    assert role.held == held(backbone.model) - before
    assert role.fused == bool(backbone.layers)


@pytest.fixture(scope="module")
def smollm2() -> Shape:
    """SmolLM2's layers, three of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SHAPES, "short", {**SHAPES["smollm2"], "num_hidden_layers": 3})
        return shape_of("shape:short", Path("x"))


@pytest.fixture(scope="module")
def large_experts(smollm2: Shape, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two adapters of zeros of that shape."""
    out = []
    for name, rank in (("first", 2), ("second", 3)):
        folder = tmp_path_factory.mktemp(name)
        tensors: dict[str, torch.Tensor] = {}
        for layer in smollm2.linears:
            tensors[f"base_model.model.{layer.name}.lora_A.weight"] = torch.zeros(
                rank, layer.inputs
            )
            tensors[f"base_model.model.{layer.name}.lora_B.weight"] = torch.zeros(
                layer.outputs, rank
            )
        save_file(tensors, folder / "adapter_model.safetensors")
        described = {
            "peft_type": "LORA",
            "r": rank,
            "lora_alpha": 2,
            "base_model_name_or_path": "m",
        }
        (folder / "adapter_config.json").write_text(json.dumps(described))
        out.append(str(folder))
    return out


@pytest.mark.parametrize("method", CARDS)
def test_counts_hold_for_the_layers_of_smollm2(
    smollm2: Shape, large_experts: list[str], method: str
) -> None:
    """On torch's meta device, where no weight exists; with what the model holds once for all
    roles.
    """
    from transformers import AutoModelForCausalLM, Qwen2Config

    config = adapter(method, large_experts)
    made = method_of(config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            Qwen2Config(**{**SHAPES["smollm2"], "num_hidden_layers": 3})
        )
    model.tie_weights()
    bare = held(model)
    reads_weights = method in ("dora", "pissa", "olora")
    with torch.device("meta") if reads_weights else contextlib.nullcontext():
        wrapped = made.wrap(model)
        before = held(wrapped)
        made.add("policy")
    role = Device.of(smollm2, BackboneConfig(precision="bf16", adapter=config)).role
    assert role.trained == made.count("policy")
    assert role.held == held(wrapped) - before
    of_experts = (
        [*made.low.values(), *made.high.values(), *made.expert.values()]
        if isinstance(made, MoLE)
        else []
    )
    beside = sum(t.numel() * t.element_size() // 4 for t in of_experts)
    # BOFT's permutations stay on the host.
    on_host = sum(b.numel() for n, b in wrapped.named_buffers() if n.endswith("boft_P"))
    assert role.tensors.shared == before - bare + beside - on_host


PACK = pack(random_documents([(60, [70]), (50, [60])]))


@pytest.mark.parametrize(
    "method",
    [
        name
        for name in CARDS
        if name not in ("rslora", "lora+", "lora-fa", "pissa", "olora", "eva", "lora-drop", "lora")
    ],
)
def test_what_passes_of_unfused_methods_keep_is_what_the_planner_says(
    tiny_folder: Path, experts: list[str], method: str
) -> None:
    """In bfloat16 under autocast, as on a GPU. Houlsby's first attention has nothing to learn ahead
    of it, which counts in two layers.
    """
    found, said = kept(tiny_folder, adapter(method, experts))
    assert 0.95 < said / found < (1.5 if method == "bottleneck" else 1.15)


def test_adapter_dropout_takes_the_layers_off_the_fused_path(tiny_folder: Path) -> None:
    found, said = kept(tiny_folder, AdapterConfig(r=R, alpha=8, dropout=0.1))
    assert 0.95 < said / found < 1.1


def kept(folder: Path, config: AdapterConfig) -> tuple[int, int]:
    """Bytes that a real pass saves for its backward pass, and what the planner expects."""
    settings = BackboneConfig(
        model="tiny-llama",
        precision="bf16",
        compute="bf16",
        attention="sdpa",
        max_length=256,
        adapter=config,
    )
    backbone = Backbone.load(settings, folder, torch.device("cpu"))
    backbone.add_role("policy")
    own = {
        t.untyped_storage().data_ptr()
        for t in (*backbone.model.parameters(), *backbone.model.buffers())
    }
    seen: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if (place := tensor.untyped_storage().data_ptr()) not in own:
            seen[place] = tensor
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, backbone.role("policy", train=True, dropout=config.dropout > 0):
        run_N_H(backbone, PACK, "mask")
    device, count = Device.of(shape_of(str(folder), Path("x")), settings), len(PACK.tokens_N)
    tokens = device.seen(PackSize(count, count, count))
    layers = device.shape.layers * (
        device.layer(tokens, True, device.drops) + count * device.item * device.shape.hidden
    )
    casts = 0 if device.role.fused else device.role.copies * device.item
    return sum(t.untyped_storage().nbytes() for t in seen.values()), layers + casts


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_moments_are_those_that_the_optimizer_holds(tiny_folder: Path, name: str) -> None:
    backbone = load_lora(tiny_folder, r=32)
    backbone.add_role("policy")
    parameters = backbone.parameters("policy")
    for p in parameters:
        p.grad = torch.ones_like(p)
    optimizer = optimizers.make(
        name, [{"params": parameters, "lr": 1e-3}], 0.0, torch.device("cpu")
    )
    optimizer.step()
    held_bytes = sum(
        t.numel() * t.element_size()
        for p in parameters
        for slot, t in optimizers.moments(optimizer, p).items()
        if slot != "step"
    )
    config = BackboneConfig(adapter=AdapterConfig(r=32, alpha=8))
    role = Device.of(shape_of(str(tiny_folder), Path("x")), config).role
    sizes = {p.numel() for p in parameters}
    assert min(sizes) < BITS_FROM <= max(sizes)
    assert role.moments(name.removeprefix("paged_")) == held_bytes


def test_paged_moments_of_large_tensors_leave_the_device(smollm2: Shape) -> None:
    def moments(name: str, method: str) -> int:
        config = BackboneConfig(precision="bf16", adapter=AdapterConfig(method=method, r=8))
        return Device.of(smollm2, config).role.moments(name)

    assert moments("paged_adamw", "full") < moments("adamw", "full") / 100
    assert moments("paged_adamw", "lora") == moments("adamw", "lora")  # small ones stay
    assert moments("lion", "lora") * 2 == moments("adamw", "lora")


def test_a_plan_of_every_method_has_its_stages(smollm2: Shape, large_experts: list[str]) -> None:
    for name, card in CARDS.items():
        backbone = BackboneConfig(
            precision=card.precisions[0], adapter=adapter(name, large_experts)
        )
        stages = Planner(RLHFConfig(backbone=backbone), smollm2).stages()
        assert all(stage.peak > 0 for stage in stages)
        assert (stages[0].error == ERROR_UNFUSED) == (card.handover != "adapter")


def test_a_method_on_a_precision_that_it_cannot_use_is_refused_with_those_that_can(
    smollm2: Shape,
) -> None:
    with pytest.raises(ConfigError, match="full trains on bf16 and fp32 weights only"):
        Device.of(smollm2, BackboneConfig(precision="nf4", adapter=AdapterConfig(method="full")))
