"""The small operations of a decoder layer: Triton kernels on CUDA, and the same in torch elsewhere.

Each kernel passes over its data once. This avoids float32 temporaries, strided copies and launches,
which are slow on a GPU. Matrix products are left to cuBLAS.

Shape letters: N tokens, H hidden size, M the MLP's inner size, D head size, O rows and I columns of
a weight, R an adapter's rank.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@functools.cache
def _triton() -> Any:
    """The module of Triton kernels; ``None`` without Triton."""
    try:
        from prefloop.models.fused import triton_kernels
    except ImportError:
        return None
    return triton_kernels


def on_gpu(tensor: Tensor) -> Any:
    """The module of Triton kernels if they can run on ``tensor``, else ``None``."""
    return _triton() if tensor.is_cuda and torch.version.hip is None else None


def norm(x_N_H: Tensor, weight_H: Tensor, eps: float, out_N_H: Tensor) -> Tensor:
    """Write x / rms(x) · weight to ``out_N_H``, whose rows may be strided.

    Returns 1 / rms(x), float32 [N].
    """
    if kernels := on_gpu(x_N_H):
        return kernels.norm(x_N_H, weight_H, eps, out_N_H)
    x = x_N_H.float()
    rstd_N = (x.square().mean(-1) + eps).rsqrt()
    out_N_H.copy_((x * rstd_N[:, None]).to(x_N_H.dtype) * weight_H)
    return rstd_N


def norm_gradient(
    grad_N_H: Tensor, x_N_H: Tensor, weight_H: Tensor, rstd_N: Tensor, residual_N_H: Tensor
) -> Tensor:
    """Gradient of the norm's input, plus the residual's gradient ``residual_N_H``."""
    if kernels := on_gpu(x_N_H):
        return kernels.norm_gradient(grad_N_H, x_N_H, weight_H, rstd_N, residual_N_H)
    rstd_N_1 = rstd_N[:, None]
    scaled = grad_N_H.float() * weight_H
    unit = x_N_H.float() * rstd_N_1
    return (residual_N_H + (scaled - unit * (scaled * unit).mean(-1, keepdim=True)) * rstd_N_1).to(
        x_N_H.dtype
    )


def swiglu(gate_up_N_2M: Tensor, out_N_M: Tensor) -> None:
    """Write silu(gate) · up to ``out_N_M``, whose rows may be strided."""
    if kernels := on_gpu(gate_up_N_2M):
        return kernels.swiglu(gate_up_N_2M, out_N_M)
    gate, up = gate_up_N_2M.chunk(2, 1)
    torch.mul(F.silu(gate), up, out=out_N_M)


def swiglu_gradient(gate_up_N_2M: Tensor, grad_N_M: Tensor) -> None:
    """In place: gate and up become their gradients, the gradient of their product becomes the
    product.
    """
    if kernels := on_gpu(gate_up_N_2M):
        return kernels.swiglu_gradient(gate_up_N_2M, grad_N_M)
    gate, up = gate_up_N_2M.chunk(2, 1)
    sigmoid = gate.sigmoid()
    silu = gate * sigmoid
    gate.copy_((sigmoid + silu * (1 - sigmoid)).mul_(up).mul_(grad_N_M))
    grad_up = grad_N_M * silu
    grad_N_M.copy_(silu.mul_(up))
    up.copy_(grad_up)


class _Rotate(torch.autograd.Function):
    """Split joined query, key and value, and rotate the first two by position (Su et al. 2021)."""

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, cos_N_D: Tensor, sin_N_D: Tensor, heads: tuple[int, int]
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(cos_N_D, sin_N_D)
        ctx.heads = heads
        return on_gpu(qkv).rotate(qkv, cos_N_D, sin_N_D, heads)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        cos_N_D, sin_N_D = ctx.saved_tensors
        return on_gpu(cos_N_D).rotate_back(grads, cos_N_D, sin_N_D, ctx.heads), None, None, None


def heads_of(
    qkv: Tensor,
    cos_N_D: Tensor,
    sin_N_D: Tensor,
    heads: tuple[int, int],
    norms: tuple[Any, Any] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Joined [N, (Q + 2 K) D] → query [N, Q, D], key [N, K, D] and value [N, K, D].

    ``heads`` is (Q, K). Query and key are normalized by ``norms`` (Qwen 3) and rotated.
    """
    if norms is None and on_gpu(qkv):
        return _Rotate.apply(qkv, cos_N_D, sin_N_D, heads)
    q_heads, k_heads = heads
    query, key, value = qkv.unflatten(1, (q_heads + 2 * k_heads, -1)).split(
        (q_heads, k_heads, k_heads), 1
    )
    if norms is not None:
        query, key = norms[0](query), norms[1](key)
    cos, sin = cos_N_D[:, None], sin_N_D[:, None]
    return query * cos + _half(query) * sin, key * cos + _half(key) * sin, value


