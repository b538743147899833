"""Packed forward: hidden states once, log-probs in chunks; [tokens, vocabulary] never exists whole.

Shape letters: N packed tokens, R response tokens, B branches, H hidden size, W row width, M tokens
of all rows, C a chunk of response tokens, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from prefloop.base.console import say
from prefloop.data.packing import Document, Pack
from prefloop.data.packing import pack as pack_
from prefloop.errors import ModelError
from prefloop.models.backbone import Backbone
from prefloop.models.fused import attention, kernels
from prefloop.models.language_head import head_logits, head_scale

CHUNK = 256


def hidden_N_H(backbone: Backbone, pack: Pack) -> Tensor:
    """Last hidden states (after the final norm) of every packed token under the active adapter."""
    return run_N_H(backbone, pack, backbone.kernel or choose(backbone))


def run_N_H(backbone: Backbone, pack: Pack, kernel: str) -> Tensor:
    """``hidden_N_H`` with a named kernel: 'mask', 'varlen', 'flex', or 'rows' for models that
    cannot branch.
    """
    if kernel == "rows":
        return _rows_N_H(backbone, pack)
    if kernel == "mask":
        mask, extra = _attention_mask(backbone, pack), {}
    else:
        # A mask of the right rank stops transformers from making one of its own; the kernel does
        # not look at it.
        blank = torch.empty(1, 1, 1, 1, dtype=torch.bool, device=pack.tokens_N.device)
        mask, extra = (
            _by_layer(backbone, {"full_attention": blank, "sliding_attention": blank}),
            {"branches": attention.branches(pack, kernel)},
        )
    output = backbone.decoder(
        input_ids=pack.tokens_N[None],
        position_ids=pack.positions_N[None],
        attention_mask=mask,
        use_cache=False,
        **extra,
    )
    return output.last_hidden_state[0]


def _rows_N_H(backbone: Backbone, pack: Pack) -> Tensor:
    """Each branch in a row of its own behind its prompt, padded on the right: for models that take
    no mask of branches.
    """
    rows = rows_of(pack)
    width = max(len(row) for row in rows)
    index_B_W = torch.stack([F.pad(row, (0, width - len(row)), value=-1) for row in rows])
    real_B_W = index_B_W >= 0
    output = backbone.decoder(
        input_ids=pack.tokens_N[index_B_W.clamp_min(0)],
        position_ids=torch.arange(width, device=index_B_W.device).expand_as(index_B_W),
        attention_mask=real_B_W.long(),
        use_cache=False,
    )
    hidden_M_H = output.last_hidden_state[real_B_W]
    first_N = torch.full((len(pack.tokens_N),), len(hidden_M_H), device=index_B_W.device)
    place_M = torch.arange(len(hidden_M_H), device=index_B_W.device)
    first_N = first_N.scatter_reduce(0, index_B_W[real_B_W], place_M, "amin")
    return hidden_M_H.index_select(0, first_N)


def rows_of(pack: Pack) -> list[Tensor]:
    """Indices into N of each branch with its prompt before it."""
    rows = []
    for branch, last in enumerate(pack.last_B.tolist(), start=1):
        same = pack.document_N == pack.document_N[last]
        rows.append((same & ((pack.branch_N == 0) | (pack.branch_N == branch))).nonzero().flatten())
    return rows


def _attention_mask(backbone: Backbone, pack: Pack) -> Tensor | dict[str, Tensor]:
    """The pack's mask as the model takes it: one for each kind of layer where it has several, added
    to scores in eager attention.
    """
    config = backbone.causal_lm.config.get_text_config()
    mask_NN = pack.mask_NN()
    masks = {"full_attention": mask_NN}
    window = getattr(config, "sliding_window", None)
    if window is not None:
        near_NN = pack.positions_N[:, None] - pack.positions_N[None, :] < window
        masks["sliding_attention"] = mask_NN & near_NN
    if config._attn_implementation.endswith("eager"):
        lowest = torch.finfo(backbone.compute_dtype).min
        masks = {
            kind: torch.zeros_like(m, dtype=backbone.compute_dtype).masked_fill(~m, lowest)
            for kind, m in masks.items()
        }
    return _by_layer(backbone, {kind: mask[None, None] for kind, mask in masks.items()})


def _by_layer(backbone: Backbone, masks: dict[str, Tensor]) -> Tensor | dict[str, Tensor]:
    """All masks where the model has layers of several kinds, else the one it needs."""
    config = backbone.causal_lm.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    if len(kinds) > 1:
        return masks
    # Models without layer types (Mistral, Phi-3) slide in every layer when they name a window.
    sliding = getattr(config, "sliding_window", None) is not None and "sliding_attention" in masks
    return masks[kinds.pop() if kinds else ("sliding_attention" if sliding else "full_attention")]


def choose(backbone: Backbone) -> str:
    """Find the kernel for this model on this device, once: the fastest of those that agree with
    plain rows.

    A model whose branches do not come out as they would alone (its layers ignore the mask or the
    positions) runs in plain rows, and one line says so.
    """
    training = {module: module.training for module in backbone.model.modules()}
    dropout, backbone.active.dropout = backbone.active.dropout, False
    backbone.model.eval()
    try:
        with torch.no_grad(), backbone.autocast():
            backbone.kernel = _choose(backbone)
    finally:
        for module, mode in training.items():
            module.training = mode
        backbone.active.dropout = dropout
    return backbone.kernel


def _choose(backbone: Backbone) -> str:
    window = getattr(backbone.causal_lm.config.get_text_config(), "sliding_window", None)
    # A prompt and a branch are three quarters of it. Where there is a window they are half as long
    # again: a kernel that forgets it must show.
    probe = _probe(
        backbone, 24 if window is None else 2 * min(window, backbone.config.max_length) + 32, window
    )
    expected = _rows_N_H(backbone, probe)
    if not _agree(backbone, probe, "mask", expected):
        say(
            f"  {backbone.config.model}: branches cannot share a prompt in this model; each"
            " response runs in a row of its own",
            "yellow",
        )
        return "rows"
    wanted = backbone.config.attention
    if (
        wanted in ("sdpa", "eager")
        or backbone.causal_lm.config.get_text_config()._attn_implementation != attention.NAME
    ):
        return "mask"
    if wanted == "flex" and window is not None and window < backbone.config.max_length:
        raise ModelError(
            f"backbone.attention flex has no sliding windows, and {backbone.config.model} has one"
            f" of {window}: use auto"
        )
    if wanted == "flex" or wanted == "varlen":
        if not _agree(backbone, probe, wanted, expected):
            raise ModelError(
                f"backbone.attention {wanted} does not reproduce sdpa on {backbone.config.model}:"
                " use auto or sdpa"
            )
        return wanted
    if not _agree(backbone, probe, "varlen", expected):
        return "mask"
    pack = _probe(backbone, backbone.config.pack_tokens)
    seconds = {kernel: _time(backbone, pack, kernel) for kernel in ("mask", "varlen")}
    return min(seconds, key=lambda kernel: seconds[kernel])


def _agree(backbone: Backbone, probe: Pack, kernel: str, expected_N_H: Tensor) -> bool:
    try:
        found_N_H = run_N_H(backbone, probe, kernel)
    except (RuntimeError, TypeError, ValueError, NotImplementedError):
        return False
    tolerance = 1e-3 if backbone.compute_dtype == torch.float32 else 0.1
    worst = (found_N_H - expected_N_H).float().norm(dim=-1) / expected_N_H.float().norm(dim=-1)
    return bool(worst.max() < tolerance)


def _time(backbone: Backbone, pack: Pack, kernel: str) -> float:
    best = float("inf")
    for _ in range(3):
        started = time.monotonic()
        run_N_H(backbone, pack, kernel).sum().item()
        best = min(best, time.monotonic() - started)
    return best


def _probe(backbone: Backbone, tokens: int, window: int | None = None) -> Pack:
    """A pack of about ``tokens`` random tokens: documents of a prompt and two or three branches."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = backbone.causal_lm.config.get_text_config().vocab_size
    ids = torch.randint(vocabulary, (tokens + 1,), generator=generator).tolist()
    size = max(10, tokens // 2 if tokens < 400 else 400) if window is None else tokens
    documents = []
    for start in range(0, max(1, tokens - size + 1), size):
        part = ids[start : start + size]
        a, b = len(part) // 2, len(part) * 3 // 4
        documents.append(Document(part[:a], [part[a:b], part[b:]], [2 * start, 2 * start + 1]))
    return pack_(documents).to(backbone.device)


def logits_C_V(backbone: Backbone, hidden_C_H: Tensor, temperature: float) -> Tensor:
    """``head_logits`` divided by the sampling temperature."""
    logits = head_logits(backbone.causal_lm, hidden_C_H)
    return logits if temperature == 1 else logits / temperature


def response_logps_R(
    backbone: Backbone, hidden_N_H: Tensor, pack: Pack, temperature: float = 1.0
) -> Tensor:
    """Log-probability of each response token, float32 [R]; differentiable, without keeping
    logits.
    """
    scale = (
        None if (gpu := kernels.on_gpu(hidden_N_H)) is None else _plain_scale(backbone, temperature)
    )

    def chunk(hidden_C_H: Tensor, target_C: Tensor) -> Tensor:
        return -F.cross_entropy(
            logits_C_V(backbone, hidden_C_H, temperature), target_C, reduction="none"
        )

    parts = []
    for source_C, target_C in _chunks(pack, CHUNK if scale is None else 4 * CHUNK):
        # Branches share the prompt's last token. index_select adds their gradients in a fixed
        # order; indexing with [] adds them in parallel with atomics, and a resumed run would end in
        # other bytes.
        hidden_C_H = hidden_N_H.index_select(0, source_C)
        learns = torch.is_grad_enabled() and hidden_C_H.requires_grad
        if scale is not None:
            weight_V_H = backbone.causal_lm.get_output_embeddings().weight
            hidden_C_H = hidden_C_H.to(weight_V_H.dtype)
            if learns:
                parts.append(_LogProbs.apply(hidden_C_H, target_C, weight_V_H, scale))
            else:
                parts.append(
                    gpu.log_prob(hidden_C_H @ weight_V_H.T, target_C, scale, gradient=False)
                )
        elif learns:
            parts.append(
                checkpoint(
                    chunk, hidden_C_H, target_C, use_reentrant=False, preserve_rng_state=False
                )
            )
        else:
            parts.append(chunk(hidden_C_H, target_C))
    return torch.cat(parts)


class _LogProbs(torch.autograd.Function):
    """Log-probs at the targets; the logits' derivative is taken at once, in their place, and only
    its product with the head is kept.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_C_H: Tensor, target_C: Tensor, weight_V_H: Tensor, scale: float
    ) -> Tensor:
        logits_C_V = hidden_C_H @ weight_V_H.T
        logp_C = kernels.on_gpu(logits_C_V).log_prob(logits_C_V, target_C, scale, gradient=True)
        ctx.save_for_backward(logits_C_V @ weight_V_H)
        return logp_C

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_C: Tensor) -> tuple[Tensor | None, ...]:
        (derivative_C_H,) = ctx.saved_tensors
        return (derivative_C_H.float() * grad_C[:, None]).to(derivative_C_H.dtype), None, None, None


def _plain_scale(backbone: Backbone, temperature: float) -> float | None:
    """What multiplies the logits of a frozen head without bias; None when more is done to them
    (soft caps).
    """
    head = backbone.causal_lm.get_output_embeddings()
    config = backbone.causal_lm.config.get_text_config()
    if type(head) is not nn.Linear or head.bias is not None or head.weight.requires_grad:
        return None
    if getattr(config, "final_logit_softcapping", None) is not None:
        return None
    return head_scale(config) / temperature


def entropy_R(
    backbone: Backbone, hidden_N_H: Tensor, pack: Pack, temperature: float = 1.0
) -> Tensor:
    """Entropy in nats of the next-token distribution before each response token, float32 [R]."""

    def chunk(hidden_C_H: Tensor) -> Tensor:
        logps = logits_C_V(backbone, hidden_C_H, temperature).log_softmax(-1)
        return -(logps.exp() * logps).sum(-1)

    parts = []
    for source_C, _ in _chunks(pack, CHUNK):
        hidden_C_H = hidden_N_H.index_select(0, source_C)
        recompute = torch.is_grad_enabled() and hidden_C_H.requires_grad
        parts.append(
            checkpoint(chunk, hidden_C_H, use_reentrant=False, preserve_rng_state=False)
            if recompute
            else chunk(hidden_C_H)
        )
    return torch.cat(parts)


def _chunks(pack: Pack, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    yield from zip(pack.source_R.split(size), pack.target_R.split(size), strict=True)


def sum_by_branch_B(values_R: Tensor, pack: Pack) -> Tensor:
    """Sum of per-token values over each response."""
    return torch.zeros(len(pack.keys), dtype=values_R.dtype, device=values_R.device).index_add(
        0, pack.segment_R, values_R
    )
