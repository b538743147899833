"""Fused LoRA layers and whole decoder layers compute what PEFT and autograd compute."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import add_random_role, load, random_documents
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from prefloop.data.packing import pack
from prefloop.models import forward, kernels
from prefloop.models.backbone import Backbone
from prefloop.models.forward import choose, hidden_N_H, response_logps_R, rows_of, run_N_H
from prefloop.models.fused import fuse_norms
from prefloop.models.layer import FusedLayer, fuse_layers

PACK = pack(random_documents([(7, [5, 9]), (3, [4]), (6, [2, 3, 8])]))


def gradients(backbone: Backbone, dropout: bool = False) -> tuple[Tensor, list[Tensor]]:
    with backbone.role("policy", train=True, dropout=dropout):
        logps = response_logps_R(backbone, hidden_N_H(backbone, PACK), PACK)
        return logps.detach(), list(torch.autograd.grad(logps.square().sum(), backbone.parameters("policy")))


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
def test_log_probs_and_gradients_equal_pefts(tiny_folders: Any, kind: str, precision: str, recompute: str) -> None:
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


@pytest.mark.parametrize(("kind", "layers"), [("llama", 2), ("qwen2", 2), ("qwen3", 2), ("mistral", 2), ("gemma2", 0)])
def test_layers_of_the_llama_family_run_as_one_step(tiny_folders: Any, kind: str, layers: int) -> None:
    backbone = load(tiny_folders(kind), kind)
    assert len(backbone.layers) == layers
    assert sum(isinstance(m.forward, FusedLayer) for m in backbone.model.modules()) == layers
    assert backbone.fused


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
    """torch's fused AdamW does not count up the parameters' versions; a copy kept by version would train on stale weights."""
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
    assert scored[:-1] == pytest.approx(seen[1:], rel=1e-3), "scoring sees another policy than training"
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


def test_other_libraries_get_the_dropout_they_asked_for_and_can_switch_the_adapter_off(tiny_folder: Path) -> None:
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


def test_the_kernel_is_chosen_without_dropout(tiny_folder: Path) -> None:
    """A resumed reward stage meets its first pack in a training pass."""
    backbone = load(tiny_folder, dropout=0.5)
    add_random_role(backbone, "policy")
    with backbone.role("policy", train=True, dropout=True):
        assert choose(backbone) == "mask"
        assert backbone.active.dropout


def test_a_layer_under_autocast_keeps_its_own_precision(tiny_folder: Path) -> None:
    backbone = load(tiny_folder)
    add_random_role(backbone, "policy")
    layer = next(layer for layer in backbone.fused)
    x = torch.randn(3, layer.weight.layer.in_features)
    with backbone.role("policy"):
        expected = layer(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert_close(layer(x), expected, rtol=0, atol=0)


def test_swiglu_and_norm_gradients_equal_autograds() -> None:
    gate_up, grad = torch.randn(5, 14, dtype=torch.float64), torch.randn(5, 7, dtype=torch.float64)
    leaf = gate_up.clone().requires_grad_()
    gate, up = leaf.chunk(2, 1)
    product = F.silu(gate) * up
    (expected,) = torch.autograd.grad(product, leaf, grad)
    inner = torch.empty_like(grad)
    kernels.swiglu(gate_up, inner)
    assert_close(inner, product)
    kernels.swiglu_gradient(gate_up, grad)
    assert_close(gate_up, expected)
    assert_close(grad, product)

    x, weight, grad, around = torch.randn(5, 8), torch.randn(8), torch.randn(5, 8), torch.randn(5, 8)
    x.requires_grad_()
    normed = F.rms_norm(x, (8,), weight, 1e-5)
    out = torch.empty(5, 11)[:, :8]
    rstd = kernels.norm(x.detach(), weight, 1e-5, out)
    assert_close(out, normed)
    found = kernels.norm_gradient(grad, x.detach(), weight, rstd, around)
    assert_close(found, torch.autograd.grad(normed, x, grad)[0] + around)


@pytest.mark.parametrize("fused", [False, True])
def test_adapters_that_learn_in_part_get_their_gradients_and_are_seen(tiny_folder: Path, fused: bool) -> None:
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
    with pytest.raises(RuntimeError, match="the adapter changed between a forward pass and its backward"):
        waiting.backward()


def test_the_attention_hears_of_the_models_window(tiny_folders: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mistral's attention has no window of its own: it reads the model's."""
    heard: list[Any] = []

    def listen(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
        heard.append(kwargs.get("sliding_window"))
        return sdpa_attention_forward(module, query, key, value, mask, **kwargs)

    backbone = load(tiny_folders("mistral"), "mistral")
    AttentionInterface.register("listening", listen)
    backbone.causal_lm.config._attn_implementation = "listening"
    with backbone.role(None):
        run_N_H(backbone, PACK, "mask")
    assert len(backbone.layers) == 2 and heard == [12, 12]


def test_the_check_of_kernels_reaches_beyond_the_window(tiny_folders: Any) -> None:
    backbone = load(tiny_folders("mistral"), "mistral")
    seen: list[int] = []
    real = forward._rows_N_H

    def watch(backbone: Backbone, pack: Any) -> Tensor:
        seen.append(int(pack.positions_N.max()))
        return real(backbone, pack)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forward, "_rows_N_H", watch)
        choose(backbone)
    assert min(seen) > 12 + 8


