"""Bytes on the device by parts, counted from the tensors that each layer saves (``models.fused``).

No constant is fitted to measurements of the total. A pass has N tokens, R response tokens and M
keys of its attention, where prompts are repeated for each branch. Element counts use the layer's
letters: H hidden size, A = heads × head size, K = key heads × head size, I the MLP's inner size, V
vocabulary.
"""

from __future__ import annotations

import dataclasses

from prefloop.config import BackboneConfig
from prefloop.config.adapters import require
from prefloop.planning.adapters import Role, role_of
from prefloop.planning.shapes import Shape

GIB = 2**30
SOLD = 0.91
"""The smallest usable share of a card's nominal memory: CUDA has 14.6 of a T4's 16 GiB, 44.5 of an
L40S's 48, 79 of an A100's 80.
"""
CONTEXT = GIB // 2
"""CUDA's context and kernels: 0.5 GiB on an H100 (docs/benchmarks.md, ``--budget``)."""
CUBLAS = 32 << 20
"""cuBLAS's workspace on Hopper, which torch keeps until the process ends."""
LOGITS = 1024
"""How many response tokens have logits at the same time on a GPU (4 × ``models.forward.CHUNK``)."""
FLOAT_LOGITS, ENTROPY, WHOLE = 256 * 18, 256 * 24, 12
"""Bytes per vocabulary entry of a chunk that uses torch's own operations (float32 logits, log-probs
and their gradients), and of the entropy's chunk. The third is bytes per token and vocabulary entry
of a loss over all tokens (LoRA-drop's short training).
"""
SVD, SVD_TOKENS = 5, 1024
"""How many float32 copies of a layer's inputs EVA's SVD makes, and of how many tokens
(``models.adapters.eva.TOKENS``).
"""
DIGEST = 1 << 20
"""How many words of a frozen weight ``models.backbone.checksum`` adds at a time."""
VIRTUAL = ("prompt", "p-tuning", "prefix", "p-tuning-v2")
"""Methods whose attention has virtual tokens before all keys, and uses SDPA with a mask."""


@dataclasses.dataclass(frozen=True)
class PackSize:
    """The sizes of a pack, in tokens."""

    all: int
    responses: int
    keys: int
    """Keys that attention reads. A prompt's count once for itself and once per branch."""
    mask: int = 0
    """Elements of the mask over pairs of tokens, for attention with a mask. SDPA converts the mask
    to numbers in each layer and keeps them.
    """


