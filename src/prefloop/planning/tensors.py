"""The tensor sizes of one role of each adapter method, by the formulas of the papers.

Sizes are in float32 elements of four bytes; tensors of other dtypes are converted to these.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

from prefloop.planning.shapes import Linear, Shape

if TYPE_CHECKING:
    from prefloop.models.adapters.method import Method
    from prefloop.models.adapters.mole import MoLE

Sizes = tuple[int, ...]
Formula = Callable[[Linear, int, Mapping[str, Any]], Sizes]
LORA = ("lora", "rslora", "lora+", "lora-fa", "eva", "lora-drop", "pissa", "olora")
"""Methods with PEFT's plain LoRA layers, which run fused (``models.fused.lora.fuse``)."""
HALVES = ("pissa", "olora")
"""Methods of rank 2 r whose second half is in the optimizer but never moves."""


@dataclasses.dataclass(frozen=True)
class Tensors:
    """The elements of one role, and of the tensors that all roles share."""

    learn: Sizes
    """Elements of each tensor that the optimizer steps."""
    still: int = 0
    """Elements of a role that never learn."""
    shared: int = 0
    """Elements that exist once: PEFT's blank adapter, common random matrices, experts."""

    @property
    def held(self) -> int:
        return sum(self.learn) + self.still


def _lora(layer: Linear, r: int, _: Mapping[str, Any]) -> Sizes:
    return r * layer.inputs, layer.outputs * r


def _ia3(layer: Linear, _: int, options: Mapping[str, Any]) -> Sizes:
    return (layer.inputs if re.fullmatch(options["feedforward"], layer.name) else layer.outputs,)


