"""The Triton kernels in Triton's interpreter, against their torch twins; ``make test`` starts this
file with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from tiny import add_random_role, load, random_documents
from torch import Tensor
from torch.testing import assert_close

from prefloop.data.packing import pack
from prefloop.models.forward import hidden_N_H, response_logps_R
from prefloop.models.fused import kernels

if not os.environ.get("TRITON_INTERPRET"):
    pytest.skip("runs in Triton's interpreter: see `make test`", allow_module_level=True)
from prefloop.models.fused import triton_kernels

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def near(found: Tensor, expected: Tensor) -> None:
    exact = found.dtype == torch.float32
    assert_close(found, expected, rtol=1e-4 if exact else 2e-2, atol=1e-5 if exact else 2e-2)


def wide(*shape: int, dtype: torch.dtype) -> Tensor:
    """Random numbers whose rows are strided."""
    return torch.randn(*shape[:-1], shape[-1] + 3).to(dtype)[..., : shape[-1]]


@DTYPES
def test_norm_and_its_gradient(dtype: torch.dtype) -> None:
    x, weight, residual = (
        torch.randn(5, 48).to(dtype),
        torch.randn(48).to(dtype),
        torch.randn(5, 48).to(dtype),
    )
    ours, theirs, grad = (wide(5, 48, dtype=dtype) for _ in range(3))
    rstd, expected = (
        triton_kernels.norm(x, weight, 1e-5, ours),
        kernels.norm(x, weight, 1e-5, theirs),
    )
    near(rstd, expected)
    near(ours, theirs)
    near(
        triton_kernels.norm_gradient(grad, x, weight, rstd, residual),
        kernels.norm_gradient(grad, x, weight, rstd, residual),
    )


@DTYPES
def test_swiglu_and_its_gradient_in_place(dtype: torch.dtype) -> None:
    gate_up, grad, ours, theirs = (
        torch.randn(5, 74).to(dtype),
        *(wide(5, 37, dtype=dtype) for _ in range(3)),
    )
    triton_kernels.swiglu(gate_up, ours)
    kernels.swiglu(gate_up, theirs)
    near(ours, theirs)
    copies = gate_up.clone(), grad.clone()
    triton_kernels.swiglu_gradient(gate_up, grad)
    kernels.swiglu_gradient(*copies)
    near(gate_up, copies[0])
    near(grad, copies[1])


@DTYPES
@pytest.mark.parametrize("heads", [(3, 2), (4, 1)])
def test_rotation_there_and_back(dtype: torch.dtype, heads: tuple[int, int]) -> None:
    joined = torch.randn(5, (heads[0] + 2 * heads[1]) * 12).to(dtype)
    angle = torch.randn(5, 6).repeat(1, 2)
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    leaf = joined.clone().requires_grad_()
    expected = kernels.heads_of(leaf, cos, sin, heads)
    for ours, theirs in zip(triton_kernels.rotate(joined, cos, sin, heads), expected, strict=True):
        near(ours, theirs)
    grads = tuple(torch.randn_like(part) for part in expected)
    near(
        triton_kernels.rotate_back(grads, cos, sin, heads),
        torch.autograd.grad(expected, leaf, grads)[0],
    )


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("shape", [(7, 64), (33, 192), (6, 4160)])
@pytest.mark.parametrize("ranks", [0, 8, 24])
def test_dequantization_equals_bitsandbytes_and_appends_the_adapter(
    nested: bool, shape: tuple[int, int], ranks: int
) -> None:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    packed, state = quantize_4bit(
        torch.randn(shape), compress_statistics=nested, quant_type="nf4", quant_storage=torch.uint8
    )
    out, tail = torch.full((shape[0], shape[1] + ranks + 3), 7.0), torch.randn(shape[0], ranks)
    triton_kernels.dequantize(packed, state, tail if ranks else None, out)
    assert_close(out[:, : shape[1]], dequantize_4bit(packed, state), rtol=0, atol=0)
    assert_close(out[:, shape[1] : shape[1] + ranks], tail, rtol=0, atol=0)
    assert (out[:, shape[1] + ranks :] == 7).all(), "wrote beyond its columns"


@pytest.mark.parametrize(("shape", "rank"), [((7, 64), 4), ((65, 130), 16), ((64, 128), 72)])
def test_a_merge_rounds_as_its_torch_twin(shape: tuple[int, int], rank: int) -> None:
    torch.manual_seed(0)
    ours, b, a = (
        wide(*shape, dtype=torch.bfloat16),
        0.03 * torch.randn(shape[0], rank),
        torch.randn(rank, shape[1]),
    )
    theirs, before = ours.clone(), ours.clone()
    triton_kernels.add_product(ours, b.bfloat16(), a.bfloat16(), 0.5)
    kernels.add_product(theirs, b.bfloat16(), a.bfloat16(), 0.5)
    # The products' sums may differ by the last float32 digit and so, rarely, fall on another side.
    assert (ours != theirs).float().mean() < 1e-3 and (ours != before).float().mean() > 0.5
    assert_close(ours, theirs, rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1.7])
def test_log_probs_and_their_derivative(scale: float) -> None:
    logits, target = torch.randn(5, 9001), torch.randint(9001, (5,))
    leaf = logits.clone().requires_grad_()
    expected = (leaf * scale).log_softmax(-1)[torch.arange(5), target]
    near(triton_kernels.log_prob(logits.clone(), target, scale, gradient=False), expected.detach())
    near(triton_kernels.log_prob(logits, target, scale, gradient=True), expected.detach())
    near(logits, torch.autograd.grad(expected.sum(), leaf)[0])


def test_a_model_on_the_kernels_equals_one_without(
    tiny_folders: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written-out weights with adapters, joined products, log-probs: everything that a GPU runs but
    its attention.
    """
    documents = pack(random_documents([(5, [2, 4]), (3, [4])]))

    def results() -> list[Tensor]:
        backbone = load(
            tiny_folders("qwen2"), "qwen2", precision="nf4", gradient_checkpointing="block"
        )
        backbone.kernel = "mask"
        add_random_role(backbone, "policy")
        with backbone.role("policy", train=True):
            logps = response_logps_R(backbone, hidden_N_H(backbone, documents), documents, 0.7)
        return [
            logps.detach(),
            *torch.autograd.grad(logps.square().sum(), backbone.parameters("policy")),
        ]

    expected = results()
    used: list[str] = []

    class Watched:
        def __getattr__(self, name: str) -> Any:
            used.append(name)
            return getattr(triton_kernels, name)

    monkeypatch.setattr(kernels, "on_gpu", lambda _: Watched())
    for ours, theirs in zip(results(), expected, strict=True):
        assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))
    assert {"log_prob", "dequantize", "swiglu_gradient", "norm_gradient"} <= set(used)


def test_large_weights_are_written_out_one_by_one(
    tiny_folders: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefloop.models.fused import projections as joined

    monkeypatch.setattr(kernels, "on_gpu", lambda _: triton_kernels)
    found: list[list[Tensor]] = []
    for limit, steps in ((joined.LARGE, 1), (1, 2)):
        monkeypatch.setattr(joined, "LARGE", limit)
        backbone = load(tiny_folders("qwen2"), "qwen2", precision="nf4")
        add_random_role(backbone, "policy")
        group = backbone.layers[0].gate_up
        copies = joined.RoleCopies([group], "policy")
        copies.refresh()
        adapters = copies.of[group]
        torch.manual_seed(0)
        wide, x = group.buffer(3, torch.empty(0), adapters)
        x.copy_(torch.randn(x.shape))
        assert group.steps == steps
        found.append(
            [
                group.forward(wide, adapters),
                *group.backward(torch.randn(3, group.outputs), adapters),
            ]
        )
    for one, other in zip(*found, strict=True):
        assert_close(other, one, rtol=1e-5, atol=1e-5)