@dataclasses.dataclass(frozen=True)
class Device:
    """The memory of a model with an adapter under given settings, in bytes and elements."""

    shape: Shape
    config: BackboneConfig
    role: Role

    @classmethod
    def of(cls, shape: Shape, config: BackboneConfig) -> Device:
        """The device's memory for a shape and settings.

        Raises ``ConfigError`` for an unknown adapter, or one that does not fit the precision or
        shape.
        """
        require(config)
        return cls(shape, config, role_of(shape, config.adapter))

    @property
    def item(self) -> int:
        """Bytes of an element in the compute dtype on a GPU."""
        return 4 if self.config.precision == "fp32" or self.config.compute == "fp32" else 2

    @property
    def recomputes(self) -> bool:
        return self.config.gradient_checkpointing == "block"

    @property
    def drops(self) -> bool:
        """Whether the adapter has dropout, which takes layers off the fused path while it is on."""
        return self.config.adapter.dropout > 0

    @property
    def masked(self) -> bool:
        """Whether attention over packs uses a mask over all pairs of tokens."""
        named = self.config.attention in ("sdpa", "eager")
        return named or self.shape.eager or self.role.method in VIRTUAL

    @property
    def each_pair(self) -> int:
        """Numbers per pair of tokens of such a mask. Eager attention keeps each head's scores three
        times.
        """
        return 3 * self.shape.heads if self.config.attention == "eager" or self.shape.eager else 1

    def seen(self, tokens: PackSize) -> PackSize:
        """The pack's sizes with the mask and the repeated keys of masked attention."""
        if not self.masked or tokens.mask:
            return tokens
        s = self.shape
        return dataclasses.replace(
            tokens, keys=tokens.all * s.heads // s.kv_heads, mask=self.each_pair * tokens.all**2
        )

    def weights(self) -> int:
        """The frozen backbone."""
        quantized = self.shape.linear_weights if self.config.precision == "nf4" else 0
        # Half a byte per weight, an 8-bit scale per 64 weights, a float32 scale per 256 scales.
        packed = quantized // 2 + quantized // 64 + quantized // (64 * 256) * 4
        return packed + (self.shape.parameters - quantized) * self.item

    def adapter(self, frozen: bool) -> int:
        """One role: its float32 parameters, and the copies that its layers read.

        In fused layers a frozen role's parameters are in the compute dtype. In other layers a
        frozen role has no copies.
        """
        role, copies = self.role, self.role.copies * self.item
        if not frozen:
            return 4 * (role.held + role.kept) + (copies if role.fused or self.item == 2 else 0)
        if not role.fused:
            return 4 * role.held
        return sum(role.tensors.learn) * self.item + 4 * role.tensors.still + copies

    def shared(self) -> int:
        """The tensors of the adapter method that all roles share."""
        return 4 * self.role.tensors.shared

    def optimizer(self, name: str = "adamw", audited: bool = True) -> int:
        """Float32 gradients and the optimizer's moments.

        With ``audited`` also the parameters' copy that the first step is compared with.
        """
        return sum(self.role.tensors.learn) * 4 * (2 if audited else 1) + self.role.moments(name)

    def workspace(self) -> int:
        """The largest dequantized weight with its adapter's columns; 0 for float weights."""
        if self.config.precision != "nf4":
            return 0
        rank = self.role.ranks[3] if self.role.fused else 0
        linears = self.shape.linears
        return self.item * max(w.weights + rank * max(w.outputs, w.inputs) for w in linears)

    def digest(self) -> int:
        """The checksum of the frozen weights: three int64 blocks."""
        return 3 * 8 * min(DIGEST, self.shape.vocabulary * self.shape.hidden * self.item // 4)

    def layer(self, tokens: PackSize, graph: bool, drops: bool = False) -> int:
        """One layer's tensors without its input.

        With ``graph`` these are the tensors kept for the backward pass. Without it they are those
        of a pass without gradient, including the MLP's inside.
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
        per_token, per_pass = role.saved
        if drops:  # each layer's input after dropout, and dropout's mask
            per_token += role.inputs + role.inputs // self.item
        return kept + self.item * (per_token * tokens.all + per_pass) // s.layers

    def backward(self, tokens: PackSize) -> int:
        """A layer's backward pass without its kept tensors: gradients of its output and of the
        MLP's inside, and a dequantized weight.
        """
        inside = self.shape.intermediate + self.role.ranks[3]
        return self.item * tokens.all * (self.shape.hidden + inside) + self.workspace()

    def training(self, tokens: PackSize, head: str = "logps") -> dict[str, int]:
        """The peak of one forward and backward pass, as activations and logits.

        ``head`` is logps, entropy (with log-probs), whole (a loss over all tokens), score (a
        scalar) or sft (log-probs). The last two run with the adapter's dropout.
        """
        tokens, drops = self.seen(tokens), self.drops and head in ("score", "sft")
        s, row = self.shape, self.item * self.shape.hidden
        inputs = s.layers * tokens.all * row
        kept = inputs if self.recomputes else inputs + s.layers * self.layer(tokens, True, drops)
        once = self.layer(tokens, True, drops) if self.recomputes else 0
        if virtual := self.role.virtual:  # virtual tokens are never recomputed
            of_layer = self.layer(PackSize(virtual, 0, virtual), graph=True)
            kept += s.layers * (virtual * row + of_layer)
        # The outputs of the last layer and of the final norm, and their gradients.
        ends = 4 * tokens.all * row
        if head in ("logps", "entropy", "sft"):
            ends += tokens.responses * row
        logits = self.logits(tokens, head)
        # The logits are freed before the first layer's backward pass: the larger of the two counts.
        backward = max(once + self.backward(tokens) - logits, 0)
        return {"activations": kept + ends + tokens.mask + backward, "logits": logits}

    def scoring(self, tokens: PackSize, head: str = "logps") -> dict[str, int]:
        """The peak of a pass without gradient, as activations and logits."""
        tokens = self.seen(tokens)
        row = self.item * self.shape.hidden
        logits = self.logits(tokens, head)
        inside = max(self.layer(tokens, graph=False) + self.workspace() - logits, 0)
        return {"activations": 2 * tokens.all * row + tokens.mask + inside, "logits": logits}

    def reading(self, rows: int, length: int) -> int:
        """generate()'s first pass: ``rows`` padded prompts of ``length`` tokens, without
        gradient.
        """
        every, pairs = rows * length, self.each_pair * rows * length**2
        return self.scoring(PackSize(every, rows, every, pairs), "score")["activations"]

    def choosing(self, tokens: PackSize) -> dict[str, int]:
        """The first packed pass, which times kernels (``models.forward.choose``).

        One of the kernels uses a mask over all pairs of tokens. Empty if no kernels are timed.
        """
        if self.masked or self.config.attention != "auto":
            return {}
        pairs = tokens.all**2
        passing = self.scoring(dataclasses.replace(tokens, mask=pairs), "score")["activations"]
        return {"activations": max(passing, 5 * pairs)}  # making the mask takes five copies of it

    def fitting(self, tokens: PackSize) -> dict[str, int]:
        """Initializing an adapter from data (``training.adapter_hooks.fit``).

        Empty for methods that read no data.
        """
        if self.role.method == "lora-drop":
            # A short training, with gradients, two moments, and a copy of the parameters.
            optimizer = 4 * 4 * sum(self.role.tensors.learn)
            return {"optimizer": optimizer, **self.training(tokens, "whole")}
        if self.role.method != "eva":
            return {}
        r, widest = self.config.adapter.r, max(linear.inputs for linear in self.shape.linears)
        svd = 4 * (SVD * (SVD_TOKENS + r) * widest + r * self.role.inputs)
        return {"activations": self.scoring(tokens, "score")["activations"] + svd, "logits": 0}

    def logits(self, tokens: PackSize, head: str) -> int:
        """The logits of a head, with their log-probs and gradients."""
        if head == "score":
            return 0
        if head == "whole":
            return WHOLE * tokens.all * self.shape.vocabulary
        plain = min(tokens.responses, LOGITS) * self.shape.vocabulary * self.item
        own = FLOAT_LOGITS if self.shape.capped or self.role.method == "full" else 0
        return max(plain, self.shape.vocabulary * max(own, ENTROPY if head == "entropy" else 0))

    def loading(self) -> int:
        """The peak of loading: all weights, and the largest float one while it is quantized."""
        if self.config.precision != "nf4" or self.shape.stored_4bit:
            return self.weights()
        largest = max(linear.weights for linear in self.shape.linears)
        return self.weights() + largest * self.item