def test_biases_beside_a_residual_count(tiny_folder: Path) -> None:
    backbone = load(tiny_folder)
    group = backbone.layers[0].out
    group.bias_O = torch.randn(group.outputs)
    wide, x = group.buffer(3, torch.empty(0), None)
    x.copy_(torch.randn(x.shape))
    residual = torch.randn(3, group.outputs)
    expected = x @ group.weights[0].O_I().T + group.bias_O + residual
    assert_close(group.forward(wide, None, residual.clone()), expected)
    assert_close(group.forward(wide, None, residual.clone(), inplace=True), expected)


class Scaled(nn.Module):
    """A gated MLP that also scales: its projections alone do not say what it computes."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = inner.gate_proj, inner.up_proj, inner.down_proj

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x)) * 1.5


def test_a_layer_that_computes_something_else_is_left_alone(tiny_folder: Path) -> None:
    backbone = load(tiny_folder)
    blocks = backbone.decoder.layers
    for block in blocks:
        del block.forward
    assert len(fuse_layers(blocks, backbone.active, False)) == 2
    for change in ("more", "gelu", "scaled"):
        for block in blocks:
            vars(block).pop("forward", None)
            if change == "scaled":
                block.mlp = Scaled(block.mlp)
        if change == "more":
            blocks[1].extra = nn.Linear(3, 3)
        elif change == "gelu":
            blocks[1].mlp.act_fn = nn.GELU()
        # One that holds more stays as it is; one that computes something else casts doubt on all.
        assert len(fuse_layers(blocks, backbone.active, False)) == (1 if change == "more" else 0), change
        if change == "more":
            del blocks[1].extra


def test_norms_are_recognised_by_what_they_compute(tiny_folders: Any) -> None:
    for kind in ("llama", "gemma2"):
        backbone = load(tiny_folders(kind), kind)
        with backbone.role(None):
            expected = run_N_H(backbone, PACK, "mask")
            assert fuse_norms(backbone.model) > 0
            assert_close(run_N_H(backbone, PACK, "mask"), expected, rtol=1e-4, atol=1e-4)

    class OddRMSNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.eps = nn.Parameter(torch.full((8,), 0.5)), 1e-6

        def forward(self, x: Tensor) -> Tensor:
            return 2 * F.rms_norm(x, (8,), self.weight, self.eps)

    odd = nn.ModuleList([OddRMSNorm()])
    assert fuse_norms(odd) == 0


def test_rows_and_mask_agree_and_cpu_takes_the_mask(tiny_folders: Any) -> None:
    for kind in ("llama", "qwen2", "gemma2", "mistral"):
        backbone = load(tiny_folders(kind), kind)
        add_random_role(backbone, "policy")
        with backbone.role("policy"):
            rows = run_N_H(backbone, PACK, "rows")
            assert_close(rows, run_N_H(backbone, PACK, "mask"), rtol=1e-4, atol=1e-4)
        assert choose(backbone) == "mask"


def test_segments_name_the_keys_that_the_mask_lets_through() -> None:
    mask, starts_q, starts_k = PACK.mask_NN(), PACK.starts_q.tolist(), PACK.starts_k.tolist()
    for s in range(len(starts_q) - 1):
        keys = PACK.keys_M[starts_k[s] : starts_k[s + 1]]
        length = starts_q[s + 1] - starts_q[s]
        for i in range(length):  # aligned at the end, as the kernel does
            seen = keys[: len(keys) - length + i + 1]
            assert seen.tolist() == mask[starts_q[s] + i].nonzero().flatten().tolist()
    assert PACK.longest_q == max(b - a for a, b in itertools.pairwise(starts_q))
    assert [len(r) for r in rows_of(PACK)] == [12, 16, 7, 8, 9, 14]
