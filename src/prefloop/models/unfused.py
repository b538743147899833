"""Run the backbone with the code of transformers, PEFT and bitsandbytes only.

Benchmarks use this, so that others can reproduce the numbers. prefloop's own forward passes (the
modules of ``models.fused``) round differently in the last bits.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig

from prefloop.models.backbone import Backbone
from prefloop.models.fused import attention
from prefloop.models.fused import norms as fused
from prefloop.models.fused.layer import FusedLayer
from prefloop.models.fused.lora import FusedLoRA


@contextlib.contextmanager
def plain(backbone: Backbone) -> Iterator[Backbone]:
    """Within this block every forward pass is the libraries' own.

    ``Backbone.activate`` changes the role. Add roles unfrozen, so that they stay in float32 as PEFT
    loads them. Do not run prefloop's passes (``Backbone.role``, scores, log-probs) inside the
    block: on some CPUs bitsandbytes reorders the 4-bit weights. Everything is restored at the end,
    bit by bit.
    """
    with contextlib.ExitStack() as stack:
        for module in backbone.model.modules():
            if _is_ours(module.__dict__.get("forward")):
                stack.callback(setattr, module, "forward", module.__dict__.pop("forward"))
            if hasattr(module, "support_avx512bf16_for_cpu"):
                stack.callback(
                    _restore, module, module.weight.data, dict(vars(module.weight.quant_state))
                )
                module.support_avx512bf16_for_cpu = _packs()
        model = backbone.causal_lm
        if model.config._attn_implementation == attention.NAME:
            model.set_attn_implementation("sdpa")
            stack.callback(model.set_attn_implementation, attention.NAME)
        stack.callback(setattr, model.config, "use_cache", model.config.use_cache)
        model.config.use_cache = True
        stack.callback(setattr, model, "generation_config", model.generation_config)
        # The rollout engine has replaced the model's generation config with neutral defaults.
        model.generation_config = _own_generation(backbone)
        if backbone.device.type == "cuda":
            stack.callback(
                torch.backends.cuda.enable_cudnn_sdp, torch.backends.cuda.cudnn_sdp_enabled()
            )
            torch.backends.cuda.enable_cudnn_sdp(True)
        stack.callback(backbone.activate, None)
        yield backbone


def _is_ours(forward: Any) -> bool:
    norm = isinstance(forward, functools.partial) and forward.func is fused._forward
    return norm or isinstance(forward, FusedLayer | FusedLoRA)


def _own_generation(backbone: Backbone) -> GenerationConfig:
    try:
        return GenerationConfig.from_pretrained(backbone.folder)
    except OSError:  # the model has no generation_config.json
        return GenerationConfig.from_model_config(backbone.causal_lm.config)


def _packs() -> bool:
    """Whether bitsandbytes reorders 4-bit weights on this CPU at the first pass, for its bfloat16
    kernel.
    """
    from bitsandbytes.functional import has_avx512bf16

    return bool(has_avx512bf16())


def _restore(module: nn.Module, content: torch.Tensor, state: dict[str, Any]) -> None:
    """Restore a 4-bit layer's original bytes. bitsandbytes' own way back would round them."""
    weight: Any = module.weight
    module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    weight.data = content
    vars(weight.quant_state).clear()
    vars(weight.quant_state).update(state)
