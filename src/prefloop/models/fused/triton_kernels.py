"""The Triton kernels of ``kernels.py``, and one that dequantizes NF4 weights into a wider buffer.

All arithmetic is float32 in registers; every value is read once and written once. Rows may be
strided, columns are dense.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_ready: dict[tuple[Any, ...], Any] = {}


def _launch(
    kernel: Any,
    grid: tuple[int, int, int],
    arguments: tuple[Any, ...],
    warps: int,
    constants: tuple[Any, ...],
) -> None:
    """Run a kernel, from the second time on without Triton's check of every argument.

    That check takes longer than a small kernel. The cache key has all properties that Triton
    compiles for: types, alignment, integers that are 1 or multiples of 16, and the device.
    """
    key = (kernel, *constants, *[_kind(a) for a in arguments])
    ready, device = _ready.get(key), arguments[0].device
    here = device.type != "cuda" or device.index == torch.cuda.current_device()
    with contextlib.nullcontext() if here else torch.cuda.device(device):
        if ready is None:
            # Triton's interpreter returns None here.
            _ready[key] = kernel[grid](*arguments, *constants, num_warps=warps)
        else:
            ready[grid](*arguments, *constants)


def _kind(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return argument.dtype, argument.device.index, argument.data_ptr() % 16 == 0
    if isinstance(argument, int):
        return argument == 1, argument % 16 == 0, -(2**31) <= argument < 2**31
    return type(argument)


@triton.jit
def _norm(x, weight, out, rstd, columns, out_stride, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    inside = i < columns
    value = tl.load(x + row * columns + i, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, 0) / columns + eps)
    w = tl.load(weight + i, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * out_stride + i, (value * scale * w).to(out.dtype.element_ty), mask=inside)
    tl.store(rstd + row, scale)


def norm(x_N_H: Tensor, weight_H: Tensor, eps: float, out_N_H: Tensor) -> Tensor:
    """See ``kernels.norm``."""
    rows, columns = x_N_H.shape
    rstd_N = torch.empty(rows, dtype=torch.float32, device=x_N_H.device)
    block = triton.next_power_of_2(columns)
    _launch(
        _norm,
        (rows, 1, 1),
        (x_N_H, weight_H, out_N_H, rstd_N, columns, out_N_H.stride(0), eps),
        8,
        (block,),
    )
    return rstd_N


@triton.jit
def _norm_gradient(grad, x, weight, rstd, residual, out, columns, grad_stride, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    inside = i < columns
    scale = tl.load(rstd + row)
    g = tl.load(grad + row * grad_stride + i, mask=inside, other=0.0).to(tl.float32)
    g *= tl.load(weight + i, mask=inside, other=0.0).to(tl.float32)
    unit = tl.load(x + row * columns + i, mask=inside, other=0.0).to(tl.float32) * scale
    around = tl.load(residual + row * columns + i, mask=inside, other=0.0).to(tl.float32)
    total = around + (g - unit * (tl.sum(g * unit, 0) / columns)) * scale
    tl.store(out + row * columns + i, total.to(out.dtype.element_ty), mask=inside)


def norm_gradient(
    grad_N_H: Tensor, x_N_H: Tensor, weight_H: Tensor, rstd_N: Tensor, residual_N_H: Tensor
) -> Tensor:
    """See ``kernels.norm_gradient``."""
    rows, columns = x_N_H.shape
    out = torch.empty_like(x_N_H)
    block = triton.next_power_of_2(columns)
    arguments = (grad_N_H, x_N_H, weight_H, rstd_N, residual_N_H, out, columns, grad_N_H.stride(0))
    _launch(_norm_gradient, (rows, 1, 1), arguments, 8, (block,))
    return out


@triton.jit
def _swiglu(gate_up, out, columns, out_stride, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = i < columns
    start = gate_up + row * 2 * columns + i
    gate = tl.load(start, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(start + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(
        out + row * out_stride + i,
        (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty),
        mask=inside,
    )


def swiglu(gate_up_N_2M: Tensor, out_N_M: Tensor) -> None:
    """See ``kernels.swiglu``."""
    rows, columns = out_N_M.shape
    grid = (rows, triton.cdiv(columns, 2048), 1)
    _launch(_swiglu, grid, (gate_up_N_2M, out_N_M, columns, out_N_M.stride(0)), 8, (2048,))


@triton.jit
def _swiglu_gradient(gate_up, grad, columns, grad_stride, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = i < columns
    at_gate = gate_up + row * 2 * columns + i
    at_grad = grad + row * grad_stride + i
    gate = tl.load(at_gate, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(at_gate + columns, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(at_grad, mask=inside, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    silu = gate * sigmoid
    kind = gate_up.dtype.element_ty
    tl.store(at_gate, (g * up * (sigmoid + silu * (1 - sigmoid))).to(kind), mask=inside)
    tl.store(at_gate + columns, (g * silu).to(kind), mask=inside)
    tl.store(at_grad, (silu * up).to(kind), mask=inside)


def swiglu_gradient(gate_up_N_2M: Tensor, grad_N_M: Tensor) -> None:
    """See ``kernels.swiglu_gradient``."""
    rows, columns = grad_N_M.shape
    grid = (rows, triton.cdiv(columns, 2048), 1)
    _launch(
        _swiglu_gradient, grid, (gate_up_N_2M, grad_N_M, columns, grad_N_M.stride(0)), 8, (2048,)
    )


@triton.jit
def _rotate(
    joined,
    query,
    key,
    value,
    cos,
    sin,
    Q: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BACK: tl.constexpr,
):
    """Split and rotate one token's heads; with BACK rotate their gradients back and join them."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, HEADS)[:, None]
    i = tl.arange(0, HALF)[None, :]
    half = D // 2
    wide = i < half
    c = tl.load(cos + row * D + i, mask=wide, other=0.0).to(tl.float32)
    s = tl.load(sin + row * D + i, mask=wide, other=0.0).to(tl.float32)
    if BACK:
        s = -s
    for part in tl.static_range(3):
        count = Q if part == 0 else K
        apart = (
            (query if part == 0 else key if part == 1 else value) + row * count * D + head * D + i
        )
        together = (
            joined
            + row * (Q + 2 * K) * D
            + ((0 if part == 0 else Q if part == 1 else Q + K) + head) * D
            + i
        )
        source = apart if BACK else together
        target = together if BACK else apart
        inside = wide & (head < count)
        a = tl.load(source, mask=inside, other=0.0)
        b = tl.load(source + half, mask=inside, other=0.0)
        if part < 2:
            x = a.to(tl.float32)
            y = b.to(tl.float32)
            a = (x * c - y * s).to(query.dtype.element_ty)
            b = (y * c + x * s).to(query.dtype.element_ty)
        tl.store(target, a, mask=inside)
        tl.store(target + half, b, mask=inside)


