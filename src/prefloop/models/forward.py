"""Forward passes over packs: hidden states in one pass, then log-probs in chunks of tokens.

The logits of all tokens [N, V] never exist at once.

Shape letters: N packed tokens, R response tokens, B branches, H hidden size, W row width, M tokens
of all rows, C a chunk of response tokens, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
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
from prefloop.models.heads import head_logits, head_scale

CHUNK = 256


def hidden_N_H(backbone: Backbone, pack: Pack) -> Tensor:
    """Hidden states [N, H] after the final norm, of every packed token under the active adapter."""
    return run_N_H(backbone, pack, backbone.kernel or choose(backbone))


def run_N_H(backbone: Backbone, pack: Pack, kernel: str) -> Tensor:
    """``hidden_N_H`` with a given kernel: 'mask', 'varlen', 'flex', or 'rows' for models that
    cannot share prompts between branches.
    """
    if kernel == "rows":
        return _rows_N_H(backbone, pack)
    if kernel == "mask":
        mask = _attention_mask(backbone, pack)
        extra: dict[str, attention.Branches] = {}
    else:
        # A mask of the right rank stops transformers from making its own. The kernel ignores it.
        blank = torch.empty(1, 1, 1, 1, dtype=torch.bool, device=pack.tokens_N.device)
        mask = _by_layer(backbone, {"full_attention": blank, "sliding_attention": blank})
        extra = {"branches": attention.branches(pack, kernel)}
    output = backbone.decoder(
        input_ids=pack.tokens_N[None],
        position_ids=pack.positions_N[None],
        attention_mask=mask,
        use_cache=False,
        **extra,
    )
    return output.last_hidden_state[0]


def _rows_N_H(backbone: Backbone, pack: Pack) -> Tensor:
    """``hidden_N_H`` with one row per branch: its prompt, the branch, and padding on the right."""
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
    # A prompt stands in several rows: take each packed token from the first row that has it.
    first_N = torch.full((len(pack.tokens_N),), len(hidden_M_H), device=index_B_W.device)
    position_M = torch.arange(len(hidden_M_H), device=index_B_W.device)
    first_N = first_N.scatter_reduce(0, index_B_W[real_B_W], position_M, "amin")
    return hidden_M_H.index_select(0, first_N)


def rows_of(pack: Pack) -> list[Tensor]:
    """For each branch, the indices into N of its prompt followed by the branch."""
    rows = []
    for branch, last in enumerate(pack.last_B.tolist(), start=1):
        same_document_N = pack.document_N == pack.document_N[last]
        visible_N = same_document_N & ((pack.branch_N == 0) | (pack.branch_N == branch))
        rows.append(visible_N.nonzero().flatten())
    return rows


def _attention_mask(backbone: Backbone, pack: Pack) -> Tensor | dict[str, Tensor]:
    """The pack's mask in the form that the model expects.

    Models with several kinds of layers get one mask per kind. Eager attention gets numbers to add
    to its scores, other attentions get booleans.
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
    """All masks for a model with several kinds of layers, else the one mask that it needs."""
    config = backbone.causal_lm.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    if len(kinds) > 1:
        return masks
    # Models without layer types (Mistral, Phi-3) use their sliding window in every layer.
    sliding = getattr(config, "sliding_window", None) is not None and "sliding_attention" in masks
    return masks[kinds.pop() if kinds else ("sliding_attention" if sliding else "full_attention")]


