"""LoRA layers without copies: y = W x + s B A x and its gradients in the weights' own precision.

PEFT's layer clones the frozen product, casts the input to the adapter's float32, multiplies by the
scale and adds. These passes over activations cost as much as the matrix products. Here the frozen
product is accumulated onto the low-rank one. 4-bit weights are dequantized for each product and
not kept, adapters stay float32, and changing the role costs nothing. PEFT still has the parameters,
files and names. Anything but plain LoRA on linear layers runs PEFT's own code.

Shape letters: N tokens, I inputs, O outputs, r rank.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from peft.tuners.adalora import AdaLoraLayer
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional as F


@dataclasses.dataclass
class Active:
    """The adapter that all layers of a model run; ``None`` is the bare base."""

    role: str | None = None
    dropout: bool = False


class Weight:
    """A frozen weight, dequantized on each use if it is stored in 4 bits."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.state = getattr(layer.weight, "quant_state", None)
        self._absmax: Tensor | None = None

    @property
    def dtype(self) -> torch.dtype:
        return self.state.dtype if self.state is not None else self.layer.weight.dtype  # type: ignore[return-value]

    def O_I(self) -> Tensor:
        """The weight [O, I] in its compute dtype."""
        weight: Any = self.layer.weight
        if self.state is None:
            return weight.detach()
        if self._absmax is None:
            # Double quantization is undone once. This costs 0.5 bits per weight and saves two
            # kernels in every product.
            from bitsandbytes.functional import dequantize_blockwise

            s = self.state
            self._absmax = (
                (dequantize_blockwise(s.absmax, s.state2) + s.offset).float()
                if s.nested
                else s.absmax
            )
        s = self.state
        return torch.ops.bitsandbytes.dequantize_4bit(
            weight.data, self._absmax, s.blocksize, s.quant_type, s.shape, s.dtype
        )