def _randlora(layer: Linear, r: int, _: Mapping[str, Any]) -> Sizes:
    smaller = min(layer.inputs, layer.outputs)
    bases = -(-smaller // r)
    return r * bases, bases * smaller


_PEFT: dict[str, Formula] = {
    **dict.fromkeys(LORA, _lora),
    "dora": lambda layer, r, _: (*_lora(layer, r, {}), layer.outputs),
    "adalora": lambda layer, r, _: (*_lora(layer, r, {}), r),
    "vera": lambda layer, r, _: (r, layer.outputs),
    "ia3": _ia3,
    "oft": lambda layer, _, options: (
        layer.inputs // options["block"] * _triangle(options["block"]),
    ),
    "boft": lambda layer, _, options: (
        options["factors"] * layer.inputs * options["block"],
        layer.outputs,
    ),
    "hra": lambda layer, r, _: (layer.inputs * r,),
    "miss": lambda layer, r, _: (r * layer.outputs,),
    "randlora": _randlora,
}
"""Method → formula for the sizes of its learning tensors on one layer."""


def tensors_of(method: Method, shape: Shape, targets: tuple[Linear, ...]) -> Tensors:
    """The sizes of a role of ``method`` on the layers ``targets`` of ``shape``.

    LoRA-drop is counted before its layers share, after which it has fewer.
    """
    name = method.card.name
    if name in _PEFT:
        return _layers(method, targets)
    return _OTHERS[name](method, shape, targets)


def _layers(method: Method, targets: tuple[Linear, ...]) -> Tensors:
    """PEFT's methods: a few tensors on each layer, and a blank adapter of the smallest size."""
    name, options, r = method.card.name, method.options, method.config.r
    rank = {"adalora": getattr(method, "first", r), **dict.fromkeys(HALVES, 2 * r)}.get(name, r)
    blank = {"vera": r, "randlora": r, "hra": 2}.get(name, 1)
    learn = tuple(size for layer in targets for size in _PEFT[name](layer, rank, options))
    # AdaLoRA stores its rank as a number, OFT two int64 indices for each entry of the triangle.
    fixed = {"adalora": 1, "oft": 4 * _triangle(options.get("block", 1))}
    still = len(targets) * fixed.get(name, 0)
    shared = still + sum(size for layer in targets for size in _PEFT[name](layer, blank, options))
    widest_i = max(layer.inputs for layer in targets)
    widest_o = max(layer.outputs for layer in targets)
    if name == "vera":
        shared += r * (widest_i + widest_o)
    if name == "randlora":
        smaller, larger = sorted((widest_i, widest_o))
        shared += r * smaller + larger * -(-smaller // r) * r
    if name == "lora-fa":
        still = sum(r * layer.inputs for layer in targets)
        learn = tuple(layer.outputs * r for layer in targets)
    return Tensors(learn, still, shared)


def _bitfit(method: Method, shape: Shape, targets: tuple[Linear, ...]) -> Tensors:
    """One bias for each targeted layer and each module with a bias."""
    chosen = {layer.name for layer in targets}
    own = tuple(layer.outputs for layer in shape.linears if layer.bias or layer.name in chosen)
    return Tensors(own + shape.biases)


def _bottleneck(method: Method, shape: Shape, targets: tuple[Linear, ...]) -> Tensors:
    """Houlsby's adapters: norm, down and up after each sublayer, 2 H r + r + 3 H."""
    h, r = shape.hidden, method.config.r
    return Tensors((h, h, r * h, r, h * r, h) * shape.sublayers)


def _delta(method: Method, shape: Shape, targets: tuple[Linear, ...]) -> Tensors:
    return Tensors(tuple(size for layer in targets for size in _lora(layer, method.config.r, {})))


def _mole(method: Method, shape: Shape, targets: tuple[Linear, ...]) -> Tensors:
    """One gate per adapted layer; shared are all experts' A and B and each rank's expert
    (int64).
    """
    from prefloop.artifacts.adapter_config import read_adapter

    mole = cast("MoLE", method)
    experts, layers = len(mole.folders), mole.shapes.values()
    # MoLE's constructor has checked that every expert has a rank.
    ranks = sum(read_adapter(folder)["r"] for folder in mole.folders)
    gates = tuple(size for _, inputs in layers for size in (experts * inputs, experts))
    return Tensors(gates, shared=sum(ranks * (outputs + inputs + 2) for outputs, inputs in layers))


def _full(method: Method, shape: Shape, targets: tuple[Linear, ...]) -> Tensors:
    return Tensors(shape.sizes)


def _prompt(method: Method, shape: Shape, targets: tuple[Linear, ...]) -> Tensors:
    return Tensors((method.options["tokens"] * shape.hidden,))


def _p_tuning(method: Method, shape: Shape, targets: tuple[Linear, ...]) -> Tensors:
    """Embeddings and an MLP with three layers."""
    h, width = shape.hidden, method.options["hidden"] or shape.hidden
    return Tensors(
        (method.options["tokens"] * h, h * width, width, width * width, width, width * h, h)
    )


def _prefix(method: Method, shape: Shape, targets: tuple[Linear, ...]) -> Tensors:
    """Embeddings as wide as the keys, and a two-layer MLP to all layers' keys and values."""
    keys, width = shape.kv_heads * shape.head_dim, method.options["hidden"] or shape.hidden
    out = 2 * shape.layers * keys
    return Tensors((method.options["tokens"] * keys, keys * width, width, width * out, out))


def _p_tuning_v2(method: Method, shape: Shape, targets: tuple[Linear, ...]) -> Tensors:
    return Tensors((method.options["tokens"] * 2 * shape.layers * shape.kv_heads * shape.head_dim,))


_OTHERS: dict[str, Callable[[Method, Shape, tuple[Linear, ...]], Tensors]] = {
    "bitfit": _bitfit,
    "bottleneck": _bottleneck,
    "delta-lora": _delta,
    "mole": _mole,
    "full": _full,
    "prompt": _prompt,
    "p-tuning": _p_tuning,
    "prefix": _prefix,
    "p-tuning-v2": _p_tuning_v2,
}


def _triangle(block: int) -> int:
    """Free entries of a skew-symmetric matrix."""
    return block * (block - 1) // 2
