"""Packed forward: hidden states once, log-probs in chunks; [tokens, vocabulary] never exists whole.

Shape letters: N packed tokens, R response tokens, B branches, H hidden size, C a chunk of response tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from prefloop.data.packing import Pack
from prefloop.models.backbone import Backbone

CHUNK = 256


def hidden_N_H(backbone: Backbone, pack: Pack) -> Tensor:
    """Last hidden states (after the final norm) of every packed token under the active adapter."""
    output = backbone.decoder(
        input_ids=pack.tokens_N[None],
        position_ids=pack.positions_N[None],
        attention_mask=_attention_mask(backbone, pack),
        use_cache=False,
    )
    return output.last_hidden_state[0]


def _attention_mask(backbone: Backbone, pack: Pack) -> Tensor | dict[str, Tensor]:
    """The pack's mask as the model takes it: one for each kind of layer where it has several, added to scores in eager attention."""
    config = backbone.causal_lm.config.get_text_config()
    mask_NN = pack.mask_NN()
    masks = {"full_attention": mask_NN}
    window = getattr(config, "sliding_window", None)
    if window is not None:
        near_NN = pack.positions_N[:, None] - pack.positions_N[None, :] < window
        masks["sliding_attention"] = mask_NN & near_NN
    if config._attn_implementation == "eager":
        lowest = torch.finfo(backbone.compute_dtype).min
        masks = {
            kind: torch.zeros_like(m, dtype=backbone.compute_dtype).masked_fill(~m, lowest) for kind, m in masks.items()
        }
    masks = {kind: mask[None, None] for kind, mask in masks.items()}
    kinds = set(getattr(config, "layer_types", None) or ())
    if len(kinds) > 1:
        return masks
    # Models without layer types (Mistral, Phi-3) slide in every layer when they name a window.
    return masks[kinds.pop() if kinds else ("sliding_attention" if window is not None else "full_attention")]


def logits_C_V(backbone: Backbone, hidden_C_H: Tensor, temperature: float) -> Tensor:
    """Float32 logits divided by the sampling temperature, with the model's own scale (Cohere, Granite) and soft cap (Gemma 2)."""
    head = backbone.causal_lm.get_output_embeddings()
    config = backbone.causal_lm.config.get_text_config()
    logits = head(hidden_C_H.to(head.weight.dtype)).float()
    logits = logits * getattr(config, "logit_scale", 1.0) / getattr(config, "logits_scaling", 1.0)
    cap = getattr(config, "final_logit_softcapping", None)
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    return logits / temperature


def response_logps_R(backbone: Backbone, hidden_N_H: Tensor, pack: Pack, temperature: float = 1.0) -> Tensor:
    """Log-probability of each response token, float32 [R]; differentiable, recomputing each chunk's logits backward."""

    def chunk(hidden_C_H: Tensor, target_C: Tensor) -> Tensor:
        return -F.cross_entropy(logits_C_V(backbone, hidden_C_H, temperature), target_C, reduction="none")

    parts = []
    for source_C, target_C in _chunks(pack):
        # Branches share the prompt's last token. index_select adds their gradients in a fixed order; indexing with [] adds them
        # in parallel with atomics, and a resumed run would end in other bytes.
        hidden_C_H = hidden_N_H.index_select(0, source_C)
        if torch.is_grad_enabled() and hidden_C_H.requires_grad:
            parts.append(checkpoint(chunk, hidden_C_H, target_C, use_reentrant=False))
        else:
            parts.append(chunk(hidden_C_H, target_C))
    return torch.cat(parts)


def entropy_R(backbone: Backbone, hidden_N_H: Tensor, pack: Pack, temperature: float = 1.0) -> Tensor:
    """Entropy in nats of the next-token distribution before each response token, float32 [R]."""

    def chunk(hidden_C_H: Tensor) -> Tensor:
        logps = logits_C_V(backbone, hidden_C_H, temperature).log_softmax(-1)
        return -(logps.exp() * logps).sum(-1)

    parts = []
    for source_C, _ in _chunks(pack):
        hidden_C_H = hidden_N_H.index_select(0, source_C)
        recompute = torch.is_grad_enabled() and hidden_C_H.requires_grad
        parts.append(checkpoint(chunk, hidden_C_H, use_reentrant=False) if recompute else chunk(hidden_C_H))
    return torch.cat(parts)


def _chunks(pack: Pack) -> Iterator[tuple[Tensor, Tensor]]:
    yield from zip(pack.source_R.split(CHUNK), pack.target_R.split(CHUNK), strict=True)


def sum_by_branch_B(values_R: Tensor, pack: Pack) -> Tensor:
    """Sum of per-token values over each response."""
    return torch.zeros(len(pack.keys), dtype=values_R.dtype, device=values_R.device).index_add(
        0, pack.segment_R, values_R
    )
