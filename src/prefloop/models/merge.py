"""A backbone's weights as a plain model has them: dequantised, an adapter merged in, under their
checkpoint names.
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
    """The weight itself, where no adapter changes it."""
    layer: Any = None
    """The adapted layer, or one of 4-bit weights without an adapter, otherwise."""

    @torch.no_grad()
    def write(self, role: str | None, out: Tensor) -> None:
        """Write the weight, merged with the adapter ``role``, to ``out`` (of ``shape``, any float
        type, rows contiguous).

        4-bit weights are dequantised first, so the merge never goes through 4 bits; A and B are
        rounded to ``out``'s type and the sum once, so that the change survives
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
        if (
            gpu
            and state is not None
            and out.dtype == state.dtype
            and self.shape[1] % state.blocksize == 0
        ):
            gpu.dequantise(base.weight.data, state, None, out)
        else:
            out.copy_(Weight(base).O_I())
        if role is not None and _changes(self.layer, role):
            a, b = (
                self.layer.lora_A[role].weight.to(out.dtype),
                self.layer.lora_B[role].weight.to(out.dtype),
            )
            kernels.add_product(out, b, a, self.layer.scaling[role])


ROWS = 1024
"""Rows of the identity that go through a layer at once."""


def _changes(layer: Any, role: str) -> bool:
    return isinstance(layer, BaseTunerLayer) and any(
        role in getattr(layer, name, {}) for name in layer.adapter_layer_names
    )


def _is_lora(layer: Any) -> bool:
    """Whether a layer adds s B A to its weight and nothing else."""
    return (
        isinstance(layer, LoraLayer)
        and not isinstance(layer, AdaLoraLayer)
        and not layer.lora_variant
    )


def _write_affine(layer: Any, role: str, out: Tensor) -> None:
    """Write the weight or, where ``out`` has one axis, the bias of the affine map that a layer is
    under ``role``, computed in float32.

    Whatever a method does to a linear layer: the bias is what it makes of 0, the weight's columns
    what it makes of each input alone.
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
    """One layer under ``role`` on a float32 copy of its weight; yields its number of inputs."""
    base = layer.get_base_layer()
    weight_O_I = Weight(base).O_I().float()
    copy = nn.Linear(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
    copy.weight = nn.Parameter(weight_O_I, requires_grad=False)
    if base.bias is not None:
        copy.bias = nn.Parameter(base.bias.detach().float(), requires_grad=False)
    with contextlib.ExitStack() as stack:
        # PEFT's own way to choose an adapter also turns its gradients on.
        for name, value in (
            ("base_layer", copy),
            ("_active_adapter", [role]),
            ("_disable_adapters", False),
        ):
            stack.callback(setattr, layer, name, getattr(layer, name))
            setattr(layer, name, value)
        for name in getattr(layer, "other_param_names", ()):
            if isinstance(
                held := getattr(layer, name), BufferDict
            ):  # matrices that all layers share, in the model's precision
                stack.callback(setattr, layer, name, held)
                setattr(layer, name, BufferDict({role: held[role].float()}))
        if getattr(layer, "quantization_backend", None) is not None:
            stack.callback(setattr, layer, "quantization_backend", layer.quantization_backend)
            layer.quantization_backend = None
        stack.callback(layer.train, layer.training)
        layer.eval()
        yield base.in_features


@dataclasses.dataclass(frozen=True)
class NativeWeight(PlainWeight):
    """One weight of a model whose adapters are not PEFT's."""

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
    """Every weight of the model that adapters were put on, in the order of its modules."""
    if isinstance(root := getattr(model, TREE, None), Root):
        return _native_weights(model, root.method)
    found: list[PlainWeight] = []
    adapted: set[str] = {TREE}
    alone: set[str] = set()
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            base: Any = module.get_base_layer()
            found.append(
                PlainWeight(f"{name}.weight", (base.out_features, base.in_features), None, module)
            )
            adapted.add(name)
            if getattr(base, "bias", None) is not None:
                kept = (
                    base.bias.detach() if _is_lora(module) else None
                )  # others may scale what comes out
                found.append(PlainWeight(f"{name}.bias", tuple(base.bias.shape), kept, module))
        elif getattr(
            getattr(module, "weight", None), "quant_state", None
        ) is not None and not _inside(name, adapted):
            found.append(
                PlainWeight(
                    f"{name}.weight", (module.out_features, module.in_features), None, module
                )
            )
            alone.add(f"{name}.weight")
    for name, parameter in model.named_parameters():
        if name not in alone and not _inside(name, adapted):
            found.append(PlainWeight(name, tuple(parameter.shape), parameter.detach()))
    return found


def _inside(name: str, prefixes: set[str]) -> bool:
    return any(name.startswith(f"{prefix}.") for prefix in prefixes)


def _native_weights(model: nn.Module, method: Native) -> list[PlainWeight]:
    found: list[PlainWeight] = []
    for name, parameter in method.weights().items():
        if getattr(parameter, "quant_state", None) is None:
            found.append(
                NativeWeight(name, tuple(parameter.shape), parameter.detach(), method=method)
            )
        else:
            layer: Any = model.get_submodule(name.rpartition(".")[0])
            found.append(
                NativeWeight(name, (layer.out_features, layer.in_features), None, layer, method)
            )
    return found


def require_mergeable(model: nn.Module) -> None:
    """Raise ``ModelError``, which names what can, where no plain weights do what the adapters on
    ``model`` do.
    """
    method = getattr(getattr(model, TREE, None), "method", None)  # PEFT's layers all merge
    if method is not None and (why := method.unmergeable(model)):
        raise ModelError(
            f"adapter {method.card.name}: {why}: use the role as an adapter, or train with one of"
            f" {others('merges')}"
        )


SHARD_BYTES = 4 << 30


def _umask() -> int:
    found = os.umask(0)
    os.umask(found)
    return found


def save_merged(
    model: nn.Module,
    role: str | None,
    folder: Path,
    dtype: torch.dtype,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write the plain model, merged with the adapter ``role``, as safetensors that transformers and
    vLLM load; a shard at a time in memory.

    Raises ``ModelError`` as ``require_mergeable`` does.
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
    places: dict[str, str] = {}
    for k, shard in enumerate(shards):
        name = (
            "model.safetensors"
            if len(shards) == 1
            else f"model-{k + 1:05d}-of-{len(shards):05d}.safetensors"
        )
        tensors = {}
        for weight in shard:
            merged = torch.empty(weight.shape, dtype=dtype, device=device)
            weight.write(role, merged)
            tensors[weight.name] = merged.cpu()
        save_file(tensors, folder / name, metadata={"format": "pt"})
        (folder / name).chmod(0o666 & ~_umask())  # safetensors lets the owner alone read it
        places |= dict.fromkeys(tensors, name)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(
            json.dumps(index, indent=2), encoding="utf-8"
        )
