"""Whole decoder layers, norms and the attention kernel: which are recognized, and that they compute
what the model does.
"""

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
from prefloop.models import forward
from prefloop.models.backbone import Backbone
from prefloop.models.forward import choose, rows_of, run_N_H
from prefloop.models.fused import kernels
from prefloop.models.fused.detect import fuse_layers
from prefloop.models.fused.layer import CACHES, FusedLayer
from prefloop.models.fused.norms import fuse_norms

PACK = pack(random_documents([(7, [5, 9]), (3, [4]), (6, [2, 3, 8])]))


@pytest.mark.parametrize(
    ("kind", "layers"), [("llama", 2), ("qwen2", 2), ("qwen3", 2), ("mistral", 2), ("gemma2", 0)]
)
def test_layers_of_the_llama_family_run_as_one_step(
    tiny_folders: Any, kind: str, layers: int
) -> None:
    backbone = load(tiny_folders(kind), kind)
    assert len(backbone.layers) == layers
    assert sum(isinstance(m.forward, FusedLayer) for m in backbone.model.modules()) == layers
    assert backbone.fused


@pytest.mark.parametrize("name", CACHES)
def test_a_kv_cache_goes_to_the_layers_own_code_by_either_name(
    tiny_folder: Path, name: str
) -> None:
    layer = load(tiny_folder).layers[0]
    given: dict[str, Any] = {}
    layer.original = lambda x, **options: given.update(options) or x
    x, cache = torch.zeros(1, 2, 4), object()
    assert layer(x, position_embeddings=(x, x), **{name: cache}) is x and given[name] is cache


def test_the_kernel_is_chosen_without_dropout(tiny_folder: Path) -> None:
    """A resumed reward stage meets its first pack in a training pass."""
    backbone = load(tiny_folder, dropout=0.5)
    add_random_role(backbone, "policy")
    with backbone.role("policy", train=True, dropout=True):
        assert choose(backbone) == "mask"
        assert backbone.active.dropout


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

    x, weight, grad, around = (
        torch.randn(5, 8),
        torch.randn(8),
        torch.randn(5, 8),
        torch.randn(5, 8),
    )
    x.requires_grad_()
    normed = F.rms_norm(x, (8,), weight, 1e-5)
    out = torch.empty(5, 11)[:, :8]
    rstd = kernels.norm(x.detach(), weight, 1e-5, out)
    assert_close(out, normed)
    found = kernels.norm_gradient(grad, x.detach(), weight, rstd, around)
    assert_close(found, torch.autograd.grad(normed, x, grad)[0] + around)


def test_the_attention_hears_of_the_models_window(
    tiny_folders: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mistral's attention has no window of its own: it reads the model's."""
    heard: list[Any] = []

    def listen(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any
    ) -> Any:
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
        self.gate_proj, self.up_proj, self.down_proj = (
            inner.gate_proj,
            inner.up_proj,
            inner.down_proj,
        )

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
        assert len(fuse_layers(blocks, backbone.active, False)) == (1 if change == "more" else 0), (
            change
        )
        if change == "more":
            del blocks[1].extra


def test_norms_are_recognized_by_what_they_compute(tiny_folders: Any) -> None:
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
