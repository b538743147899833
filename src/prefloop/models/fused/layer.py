"""A decoder layer as one autograd step: norm, attention, norm, gated MLP, and their gradients.

Run separately under autograd, these operations cost a GPU nearly as much as their matrix products:
copies for adapters, float32 temporaries, launches. Here the products add the residuals, and joined
projections share one gradient product. The layer also decides what it keeps for the backward pass.
With gradient checkpointing ``none`` it keeps everything. With ``block`` it keeps only its input,
and computes all products but the last one again.

Layers of the Llama family fit (Llama, Mistral, Qwen 2 and 3, SmolLM). ``fuse_layers`` compares the
outputs of each layer, and leaves other layers unchanged.

Shape letters: N tokens, H hidden size, O outputs of joined projections, M the MLP's inner size, D
head size, R ranks.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface

from prefloop.models.fused import kernels
from prefloop.models.fused.lora import Active
from prefloop.models.fused.norms import eps_of
from prefloop.models.fused.projections import Adapters, Joined, RoleCopies


@dataclasses.dataclass(frozen=True)
class Pass:
    """The arguments of a layer's forward pass besides its input."""

    adapters: tuple[Adapters | None, ...]
    """Adapters of query-key-value, output, gate-up and down."""
    cos_N_D: Tensor
    sin_N_D: Tensor
    mask: Tensor | None
    rows: int
    """Number of sequences of equal length in N."""
    options: dict[str, Any]
    """Keyword arguments of the attention function."""


@dataclasses.dataclass
class Kept:
    """A layer's intermediate tensors. Those called wide are [x | s A x] of joined projections."""

    x_N_H: Tensor
    rstd_N: Tensor
    wide_1: Tensor
    qkv: Tensor
    mixed: Tensor
    """Attention's output, with its graph back to ``qkv`` if gradients are needed."""
    wide_2: Tensor
    middle_N_H: Tensor
    middle_rstd_N: Tensor
    wide_3: Tensor
    gate_up: Tensor | None = None


CACHES = ("past_key_values", "cache")
"""transformers' names for a layer's KV cache argument: until 5.23, and since."""