def choose(backbone: Backbone) -> str:
    """Choose the attention kernel for this model on this device: the fastest that agrees with rows.

    Some models' layers ignore the mask or the positions, so branches in a pack differ from branches
    alone. Such a model runs in plain rows, and a message says so. Raises ``ModelError`` for a
    kernel named in ``backbone.attention`` that does not agree.
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
    # A prompt with a branch takes three quarters of the probe. With a sliding window these are half
    # as long again as the window, so that a kernel without the window gives other results.
    tokens = 24 if window is None else 2 * min(window, backbone.config.max_length) + 32
    probe = _probe(backbone, tokens, window)
    expected = _rows_N_H(backbone, probe)
    if not _agree(backbone, probe, "mask", expected):
        say(
            f"  {backbone.config.model}: branches cannot share a prompt in this model; each"
            " response runs in a row of its own",
            "yellow",
        )
        return "rows"
    wanted = backbone.config.attention
    implementation = backbone.causal_lm.config.get_text_config()._attn_implementation
    if wanted in ("sdpa", "eager") or implementation != attention.NAME:
        return "mask"
    if wanted == "flex" and window is not None and window < backbone.config.max_length:
        raise ModelError(
            f"backbone.attention flex does not support sliding windows, and {backbone.config.model}"
            f" has one of {window} tokens: use auto"
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
        actual_N_H = run_N_H(backbone, probe, kernel)
    except (RuntimeError, TypeError, ValueError, NotImplementedError):
        return False
    tolerance = 1e-3 if backbone.compute_dtype == torch.float32 else 0.1
    error_N = (actual_N_H - expected_N_H).float().norm(dim=-1) / expected_N_H.float().norm(dim=-1)
    return bool(error_N.max() < tolerance)


def _time(backbone: Backbone, pack: Pack, kernel: str) -> float:
    """Seconds of a forward pass: the best of three, since the first one may compile kernels."""
    best = float("inf")
    for _ in range(3):
        started = time.monotonic()
        run_N_H(backbone, pack, kernel).sum().item()
        best = min(best, time.monotonic() - started)
    return best


def _probe(backbone: Backbone, tokens: int, window: int | None = None) -> Pack:
    """A pack of about ``tokens`` random tokens: documents with one prompt and two branches each."""
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
    """Float32 logits [C, V] (``head_logits``) divided by the sampling temperature."""
    logits = head_logits(backbone.causal_lm, hidden_C_H)
    return logits if temperature == 1 else logits / temperature


def response_logps_R(
    backbone: Backbone, hidden_N_H: Tensor, pack: Pack, temperature: float = 1.0
) -> Tensor:
    """Log-probability of each response token, float32 [R].

    Args:
        backbone: the model.
        hidden_N_H: the hidden states of ``hidden_N_H``.
        pack: the pack that they come from.
        temperature: the temperature that the responses were sampled at.

    The result is differentiable, and no logits are kept for the backward pass.
    """
    gpu = kernels.on_gpu(hidden_N_H)
    scale = None if gpu is None else _plain_scale(backbone, temperature)

    def chunk(hidden_C_H: Tensor, target_C: Tensor) -> Tensor:
        logits = logits_C_V(backbone, hidden_C_H, temperature)
        return -F.cross_entropy(logits, target_C, reduction="none")

    parts = []
    for source_C, target_C in _chunks(pack, CHUNK if scale is None else 4 * CHUNK):
        # Branches share the prompt's last token. index_select adds their gradients in a fixed
        # order. Indexing with [] adds them in parallel with atomics, and a resumed run would not
        # give the same bytes.
        hidden_C_H = hidden_N_H.index_select(0, source_C)
        learns = torch.is_grad_enabled() and hidden_C_H.requires_grad
        if scale is not None:
            weight_V_H = backbone.causal_lm.get_output_embeddings().weight
            hidden_C_H = hidden_C_H.to(weight_V_H.dtype)
            if learns:
                logp_C = _LogProbs.apply(hidden_C_H, target_C, weight_V_H, scale)
            else:
                logits = hidden_C_H @ weight_V_H.T
                logp_C = gpu.log_prob(logits, target_C, scale, gradient=False)
        else:
            logp_C = _recomputed(chunk, learns, hidden_C_H, target_C)
        parts.append(logp_C)
    return torch.cat(parts)


def _recomputed(chunk: Callable[..., Tensor], learns: bool, *inputs: Tensor) -> Tensor:
    """Run a chunk; where gradients flow, its logits are computed again in the backward pass."""
    if not learns:
        return chunk(*inputs)
    out: Tensor = checkpoint(chunk, *inputs, use_reentrant=False, preserve_rng_state=False)
    return out


class _LogProbs(torch.autograd.Function):
    """Log-probs at the targets. The forward pass overwrites the logits with their derivative, and
    keeps only its product with the head for the backward pass.
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
    """The factor on the logits of a frozen head without bias; ``None`` for any other head, and for
    a soft cap.
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
    """Entropy in nats of the distribution over each response token, float32 [R]; differentiable.

    The arguments are those of ``response_logps_R``.
    """

    def chunk(hidden_C_H: Tensor) -> Tensor:
        logps = logits_C_V(backbone, hidden_C_H, temperature).log_softmax(-1)
        return -(logps.exp() * logps).sum(-1)

    parts = []
    for source_C, _ in _chunks(pack, CHUNK):
        hidden_C_H = hidden_N_H.index_select(0, source_C)
        learns = torch.is_grad_enabled() and hidden_C_H.requires_grad
        parts.append(_recomputed(chunk, learns, hidden_C_H))
    return torch.cat(parts)


def _chunks(pack: Pack, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    yield from zip(pack.source_R.split(size), pack.target_R.split(size), strict=True)


def sum_by_branch_B(values_R: Tensor, pack: Pack) -> Tensor:
    """Sum of per-token values [R] over each response, [B]."""
    return values_R.new_zeros(len(pack.keys)).index_add(0, pack.segment_R, values_R)
