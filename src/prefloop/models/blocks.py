"""Whole gated MLPs and query-key-value triples as one step, over the LoRA layers of ``lora.py``.

Both do what their layers do one by one, with fewer launches: adapters that read the same input are multiplied together, gradients of
a shared input are accumulated in place. The MLP keeps only its input and recomputes gate and up in the backward pass: two of its nine
products for three quarters of a block's activations.

Shape letters: N tokens, I inputs, M the MLP's inner size, O outputs, r rank.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prefloop.models.lora import Copies, FusedLoRA


@functools.cache
def _kernels() -> Any:
    """liger-kernel's SwiGLU where Triton runs, else nothing."""
    try:
        from liger_kernel.ops import swiglu
    except ImportError:
        return None
    return swiglu


def swiglu_N_M(gate_N_M: Tensor, up_N_M: Tensor) -> Tensor:
    """silu(gate) · up."""
    if gate_N_M.is_cuda and _kernels():
        return _kernels().swiglu_forward(gate_N_M, up_N_M)[-1]
    return F.silu(gate_N_M) * up_N_M


def swiglu_gradients(gate_N_M: Tensor, up_N_M: Tensor, grad_N_M: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of gate and up; may overwrite both."""
    if gate_N_M.is_cuda and _kernels():
        return _kernels().swiglu_backward(gate_N_M, up_N_M, grad_N_M)
    sigmoid = gate_N_M.sigmoid()
    silu = gate_N_M * sigmoid
    return grad_N_M * up_N_M * (sigmoid + silu * (1 - sigmoid)), grad_N_M * silu


def _join(layers: tuple[FusedLoRA, ...], copies: tuple[Copies, ...], x_N_I: Tensor) -> tuple[Tensor, list[Tensor]]:
    """A x of all layers (side by side) and their outputs."""
    low_N_r = x_N_I @ torch.cat([c.a_r_I for c in copies]).T
    outs = []
    for layer, c, low in zip(layers, copies, low_N_r.split([len(c.a_r_I) for c in copies], 1), strict=True):
        out_N_O = F.linear(x_N_I, layer.weight.O_I(), layer.weight.layer.bias)  # type: ignore[arg-type]
        outs.append(out_N_O.addmm_(low, c.b_O_r.T, alpha=c.scale))
    return low_N_r, outs


def _join_backward(
    layers: tuple[FusedLoRA, ...],
    copies: tuple[Copies, ...],
    x_N_I: Tensor,
    low_N_r: Tensor,
    grads: list[Tensor],
    needs_x: bool,
) -> tuple[Tensor | None, list[Tensor]]:
    """Gradient of the shared input and of A, B of each layer in turn."""
    back_N_r = torch.cat([(grad @ c.b_O_r).mul_(c.scale) for grad, c in zip(grads, copies, strict=True)], 1)
    sizes = [len(c.a_r_I) for c in copies]
    grad_a = (back_N_r.T @ x_N_I).float().split(sizes)
    lows = low_N_r.split(sizes, 1)
    out: list[Tensor] = []
    for k, c in enumerate(copies):
        out += [grad_a[k], (grads[k].T @ lows[k]).float() * c.scale]
    grad_x = None
    if needs_x:
        grad_x = grads[0] @ layers[0].weight.O_I()
        for layer, grad in zip(layers[1:], grads[1:], strict=True):
            grad_x.addmm_(grad, layer.weight.O_I())
        grad_x.addmm_(back_N_r, torch.cat([c.a_r_I for c in copies]))
    return grad_x, out


class _MLPGradients(torch.autograd.Function):
    """Remembers the MLP's input and gives its gradients; its output stands for the real one, which ``_MLPOutput`` computes.

    Saving comes first, the products after it: a checkpointed block that recomputes stops before them.
    """

    @staticmethod
    def forward(
        ctx: Any, x_N_I: Tensor, layers: tuple[FusedLoRA, ...], copies: tuple[Copies, ...], *_: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x_N_I)
        ctx.layers, ctx.copies = layers, copies
        return x_N_I.new_empty(1).expand(len(x_N_I), len(copies[2].b_O_r))

    @staticmethod
    def backward(ctx: Any, grad_N_O: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (x_N_I,) = ctx.saved_tensors
        down, c = ctx.layers[2], ctx.copies[2]
        low_N_r, (gate_N_M, up_N_M) = _join(ctx.layers[:2], ctx.copies[:2], x_N_I)
        back_N_r = (grad_N_O @ c.b_O_r).mul_(c.scale)
        grad_N_M = (grad_N_O @ down.weight.O_I()).addmm_(back_N_r, c.a_r_I)
        inner_N_M = swiglu_N_M(gate_N_M, up_N_M)
        grad_down = [(back_N_r.T @ inner_N_M).float(), (grad_N_O.T @ (inner_N_M @ c.a_r_I.T)).float() * c.scale]
        del inner_N_M
        grads = list(swiglu_gradients(gate_N_M, up_N_M, grad_N_M))
        del grad_N_M
        needs_x = ctx.needs_input_grad[0]
        grad_x, out = _join_backward(ctx.layers[:2], ctx.copies[:2], x_N_I, low_N_r, grads, needs_x)
        return grad_x, None, None, *out, *grad_down


class _MLPOutput(torch.autograd.Function):
    """The MLP's output; hands its gradient to ``_MLPGradients`` as it is."""

    @staticmethod
    def forward(
        ctx: Any, stand_in_N_O: Tensor, x_N_I: Tensor, layers: tuple[FusedLoRA, ...], copies: tuple[Copies, ...]
    ) -> Tensor:
        _, (gate_N_M, up_N_M) = _join(layers[:2], copies[:2], x_N_I)
        inner_N_M = swiglu_N_M(gate_N_M, up_N_M)
        return _join(layers[2:], copies[2:], inner_N_M)[1][0]

    @staticmethod
    def backward(ctx: Any, grad_N_O: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return grad_N_O, None, None, None


class FusedMLP:
    """The forward of an MLP with gate, up and down projections and SiLU."""

    def __init__(self, module: Any) -> None:
        self.layers = tuple(getattr(module, name).forward for name in ("gate_proj", "up_proj", "down_proj"))
        self.original = module.forward

    def __call__(self, x: Tensor) -> Tensor:
        found = adapters(self.layers, x)
        if found is None:
            return self.original(x)
        x_N_I, copies, parameters = found
        stand_in = _MLPGradients.apply(x_N_I, self.layers, copies, *parameters)
        return _MLPOutput.apply(stand_in, x_N_I.detach(), self.layers, copies).view(x.shape)


class _Join(torch.autograd.Function):
    """x → W x + s B A x of several layers."""

    @staticmethod
    def forward(
        ctx: Any, x_N_I: Tensor, layers: tuple[FusedLoRA, ...], copies: tuple[Copies, ...], *_: Tensor
    ) -> tuple[Tensor, ...]:
        low_N_r, outs = _join(layers, copies, x_N_I)
        ctx.save_for_backward(x_N_I, low_N_r)
        ctx.layers, ctx.copies = layers, copies
        return tuple(outs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x_N_I, low_N_r = ctx.saved_tensors
        grad_x, out = _join_backward(
            ctx.layers, ctx.copies, x_N_I, low_N_r, [g.contiguous() for g in grads], ctx.needs_input_grad[0]
        )
        return grad_x, None, None, *out


class FusedQKV:
    """Query, key and value projections of one attention, computed when the query is asked for.

    The attention's own code stays as it is: it calls ``q_proj``, ``k_proj`` and ``v_proj`` on one tensor, and gets from the
    second and third what the first has computed. On another tensor they compute for themselves.
    """

    def __init__(self, module: Any) -> None:
        self.projections = [getattr(module, name) for name in ("q_proj", "k_proj", "v_proj")]
        self.layers = tuple(p.forward for p in self.projections)
        self._input: Tensor | None = None
        self._ready: list[Tensor | None] = [None, None, None]
        for k, projection in enumerate(self.projections):
            projection.forward = functools.partial(self._call, k)

    def _call(self, k: int, x: Tensor) -> Tensor:
        if k > 0 and x is self._input and self._ready[k] is not None:
            out, self._ready[k] = self._ready[k], None
            if all(r is None for r in self._ready):
                self._input = None
            assert out is not None
            return out
        found = adapters(self.layers, x) if k == 0 else None
        if found is None:
            return self.layers[k](x)
        x_N_I, copies, parameters = found
        outs = [out.view(*x.shape[:-1], -1) for out in _Join.apply(x_N_I, self.layers, copies, *parameters)]
        self._input, self._ready = x, [None, *outs[1:]]
        return outs[0]


def adapters(layers: tuple[FusedLoRA, ...], x: Tensor) -> tuple[Tensor, tuple[Copies, ...], list[Tensor]] | None:
    """Input, adapter copies and parameters of the active role; None when the layers must run one by one."""
    active = layers[0].active
    role = active.role
    if role is None or layers[0].layer.disable_adapters or torch.is_autocast_enabled(x.device.type):
        return None
    if active.dropout and any(isinstance(layer.layer.lora_dropout[role], nn.Dropout) for layer in layers):
        return None
    parameters = [p for layer in layers for p in layer.parameters(role)]
    copies = tuple(layer.copies_of(role) for layer in layers)
    return x.reshape(-1, x.shape[-1]).to(layers[0].weight.dtype), copies, parameters


def fuse_blocks(model: nn.Module, mlp: bool) -> None:
    """Join query, key and value everywhere, and with ``mlp`` the layers of every gated SiLU MLP, where all are fused LoRA layers."""
    for module in list(model.modules()):
        if mlp and _has(module, "gate_proj", "up_proj", "down_proj") and _is_silu(getattr(module, "act_fn", None)):
            fused = FusedMLP(module)
            if _same(module, fused):
                module.forward = fused
        if _has(module, "q_proj", "k_proj", "v_proj"):
            FusedQKV(module)


def _has(module: Any, *names: str) -> bool:
    return all(isinstance(getattr(getattr(module, name, None), "forward", None), FusedLoRA) for name in names)


def _is_silu(act: Any) -> bool:
    x = torch.linspace(-3, 3, 7)
    return isinstance(act, nn.Module) and not list(act.parameters()) and torch.allclose(act(x), F.silu(x))


def _same(module: Any, fused: FusedMLP) -> bool:
    """Whether the module computes what its projections and SiLU say: some scale or clip in between."""
    down = fused.layers[2]
    width = fused.layers[0].weight.layer.in_features
    device = down.weight.layer.weight.device
    x = torch.randn(3, width, generator=torch.Generator().manual_seed(0)).to(device, down.weight.dtype)
    with torch.no_grad():
        gate, up = fused.layers[0](x), fused.layers[1](x)
        return torch.allclose(module(x), down(F.silu(gate) * up), rtol=2e-2, atol=2e-2 * float(up.abs().max()))
