"""A dry pass before the first step: does the largest pack fit the memory? Better now than after an hour."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from prefloop.data.packing import Document, Pack, packs
from prefloop.errors import ModelError
from prefloop.models.backbone import Backbone
from prefloop.models.forward import hidden_N_H, response_logps_R


def largest_pack(prompt_tokens: int, response_tokens: int, responses: int, budget: int) -> Pack:
    """A pack as full as ``budget`` allows, of prompts and responses of these lengths."""
    document = Document([0] * prompt_tokens, [[0] * response_tokens] * responses, range(responses))
    count = max(1, budget // (prompt_tokens + response_tokens * responses))
    whole = [
        Document(document.prompt_ids, document.responses_ids, range(k * responses, (k + 1) * responses))
        for k in range(count)
    ]
    return max(packs(whole, budget), key=lambda pack: len(pack.tokens_N))


def dry_pass(backbone: Backbone, train: Iterable[str], score: Iterable[str], training: Pack, scoring: Pack) -> None:
    """Forward and backward of ``training`` under each role of ``train``, forward of ``scoring`` under each of ``score``; nothing is learnt.

    Raises ``ModelError`` naming the settings to change when the memory does not suffice.
    """
    for role in score:
        _fits(backbone, scoring, lambda role=role: _forward(backbone, role, scoring, train=False))  # type: ignore[misc]
    for role in train:
        _fits(backbone, training, lambda role=role: _forward(backbone, role, training, train=True).backward())  # type: ignore[misc]
        for parameter in backbone.parameters(role):
            parameter.grad = None


def _forward(backbone: Backbone, role: str, pack: Pack, train: bool) -> Tensor:
    pack = pack.to(backbone.device)
    with backbone.role(role, train=train):
        return response_logps_R(backbone, hidden_N_H(backbone, pack), pack).sum() * 0.0


def _fits(backbone: Backbone, pack: Pack, run: Callable[[], object]) -> None:
    try:
        run()
    except torch.OutOfMemoryError as error:
        config = backbone.config
        more = "" if config.gradient_checkpointing == "block" else ", set backbone.gradient_checkpointing block"
        raise ModelError(
            f"out of memory in a dry pass over the largest pack, {len(pack.tokens_N)} tokens, before anything was learnt: "
            f"lower backbone.pack_tokens (now {config.pack_tokens}){more}, shorten generation.max_new_tokens or let vLLM sleep and take less "
            f"(generation.kv_cache_gb). {str(error).splitlines()[0]}"
        ) from error
