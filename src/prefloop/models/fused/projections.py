"""Projections that read the same input, computed with their adapters as one product.

The adapter is part of the frozen product: [x | s A x] times the transpose of [W | B]. It costs a
few more columns, while adding it afterwards would read and write all outputs again. In the backward
pass, the product of the gradient with [W | B] gives the gradients of both x and A x.

Shape letters: N tokens, I inputs, O outputs of all projections side by side, R their ranks, padded
to eight.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from prefloop.models.fused import kernels
from prefloop.models.fused.lora import FusedLoRA

LARGE = 1 << 26
"""The most weights that are dequantized at once."""


@dataclasses.dataclass(frozen=True)
class Adapters:
    """One role's adapters of joined projections, in the compute dtype."""

    a_R_I: Tensor
    """s A of all projections, stacked and padded with rows of zeros."""
    b_O_R: Tensor
    """B of all projections on a block diagonal."""
    ranks: tuple[slice, ...]
    """Each projection's range of R."""
    scale: float


class Joined:
    """Projections that read the same input."""

    def __init__(self, layers: list[FusedLoRA]) -> None:
        self.layers = layers
        self.weights = [layer.weight for layer in layers]
        bases: list[Any] = [weight.layer for weight in self.weights]
        self.inputs = bases[0].in_features
        self.outputs = sum(base.out_features for base in bases)
        self.parts = tuple(_slices(base.out_features for base in bases))
        # Reading attributes of bitsandbytes' Params4bit is slow, so the data is kept here.
        self.packed: list[Tensor] = [base.weight.data for base in bases]
        states = [weight.state for weight in self.weights]
        self.gpu = kernels.on_gpu(self.packed[0])
        self.writes_out = self.gpu is not None and all(
            s is not None and self.inputs % s.blocksize == 0 for s in states
        )
        """Whether weights are dequantized for each product, with whole quantization blocks per
        row.
        """
        self.steps = 1 if self.inputs * self.outputs <= LARGE else len(bases)
        """Number of products: one for all projections, or one each if all dequantized weights
        together would take much of the memory.
        """
        self.bias_O: Tensor | None = None
        if any(base.bias is not None for base in bases):
            like = next(base.bias for base in bases if base.bias is not None)
            biases = [
                like.new_zeros(base.out_features) if base.bias is None else base.bias
                for base in bases
            ]
            self.bias_O = torch.cat(biases).to(self.weights[0].dtype)

    def buffer(self, rows: int, like: Tensor, adapters: Adapters | None) -> tuple[Tensor, Tensor]:
        """An empty buffer for [x | s A x], and its view for x."""
        wide = like.new_empty(rows, self.inputs + (adapters.a_R_I.shape[0] if adapters else 0))
        return wide, wide[:, : self.inputs]

    def split(self, wide: Tensor) -> tuple[Tensor, Tensor]:
        """The views x and s A x of a buffer."""
        return wide[:, : self.inputs], wide[:, self.inputs :]

    def forward(
        self,
        wide: Tensor,
        adapters: Adapters | None,
        residual_N_O: Tensor | None = None,
        inplace: bool = False,
    ) -> Tensor:
        """W x + bias + s B A x of all projections side by side, [N, O], plus a residual.

        Writes s A x to ``wide``. With ``inplace`` the result may overwrite the residual.
        """
        x_N_I, low_N_R = self.split(wide)
        if adapters is not None:
            torch.mm(x_N_I, adapters.a_R_I.T, out=low_N_R)
        added = self.bias_O if residual_N_O is None else residual_N_O
        if residual_N_O is not None and self.bias_O is not None:
            added, inplace = residual_N_O + self.bias_O, False
        if self.writes_out:
            if self.steps == 1:
                weight_O_IR = self._written_out(adapters, self.parts)
                if inplace and residual_N_O is not None:
                    return residual_N_O.addmm_(wide, weight_O_IR.T)
                if added is None:
                    return wide @ weight_O_IR.T
                return torch.addmm(added, wide, weight_O_IR.T)
            out_N_O = wide.new_empty(len(wide), self.outputs)
            for part in self.parts:
                torch.mm(wide, self._written_out(adapters, (part,)).T, out=out_N_O[:, part])
            return out_N_O if added is None else out_N_O.add_(added)
        out_N_O = wide.new_empty(len(wide), self.outputs)
        for k, (weight, part) in enumerate(zip(self.weights, self.parts, strict=True)):
            if adapters is None:
                torch.mm(x_N_I, weight.O_I().T, out=out_N_O[:, part])
            else:
                # The small product comes first, since rounding would lose it if it were added to
                # the already rounded large one.
                rank = adapters.ranks[k]
                torch.mm(low_N_R[:, rank], adapters.b_O_R[part, rank].T, out=out_N_O[:, part])
                out_N_O[:, part].addmm_(x_N_I, weight.O_I().T)
        return out_N_O if added is None else out_N_O.add_(added)

    def backward(
        self, grad_N_O: Tensor, adapters: Adapters | None, needs_x: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Gradients of x [N, I], with strided rows, and of A x [N, R] without the scale."""
        if needs_x and self.writes_out:
            steps = (self.parts,) if self.steps == 1 else tuple((part,) for part in self.parts)
            wide: Any = None
            for k, parts in enumerate(steps):
                grad = grad_N_O[:, parts[0].start : parts[-1].stop]
                weight_O_IR = self._written_out(adapters, parts)
                wide = grad @ weight_O_IR if k == 0 else wide.addmm_(grad, weight_O_IR)
            grad_x, back_N_R = self.split(wide)
        else:
            back_N_R = grad_N_O[:, :0] if adapters is None else grad_N_O @ adapters.b_O_R
            grad_x = grad_N_O[:, :0]
            projections = zip(self.weights, self.parts, strict=True) if needs_x else ()
            for k, (weight, part) in enumerate(projections):
                w_O_I, grad = weight.O_I(), grad_N_O[:, part]
                grad_x = grad @ w_O_I if k == 0 else grad_x.addmm_(grad, w_O_I)
        if adapters is not None and needs_x:
            grad_x.addmm_(back_N_R, adapters.a_R_I)
        return grad_x, back_N_R

    def gradients(
        self, x_N_I: Tensor, low_N_R: Tensor, grad_N_O: Tensor, back_N_R: Tensor, to: Adapters
    ) -> list[Tensor]:
        """Float32 gradients of each projection's A and B in turn. ``low_N_R`` is s A x."""
        grad_a = _float_product(back_N_R.T, x_N_I).mul_(to.scale)
        out: list[Tensor] = []
        for part, rank in zip(self.parts, to.ranks, strict=True):
            out += [grad_a[rank], _float_product(grad_N_O[:, part].T, low_N_R[:, rank])]
        return out

    def _written_out(self, adapters: Adapters | None, parts: tuple[slice, ...]) -> Tensor:
        """The dequantized [W | B] of the projections ``parts``."""
        start, stop = parts[0].start, parts[-1].stop
        wide = self.inputs + (adapters.b_O_R.shape[1] if adapters else 0)
        weight_O_IR = torch.empty(
            stop - start, wide, dtype=self.weights[0].dtype, device=self.packed[0].device
        )
        for packed, weight, part in zip(self.packed, self.weights, self.parts, strict=True):
            if part in parts:
                whole = len(parts) == 1
                to = weight_O_IR if whole else weight_O_IR[part.start - start : part.stop - start]
                self.gpu.dequantize(
                    packed, weight.state, adapters.b_O_R[part] if adapters else None, to
                )
        return weight_O_IR


_steps = 0


def _count_step(*_: Any) -> None:
    global _steps
    _steps += 1


# torch's fused optimizers do not increase the parameters' versions, so steps are counted here.
register_optimizer_step_post_hook(_count_step)


class RoleCopies:
    """A role's adapters in the compute dtype, for all groups of joined projections of a model.

    They are refreshed before a pass: always while the role learns, since torch's fused optimizers
    change parameters without increasing their versions, and otherwise when the version or address
    of a parameter has changed.
    """

    def __init__(self, groups: Iterable[Joined], role: str) -> None:
        self._sources: list[Tensor] = []
        self._targets: list[Tensor] = []
        self._state: tuple[int, ...] = ()
        self.generation = 0
        """How often the parameters have changed, by their versions and the optimizer's steps."""
        self.of: dict[Joined, Adapters] = {}
        self.parameters: dict[Joined, list[Tensor]] = {}
        """Group → A and B of each projection in turn."""
        groups = list(groups)
        a_total, b_total, rank_of = 0, 0, {}
        for group in groups:
            rank_of[group] = [len(layer.parameters(role)[0]) for layer in group.layers]
            padded = -(-sum(rank_of[group]) // 8) * 8
            a_total += padded * group.inputs
            b_total += padded * group.outputs
        like = groups[0].weights[0]
        device: Any = like.layer.weight.device
        self._a = torch.zeros(a_total, dtype=like.dtype, device=device)
        self._b = torch.zeros(b_total, dtype=like.dtype, device=device)
        self._scale = groups[0].layers[0].layer.scaling[role]
        a_used = b_used = 0
        for group in groups:
            padded = -(-sum(rank_of[group]) // 8) * 8
            a_R_I = self._a[a_used : a_used + padded * group.inputs].view(padded, group.inputs)
            b_O_R = self._b[b_used : b_used + padded * group.outputs].view(group.outputs, padded)
            a_used, b_used = a_used + a_R_I.numel(), b_used + b_O_R.numel()
            ranks = tuple(_slices(rank_of[group]))
            self.of[group] = Adapters(a_R_I, b_O_R, ranks, self._scale)
            self.parameters[group] = [p for layer in group.layers for p in layer.parameters(role)]
            self._sources += self.parameters[group]
            for part, rank in zip(group.parts, ranks, strict=True):
                self._targets += [a_R_I[rank], b_O_R[part, rank]]

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the parameters if they may have changed."""
        learns = any(source.requires_grad for source in self._sources)
        versions = tuple(v for s in self._sources for v in (s._version, s.data_ptr()))
        # A role that has just stopped learning is copied again: a fused step may have changed it
        # after the last copy.
        state = (*versions, _steps if learns else -1)
        self.generation += state != self._state
        if learns or state != self._state:
            torch._foreach_copy_(self._targets[::2], self._sources[::2])
            torch._foreach_copy_(self._targets[1::2], self._sources[1::2])
            if self._scale != 1:
                self._a.mul_(self._scale)
            self._state = state


def _slices(sizes: Iterable[int]) -> Iterator[slice]:
    start = 0
    for size in sizes:
        yield slice(start, start + size)
        start += size


def _float_product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right in float32; on a GPU without rounding to half precision in between."""
    if left.is_cuda and left.dtype != torch.float32:
        return torch.mm(left, right, out_dtype=torch.float32)
    return (left @ right).float()
