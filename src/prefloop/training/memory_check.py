"""Before the first step, a dry pass tells whether the largest pack fits into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor

from prefloop.data import packing
from prefloop.data.packing import Document, Pack
from prefloop.errors import ModelError
from prefloop.models.backbone import Backbone
from prefloop.models.forward import hidden_N_H, response_logps_R


def largest_pack(prompt_tokens: int, response_tokens: int, responses: int, budget: int) -> Pack:
    """A pack that fills ``budget`` tokens with prompts and responses of these lengths.

    The last prompt and its responses are cut to the room that is left. There is at least one prompt
    with all its responses, even above the budget.
    """
    documents: list[Document] = []
    size, left = prompt_tokens + response_tokens * responses, budget
    while not documents or left >= 2:
        length = size if not documents else min(size, left)
        prompt = min(prompt_tokens, length - 1)
        each = [
            min(response_tokens, length - prompt - k * response_tokens) for k in range(responses)
        ]
        ids = [[0] * n for n in each if n > 0]
        start = len(documents) * responses
        documents.append(Document([0] * prompt, ids, range(start, start + len(ids))))
        left -= length
    return packing.pack(documents)


def dry_pass(
    backbone: Backbone, train: Iterable[str], score: Iterable[str], training: Pack, scoring: Pack
) -> None:
    """Forward and backward of ``training`` under each role of ``train``, and forward of ``scoring``
    under each role of ``score``; nothing is learnt.

    Raises ``ModelError`` naming the settings to change when there is not enough memory.
    """
    for role in score:
        _fits(backbone, scoring, partial(_forward, backbone, role, scoring, train=False))
    for role in train:
        _fits(backbone, training, partial(_learn, backbone, role, training))
        for parameter in backbone.parameters(role):
            parameter.grad = None


def _learn(backbone: Backbone, role: str, pack: Pack) -> None:
    _forward(backbone, role, pack, train=True).backward()


def _forward(backbone: Backbone, role: str, pack: Pack, train: bool) -> Tensor:
    pack = pack.to(backbone.device)
    with backbone.role(role, train=train):
        return response_logps_R(backbone, hidden_N_H(backbone, pack), pack).sum() * 0.0


def _fits(backbone: Backbone, pack: Pack, run: Callable[[], object]) -> None:
    """Run a pass over ``pack``; a lack of memory becomes a ``ModelError`` with a fix."""
    try:
        run()
    except torch.OutOfMemoryError as error:
        config = backbone.config
        recomputed = config.gradient_checkpointing == "block"
        more = "" if recomputed else ", set backbone.gradient_checkpointing block"
        raise ModelError(
            f"out of memory in a dry pass over the largest pack, {len(pack.tokens_N)} tokens,"
            " before anything was learnt: lower backbone.pack_tokens (now"
            f" {config.pack_tokens}){more}, shorten generation.max_new_tokens or let vLLM sleep and"
            f" take less (generation.kv_cache_gb). {str(error).splitlines()[0]}"
        ) from error
