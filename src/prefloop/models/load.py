"""Load a model's folder as a frozen model that takes adapters.

This module sets the precision and the attention, and turns off what transformers and bitsandbytes
would do wrongly.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.utils import logging

from prefloop.config import BackboneConfig
from prefloop.data.chat import ChatFormat
from prefloop.errors import ModelError
from prefloop.models import folder, rope
from prefloop.models.adapters.fit import fitting
from prefloop.models.adapters.method import Method
from prefloop.models.fused import attention
from prefloop.models.fused.norms import fuse_norms


def compute_dtype(config: BackboneConfig, device: torch.device) -> torch.dtype:
    """The dtype of the arithmetic: bfloat16 where the device multiplies it fast, else float32.

    GPUs and CPUs with AMX tiles multiply bfloat16 fast. Without AMX a bfloat16 product on a CPU is
    slower than a float32 one (160 against 265 GFLOP/s on the machine of docs/benchmarks.md).
    ``backbone.compute`` overrides the choice.
    """
    if config.precision == "fp32" or config.compute == "fp32":
        return torch.float32
    fast = device.type != "cpu" or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast or config.compute == "bf16" else torch.float32


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A frozen model that takes adapters and has none yet."""

    model: Any
    """The transformers model with the adapter method's layers or hooks on it."""
    method: Method
    chat: ChatFormat


def load(config: BackboneConfig, place: Path, device: torch.device) -> LoadedModel:
    """Load the model in the folder ``place`` onto ``device`` in the configured precision.

    Raises ``ModelError`` for any problem with the folder. Problems that the configuration, the
    tokenizer or the weights' headers show are raised before the weights are read.
    """
    method, blank = fitting(config, place)
    stored = stored_quantization(place)
    if stored is not None and (config.precision != "nf4" or not stored.get("load_in_4bit")):
        raise ModelError(
            f"{config.model} is stored quantized ({stored.get('quant_method', 'unknown')}): only"
            " bitsandbytes' 4-bit weights can be trained on, with backbone.precision nf4"
        )
    folder.require_weights(place, blank)
    chat = ChatFormat.load(folder.tokenizer(place), config.chat_template)
    chat.require_within(blank.get_input_embeddings().weight.shape[0])
    dtype = compute_dtype(config, device)
    if device.type == "cpu":
        keep_freed_memory()
    # A quantization_config of None would override the stored one, so it is left out entirely.
    quantization: dict[str, BitsAndBytesConfig] = {}
    if config.precision == "nf4" and stored is None:
        quantization["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_quant_storage=torch.uint8,
        )
    logging.disable_progress_bar()
    attention.register()
    model_config = folder.configuration(place)
    rope.stretch(model_config, config)
    model = folder.weights(
        place,
        config.model,
        dtype,
        device,
        config=model_config,
        **quantization,
        attn_implementation=_implementation(config, place, device),
    )
    model.requires_grad_(False)
    if stored is not None:
        _compute_in(model, dtype)
    for module in model.modules():
        # On CPUs with AVX512-BF16, bitsandbytes would repack the 4-bit weights in place at the
        # first scoring pass, for a kernel without a backward pass. Later gradients would be wrong
        # without an error, the frozen bytes would change, and merging would read garbage.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    if config.gradient_checkpointing == "block":
        model.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={
                "use_reentrant": False,
                "preserve_rng_state": config.adapter.dropout > 0,
            }
        )
    # Only the model's own eager code has features such as attention sinks.
    if not getattr(model, "_supports_sdpa", True):
        model.set_attn_implementation("eager")
    model.config.use_cache = False
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    if kinds - {"full_attention", "sliding_attention"}:
        raise ModelError(
            f"{config.model} has layers of kind {sorted(kinds)}, and packed branches need plain"
            " attention: choose another model"
        )
    if device.type == "cuda":
        fuse_norms(model)
        # cuDNN's attention makes a plan for every new pack length, which takes most of a second.
        torch.backends.cuda.enable_cudnn_sdp(False)
    wrapped = method.wrap(model)
    wrapped.eval()
    return LoadedModel(wrapped, method, chat)


def stored_quantization(place: Path) -> dict[str, Any] | None:
    """The quantization_config of a folder's config.json; ``None`` for float weights.

    Raises ``ModelError`` for a damaged config.json.
    """
    stored: dict[str, Any] | None = folder.described(place).get("quantization_config")
    return stored


def _compute_in(model: nn.Module, dtype: torch.dtype) -> None:
    """Set this run's compute dtype on stored 4-bit weights, which bring their own."""
    for parameter in model.parameters():
        if state := getattr(parameter, "quant_state", None):
            state.dtype = dtype
        elif parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def keep_freed_memory() -> None:
    """Tell glibc to reuse freed memory instead of returning it to the system.

    Every pass allocates tens of megabytes of activations, and each fresh page costs a page fault:
    20 % of training time on the machine of docs/benchmarks.md.
    """
    with contextlib.suppress(OSError, AttributeError):  # not glibc: nothing to tune
        libc = ctypes.CDLL("libc.so.6")
        m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)
        libc.mallopt(m_top_pad, 64 << 20)


def _implementation(config: BackboneConfig, place: Path, device: torch.device) -> str:
    """transformers' name for the attention to load the model with."""
    if config.attention in ("sdpa", "eager"):
        return config.attention
    if folder.text_part(folder.described(place)).get("attn_logit_softcapping"):
        return "eager"  # only eager attention has a soft cap
    return attention.NAME if device.type == "cuda" else "sdpa"