def _half(x: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat((-b, a), -1)


CHUNK = 1 << 20
"""How many elements ``settle`` rounds at a time."""


def add_product(out_O_I: Tensor, b_O_R: Tensor, a_R_I: Tensor, scale: float) -> None:
    """Add scale · b a to ``out`` in place; its rows may be strided.

    The sum is exact in float32, and rounded as by ``settle``.
    """
    if out_O_I.dtype != torch.bfloat16:
        out_O_I.addmm_(b_O_R, a_R_I, alpha=scale)
        return
    if kernels := on_gpu(out_O_I):
        return kernels.add_product(out_O_I, b_O_R, a_R_I, scale)
    columns, a = out_O_I.shape[1], a_R_I.float()
    rows = max(1, CHUNK // columns)
    for start in range(0, len(out_O_I), rows):
        part, b = out_O_I[start : start + rows], b_O_R[start : start + rows].float()
        _round(part.float().addmm_(b, a, alpha=scale), part, (start, 0, columns))


def settle(exact: Tensor, out: Tensor, start: int = 0, columns: int | None = None) -> None:
    """Round float32 values to ``out``: stochastically to bfloat16, to the nearest for other dtypes.

    Adding a small LoRA update to a bfloat16 weight and rounding to the nearest often leaves the
    weight unchanged. After a few training steps, a fifth to a half of an adapter is lost this way,
    always towards the base. Stochastic rounding (Gupta et al. 2015, arXiv 1502.02551, section 3)
    loses nothing on average, and a sum over a row's inputs averages over many elements. The random
    numbers are a hash of each element's position: equal values always round the same way, and a
    weight without a change stays unchanged.

    Args:
        exact: float32 values.
        out: where to write; it may be a block of columns of a larger weight.
        start: the first column of ``out`` in the larger weight.
        columns: the number of columns of the larger weight; by default those of ``out``.
    """
    if out.dtype != torch.bfloat16:
        out.copy_(exact)
        return
    width = out.shape[-1] if out.ndim else 1
    if out.ndim != 2:  # a bias, or the stacked weights of experts
        exact, out = exact.reshape(-1, width), out.view(-1, width)
    rows = max(1, CHUNK // width)
    for row in range(0, len(out), rows):
        _round(exact[row : row + rows], out[row : row + rows], (row, start, columns or width))


def _round(exact: Tensor, out: Tensor, place: tuple[int, int, int]) -> None:
    """A block of ``settle``. ``place`` is the row and column of its first element in the weight,
    and the weight's number of columns.
    """
    row, column, columns = place
    of_row = torch.arange(row, row + len(out), device=out.device)[:, None] * columns
    position = of_row + torch.arange(column, column + out.shape[1], device=out.device)
    number = position.to(torch.int32)
    for _ in range(2):
        number ^= (number >> 16) & 0xFFFF
        number *= 0x45D9F3B  # wraps at 32 bits
    number ^= (number >> 16) & 0xFFFF
    # bfloat16 is the upper half of float32. A random number added to the lower half carries into
    # the upper half with the wanted probability.
    bits = exact.contiguous().view(torch.int32) + (number & 0xFFFF)
    out.copy_(torch.where(exact.isnan(), exact, (bits & -0x10000).view(torch.float32)))
