"""RMS norms in one kernel. transformers' own norms take seven float32 passes over the
activations.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def fuse_norms(model: nn.Module) -> int:
    """Replace the forward of every norm that computes x / rms(x) times its weight; returns how
    many.

    Gemma's norms multiply by 1 + weight. Each module is run on random numbers to see what it
    computes, and a module that computes something else stays unchanged.
    """
    count = 0
    for module in model.modules():
        weight = getattr(module, "weight", None)
        eps = eps_of(module)
        named = "RMSNorm" in type(module).__name__
        if not named or not isinstance(weight, Tensor) or weight.ndim != 1 or eps is None:
            continue
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(4, len(weight), generator=generator).to(weight.device, weight.dtype)
        with torch.no_grad():
            expected = module(x)
            # In half precision 1 + weight would be rounded here but not in the module, so Gemma's
            # norms are replaced in float32 only.
            for offset in (0.0, 1.0) if weight.dtype == torch.float32 else (0.0,):
                tolerance = 1e-2 * float(expected.abs().max())
                ours = _norm(x, weight, eps, offset)
                if torch.allclose(ours, expected, atol=tolerance, rtol=1e-2):
                    module.forward = functools.partial(_forward, module, eps, offset)
                    count += 1
                    break
    return count


def eps_of(norm: Any) -> float | None:
    """The epsilon of an RMS norm; ``None`` if the module has none."""
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    return eps if isinstance(eps, float) else None


def _norm(x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
    return F.rms_norm(x, weight.shape, weight + offset if offset else weight, eps)


def _forward(module: Any, eps: float, offset: float, hidden_states: Tensor) -> Tensor:
    return _norm(hidden_states, module.weight, eps, offset)
