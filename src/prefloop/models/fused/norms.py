"""RMS norms in one kernel: transformers' own take seven passes over the activations in float32."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def fuse_norms(model: nn.Module) -> int:
    """Replace the forward of every norm that computes x / rms(x) times its weight (or 1 + weight:
    Gemma); returns how many.

    What a module computes is found by running it on random numbers, not by its class; one that
    computes something else stays as it is.
    """
    count = 0
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if (
            "RMSNorm" not in type(module).__name__
            or not isinstance(weight, Tensor)
            or weight.ndim != 1
        ):
            continue
        eps = eps_of(module)
        if eps is None:
            continue
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(4, len(weight), generator=generator).to(weight.device, weight.dtype)
        with torch.no_grad():
            expected = module(x)
            # 1 + weight would be rounded to half precision here and is not in the module: Gemma's
            # norms are joined in float32 alone.
            for offset in (0.0, 1.0) if weight.dtype == torch.float32 else (0.0,):
                tolerance = 1e-2 * float(expected.abs().max())
                if torch.allclose(
                    _norm(x, weight, eps, offset), expected, atol=tolerance, rtol=1e-2
                ):
                    module.forward = functools.partial(_forward, module, eps, offset)
                    count += 1
                    break
    return count


def eps_of(norm: Any) -> float | None:
    """The small number under an RMS norm's root, if the module names one."""
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    return eps if isinstance(eps, float) else None


def _norm(x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
    return F.rms_norm(x, weight.shape, weight + offset if offset else weight, eps)


def _forward(module: Any, eps: float, offset: float, hidden_states: Tensor) -> Tensor:
    return _norm(hidden_states, module.weight, eps, offset)