class _Product(torch.autograd.Function):
    """x, A, B → W x + bias + s B A x. Saves x and A x for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, x_N_I: Tensor, a_r_I: Tensor, b_O_r: Tensor, copies: Copies, weight: Weight
    ) -> Tensor:
        low_N_r = x_N_I @ copies.a_r_I.T
        out_N_O = low_N_r @ copies.b_O_r.T
        # The large product is added to the small one, since rounding would lose a small change that
        # is added to an already rounded product.
        out_N_O.addmm_(x_N_I, weight.O_I().T, beta=copies.scale)
        if weight.layer.bias is not None:
            out_N_O.add_(weight.layer.bias)  # type: ignore[arg-type]
        ctx.save_for_backward(x_N_I, low_N_r)
        ctx.copies, ctx.weight = copies, weight
        return out_N_O

    @staticmethod
    def backward(ctx: Any, grad_N_O: Tensor) -> tuple[Tensor | None, ...]:
        x_N_I, low_N_r = ctx.saved_tensors
        back_N_r, grad_a, grad_b = _low_gradients(ctx, grad_N_O, x_N_I, low_N_r)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad_N_O @ ctx.weight.O_I()
            grad_x.addmm_(back_N_r, ctx.copies.a_r_I, alpha=ctx.copies.scale)
        return grad_x, grad_a, grad_b, None, None


class _Low(torch.autograd.Function):
    """x, A, B → s B A x. A checkpointed block saves only this for its last product."""

    @staticmethod
    def forward(ctx: Any, x_N_I: Tensor, a_r_I: Tensor, b_O_r: Tensor, copies: Copies) -> Tensor:
        low_N_r = x_N_I @ copies.a_r_I.T
        ctx.save_for_backward(x_N_I, low_N_r)
        ctx.copies = copies
        return (low_N_r @ copies.b_O_r.T).mul_(copies.scale)

    @staticmethod
    def backward(ctx: Any, grad_N_O: Tensor) -> tuple[Tensor | None, ...]:
        x_N_I, low_N_r = ctx.saved_tensors
        back_N_r, grad_a, grad_b = _low_gradients(ctx, grad_N_O, x_N_I, low_N_r)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (back_N_r @ ctx.copies.a_r_I).mul_(ctx.copies.scale)
        return grad_x, grad_a, grad_b, None


def _low_gradients(
    ctx: Any, grad_N_O: Tensor, x_N_I: Tensor, low_N_r: Tensor
) -> tuple[Tensor, ...]:
    copies: Copies = ctx.copies
    back_N_r = grad_N_O @ copies.b_O_r
    grad_a = (back_N_r.T @ x_N_I).float() * copies.scale if ctx.needs_input_grad[1] else None
    grad_b = (grad_N_O.T @ low_N_r).float() * copies.scale if ctx.needs_input_grad[2] else None
    return back_N_r, grad_a, grad_b  # type: ignore[return-value]


class _FrozenAdd(torch.autograd.Function):
    """low + W x + bias. It saves no tensor, so a recomputing checkpoint stops before the
    product.
    """

    @staticmethod
    def forward(ctx: Any, low_N_O: Tensor, x_N_I: Tensor, weight: Weight) -> Tensor:
        ctx.weight = weight
        out_N_O = torch.addmm(low_N_O, x_N_I, weight.O_I().T)
        bias = weight.layer.bias
        return out_N_O if bias is None else out_N_O.add_(bias)  # type: ignore[arg-type]

    @staticmethod
    def backward(ctx: Any, grad_N_O: Tensor) -> tuple[Tensor | None, ...]:
        return grad_N_O, grad_N_O @ ctx.weight.O_I() if ctx.needs_input_grad[1] else None, None


@dataclasses.dataclass(frozen=True)
class Copies:
    """A and B of one adapter in the compute dtype, with the versions of the copied parameters."""

    a_r_I: Tensor
    b_O_r: Tensor
    scale: float
    versions: tuple[int, ...]


class FusedLoRA:
    """The forward pass of one PEFT LoRA layer. ``last`` marks the last one in its decoder block."""

    def __init__(self, layer: Any, active: Active, last: bool) -> None:
        self.layer, self.active, self.last = layer, active, last
        self.weight = Weight(layer.get_base_layer())
        self.copies: dict[str, Copies] = {}

    def __call__(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):
            with torch.autocast(x.device.type, enabled=False):
                return self._run(x)
        return self._run(x)

    def _run(self, x: Tensor) -> Tensor:
        x_N_I = x.reshape(-1, x.shape[-1]).to(self.weight.dtype)
        role = None if self.layer.disable_adapters else self.active.role
        if role is None:
            out_N_O = F.linear(x_N_I, self.weight.O_I(), self.weight.layer.bias)  # type: ignore[arg-type]
            return out_N_O.view(*x.shape[:-1], -1)
        a_r_I, b_O_r = self.parameters(role)
        copies = self.copies_of(role)
        dropout = self.layer.lora_dropout[role]
        dropped = self.active.dropout and isinstance(dropout, nn.Dropout)
        if dropped or (self.last and torch.is_grad_enabled()):
            low_N_O = _Low.apply(
                F.dropout(x_N_I, dropout.p) if dropped else x_N_I, a_r_I, b_O_r, copies
            )
            out_N_O = _FrozenAdd.apply(low_N_O, x_N_I, self.weight)
        else:
            out_N_O = _Product.apply(x_N_I, a_r_I, b_O_r, copies, self.weight)
        return out_N_O.view(*x.shape[:-1], -1)

    def parameters(self, role: str) -> tuple[Tensor, Tensor]:
        """A and B of an adapter."""
        return self.layer.lora_A[role].weight, self.layer.lora_B[role].weight

    def copies_of(self, role: str) -> Copies:
        """A and B in the compute dtype.

        The copies of a frozen adapter are kept. Those of a learning adapter are not, since torch's
        fused optimizers change parameters without increasing ``_version``, so that a stale copy
        could not be recognized.
        """
        a_r_I, b_O_r = self.parameters(role)
        learns = a_r_I.requires_grad or b_O_r.requires_grad
        versions = (a_r_I._version, b_O_r._version, a_r_I.data_ptr(), b_O_r.data_ptr())
        copies = None if learns else self.copies.get(role)
        if copies is None or copies.versions != versions:
            a, b = a_r_I.detach().to(self.weight.dtype), b_O_r.detach().to(self.weight.dtype)
            copies = Copies(a, b, self.layer.scaling[role], versions)
            if not learns:
                self.copies[role] = copies
        return copies

    def forget(self, role: str) -> None:
        """Drop the copies of an adapter that was removed or begins to learn."""
        self.copies.pop(role, None)


def fuse(model: nn.Module, active: Active, checkpointed: bool) -> list[FusedLoRA]:
    """Replace the forward of every LoRA layer with ``FusedLoRA``, and return the new ones.

    Replaces none and returns an empty list if a layer is not plain LoRA on a float or 4-bit linear
    layer. With ``checkpointed``, the last LoRA layer of each decoder block adds its products in an
    order that avoids computing the frozen one again.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, LoraLayer)}
    if any(isinstance(layer, AdaLoraLayer) for layer in layers.values()):
        return []
    bases: list[Any] = [layer.get_base_layer() for layer in layers.values()]
    plain = all(type(base) is nn.Linear or type(base).__name__ == "Linear4bit" for base in bases)
    extras = [layer.lora_variant or any(layer.lora_bias.values()) for layer in layers.values()]
    if not plain or any(extras):
        return []
    last: dict[str, str] = {}
    for name in layers:
        parts = name.split(".")
        block = next((i for i, part in enumerate(parts) if part.isdigit()), None)
        if block is not None:
            last[".".join(parts[: block + 1])] = name
    ends = set(last.values()) if checkpointed else set()
    fused = []
    for name, layer in layers.items():
        forward = FusedLoRA(layer, active, name in ends)
        layer.forward = forward
        fused.append(forward)
    return fused
