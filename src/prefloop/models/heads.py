"""Scalar heads for reward and value; always saved beside their adapter."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

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
    """Hidden state → one number, in float32, with a shift and scale that normalise its output.

    The hidden state is divided by its root mean square first, so that learning rates and initial
    values mean the same on every model. Value heads start at 0 (Huang et al. 2023, arXiv
    2403.17031). Reward heads start at N(0, 1/(d + 1)) rather than the paper's 1/sqrt(d + 1), which
    starts Bradley-Terry well above ln 2 and spends a small data set on unlearning that.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, hidden_size: int, init: str = "zero", seed: int = 0) -> None:
        super().__init__()
        # Bradley-Terry sees differences only: a reward head's bias would get no gradient.
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
        """[..., H] → [...]; the raw score, not normalised."""
        with torch.autocast(hidden.device.type, enabled=False):
            hidden = hidden.float()
            scaled = hidden * hidden.square().mean(-1, keepdim=True).clamp_min(1e-12).rsqrt()
            return self.linear(scaled).squeeze(-1)

    def normalized(self, scores: Tensor) -> Tensor:
        """Scores with mean 0 and standard deviation 1 on the reference set that ``calibrate``
        saw.
        """
        return (scores - self.mean) / self.std

    def calibrate(self, scores: Tensor) -> None:
        """Take mean and standard deviation from the scores of a reference set."""
        self.mean.copy_(scores.mean())
        self.std.copy_(scores.std().clamp_min(1e-6))

    def save(self, folder: Path) -> None:
        """Write ``head.safetensors``."""
        save_file(
            {k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()},
            folder / "head.safetensors",
        )
        (folder / "head.json").write_text(
            json.dumps(
                {"hidden_size": self.linear.in_features, "bias": self.linear.bias is not None}
            )
        )

    @classmethod
    def load(cls, folder: Path) -> ScalarHead:
        """Read a head written by ``save``; raises ``ModelError`` when the folder has none, or one
        that is damaged.
        """
        if not (folder / "head.safetensors").is_file():
            raise ModelError(
                f"'{folder.name}' holds an adapter without its scalar head (head.safetensors is"
                " missing)"
            )
        saved = read_as(_Saved, folder / "head.json")
        tensors = read_tensors(folder, file="head.safetensors")
        head = cls(saved.hidden_size, init="zero" if saved.bias else "normal")
        own = head.state_dict()
        if {n: t.shape for n, t in tensors.items()} != {
            n: t.shape for n, t in own.items()
        } or tensors["std"] <= 0:
            raise ModelError(
                f"'{folder.name}': head.safetensors is not what head.json says: make or copy it"
                " again"
            )
        head.load_state_dict(tensors)
        return head
