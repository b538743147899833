"""Hands a policy from the trainer's memory to vLLM's without a file.

``Writer`` writes merged weights straight into vLLM's parameters: the trainer's 4-bit weights,
dequantized, plus the adapter. So nothing is kept on the host while vLLM sleeps. ``register`` gives
vLLM the adapter alone, which makes generation somewhat slower; the base weights are then written
only when vLLM wakes up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prefloop.models.merge import PlainWeight, plain_weights

CLOSE = 0.25
"""Largest relative distance at which two tensors count as the same weight. A weight and its 4-bit
version are about 0.1 apart.
"""


class Writer:
    """Maps each weight of the plain model to its place in vLLM's parameters."""

    def __init__(self, places: list[tuple[PlainWeight, Tensor]]) -> None:
        self.places = places

    @classmethod
    def find(cls, model: nn.Module, sampler: nn.Module) -> Writer | None:
        """Match the weights of ``model`` with the parameters of vLLM's ``sampler``, which has
        loaded the same checkpoint.

        vLLM joins projections that read the same input (``packed_modules_mapping``) and pads
        vocabularies. Returns ``None`` where the match fails: a weight has no place, a parameter
        would be written only in part, or a place holds another tensor. Then vLLM keeps weights in a
        form of its own (its CPU build repacks them), and its own loader has to write them.
        """
        there: dict[str, Tensor] = {
            n.replace(".base_layer.", "."): p.data for n, p in sampler.named_parameters()
        }
        packed: Mapping[str, list[str]] = getattr(sampler, "packed_modules_mapping", None) or {}
        whole = {part: (joint, parts) for joint, parts in packed.items() for part in parts}
        weights = {w.name: w for w in plain_weights(model)}
        places: list[tuple[PlainWeight, Tensor]] = []
        written = dict.fromkeys(there, 0)
        for name, weight in weights.items():
            to, start = name, 0
            if name not in there:
                path, _, kind = name.rpartition(".")
                parent, _, module = path.rpartition(".")
                if module not in whole:
                    return None
                joint, parts = whole[module]
                to = f"{parent}.{joint}.{kind}"
                earlier = [f"{parent}.{p}.{kind}" for p in parts[: parts.index(module)]]
                if to not in there or any(e not in weights for e in earlier):
                    return None
                start = sum(weights[e].shape[0] for e in earlier)
            place = there[to][start : start + weight.shape[0]]
            if tuple(place.shape) != weight.shape or not _near(weight, place):
                return None
            written[to] += weight.shape[0]
            places.append((weight, place))
        padded = ("embed_tokens.weight", "lm_head.weight")
        if any(rows != len(there[n]) and not n.endswith(padded) for n, rows in written.items()):
            return None
        return cls(places)

    def write(self, role: str | None) -> None:
        """Put the weights merged with ``role`` into their places."""
        for weight, place in self.places:
            weight.write(role, place)


def _near(weight: PlainWeight, place: Tensor) -> bool:
    """Whether the place holds that weight, up to quantization."""
    values = weight.parameter
    if values is None:
        values = torch.empty_like(place)
        weight.write(None, values)
    distance, size = (torch.zeros((), device=place.device) for _ in range(2))
    # In parts: float copies of whole embeddings would take gigabytes.
    for a, b in zip(values.split(8192), place.split(8192), strict=True):
        distance += (a.float() - b.float()).square().sum()
        size += b.float().square().sum()
    return bool(distance <= CLOSE**2 * size + 1e-12)


def register(worker: Any, number: int, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    """Register an adapter under ``number`` in vLLM's worker, and remove the earlier ones.

    ``tensors`` and ``config`` are what PEFT would have in its files. Raises ``ValueError`` for an
    adapter on modules that vLLM cannot adapt.
    """
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.peft_helper import PEFTHelper

    manager = worker.model_runner.lora_manager._adapter_manager
    mapper = getattr(manager.model, "hf_to_vllm_mapper", None)
    for rename in ("get_unstacked_mapper", "get_rename_mapper"):  # of vLLM 0.25 and of 0.30
        mapper = getattr(mapper, rename)() if hasattr(mapper, rename) else mapper
    for known in list(manager.list_adapters()):
        manager.remove_adapter(known)
    options = worker.vllm_config.lora_config
    adapter = LoRAModel.from_lora_tensors(
        number,
        tensors,
        PEFTHelper.from_dict(config),
        device=str(worker.device),
        dtype=options.lora_dtype,
        weights_mapper=mapper,
    )
    places = {
        *manager.modules,
        *(part for parts in manager.packed_modules.values() for part in parts),
    }
    if lost := sorted(adapter.loras.keys() - places):
        raise ValueError(
            f"vLLM has no place for {len(lost)} of the adapter's {len(adapter.loras)} modules:"
            f" {lost[:3]}; set generation.handover merged"
        )
    manager.add_adapter(adapter)
