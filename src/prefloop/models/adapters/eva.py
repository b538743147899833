"""EVA: LoRA whose A starts along the directions in which a layer's inputs vary most.

Shape letters: N tokens, I inputs, r rank, K directions kept so far.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from prefloop.errors import ModelError
from prefloop.models.adapters.lora import LoRA, unfused
from prefloop.models.adapters.method import Inputs

TOKENS = 1024
"""Of each batch that a layer's decomposition takes in: evenly spread ones."""


class EVA(LoRA):
    """EVA (Paischer et al. 2024, arXiv 2410.07170) with the same rank everywhere (its ρ = 1): A are
    the first right singular vectors of the layer's inputs over a sample, found step by step (Ross
    et al. 2008, incremental SVD without the mean); B = 0.
    """

    def fit(self, role: str, run: Inputs) -> None:
        directions: dict[int, Tensor] = {}
        leaders: dict[int, int] = {}
        handles, last = [], [None, 0]

        def hook(number: int) -> Any:
            def look(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
                if leaders.get(number, number) != number:
                    return
                if arguments[0] is last[0]:  # projections that read the same input
                    leaders[number] = int(str(last[1]))
                    return
                leaders[number] = number
                last[:] = [arguments[0], number]
                directions[number] = grown(directions.get(number), arguments[0], self.config.r)

            return look

        with unfused(self.model), torch.no_grad():
            for number, layer in enumerate(self.layers):
                handles.append(layer.register_forward_pre_hook(hook(number)))  # type: ignore[attr-defined]
            try:
                for _ in run():
                    pass
            finally:
                for handle in handles:
                    handle.remove()
            for number, layer in enumerate(self.layers):
                found_K_I = directions[leaders[number]]
                if len(found_K_I) < self.config.r:
                    raise ModelError(
                        f"eva: the sample has {len(found_K_I)} tokens, fewer than the rank of"
                        f" {self.config.r}: give it more data or lower backbone.adapter.r"
                    )
                layer.lora_A[role].weight.copy_(nn.functional.normalize(found_K_I, dim=1))  # type: ignore[index]


def grown(known_K_I: Tensor | None, x: Tensor, rank: int) -> Tensor:
    """The first ``rank`` right singular vectors, times their singular values, of what was seen
    before and of ``x`` below it.
    """
    x_N_I = x.detach().reshape(-1, x.shape[-1]).float()
    x_N_I = x_N_I[:: -(-len(x_N_I) // TOKENS)]
    both = x_N_I if known_K_I is None else torch.cat([known_K_I, x_N_I])
    _, s_K, v_K_I = torch.linalg.svd(both, full_matrices=False)
    return s_K[:rank, None] * v_K_I[:rank]
