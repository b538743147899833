"""Bytes on the device, part by part: what the fused path (``models.fused.layer``, ``joined``,
``forward``) keeps for a pack.

Counted from what each layer saves, not fitted. A pass is described by its tokens N, those of
responses R and the keys M of its attention (prompts are repeated for each branch). Element counts
use the layer's letters: H hidden size, A = heads × head size, K = key heads × head size, I the
MLP's inner size, V vocabulary.
"""

from __future__ import annotations

import dataclasses

from prefloop.config import BackboneConfig
from prefloop.config.adapters import require
from prefloop.planning.adapters import Role, role_of
from prefloop.planning.shapes import Shape

GIB = 2**30
SOLD = 0.91
"""Share of the memory a card is sold with that CUDA has at the least: 14.6 of a T4's 16 GiB, 44.5
of an L40S's 48; 79 of an A100's 80.
"""
CONTEXT = GIB // 2
"""CUDA's context and kernels: 0.5 GiB on an H100 (docs/benchmarks.md, ``--budget``)."""
CUBLAS = 32 << 20
"""cuBLAS's workspace on Hopper; torch keeps it as long as the process lives."""
LOGITS = 1024
"""Response tokens whose logits exist at once on a GPU (4 × ``models.forward.CHUNK``)."""
FLOAT_LOGITS, ENTROPY, WHOLE = 256 * 18, 256 * 24, 12
"""Bytes for each word of the vocabulary where a chunk takes torch's own operations (logits,
log-probs and their gradients in float32), of the entropy's chunk, and for each token and word of a
loss over all tokens (LoRA-drop's short training).
"""
SVD, SVD_TOKENS = 5, 1024
"""Float32 copies of a layer's inputs that EVA's decomposition takes, and the tokens of them
(``models.adapters.eva.TOKENS``).
"""
DIGEST = 1 << 20
"""Words of a frozen weight that ``models.backbone.checksum`` looks at together."""
VIRTUAL = ("prompt", "p-tuning", "prefix", "p-tuning-v2")
"""Methods whose attention puts virtual tokens before everybody's keys, under SDPA with a mask."""


@dataclasses.dataclass(frozen=True)
class PackSize:
    """A pack in numbers."""

    all: int
    responses: int
    keys: int
    """Keys that attention reads: a prompt counts once for itself and once for each of its
    branches.
    """
    mask: int = 0
    """Elements of a mask over pairs of tokens, where attention takes one; SDPA writes it out as
    numbers in each layer and keeps that.
    """


