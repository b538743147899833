"""From a folder to a frozen model with room for adapters: precision, attention, what transformers
and bitsandbytes must not do to it.
"""

from __future__ import annotations

import contextlib
import ctypes
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
    """bfloat16 where the device multiplies it fast (GPUs, CPUs with AMX tiles), else float32;
    ``backbone.compute`` overrides.

    Without AMX a bfloat16 matrix product on a CPU is slower than a float32 one (160 against 265
    GFLOP/s on the machine of docs/benchmarks.md), so 4-bit storage goes with float32 arithmetic
    there.
    """
    if config.precision == "fp32" or config.compute == "fp32":
        return torch.float32
    fast = device.type != "cpu" or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast or config.compute == "bf16" else torch.float32


def load(
    config: BackboneConfig, place: Path, device: torch.device
) -> tuple[Any, Method, ChatFormat]:
    """The model in ``place`` in the configured precision, frozen, wrapped for adapters, without a
    role yet; the method; how it chats.

    Raises ``ModelError`` for whatever is wrong with the folder, before weights are read where
    configuration, tokenizer or headers tell it.
    """
    method, blank = fitting(config, place)
    stored = stored_quantization(place)
    if stored is not None and (config.precision != "nf4" or not stored.get("load_in_4bit")):
        raise ModelError(
            f"{config.model} is stored quantised ({stored.get('quant_method', 'unknown')}): only"
            " bitsandbytes' 4 bits can be trained on, with backbone.precision nf4"
        )
    folder.require_weights(place, blank)
    chat = ChatFormat.load(folder.tokenizer(place), config.chat_template)
    chat.require_within(blank.get_input_embeddings().weight.shape[0])
    dtype = compute_dtype(config, device)
    if device.type == "cpu":
        keep_freed_memory()
    quantization: dict[str, Any] = {}  # given as None it would hide what is stored
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
    described = folder.configuration(place)
    rope.stretch(described, config)
    model = folder.weights(
        place,
        config.model,
        dtype,
        device,
        config=described,
        **quantization,
        attn_implementation=_implementation(config, place, device),
    )
    model.requires_grad_(False)
    if stored is not None:
        _compute_in(model, dtype)
    for module in model.modules():
        # On CPUs with AVX512-BF16, bitsandbytes would repack the 4-bit weights in place at the
        # first scoring pass, for a kernel without a backward: later gradients would be silently
        # wrong, the frozen bytes would change, merging would read garbage.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    if config.gradient_checkpointing == "block":
        model.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={
                "use_reentrant": False,
                "preserve_rng_state": config.adapter.dropout > 0,
            }
        )
    if not getattr(
        model, "_supports_sdpa", True
    ):  # attention sinks and the like: only the model's own code has them
        model.set_attn_implementation("eager")
    model.config.use_cache = False
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    if kinds - {"full_attention", "sliding_attention"}:
        raise ModelError(
            f"{config.model} has layers of kind {sorted(kinds)}: packed branches need plain"
            " attention, choose another model"
        )
    if device.type == "cuda":
        fuse_norms(model)
        torch.backends.cuda.enable_cudnn_sdp(
            False
        )  # it plans anew, for most of a second, for every length of a pack
    wrapped = method.wrap(model)
    wrapped.eval()
    return wrapped, method, chat


def stored_quantization(place: Path) -> dict[str, Any] | None:
    """How the weights in a folder are quantised already, if they are. Raises ``ModelError`` where
    its config.json is damaged.
    """
    found: dict[str, Any] | None = folder.described(place).get("quantization_config")
    return found


def _compute_in(model: nn.Module, dtype: torch.dtype) -> None:
    """Weights stored in 4 bits bring the precision that they were made for: theirs becomes this
    run's.
    """
    for parameter in model.parameters():
        if state := getattr(parameter, "quant_state", None):
            state.dtype = dtype
        elif parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def keep_freed_memory() -> None:
    """Tell glibc to reuse freed memory instead of returning it to the system: activations are tens
    of megabytes, allocated anew in every pass, and each fresh page costs a fault (20 % of training
    time on the machine of docs/benchmarks.md).
    """
    with contextlib.suppress(OSError, AttributeError):  # not glibc: nothing to tune
        libc = ctypes.CDLL("libc.so.6")
        m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)
        libc.mallopt(m_top_pad, 64 << 20)


def _implementation(config: BackboneConfig, place: Path, device: torch.device) -> str:
    """transformers' name of the attention that the model is loaded with."""
    if config.attention in ("sdpa", "eager"):
        return config.attention
    if folder.text_part(folder.described(place)).get("attn_logit_softcapping"):
        return "eager"  # the one implementation with a soft cap
    return attention.NAME if device.type == "cuda" else "sdpa"
