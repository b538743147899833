"""Delta-LoRA: the weights go where the paper's updates lead, through checkpoints too."""

from __future__ import annotations

from pathlib import Path

import torch
from adapted import PACK, load, logps, trained
from torch.testing import assert_close

from prefloop.models.adapters.delta import DeltaLoRA
from prefloop.models.forward import hidden_N_H, response_logps_R


def test_delta_loras_weight_is_where_the_papers_updates_lead(tiny_folder: Path) -> None:
    backbone = load(tiny_folder, "delta-lora", r=4, alpha=8, options={"ratio": 3.0, "start": 2})
    backbone.add_role("policy")
    name, scale, ratio = "model.layers.0.mlp.up_proj", 2.0, 3.0
    a, b = (backbone.named_parameters("policy")[f"{name}.lora_{x}"] for x in "AB")
    weight = backbone.causal_lm.get_submodule(name).weight.detach().clone()
    optimizer = torch.optim.AdamW(backbone.parameters("policy"), lr=1e-2)
    for step in range(5):
        before = (b @ a).detach()
        with backbone.role("policy", train=True):
            optimizer.zero_grad()
            (-response_logps_R(backbone, hidden_N_H(backbone, PACK), PACK).mean()).backward()
            optimizer.step()
        backbone.method.after_step("policy", step, 5)
        if step >= 2:
            weight += ratio * scale * ((b @ a).detach() - before)
    merged = dict(backbone.merged_weights("policy"))[f"{name}.weight"]
    assert_close(merged, weight + scale * (b @ a).detach(), atol=1e-6, rtol=1e-5)
    assert (weight - backbone.causal_lm.get_submodule(name).weight).abs().max() > 1e-2


def test_delta_loras_gradient_is_that_of_lora_at_the_moved_weight(tiny_folder: Path) -> None:
    backbone = load(tiny_folder, "delta-lora", options={"start": 1})
    trained(backbone)
    layer = backbone.causal_lm.get_submodule("model.layers.0.mlp.up_proj")
    a, b = (
        backbone.named_parameters("policy")[f"model.layers.0.mlp.up_proj.lora_{x}"] for x in "AB"
    )
    merged = dict(backbone.merged_weights("policy"))["model.layers.0.mlp.up_proj.weight"]
    moved = merged - 2.0 * (b @ a).detach()
    x = torch.randn(7, 64, requires_grad=True)
    with backbone.role("policy", train=True):
        ours = torch.autograd.grad(layer(x).square().sum(), (x, a, b))
    theirs = torch.autograd.grad((x @ moved.T + 2.0 * x @ a.T @ b.T).square().sum(), (x, a, b))
    for found, expected in zip(ours, theirs, strict=True):
        assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_delta_lora_goes_on_from_a_checkpoint_in_the_same_weights(tiny_folder: Path) -> None:
    first, second = (load(tiny_folder, "delta-lora", options={"start": 1}) for _ in range(2))
    trained(first)
    second.add_role("policy")
    with torch.no_grad():
        for mine, theirs in zip(
            second.parameters("policy"), first.parameters("policy"), strict=True
        ):
            mine.copy_(theirs)
    second.method.take_extra(
        "policy", {n: t.clone() for n, t in first.method.extra("policy").items()}
    )
    assert torch.equal(logps(second, "policy"), logps(first, "policy"))


def test_delta_lora_waits_a_tenth_of_the_steps_by_default(tiny_folder: Path) -> None:
    method = load(tiny_folder, "delta-lora").method
    assert isinstance(method, DeltaLoRA)
    method.add("policy")
    for step in range(20):
        method.after_step("policy", step, 100)
        assert ("policy" in method.anchors) == (
            step >= 9
        )  # the first ten leave the weights where they are