def _rotation(
    joined: Tensor,
    apart: tuple[Tensor, ...],
    cos_N_D: Tensor,
    sin_N_D: Tensor,
    heads: tuple[int, int],
    back: bool,
) -> None:
    size = cos_N_D.shape[1]
    constants = (
        *heads,
        size,
        triton.next_power_of_2(heads[0]),
        triton.next_power_of_2(size // 2),
        back,
    )
    _launch(_rotate, (len(cos_N_D), 1, 1), (joined, *apart, cos_N_D, sin_N_D), 4, constants)


def rotate(
    qkv: Tensor, cos_N_D: Tensor, sin_N_D: Tensor, heads: tuple[int, int]
) -> tuple[Tensor, ...]:
    """Joined tensor → rotated query, rotated key, and value."""
    apart = tuple(
        qkv.new_empty(len(qkv), count, cos_N_D.shape[1]) for count in (heads[0], heads[1], heads[1])
    )
    _rotation(qkv, apart, cos_N_D, sin_N_D, heads, back=False)
    return apart


def rotate_back(
    grads: tuple[Tensor, ...], cos_N_D: Tensor, sin_N_D: Tensor, heads: tuple[int, int]
) -> Tensor:
    """Gradients of query, key and value → gradient of the joined tensor."""
    joined = grads[0].new_empty(len(cos_N_D), (heads[0] + 2 * heads[1]) * cos_N_D.shape[1])
    _rotation(joined, tuple(g.contiguous() for g in grads), cos_N_D, sin_N_D, heads, back=True)
    return joined


@triton.jit
def _dequantize(
    packed,
    absmax,
    code,
    absmax2,
    code2,
    offset,
    tail,
    out,
    blocks,
    columns,
    ranks,
    stride,
    SIZE: tl.constexpr,
    SIZE2: tl.constexpr,
    NESTED: tl.constexpr,
    TAIL: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)
    inside = i < blocks
    block = row * blocks + i
    scale = tl.load(absmax + block, mask=inside, other=0)
    if NESTED:
        outer = tl.load(absmax2 + block // SIZE2, mask=inside, other=0.0)
        scale = tl.load(code2 + scale.to(tl.int32), mask=inside, other=0.0) * outer + tl.load(
            offset
        )
    half = tl.arange(0, SIZE // 2)[None, :]
    byte = tl.load(packed + block[:, None] * (SIZE // 2) + half, mask=inside[:, None], other=0).to(
        tl.int32
    )
    first = tl.load(code + (byte >> 4)) * scale[:, None]
    second = tl.load(code + (byte & 15)) * scale[:, None]
    both = tl.interleave(first, second).to(out.dtype.element_ty)
    j = i[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    tl.store(out + row * stride + j, both, mask=inside[:, None])
    if TAIL > 0:
        if tl.program_id(1) == 0:
            r = tl.arange(0, TAIL)
            kept = tl.load(tail + row * ranks + r, mask=r < ranks)
            tl.store(out + row * stride + columns + r, kept, mask=r < ranks)


def dequantize(weight: Tensor, state: Any, tail_O_R: Tensor | None, out_O_IR: Tensor) -> None:
    """Write the dequantized 4-bit ``weight``, followed in each row by ``tail_O_R``, to
    ``out_O_IR``.

    ``state`` is bitsandbytes' quant state. Each row must have whole quantization blocks.
    """
    rows, columns = state.shape
    ranks = 0 if tail_O_R is None else tail_O_R.shape[1]
    inner = state.state2 if state.nested else state
    blocks = columns // state.blocksize
    arguments = (
        weight,
        state.absmax,
        state.code,
        inner.absmax,
        inner.code,
        state.offset if state.nested else state.absmax,
        state.absmax if tail_O_R is None else tail_O_R,
        out_O_IR,
        blocks,
        columns,
        ranks,
        out_O_IR.stride(0),
    )
    tail = triton.next_power_of_2(ranks) if ranks else 0
    constants = (state.blocksize, inner.blocksize, state.nested, tail, 64)
    _launch(_dequantize, (rows, triton.cdiv(blocks, 64), 1), arguments, 8, constants)


@triton.jit
def _add_product(
    out,
    b,
    a,
    rows,
    columns,
    ranks,
    stride,
    scale,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    RANKS: tl.constexpr,
):
    i = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    j = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)).to(tl.int64)[None, :]
    inside = (i < rows) & (j < columns)
    r = tl.arange(0, RANKS)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for at in range(0, ranks, RANKS):
        left = tl.load(
            b + i * ranks + at + r[None, :], mask=(i < rows) & (at + r[None, :] < ranks), other=0.0
        )
        right = tl.load(
            a + (at + r[:, None]) * columns + j,
            mask=(at + r[:, None] < ranks) & (j < columns),
            other=0.0,
        )
        # tf32 is exact here, since it represents every bfloat16 number.
        total += tl.dot(left.to(tl.float32), right.to(tl.float32), input_precision="tf32")
    exact = tl.load(out + i * stride + j, mask=inside, other=0.0).to(tl.float32) + total * scale
    number = (i * columns + j).to(tl.uint32)
    for _ in tl.static_range(2):
        number = (number ^ (number >> 16)) * 0x45D9F3B
    number = (number ^ (number >> 16)) & 0xFFFF
    upper = tl.where(exact == exact, (exact.to(tl.uint32, bitcast=True) + number) >> 16, 0x7FC0)
    tl.store(out + i * stride + j, upper.to(tl.uint16).to(tl.bfloat16, bitcast=True), mask=inside)


def add_product(out_O_I: Tensor, b_O_R: Tensor, a_R_I: Tensor, scale: float) -> None:
    """See ``kernels.add_product``."""
    (rows, columns), ranks = out_O_I.shape, len(a_R_I)
    grid = (triton.cdiv(rows, 64), triton.cdiv(columns, 128), 1)
    b_O_R, a_R_I = b_O_R.contiguous(), a_R_I.contiguous()
    arguments = (out_O_I, b_O_R, a_R_I, rows, columns, ranks, out_O_I.stride(0), float(scale))
    _launch(
        _add_product, grid, arguments, 4, (64, 128, min(64, max(16, triton.next_power_of_2(ranks))))
    )


@triton.jit
def _log_prob(logits, target, logp, columns, scale, GRADIENT: tl.constexpr, BLOCK: tl.constexpr):
    """Log-softmax at the target; with GRADIENT its derivative overwrites the logits."""
    row = tl.program_id(0).to(tl.int64)
    start = logits + row * columns
    highest = -float("inf")
    total = 0.0
    for at in range(0, columns, BLOCK):
        i = at + tl.arange(0, BLOCK)
        x = tl.load(start + i, mask=i < columns, other=-float("inf")).to(tl.float32) * scale
        higher = tl.maximum(highest, tl.max(x, 0))
        total = total * tl.exp(highest - higher) + tl.sum(tl.exp(x - higher), 0)
        highest = higher
    chosen = tl.load(target + row)
    whole = highest + tl.log(total)
    tl.store(logp + row, tl.load(start + chosen).to(tl.float32) * scale - whole)
    if GRADIENT:
        tl.debug_barrier()
        for at in range(0, columns, BLOCK):
            i = at + tl.arange(0, BLOCK)
            x = tl.load(start + i, mask=i < columns, other=0.0).to(tl.float32) * scale
            derivative = tl.where(i == chosen, 1.0, 0.0) - tl.exp(x - whole)
            tl.store(start + i, (derivative * scale).to(logits.dtype.element_ty), mask=i < columns)


def log_prob(logits_C_V: Tensor, target_C: Tensor, scale: float, gradient: bool) -> Tensor:
    """Log-softmax of ``scale`` · logits at the targets, float32 [C].

    With ``gradient`` its derivative by the logits overwrites them.
    """
    rows, columns = logits_C_V.shape
    logp_C = torch.empty(rows, dtype=torch.float32, device=logits_C_V.device)
    _launch(
        _log_prob,
        (rows, 1, 1),
        (logits_C_V, target_C, logp_C, columns, float(scale)),
        16,
        (gradient, 8192),
    )
    return logp_C
