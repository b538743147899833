"""LoRA layers without copies: y = W x + s B A x and its gradients in the weights' own precision.

PEFT's layer clones the frozen product, casts the input to the adapter's float32, multiplies by the
scale and adds: passes over activations that cost as much as the matrix products. Here the frozen
product is accumulated onto the low-rank one, 4-bit weights are dequantised anew for each product
instead of being kept, adapters stay float32 outside it, and changing the role costs nothing. PEFT
keeps the parameters, files and names; anything but plain LoRA on linear layers goes PEFT's own way.

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
    """Which adapter every layer of a model runs; ``None`` is the bare base."""

    role: str | None = None
    dropout: bool = False


class Weight:
    """A frozen weight that is dequantised when it is needed."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.state = getattr(layer.weight, "quant_state", None)
        self._absmax: Tensor | None = None

    @property
    def dtype(self) -> torch.dtype:
        return self.state.dtype if self.state is not None else self.layer.weight.dtype  # type: ignore[return-value]

    def O_I(self) -> Tensor:
        """The weight in its arithmetic precision."""
        weight: Any = self.layer.weight
        if self.state is None:
            return weight.detach()
        if self._absmax is None:
            # Double quantisation is undone once: 0.5 bits a weight for two kernels less in every
            # product.
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
    """x, A, B → W x + bias + s B A x; saves x and A x."""

    @staticmethod
    def forward(
        ctx: Any, x_N_I: Tensor, a_r_I: Tensor, b_O_r: Tensor, copies: Copies, weight: Weight
    ) -> Tensor:
        low_N_r = x_N_I @ copies.a_r_I.T
        out_N_O = low_N_r @ copies.b_O_r.T
        # The large product onto the small one: a change added to what is rounded already would be
        # lost where it is small.
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
    """x, A, B → s B A x; all that a checkpointed block saves for its last product."""

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
        grad_x = (
            (back_N_r @ ctx.copies.a_r_I).mul_(ctx.copies.scale)
            if ctx.needs_input_grad[0]
            else None
        )
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
    """low + W x + bias; saves nothing, so a recomputing checkpoint stops ahead of the product."""

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
    """A and B of one adapter in the arithmetic's precision, and the versions of the parameters they
    were made from.
    """

    a_r_I: Tensor
    b_O_r: Tensor
    scale: float
    versions: tuple[int, ...]


class FusedLoRA:
    """The forward of one PEFT layer."""

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
        """A and B in the arithmetic's precision.

        Kept only while the adapter is frozen: torch's fused optimizers change parameters without
        counting up ``_version``, so nothing tells whether a copy of a learning one is stale.
        """
        a_r_I, b_O_r = self.parameters(role)
        learns = a_r_I.requires_grad or b_O_r.requires_grad
        versions = (a_r_I._version, b_O_r._version, a_r_I.data_ptr(), b_O_r.data_ptr())
        found = None if learns else self.copies.get(role)
        if found is None or found.versions != versions:
            dtype = self.weight.dtype
            found = Copies(
                a_r_I.detach().to(dtype),
                b_O_r.detach().to(dtype),
                self.layer.scaling[role],
                versions,
            )
            if not learns:
                self.copies[role] = found
        return found

    def forget(self, role: str) -> None:
        """Drop the copies of an adapter that is gone or begins to learn."""
        self.copies.pop(role, None)


def fuse(model: nn.Module, active: Active, checkpointed: bool) -> list[FusedLoRA]:
    """Give every LoRA layer the forward above; empty when one of them is not plain LoRA on a float
    or 4-bit linear layer.

    With ``checkpointed`` the last LoRA layer of each decoder block takes the order that spares its
    product in recomputation.
    """
    layers = {
        name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)
    }
    if any(isinstance(layer, AdaLoraLayer) for layer in layers.values()):
        return []
    bases: list[Any] = [layer.get_base_layer() for layer in layers.values()]
    plain = all(type(base) is nn.Linear or type(base).__name__ == "Linear4bit" for base in bases)
    if not plain or any(
        layer.lora_variant or any(layer.lora_bias.values()) for layer in layers.values()
    ):
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
