"""The sizes of one adapter of any method: its parameters, its copies, and what its layers keep."""

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
"""The fewest elements of a tensor whose moments bitsandbytes keeps in 8 bits."""
BLOCK = 256
"""How many 8-bit moments share a float32 scale."""
PAGED_FROM = 100_000
"""The fewest elements of a tensor whose moments a paged optimizer moves off a full device."""


@dataclasses.dataclass(frozen=True)
class Role:
    """The sizes of one adapter."""

    method: str
    trained: int
    """How many parameters learn."""
    tensors: Tensors
    copies: int
    """Elements of the copies in the compute dtype that the layers read. Fused layers keep them,
    with ranks padded to eight and B on a diagonal. Elsewhere autocast makes them for a learning
    role, for the duration of a pass.
    """
    ranks: tuple[int, int, int, int]
    """Padded ranks of query-key-value, output, gate-up and down: extra columns of the fused
    products.
    """
    fused: bool
    kept: int = 0
    """float32 elements that the method keeps for a learning role, in addition to the optimizer's:
    AdaLoRA's sensitivities, Delta-LoRA's anchors.
    """
    virtual: int = 0
    """Virtual tokens that run through all layers in every pass (prompt tuning, P-tuning)."""
    inputs: int = 0
    """Sum of the inputs of all adapted layers."""
    saved: tuple[int, int] = (0, 0)
    """Elements that the method's own code saves in all layers for the backward pass: per token, and
    per pass.
    """

    @property
    def held(self) -> int:
        """Elements of the role's parameters."""
        return self.tensors.held

    def moments(self, optimizer: str) -> int:
        """An optimizer's moments in bytes, without those that it can move to the host."""
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
    """The sizes of an adapter of ``config`` on ``shape``.

    Raises ``ConfigError`` or ``ModelError`` as a run would: for an unknown method or option,
    targets that match no layer, settings that do not fit a layer, and invalid experts.
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
        saved=_saved(method, shape, targets),
    )


def _copies(shape: Shape, ranks: tuple[int, int, int, int]) -> int:
    """Elements of ``models.fused.projections.RoleCopies``: each group's stacked s A and diagonal
    B.
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
"""Method → copies of a layer's input and output that it saves per token, in the compute dtype; a
float32 copy counts twice.
"""


def _saved(method: Method, shape: Shape, targets: tuple[Linear, ...]) -> tuple[int, int]:
    """``Role.saved`` of a method; tests/planning/test_planner_methods.py compares it with real
    passes.
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
        if name == "dora":  # the weight with the adapter merged in, for its norm
            once += 1.5 * i * o
        elif name == "hra":  # unit vectors and their triangular sums, in float32
            once += 6 * i * r
        elif name == "boft":  # full matrices of the factors, permuted and multiplied; the result
            once += 3 * options["factors"] * i * i + 2 * i * o
        elif name == "randlora":  # sums of bases, and an inner layer as wide as the smaller side
            tokens += min(i, o)
            once += 1.5 * min(i, o) * (i + o)
        elif name == "oft":
            once += 7 * i * options["block"]
    return int(tokens), int(once)
