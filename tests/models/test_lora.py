"""Fused LoRA layers compute and learn what PEFT and autograd do, and see every change of their
adapter.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import add_random_role, load, random_documents
from torch import Tensor
from torch.testing import assert_close

from prefloop.data.packing import pack
from prefloop.models.backbone import Backbone
from prefloop.models.forward import hidden_N_H, response_logps_R

PACK = pack(random_documents([(7, [5, 9]), (3, [4]), (6, [2, 3, 8])]))


def gradients(backbone: Backbone, dropout: bool = False) -> tuple[Tensor, list[Tensor]]:
    with backbone.role("policy", train=True, dropout=dropout):
        logps = response_logps_R(backbone, hidden_N_H(backbone, PACK), PACK)
        return logps.detach(), list(
            torch.autograd.grad(logps.square().sum(), backbone.parameters("policy"))
        )


def unfused(folder: Path, kind: str, **settings: Any) -> Backbone:
    """The same backbone on PEFT's own forwards."""
    backbone = load(folder, kind, **settings)
    for module in backbone.model.modules():
        if "forward" in vars(module):
            del module.forward
    backbone.fused = backbone.layers = []
    return backbone


@pytest.mark.parametrize("recompute", ["none", "block"])
@pytest.mark.parametrize("precision", ["fp32", "nf4"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gemma2"])
def test_log_probs_and_gradients_equal_pefts(
    tiny_folders: Any, kind: str, precision: str, recompute: str
) -> None:
    folder = tiny_folders(kind)
    ours, theirs = (
        load(folder, kind, precision=precision, gradient_checkpointing=recompute),
        unfused(folder, kind, precision=precision),
    )
    assert ours.fused and not theirs.fused
    for backbone in (ours, theirs):
        add_random_role(backbone, "policy")
    (logps, grads), (expected, expected_grads) = gradients(ours), gradients(theirs)
    assert_close(logps, expected, rtol=1e-4, atol=1e-5)
    for ours_grad, theirs_grad in zip(grads, expected_grads, strict=True):
        assert_close(ours_grad, theirs_grad, rtol=1e-3, atol=1e-4 * float(theirs_grad.abs().max()))


def test_changed_parameters_are_seen(tiny_folder: Path) -> None:
    """Copies in the arithmetic's precision follow optimizer steps, loading and replaced data."""
    backbone = load(tiny_folder)
    add_random_role(backbone, "policy")
    seen = [gradients(backbone)[0]]
    with torch.no_grad():
        for parameter in backbone.parameters("policy"):
            parameter.add_(0.05)
    seen.append(gradients(backbone)[0])
    for parameter in backbone.parameters("policy"):
        parameter.data = parameter.data * 0.5
    seen.append(gradients(backbone)[0])
    add_random_role(backbone, "policy")
    seen.append(gradients(backbone)[0])
    assert_close(seen[0], seen[3])
    assert all((seen[a] - seen[b]).abs().max() > 1e-3 for a, b in ((0, 1), (1, 2), (0, 2)))


@pytest.mark.parametrize("fused", [False, True])
def test_every_optimizer_step_is_seen_by_the_next_pass(tiny_folder: Path, fused: bool) -> None:
    """torch's fused AdamW does not count up the parameters' versions; a copy kept by version would
    train on stale weights.
    """
    backbone = load(tiny_folder, compute="bf16", precision="bf16")
    backbone.add_role("policy")
    optimizer = torch.optim.AdamW(backbone.parameters("policy"), lr=0.05, fused=fused)
    seen, scored = [], []
    for _ in range(4):
        with backbone.role("policy", train=True):
            logps = response_logps_R(backbone, hidden_N_H(backbone, PACK), PACK)
        (-logps.sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
        seen.append(float(logps.detach().sum()))
        with backbone.role("policy"):
            scored.append(float(response_logps_R(backbone, hidden_N_H(backbone, PACK), PACK).sum()))
    assert seen == sorted(seen) and len(set(seen)) == 4, "training does not see its own steps"
    assert scored[:-1] == pytest.approx(seen[1:], rel=1e-3), (
        "scoring sees another policy than training"
    )
    backbone.add_role("other")
    with backbone.role("other", train=True):
        pass
    with backbone.role("policy"):
        after = float(response_logps_R(backbone, hidden_N_H(backbone, PACK), PACK).sum())
    assert after == pytest.approx(scored[-1], rel=1e-6)


def test_dropout_only_where_asked_and_without_bias(tiny_folder: Path) -> None:
    backbone = load(tiny_folder, dropout=0.5)
    add_random_role(backbone, "policy")
    still, _ = gradients(backbone)
    assert_close(gradients(backbone)[0], still, rtol=0, atol=0)
    torch.manual_seed(0)
    dropped = torch.stack([gradients(backbone, dropout=True)[0] for _ in range(3)])
    assert (dropped[0] - dropped[1]).abs().max() > 1e-3
    layer = next(layer for layer in backbone.fused)
    x = torch.randn(400, layer.weight.layer.in_features)
    with backbone.role("policy", dropout=True):
        mean = torch.stack([layer(x) for _ in range(200)]).mean(0)
    with backbone.role("policy"):
        assert_close(mean, layer(x), rtol=0, atol=0.5)
        assert (mean - layer(x)).mean().abs() < 0.01


def test_other_libraries_get_the_dropout_they_asked_for_and_can_switch_the_adapter_off(
    tiny_folder: Path,
) -> None:
    backbone = load(tiny_folder, dropout=0.5)
    add_random_role(backbone, "sft")
    ids = torch.arange(20, 40)[None]

    def logits() -> Tensor:
        with torch.no_grad():
            return backbone.causal_lm(input_ids=ids).logits

    with backbone.role(None):
        base = logits()
    backbone.activate("sft", dropout=True)
    assert (logits() - logits()).abs().max() > 1e-3
    backbone.activate("sft")
    assert_close(logits(), logits(), rtol=0, atol=0)
    assert (logits() - base).abs().max() > 1e-3
    with backbone.model.disable_adapter():
        assert_close(logits(), base, rtol=0, atol=0)


def test_a_layer_under_autocast_keeps_its_own_precision(tiny_folder: Path) -> None:
    backbone = load(tiny_folder)
    add_random_role(backbone, "policy")
    layer = next(layer for layer in backbone.fused)
    x = torch.randn(3, layer.weight.layer.in_features)
    with backbone.role("policy"):
        expected = layer(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert_close(layer(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("fused", [False, True])
def test_adapters_that_learn_in_part_get_their_gradients_and_are_seen(
    tiny_folder: Path, fused: bool
) -> None:
    backbone = load(tiny_folder, compute="bf16", precision="bf16")
    backbone.add_role("policy")
    with backbone.role("policy", train=True):
        pass
    named = backbone.named_parameters("policy")
    for name, parameter in named.items():
        parameter.requires_grad_("layers.0" not in name)
    learning = [p for p in named.values() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=0.05, fused=fused)
    seen = []
    for _ in range(3):
        with backbone.role("policy", train=True):
            loss = -response_logps_R(backbone, hidden_N_H(backbone, PACK), PACK).sum()
        loss.backward()
        assert all(p.grad is not None for p in learning)
        optimizer.step()
        optimizer.zero_grad()
        seen.append(float(loss.detach()))
    assert seen == sorted(seen, reverse=True) and len(set(seen)) == 3


def test_a_step_between_forward_and_backward_is_refused(tiny_folder: Path) -> None:
    backbone = load(tiny_folder)
    add_random_role(backbone, "policy")

    def loss() -> Tensor:
        with backbone.role("policy", train=True):
            return response_logps_R(backbone, hidden_N_H(backbone, PACK), PACK).sum()

    waiting, second = loss(), loss()
    second.backward()  # two passes before a backward are fine
    torch.optim.AdamW(backbone.parameters("policy"), lr=0.05).step()
    loss()
    with pytest.raises(
        RuntimeError, match="the adapter changed between a forward pass and its backward"
    ):
        waiting.backward()
