"""EVA: LoRA whose A starts along the directions in which a layer's inputs vary most.

Shape letters: N tokens, I inputs, r rank, K directions kept so far.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from prefloop.errors import ModelError
from prefloop.models.adapters.lora import LoRA, unfused
from prefloop.models.adapters.method import Inputs

TOKENS = 1024
"""The most inputs of a batch that a layer's SVD uses, evenly spaced."""


class EVA(LoRA):
    """EVA (Paischer et al. 2024, arXiv 2410.07170) with the same rank in every layer (its ρ = 1).

    A holds the first right singular vectors of the layer's inputs over a sample, and B = 0. The
    vectors come from an incremental SVD without the mean (Ross et al. 2008).
    """

    def fit(self, role: str, run: Inputs) -> None:
        directions: dict[int, Tensor] = {}
        leaders: dict[int, int] = {}
        handles: list[RemovableHandle] = []
        last_input: Tensor | None = None
        last_leader = 0

        def hook(number: int) -> Any:
            def look(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
                nonlocal last_input, last_leader
                if leaders.get(number, number) != number:
                    return
                if arguments[0] is last_input:  # projections that read the same input share an SVD
                    leaders[number] = last_leader
                    return
                leaders[number] = number
                last_input, last_leader = arguments[0], number
                directions[number] = grown(directions.get(number), arguments[0], self.config.r)

            return look

        with unfused(self.model), torch.no_grad():
            for number, layer in enumerate(self.layers):
                handles.append(layer.register_forward_pre_hook(hook(number)))
            try:
                for _ in run():
                    pass
            finally:
                for handle in handles:
                    handle.remove()
            for number, layer in enumerate(self.layers):
                v_K_I = directions[leaders[number]]
                if len(v_K_I) < self.config.r:
                    raise ModelError(
                        f"eva: the sample has {len(v_K_I)} tokens, fewer than the rank of"
                        f" {self.config.r}: give it more data or lower backbone.adapter.r"
                    )
                layer.lora_A[role].weight.copy_(nn.functional.normalize(v_K_I, dim=1))


def grown(known_K_I: Tensor | None, x: Tensor, rank: int) -> Tensor:
    """The first ``rank`` right singular vectors, times their singular values, of all inputs so far.

    Args:
        known_K_I: the result for the earlier inputs; ``None`` at the first batch.
        x: the next inputs, [..., I]; at most ``TOKENS`` of them are used.
    """
    x_N_I = x.detach().reshape(-1, x.shape[-1]).float()
    x_N_I = x_N_I[:: -(-len(x_N_I) // TOKENS)]
    both = x_N_I if known_K_I is None else torch.cat([known_K_I, x_N_I])
    _, s_K, v_K_I = torch.linalg.svd(both, full_matrices=False)
    return s_K[:rank, None] * v_K_I[:rank]