@dataclasses.dataclass(frozen=True)
class Device:
    """Everything about model and settings that memory depends on, in bytes and elements."""

    shape: Shape
    config: BackboneConfig
    role: Role

    @classmethod
    def of(cls, shape: Shape, config: BackboneConfig) -> Device:
        """Raises ``ConfigError`` for an adapter that cannot be: unknown, on a precision or a shape
        that it does not take.
        """
        require(config)
        return cls(shape, config, role_of(shape, config.adapter))

    @property
    def item(self) -> int:
        """Bytes of an element in the arithmetic's precision, on a GPU."""
        return 4 if self.config.precision == "fp32" or self.config.compute == "fp32" else 2

    @property
    def recomputes(self) -> bool:
        return self.config.gradient_checkpointing == "block"

    @property
    def drops(self) -> bool:
        """Whether layers leave the fused path for the adapter's dropout where that is on."""
        return self.config.adapter.dropout > 0

    @property
    def masked(self) -> bool:
        """Whether attention over packs takes a mask over all pairs of tokens."""
        return (
            self.config.attention in ("sdpa", "eager")
            or self.shape.eager
            or self.role.method in VIRTUAL
        )

    @property
    def each_pair(self) -> int:
        """Numbers for each pair of tokens of such a mask; eager attention keeps the scores of every
        head thrice.
        """
        return 3 * self.shape.heads if self.config.attention == "eager" or self.shape.eager else 1

    def seen(self, tokens: PackSize) -> PackSize:
        """With the mask and the repeated keys of such attention."""
        if not self.masked or tokens.mask:
            return tokens
        s = self.shape
        return dataclasses.replace(
            tokens, keys=tokens.all * s.heads // s.kv_heads, mask=self.each_pair * tokens.all**2
        )

    def weights(self) -> int:
        """The frozen backbone."""
        quantised = self.shape.linear_weights if self.config.precision == "nf4" else 0
        # Half a byte a weight, an 8-bit scale for 64 of them, a float32 scale for 256 scales.
        packed = quantised // 2 + quantised // 64 + quantised // (64 * 256) * 4
        return packed + (self.shape.parameters - quantised) * self.item

    def adapter(self, frozen: bool) -> int:
        """One role: float32 parameters and the copies that its layers read; under fused layers what
        learns is in the compute precision once frozen, elsewhere nothing is copied then.
        """
        role = self.role
        if not frozen:
            return 4 * (role.held + role.kept) + (
                role.copies * self.item if role.fused or self.item == 2 else 0
            )
        if not role.fused:
            return 4 * role.held
        return (
            sum(role.tensors.learn) * self.item + 4 * role.tensors.still + role.copies * self.item
        )

    def shared(self) -> int:
        """What the adapters' method holds once for all roles."""
        return 4 * self.role.tensors.shared

    def optimizer(self, name: str = "adamw", audited: bool = True) -> int:
        """Float32 gradients and the optimizer's moments; with ``audited`` the copy that the first
        step is compared with.
        """
        return sum(self.role.tensors.learn) * 4 * (2 if audited else 1) + self.role.moments(name)

    def workspace(self) -> int:
        """The largest weight written out from 4 bits, with its adapter's columns; nothing for float
        weights.
        """
        if self.config.precision != "nf4":
            return 0
        rank = self.role.ranks[3] if self.role.fused else 0
        return (
            max(lin.weights + rank * max(lin.outputs, lin.inputs) for lin in self.shape.linears)
            * self.item
        )

    def digest(self) -> int:
        """What the checksum of the frozen weights takes: three int64 blocks."""
        return 3 * 8 * min(DIGEST, self.shape.vocabulary * self.shape.hidden * self.item // 4)

    def layer(self, tokens: PackSize, graph: bool, drops: bool = False) -> int:
        """What one layer computed on its way without its input, of a pass with or (MLP's inside
        included) without gradient.
        """
        s, role = self.shape, self.role
        r1, r2, r3, r4 = role.ranks if role.fused else (0, 0, 0, 0)
        h, i = s.hidden, s.intermediate
        a, k = s.heads * s.head_dim, s.kv_heads * s.head_dim
        each = (h + r1) + (a + 2 * k) + a + (a + r2) + h + (h + r3) + 2 * i
        small = 4 * (2 + s.heads)  # float32: two norms and attention's log-sums
        if graph:
            kept = (
                self.item * (tokens.all * (each + a) + tokens.keys * 2 * k + tokens.mask)
                + small * tokens.all
            )
        else:
            kept = self.item * (tokens.all * (each + i + r4) + tokens.mask)
        if role.fused and not drops:
            return kept
        of_tokens, once = role.beside
        if drops:  # each layer's own dropped input, and which numbers were
            of_tokens += role.inputs + role.inputs // self.item
        return kept + self.item * (of_tokens * tokens.all + once) // s.layers

    def backward(self, tokens: PackSize) -> int:
        """What a layer's backward pass needs beside what the layer kept: gradient of its output, of
        the MLP's inside, a written-out weight.
        """
        inside = self.shape.intermediate + self.role.ranks[3]
        return self.item * tokens.all * (self.shape.hidden + inside) + self.workspace()

    def training(self, tokens: PackSize, head: str = "logps") -> dict[str, int]:
        """Activations and head of one forward and backward pass, at their highest; ``head``: logps,
        entropy (with log-probs), whole (a loss over all tokens), score (a scalar) or sft
        (log-probs), the last two with the adapter's dropout.
        """
        tokens, drops = self.seen(tokens), self.drops and head in ("score", "sft")
        s, row = self.shape, self.item * self.shape.hidden
        inputs = s.layers * tokens.all * row
        kept = inputs if self.recomputes else inputs + s.layers * self.layer(tokens, True, drops)
        once = self.layer(tokens, True, drops) if self.recomputes else 0
        if virtual := self.role.virtual:  # never recomputed
            kept += s.layers * (
                virtual * row + self.layer(PackSize(virtual, 0, virtual), graph=True)
            )
        # The last layer's output, the final norm's, their gradients.
        ends = 4 * tokens.all * row + (
            tokens.responses * row if head in ("logps", "entropy", "sft") else 0
        )
        logits = self.logits(tokens, head)
        backward = once + self.backward(tokens)
        # Logits are gone when the first layer's backward pass begins.
        return {
            "activations": kept + ends + tokens.mask + max(backward - logits, 0),
            "logits": logits,
        }

    def scoring(self, tokens: PackSize, head: str = "logps") -> dict[str, int]:
        """One pass without gradient."""
        tokens = self.seen(tokens)
        row = self.item * self.shape.hidden
        inside = self.layer(tokens, graph=False) + self.workspace()
        logits = self.logits(tokens, head)
        return {
            "activations": 2 * tokens.all * row + tokens.mask + max(inside - logits, 0),
            "logits": logits,
        }

    def reading(self, rows: int, length: int) -> int:
        """A pass without gradient over ``rows`` padded prompts side by side, as generate() begins
        with.
        """
        every, pairs = rows * length, self.each_pair * rows * length**2
        return self.scoring(PackSize(every, rows, every, pairs), "score")["activations"]

    def choosing(self, tokens: PackSize) -> dict[str, int]:
        """The first packed pass, in which kernels are timed (``models.forward.choose``): one takes
        a mask over all pairs of tokens. Empty where none is timed.
        """
        if self.masked or self.config.attention != "auto":
            return {}
        pairs = tokens.all**2
        passing = self.scoring(dataclasses.replace(tokens, mask=pairs), "score")["activations"]
        return {"activations": max(passing, 5 * pairs)}  # making the mask takes five of them

    def fitting(self, tokens: PackSize) -> dict[str, int]:
        """What a fresh adapter takes to start from data (``training.adapter_hooks.fit``); empty
        where its method reads none.
        """
        if (
            self.role.method == "lora-drop"
        ):  # trains for a few steps, with moments and a copy of its own
            return {
                "optimizer": 4 * 4 * sum(self.role.tensors.learn),
                **self.training(tokens, "whole"),
            }
        if self.role.method != "eva":
            return {}
        r, widest = self.config.adapter.r, max(linear.inputs for linear in self.shape.linears)
        found = 4 * (SVD * (SVD_TOKENS + r) * widest + r * self.role.inputs)
        return {"activations": self.scoring(tokens, "score")["activations"] + found, "logits": 0}

    def logits(self, tokens: PackSize, head: str) -> int:
        if head == "score":
            return 0
        if head == "whole":
            return WHOLE * tokens.all * self.shape.vocabulary
        plain = min(tokens.responses, LOGITS) * self.shape.vocabulary * self.item
        own = FLOAT_LOGITS if self.shape.capped or self.role.method == "full" else 0
        return max(plain, self.shape.vocabulary * max(own, ENTROPY if head == "entropy" else 0))

    def loading(self) -> int:
        """Highest moment of loading: all weights and, where they are written in 4 bits there, the
        largest one as it came and its codes.
        """
        largest = max(linear.weights for linear in self.shape.linears)
        return self.weights() + (
            largest * self.item
            if self.config.precision == "nf4" and not self.shape.stored_4bit
            else 0
        )
