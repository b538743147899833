"""The output head of a language model as transformers runs it, with what some families do to its
logits.

Shape letters: C positions, H hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def head_logits(model: Any, hidden_C_H: Tensor) -> Tensor:
    """Float32 logits [C, V] of a transformers model's hidden states, with its own scale (Cohere,
    Granite) and soft cap (Gemma 2).
    """
    head = model.get_output_embeddings()
    config = model.config.get_text_config()
    logits = head(hidden_C_H.to(head.weight.dtype)).float()
    scale = head_scale(config)
    if scale != 1:
        logits = logits * scale
    cap = getattr(config, "final_logit_softcapping", None)
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    return logits


def head_scale(config: Any) -> float:
    """The factor on the logits: Cohere's ``logit_scale``, Granite's ``logits_scaling`` (a divisor),
    else 1.
    """
    return float(getattr(config, "logit_scale", 1.0) / getattr(config, "logits_scaling", 1.0))
