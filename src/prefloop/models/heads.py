"""Output heads: the scalar heads of rewards and values, and the language model's own head.

A scalar head is always saved in its adapter's folder.

Shape letters: C positions, H hidden size, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, StrictBool
from safetensors.torch import save_file
from torch import Tensor, nn

from prefloop.base.json_object import read_as
from prefloop.errors import ModelError
from prefloop.models.folder import read_tensors


@dataclasses.dataclass(frozen=True)
class _Saved:
    """The content of head.json."""

    hidden_size: Annotated[int, Field(strict=True, ge=1, le=1 << 20)]
    bias: StrictBool


class ScalarHead(nn.Module):
    """A linear head from a hidden state to one float32 number, with a mean and scale to normalize
    it.

    The hidden state is first divided by its root mean square, so that learning rates and initial
    values mean the same on every model. Value heads start at 0 (Huang et al. 2023, arXiv
    2403.17031). Reward heads start at N(0, 1/(d + 1)). The paper's 1/sqrt(d + 1) starts the
    Bradley-Terry loss well above ln 2, and a small data set would be spent on unlearning that.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, hidden_size: int, init: str = "zero", seed: int = 0) -> None:
        super().__init__()
        # Bradley-Terry uses differences only, so a reward head's bias would get no gradient.
        self.linear = nn.Linear(hidden_size, 1, bias=init == "zero")
        if self.linear.bias is not None:
            nn.init.zeros_(self.linear.bias)
        if init == "zero":
            nn.init.zeros_(self.linear.weight)
        else:
            generator = torch.Generator().manual_seed(seed)
            nn.init.normal_(self.linear.weight, std=1 / (hidden_size + 1), generator=generator)
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., H] → raw scores [...], not normalized."""
        with torch.autocast(hidden.device.type, enabled=False):
            hidden = hidden.float()
            scaled = hidden * hidden.square().mean(-1, keepdim=True).clamp_min(1e-12).rsqrt()
            return self.linear(scaled).squeeze(-1)

    def normalized(self, scores: Tensor) -> Tensor:
        """Scale scores so that ``calibrate``'s reference set has mean 0 and standard deviation
        1.
        """
        return (scores - self.mean) / self.std

    def calibrate(self, scores: Tensor) -> None:
        """Take mean and standard deviation from the scores of a reference set."""
        self.mean.copy_(scores.mean())
        self.std.copy_(scores.std().clamp_min(1e-6))

    def save(self, folder: Path) -> None:
        """Write ``head.safetensors`` and ``head.json``."""
        tensors = {k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}
        save_file(tensors, folder / "head.safetensors")
        saved = _Saved(self.linear.in_features, self.linear.bias is not None)
        (folder / "head.json").write_text(json.dumps(dataclasses.asdict(saved)))

    @classmethod
    def load(cls, folder: Path) -> ScalarHead:
        """Read a head that ``save`` wrote. Raises ``ModelError`` for a missing or damaged head."""
        if not (folder / "head.safetensors").is_file():
            raise ModelError(
                f"'{folder.name}' holds an adapter without its scalar head (head.safetensors is"
                " missing)"
            )
        saved = read_as(_Saved, folder / "head.json")
        tensors = read_tensors(folder, file="head.safetensors")
        head = cls(saved.hidden_size, init="zero" if saved.bias else "normal")
        expected = {name: tensor.shape for name, tensor in head.state_dict().items()}
        if {n: t.shape for n, t in tensors.items()} != expected or tensors["std"] <= 0:
            raise ModelError(
                f"'{folder.name}': head.safetensors does not match head.json: make or copy it again"
            )
        head.load_state_dict(tensors)
        return head


def head_logits(model: Any, hidden_C_H: Tensor) -> Tensor:
    """Float32 logits [C, V] of a transformers model for hidden states [C, H].

    Includes the model's scale (Cohere, Granite) and soft cap (Gemma 2).
    """
    head = model.get_output_embeddings()
    config = model.config.get_text_config()
    logits: Tensor = head(hidden_C_H.to(head.weight.dtype)).float()
    scale = head_scale(config)
    if scale != 1:
        logits = logits * scale
    cap = getattr(config, "final_logit_softcapping", None)
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    return logits


def head_scale(config: Any) -> float:
    """The factor on the logits: Cohere's ``logit_scale``, Granite's divisor ``logits_scaling``,
    or 1.
    """
    return float(getattr(config, "logit_scale", 1.0) / getattr(config, "logits_scaling", 1.0))
