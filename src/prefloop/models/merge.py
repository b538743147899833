"""The weights of a plain model from a backbone: dequantized, with an adapter merged in.

They have the names of the model's checkpoint.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.adalora import AdaLoraLayer
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from prefloop.config.adapters import others
from prefloop.errors import ModelError
from prefloop.models.adapters.in_place import Native, Root
from prefloop.models.adapters.method import TREE
from prefloop.models.fused import kernels
from prefloop.models.fused.lora import Weight


@dataclasses.dataclass(frozen=True)
class PlainWeight:
    """One weight of the plain model."""

    name: str
    shape: tuple[int, ...]
    parameter: Tensor | None
    """The weight itself, if no adapter changes it and it is not stored in 4 bits."""
    layer: Any = None
    """Otherwise the layer, with or without an adapter."""

    @torch.no_grad()
    def write(self, role: str | None, out: Tensor) -> None:
        """Write the weight, merged with the adapter ``role``, to ``out``.

        Args:
            role: the adapter; ``None`` for the bare weight.
            out: a tensor of ``shape`` and any float dtype, with contiguous rows.

        4-bit weights are dequantized first and never quantized again. A and B are rounded to
        ``out``'s dtype. The sum is rounded once, in a way that keeps small changes on average
        (``kernels.settle``).
        """
        if self.parameter is not None:
            out.copy_(self.parameter)
            return
        base = self.layer.get_base_layer() if isinstance(self.layer, BaseTunerLayer) else self.layer
        if len(self.shape) == 1 and (role is None or not _changes(self.layer, role)):
            out.copy_(base.bias)
            return
        if not _is_lora(self.layer) and role is not None and _changes(self.layer, role):
            _write_affine(self.layer, role, out)
            return
        state = getattr(base.weight, "quant_state", None)
        gpu = kernels.on_gpu(base.weight.data)
        whole_blocks = state is not None and self.shape[1] % state.blocksize == 0
        if gpu and state is not None and whole_blocks and out.dtype == state.dtype:
            gpu.dequantize(base.weight.data, state, None, out)
        else:
            out.copy_(Weight(base).O_I())
        if role is not None and _changes(self.layer, role):
            a_r_I = self.layer.lora_A[role].weight.to(out.dtype)
            b_O_r = self.layer.lora_B[role].weight.to(out.dtype)
            kernels.add_product(out, b_O_r, a_r_I, self.layer.scaling[role])


ROWS = 1024
"""How many rows of the identity matrix go through a layer at once."""


def _changes(layer: Any, role: str) -> bool:
    return isinstance(layer, BaseTunerLayer) and any(
        role in getattr(layer, name, {}) for name in layer.adapter_layer_names
    )


def _is_lora(layer: Any) -> bool:
    """Whether a layer only adds s B A to its weight."""
    plain = isinstance(layer, LoraLayer) and not isinstance(layer, AdaLoraLayer)
    return plain and not layer.lora_variant


def _write_affine(layer: Any, role: str, out: Tensor) -> None:
    """Write the weight or bias of the affine map that a layer computes under ``role``.

    This works for every method whose layer is affine. The bias is the layer's output for 0, and
    each column of the weight is the output for one unit vector minus the bias, in float32. An
    ``out`` with one axis gets the bias.
    """
    with _alone(layer, role) as inputs, torch.autocast(out.device.type, enabled=False):
        bias_O = layer(torch.zeros(1, inputs, device=out.device))[0]
        if out.ndim == 1:
            kernels.settle(bias_O, out)
            return
        for start in range(0, inputs, ROWS):
            stop = min(inputs, start + ROWS)
            rows_K_I = torch.zeros(stop - start, inputs, device=out.device)
            rows_K_I[torch.arange(stop - start), torch.arange(start, stop)] = 1
            kernels.settle((layer(rows_K_I) - bias_O).T, out[:, start:stop], start, inputs)


@contextlib.contextmanager
def _alone(layer: Any, role: str) -> Iterator[int]:
    """Within this block a layer runs ``role`` on a float32 copy of its weight. Yields its
    inputs.
    """
    base = layer.get_base_layer()
    weight_O_I = Weight(base).O_I().float()
    copy = nn.Linear(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
    copy.weight = nn.Parameter(weight_O_I, requires_grad=False)
    if base.bias is not None:
        copy.bias = nn.Parameter(base.bias.detach().float(), requires_grad=False)
    with contextlib.ExitStack() as stack:
        # PEFT's own functions for choosing an adapter would also turn its gradients on.
        for name, value in (
            ("base_layer", copy),
            ("_active_adapter", [role]),
            ("_disable_adapters", False),
        ):
            stack.callback(setattr, layer, name, getattr(layer, name))
            setattr(layer, name, value)
        for name in getattr(layer, "other_param_names", ()):
            # Random matrices that all layers share are in the model's dtype.
            if isinstance(matrices := getattr(layer, name), BufferDict):
                stack.callback(setattr, layer, name, matrices)
                setattr(layer, name, BufferDict({role: matrices[role].float()}))
        if getattr(layer, "quantization_backend", None) is not None:
            stack.callback(setattr, layer, "quantization_backend", layer.quantization_backend)
            layer.quantization_backend = None
        stack.callback(layer.train, layer.training)
        layer.eval()
        yield base.in_features


@dataclasses.dataclass(frozen=True)
class NativeWeight(PlainWeight):
    """One weight of a model whose adapters are not PEFT layers."""

    method: Native | None = None

    def write(self, role: str | None, out: Tensor) -> None:
        super().write(None, out)
        if role is not None and self.method is not None:
            with torch.no_grad():
                weight = out.float()
                changed = self.method.change(role, self.name, weight)
                if changed and self.method.adds:
                    kernels.settle(weight, out)
                elif changed:
                    out.copy_(weight)


def plain_weights(model: nn.Module) -> list[PlainWeight]:
    """Every weight of the plain model under the adapters, in the order of its modules."""
    if isinstance(root := getattr(model, TREE, None), Root):
        return _native_weights(model, root.method)
    weights: list[PlainWeight] = []
    adapted: set[str] = {TREE}
    quantized: set[str] = set()
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            base: Any = module.get_base_layer()
            shape = (base.out_features, base.in_features)
            weights.append(PlainWeight(f"{name}.weight", shape, None, module))
            adapted.add(name)
            if getattr(base, "bias", None) is not None:
                # LoRA keeps the bias. Other methods may scale the output, and the bias with it.
                bias = base.bias.detach() if _is_lora(module) else None
                weights.append(PlainWeight(f"{name}.bias", tuple(base.bias.shape), bias, module))
        elif _in_4bit(module) and not _inside(name, adapted):
            layer: Any = module
            shape = (layer.out_features, layer.in_features)
            weights.append(PlainWeight(f"{name}.weight", shape, None, layer))
            quantized.add(f"{name}.weight")
    for name, parameter in model.named_parameters():
        if name not in quantized and not _inside(name, adapted):
            weights.append(PlainWeight(name, tuple(parameter.shape), parameter.detach()))
    return weights


def _in_4bit(module: nn.Module) -> bool:
    return getattr(getattr(module, "weight", None), "quant_state", None) is not None


def _inside(name: str, prefixes: set[str]) -> bool:
    return any(name.startswith(f"{prefix}.") for prefix in prefixes)


def _native_weights(model: nn.Module, method: Native) -> list[PlainWeight]:
    weights: list[PlainWeight] = []
    for name, parameter in method.weights().items():
        if getattr(parameter, "quant_state", None) is None:
            shape = tuple(parameter.shape)
            weights.append(NativeWeight(name, shape, parameter.detach(), None, method))
        else:
            quantized: Any = model.get_submodule(name.rpartition(".")[0])
            shape = (quantized.out_features, quantized.in_features)
            weights.append(NativeWeight(name, shape, None, quantized, method))
    return weights


def require_mergeable(model: nn.Module) -> None:
    """Raise ``ModelError``, with the methods that can be merged, for adapters that cannot be."""
    method = getattr(getattr(model, TREE, None), "method", None)  # PEFT's layers all merge
    if method is not None and (why := method.unmergeable(model)):
        raise ModelError(
            f"adapter {method.card.name}: {why}: use the role as an adapter, or train with one of"
            f" {others('merges')}"
        )


SHARD_BYTES = 4 << 30


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def save_merged(
    model: nn.Module,
    role: str | None,
    folder: Path,
    dtype: torch.dtype,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write the plain model, merged with the adapter ``role``, as safetensors files to ``folder``.

    transformers and vLLM load the files. Only one shard of up to ``shard_bytes`` is in memory at a
    time. Raises ``ModelError`` as ``require_mergeable`` does.
    """
    if role is not None:
        require_mergeable(model)
    shards: list[list[PlainWeight]] = [[]]
    size = total = 0
    for weight in plain_weights(model):
        needed = math.prod(weight.shape) * dtype.itemsize
        if shards[-1] and size + needed > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(weight)
        size, total = size + needed, total + needed
    device = next(model.parameters()).device
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        part = "" if len(shards) == 1 else f"-{number:05d}-of-{len(shards):05d}"
        name = f"model{part}.safetensors"
        tensors = {}
        for weight in shard:
            merged = torch.empty(weight.shape, dtype=dtype, device=device)
            weight.write(role, merged)
            tensors[weight.name] = merged.cpu()
        save_file(tensors, folder / name, metadata={"format": "pt"})
        # safetensors makes files that only their owner can read.
        (folder / name).chmod(0o666 & ~_umask())
        weight_map |= dict.fromkeys(tensors, name)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(
            json.dumps(index, indent=2), encoding="utf-8"
        )
