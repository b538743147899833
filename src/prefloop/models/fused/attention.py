"""Attention over packs whose branches share a prompt, with one of several kernels.

- ``mask`` is transformers' SDPA or eager attention with the pack's boolean mask. It works on every
  device and computes all pairs of tokens.
- ``varlen`` is torch's variable-length FlashAttention. A branch is a query segment whose keys are
  its prompt's followed by its own, aligned at the end, so no masked pair is computed. It needs CUDA
  and half precision.
- ``flex`` is torch's FlexAttention, compiled with the same rule as a block mask. It needs CUDA and
  has no sliding windows.

``models.forward.choose`` compares a kernel with plain rows on each model. With 'auto' it takes the
faster of ``mask`` and ``varlen``; ``flex`` runs only if it is named.

Shape letters: N packed tokens, M keys after the prompts are repeated for their branches, H query
heads, K key heads, D head size.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from prefloop.data.packing import Pack

NAME = "prefloop"
"""The name of this attention in the model's config. Without ``branches`` it is SDPA."""


@dataclasses.dataclass(frozen=True)
class Branches:
    """The kernel of one pass, with the pack that it runs on."""

    kernel: str
    pack: Pack
    block_mask: Any = None


def branches(pack: Pack, kernel: str) -> Branches:
    """Prepare ``pack`` for ``kernel`` ('varlen' or 'flex')."""
    if kernel == "varlen":
        return Branches(kernel, pack)
    from torch.nn.attention.flex_attention import create_block_mask

    document_N, branch_N = pack.document_N, pack.branch_N

    def rule(_b: Tensor, _h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        seen = (branch_N[k] == 0) | (branch_N[q] == branch_N[k])
        return (document_N[q] == document_N[k]) & seen & (q >= k)

    count = len(pack.tokens_N)
    mask = create_block_mask(
        rule, None, None, count, count, device=str(pack.tokens_N.device), _compile=True
    )
    return Branches(kernel, pack, mask)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    branches: Branches | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface.

    Query [1, H, N, D], key and value [1, K, N, D] → [1, N, H, D]. Raises ``NotImplementedError``
    for attention sinks.
    """
    if kwargs.get("s_aux") is not None:
        raise NotImplementedError("attention sinks: load the model with attention eager")
    if branches is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    scale, window = kwargs.get("scaling"), kwargs.get("sliding_window")
    if branches.kernel == "flex":
        out = _flex()(
            query, key, value, block_mask=branches.block_mask, scale=scale, enable_gqa=True
        )
        return out.transpose(1, 2), None
    return _varlen(query, key, value, branches.pack, scale, window)[None], None


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, pack: Pack, scale: float | None, window: int | None
) -> Tensor:
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    k, v = k.index_select(0, pack.keys_M), v.index_select(0, pack.keys_M)
    lengths = (pack.starts_q, pack.starts_k, pack.longest_q, pack.longest_k)
    left = -1 if window is None else window - 1
    options = dict(scale=scale, window_size_left=left, window_size_right=0)
    return _Flash.apply(q.contiguous(), k, v, lengths, window is None, options)


class _Flash(torch.autograd.Function):
    """The functions behind ``torch.nn.attention.varlen.varlen_attn``, called directly.

    torch's registered operator around them takes a quarter of a millisecond of host time per layer
    and pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        lengths: tuple[Any, ...],
        causal: bool,
        options: Any,
    ) -> Tensor:
        run = torch.ops.aten._flash_attention_forward
        out, logsumexp, state, _, _ = run(q, k, v, *lengths, 0.0, causal, False, **options)
        ctx.save_for_backward(q, k, v, out, logsumexp, state)
        ctx.rest = lengths, causal, options
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, logsumexp, state = ctx.saved_tensors
        lengths, causal, options = ctx.rest
        run = torch.ops.aten._flash_attention_backward
        saved = (q, k, v, out, logsumexp, *lengths, 0.0, causal, state, state.new_empty(0))
        grads = run(grad.contiguous(), *saved, **options)
        return *grads, None, None, None


@functools.cache
def _flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


def register() -> None:
    """Register ``attend`` with transformers under ``NAME``."""
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
