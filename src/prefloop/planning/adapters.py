"""One adapter of any method on a shape, in numbers: what learns, what is held, what its layers read
and keep.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from prefloop.config import AdapterConfig
from prefloop.errors import ConfigError
from prefloop.planning.shapes import Linear, Shape
from prefloop.planning.tensors import HALVES, LORA, Tensors, tensors_of

if TYPE_CHECKING:
    from prefloop.models.adapters.method import Method

BITS_FROM = 4096
"""Elements from which bitsandbytes keeps a tensor's moments in 8 bits."""
BLOCK = 256
"""Elements that share a float32 scale there."""
PAGED_FROM = 100_000
"""Elements from which a paged optimizer's moments leave the device when it is full."""


@dataclasses.dataclass(frozen=True)
class Role:
    """One adapter in numbers."""

    method: str
    trained: int
    """Parameters that learn."""
    tensors: Tensors
    copies: int
    """Elements of what the layers read in the arithmetic's precision: in fused layers kept copies,
    ranks padded to eight, B on a diagonal; elsewhere what autocast makes of a role that learns, for
    as long as the pass is alive.
    """
    ranks: tuple[int, int, int, int]
    """Padded ranks of query-key-value, output, gate-up and down: columns that ride along in the
    fused products.
    """
    fused: bool
    kept: int = 0
    """float32 elements that the method keeps of a role that learns, beside the optimizer's:
    AdaLoRA's sensitivities, Delta-LoRA's anchors.
    """
    virtual: int = 0
    """Virtual tokens that run through all layers with every pass (prompt tuning, P-tuning)."""
    inputs: int = 0
    """Inputs of all adapted layers together."""
    beside: tuple[int, int] = (0, 0)
    """Elements that the method's own path keeps of all layers for the backward pass: of each token,
    and of each pass.
    """

    @property
    def held(self) -> int:
        """Elements in memory."""
        return self.tensors.held

    def moments(self, optimizer: str) -> int:
        """Bytes on the device of an optimizer's moments; those that it moves to the host when the
        device is full are left out.
        """
        paged, few = optimizer.startswith("paged_"), 1 if "lion" in optimizer else 2
        bits = optimizer.endswith("8bit")
        total = 0
        for size in self.tensors.learn:
            if paged and size >= PAGED_FROM:
                total += 4 * -(-size // BLOCK) * few if bits else 0
            elif bits and size >= BITS_FROM:
                total += few * (size + 4 * -(-size // BLOCK))
            else:
                total += few * 4 * size
        return total


def role_of(shape: Shape, config: AdapterConfig) -> Role:
    """An adapter of ``config`` on ``shape``. Raises ``ConfigError`` or ``ModelError`` as a run
    would: an unknown method or option, targets that match nothing, a setting that a layer cannot
    take, experts that are none.
    """
    from prefloop.models.adapters import method_of

    method = method_of(config)
    name = method.card.name
    targets = shape.targets(method.targets)
    for layer in targets:
        if problem := method.misfit(layer.inputs, layer.outputs):
            raise ConfigError(
                f"adapter {name} does not fit {layer.name} of {shape.name} ({layer.outputs} x"
                f" {layer.inputs}): {problem}"
            )
    tensors = tensors_of(method, shape, targets)
    learning = sum(tensors.learn)
    fused = shape.fused and name in LORA and len(targets) == len(shape.linears)
    r = config.r * method.card.file_rank
    ranks = (_padded(3 * r), _padded(r), _padded(2 * r), _padded(r))
    return Role(
        method=name,
        trained=learning // 2 if name in HALVES else learning,
        tensors=tensors,
        copies=_copies(shape, ranks) if fused else tensors.held,
        ranks=ranks,
        fused=fused,
        kept=learning * {"adalora": 2, "delta-lora": 1}.get(name, 0),
        virtual=method.options["tokens"] if name in ("prompt", "p-tuning") else 0,
        inputs=sum(layer.inputs for layer in targets),
        beside=_beside(method, shape, targets),
    )


def _copies(shape: Shape, ranks: tuple[int, int, int, int]) -> int:
    """Elements of ``models.fused.projections.RoleCopies``: s A of each group one below the other, B
    on a diagonal.
    """
    wide = shape.heads * shape.head_dim
    joined = wide + 2 * shape.kv_heads * shape.head_dim
    sides = (
        (shape.hidden, joined),
        (wide, shape.hidden),
        (shape.hidden, 2 * shape.intermediate),
        (shape.intermediate, shape.hidden),
    )
    return shape.layers * sum(rank * (i + o) for rank, (i, o) in zip(ranks, sides, strict=True))


def _padded(rank: int) -> int:
    return -(-rank // 8) * 8


_TOKENS: dict[str, tuple[float, float]] = {
    "dora": (1, 2),
    "adalora": (1, 0),
    "vera": (0, 1),
    "oft": (1, 0),
    "boft": (1.5, 0),
    "hra": (0.5, 0),
    "delta-lora": (0.65, 0),
    "mole": (1.3, 0),
    "full": (1.7, 0),
}
"""Copies of a layer's input and output that the method keeps for each token, in the arithmetic's
precision (a float32 one counts twice).
"""


def _beside(method: Method, shape: Shape, targets: tuple[Linear, ...]) -> tuple[int, int]:
    """Elements of each token and of each pass that the method's own path keeps, as
    tests/planning/test_planner_methods.py finds them in a real pass.
    """
    name, r, options = method.card.name, method.config.r, method.options
    if name == "bottleneck":
        return shape.sublayers * (5 * shape.hidden + 4 * r), 0
    if name == "ia3":
        return 2 * sum(tensors_of(method, shape, targets).learn), 0
    tokens, once = 0.0, 0.0
    of_inputs, of_outputs = _TOKENS.get(name, (0, 0))
    for layer in targets:
        i, o = layer.inputs, layer.outputs
        tokens += of_inputs * i + of_outputs * o + (3 if name == "mole" else 1) * r
        if name == "dora":  # the weight with the adapter in it, for its norm
            once += 1.5 * i * o
        elif name == "hra":  # unit vectors and their triangular sums, in float32
            once += 6 * i * r
        elif name == "boft":  # factors as whole matrices, permuted, multiplied; the rotated weight
            once += 3 * options["factors"] * i * i + 2 * i * o
        elif (
            name == "randlora"
        ):  # the sums of bases, and an inner layer as wide as the smaller side
            tokens += min(i, o)
            once += 1.5 * min(i, o) * (i + o)
        elif name == "oft":
            once += 7 * i * options["block"]
    return int(tokens), int(once)