class FusedLayer:
    """The forward pass of one decoder layer.

    With a KV cache or adapter dropout it runs the layer's own code.
    """

    def __init__(self, module: Any, active: Active, recompute: bool) -> None:
        self.module, self.active, self.recompute = module, active, recompute
        self.original = module.forward
        attention, mlp = module.self_attn, module.mlp
        self.attention = attention
        self.norms = [
            (n, eps_of(n) or 0.0) for n in (module.input_layernorm, module.post_attention_layernorm)
        ]
        self.qkv = Joined(
            [p.forward for p in (attention.q_proj, attention.k_proj, attention.v_proj)]
        )
        self.out = Joined([attention.o_proj.forward])
        self.gate_up = Joined([mlp.gate_proj.forward, mlp.up_proj.forward])
        self.down = Joined([mlp.down_proj.forward])
        self.groups = (self.qkv, self.out, self.gate_up, self.down)
        self.heads = tuple(
            (part.stop - part.start) // attention.head_dim for part in self.qkv.parts[:2]
        )
        head_norms = (getattr(attention, "q_norm", None), getattr(attention, "k_norm", None))
        self.head_norms = None if head_norms == (None, None) else head_norms
        self.copies: dict[str, RoleCopies] = {}
        """Role → copies of its adapters, shared by all layers of a model."""

    def __call__(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        use_cache: bool | None = False,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        role = None if self.qkv.layers[0].layer.disable_adapters else self.active.role
        dropped = role is not None and self.active.dropout and self._drops(role)
        config = self.attention.config
        attentions = kwargs.get("output_attentions") or getattr(config, "output_attentions", False)
        cache = {name: kwargs.pop(name) for name in CACHES if name in kwargs}
        cached = any(part is not None for part in cache.values())
        if cached or position_embeddings is None or dropped or attentions:
            arguments = dict(
                attention_mask=attention_mask, position_ids=position_ids, use_cache=use_cache,
                position_embeddings=position_embeddings, **cache, **kwargs,
            )  # fmt: skip
            if not self.recompute or not torch.is_grad_enabled():
                return self.original(hidden_states, **arguments)
            return checkpoint(
                self.original,
                hidden_states,
                use_reentrant=False,
                preserve_rng_state=dropped,
                **arguments,
            )
        options = {**kwargs, "position_ids": position_ids}
        device = hidden_states.device.type
        if torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return self._run(hidden_states, role, attention_mask, position_embeddings, options)
        return self._run(hidden_states, role, attention_mask, position_embeddings, options)

    def _drops(self, role: str) -> bool:
        layers = [layer.layer for group in self.groups for layer in group.layers]
        return any(isinstance(layer.lora_dropout[role], nn.Dropout) for layer in layers)

    def _run(
        self,
        x: Tensor,
        role: str | None,
        mask: Tensor | None,
        angles: tuple[Tensor, Tensor],
        options: dict[str, Any],
    ) -> Tensor:
        rows, length, width = x.shape
        dtype = self.qkv.weights[0].dtype
        # The kernels read contiguous rows.
        cos, sin = (
            a.expand(rows, -1, -1).reshape(rows * length, -1).to(dtype).contiguous() for a in angles
        )
        x_N_H = x.reshape(-1, width).to(dtype).contiguous()
        adapters: tuple[Adapters | None, ...] = (None, None, None, None)
        parameters: list[Tensor] = []
        if role is not None:
            copies = self.copies[role]
            adapters = tuple(copies.of[group] for group in self.groups)
            parameters = [p for group in self.groups for p in copies.parameters[group]]
        run = Pass(adapters, cos, sin, mask, rows, options)
        learns = x.requires_grad or any(p.requires_grad for p in parameters)
        if torch.is_grad_enabled() and learns:
            out_N_H = _Layer.apply(x_N_H, self, run, *parameters)
        else:
            out_N_H = self.compute(x_N_H, run)[0]
        return out_N_H.view(x.shape)

    def attend(self, x_N_H: Tensor, run: Pass, graph: bool) -> Kept:
        """The layer up to its MLP. With ``graph`` attention keeps its graph for the backward
        pass.
        """
        count = len(x_N_H)
        (norm_1, eps_1), (norm_2, eps_2) = self.norms
        wide_1, first = self.qkv.buffer(count, x_N_H, run.adapters[0])
        rstd_N = kernels.norm(x_N_H, norm_1.weight, eps_1, first)
        qkv = self.qkv.forward(wide_1, run.adapters[0])
        with torch.set_grad_enabled(graph):
            mixed = self._mix(qkv.requires_grad_(graph), run)
        wide_2, second = self.out.buffer(count, x_N_H, run.adapters[1])
        second.copy_(mixed.detach())
        middle_N_H = self.out.forward(wide_2, run.adapters[1], x_N_H)
        wide_3, third = self.gate_up.buffer(count, x_N_H, run.adapters[2])
        middle_rstd_N = kernels.norm(middle_N_H, norm_2.weight, eps_2, third)
        return Kept(x_N_H, rstd_N, wide_1, qkv, mixed, wide_2, middle_N_H, middle_rstd_N, wide_3)

    def _mix(self, qkv: Tensor, run: Pass) -> Tensor:
        """Rotation, and attention [N, heads × D] by the model's own attention function."""
        attention = self.attention
        parts = kernels.heads_of(qkv, run.cos_N_D, run.sin_N_D, self.heads, self.head_norms)
        query, key, value = (part.unflatten(0, (run.rows, -1)).transpose(1, 2) for part in parts)
        name = attention.config._attn_implementation
        function = AttentionInterface().get_interface(name, _eager(attention))
        window = getattr(attention.config, "sliding_window", None)
        mixed, _ = function(
            attention,
            query,
            key,
            value,
            run.mask,
            dropout=0.0,
            scaling=attention.scaling,
            sliding_window=getattr(attention, "sliding_window", window),
            **run.options,
        )
        return mixed.reshape(len(qkv), -1)

    def compute(self, x_N_H: Tensor, run: Pass, graph: bool = False) -> tuple[Tensor, Kept]:
        """The layer's output [N, H], and its intermediate tensors."""
        kept = self.attend(x_N_H, run, graph)
        kept.gate_up = self.gate_up.forward(kept.wide_3, run.adapters[2])
        wide_4, inner_N_M = self.down.buffer(len(x_N_H), x_N_H, run.adapters[3])
        kernels.swiglu(kept.gate_up, inner_N_M)
        return self.down.forward(wide_4, run.adapters[3], kept.middle_N_H, inplace=not graph), kept

    def gradients(
        self, grad_N_H: Tensor, kept: Kept, run: Pass, needs_x: bool
    ) -> tuple[Tensor | None, list[Tensor]]:
        """Gradients of the input, and of each projection's A and B (none for the bare base)."""
        of_qkv, of_out, of_gate_up, of_down = run.adapters
        (norm_1, _), (norm_2, _) = self.norms
        out: list[list[Tensor]] = []
        assert kept.gate_up is not None
        gate_up, kept.gate_up = kept.gate_up, None
        inner_N_M, back_N_R = self.down.backward(grad_N_H, of_down)
        kernels.swiglu_gradient(gate_up, inner_N_M)  # in place; inner_N_M is then the MLP's inside
        grad_gate_up = gate_up
        if of_down is not None:
            low_N_R = inner_N_M @ of_down.a_R_I.T
            out.append(self.down.gradients(inner_N_M, low_N_R, grad_N_H, back_N_R, of_down))
        del inner_N_M, back_N_R
        grad_third, back_N_R = self.gate_up.backward(grad_gate_up, of_gate_up)
        if of_gate_up is not None:
            inputs = self.gate_up.split(kept.wide_3)
            out.append(self.gate_up.gradients(*inputs, grad_gate_up, back_N_R, of_gate_up))
        del grad_gate_up, gate_up
        grad_middle = kernels.norm_gradient(
            grad_third, kept.middle_N_H, norm_2.weight, kept.middle_rstd_N, grad_N_H
        )
        grad_mixed, back_N_R = self.out.backward(grad_middle, of_out)
        if of_out is not None:
            inputs = self.out.split(kept.wide_2)
            out.append(self.out.gradients(*inputs, grad_middle, back_N_R, of_out))
        (grad_qkv,) = torch.autograd.grad(kept.mixed, kept.qkv, grad_mixed.contiguous())
        grad_first, back_N_R = self.qkv.backward(grad_qkv, of_qkv, needs_x)
        if of_qkv is not None:
            out.append(self.qkv.gradients(*self.qkv.split(kept.wide_1), grad_qkv, back_N_R, of_qkv))
        grad_x = None
        if needs_x:
            grad_x = kernels.norm_gradient(
                grad_first, kept.x_N_H, norm_1.weight, kept.rstd_N, grad_middle
            )
        return grad_x, [gradient for group in reversed(out) for gradient in group]


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_N_H: Tensor, layer: FusedLayer, run: Pass, *_: Tensor) -> Tensor:
        ctx.layer, ctx.run = layer, run
        ctx.copies = layer.copies[layer.active.role] if run.adapters[0] is not None else None  # type: ignore[index]
        ctx.generation = ctx.copies.generation if ctx.copies is not None else 0
        ctx.save_for_backward(x_N_H)
        out_N_H, kept = layer.compute(x_N_H, run, graph=not layer.recompute)
        ctx.kept = None if layer.recompute else kept
        return out_N_H

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_N_H: Tensor) -> tuple[Tensor | None, ...]:
        layer, run = ctx.layer, ctx.run
        kept, ctx.kept = ctx.kept, None
        if ctx.copies is not None and ctx.copies.generation != ctx.generation:
            raise RuntimeError(
                "the adapter changed between a forward pass and its backward: call backward before"
                " the optimizer's step"
            )
        if kept is None:
            kept = layer.attend(*ctx.saved_tensors, run, graph=True)
            kept.gate_up = layer.gate_up.forward(kept.wide_3, run.adapters[2])
        grad_x, gradients = layer.gradients(
            grad_N_H.contiguous(), kept, run, ctx.needs_input_grad[0]
        )
        return grad_x, None, None, *gradients


def _eager(attention: Any) -> Any:
    """The eager attention function in the model's own module."""
    return getattr(sys.modules[type(attention).__module__], "eager_attention_forward", None)
