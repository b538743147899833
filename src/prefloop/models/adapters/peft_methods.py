"""Methods of PEFT that are no low-rank sums: each changes a linear layer's input, output or weight
in its own way.

All are affine maps of the layer's input, so they merge (``models.merge``); none is fused, so they
run under autocast.
"""

from __future__ import annotations

import copy
import re
import warnings
from pathlib import Path
from typing import Any, ClassVar

import torch
from peft import (
    BOFTConfig,
    HRAConfig,
    IA3Config,
    MissConfig,
    OFTConfig,
    RandLoraConfig,
    VeraConfig,
)
from peft.tuners.boft import layer
from peft.tuners.hra.layer import HRALinear
from torch import Tensor

from prefloop.errors import ModelError
from prefloop.models.adapters.in_place import product
from prefloop.models.adapters.lora import Tuner, over
from prefloop.models.adapters.method import BLANK
from prefloop.models.adapters.targets import targeted

CAUSAL = "CAUSAL_LM"


class Drawn(Tuner):
    """A method with random matrices that all layers share: a key draws them again, so no file holds
    them.
    """

    places: ClassVar[tuple[str, str]]
    """Where layers keep the matrices."""

    def wrap(self, model: Any) -> Any:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Specified to not save")
            return super().wrap(model)

    def add(self, role: str) -> None:
        # By hand: PEFT draws the matrices again for each adapter, and puts RandLoRA's 4-bit layers
        # around each other.
        config = copy.deepcopy(self.model.peft_config[BLANK])
        self.model.peft_config[role] = config
        for part in self.layers:
            drawn = [getattr(part, name) for name in self.places]
            part.update_layer(role, *drawn, config.r, config=config)
        for parameter in self.parameters(role).values():
            parameter.data = parameter.data.float()  # as PEFT does to what it adds itself

    def state(self, role: str) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self.parameters(role).items()}


class VeRA(Drawn):
    """VeRA (Kopiczko et al. 2023, arXiv 2310.11454): W x + b ∘ B (d ∘ A x), vectors b = 0 and d
    learn, A and B are drawn from a key.
    """

    waits: ClassVar = {"vera_lambda_d": ("vera_lambda_b",)}
    compared = ("projection_prng_key", "r")
    places = ("vera_A", "vera_B")

    def peft_config(self, blank: bool = False) -> VeraConfig:
        return VeraConfig(
            r=self.config.r,
            vera_dropout=self.config.dropout,
            d_initial=self.options["d_initial"],
            projection_prng_key=self.options["key"],
            save_projection=False,  # a key instead of gigabytes
            target_modules=self.config.target_modules,
            task_type=CAUSAL,
        )


class RandLoRA(Drawn):
    """RandLoRA (Albert et al. 2025, arXiv 2502.00987): W x + s Σ_k B_k Λ_k A Γ_k x over enough
    random bases for full rank; Λ = 0 and Γ learn.
    """

    waits: ClassVar = {"randlora_gamma": ("randlora_lambda",)}
    compared = ("projection_prng_key", "r", "randlora_alpha")
    places = ("randlora_A", "randlora_B")

    def peft_config(self, blank: bool = False) -> RandLoraConfig:
        return RandLoraConfig(
            r=self.config.r,
            randlora_alpha=round(self.options["scale"] * self.config.r),
            randlora_dropout=self.config.dropout,
            projection_prng_key=self.options["key"],
            save_projection=False,
            target_modules=self.config.target_modules,
            task_type=CAUSAL,
        )

    def misfit(self, inputs: int, outputs: int) -> str | None:
        return over(self.config.r, min(inputs, outputs))


IA3_KINDS = ("k_proj", "v_proj", "down_proj")


class IA3(Tuner):
    """IA³ (Liu et al. 2022, arXiv 2205.05638): keys, values and what goes into the MLP's last layer
    are scaled by learnt vectors, 1 at the start.

    ``target_modules`` "all-linear", the default of others, means these three layers.
    """

    @property
    def targets(self) -> str:
        wanted = self.config.target_modules
        return rf".*\.({'|'.join(IA3_KINDS)})" if wanted == "all-linear" else wanted

    def check(self, model: Any, name: str, folder: Path | None) -> None:
        ends = sorted({layer.rpartition(".")[2] for layer in targeted(model, "all-linear")})
        try:
            re.compile(self.options["feedforward"])
        except re.error as error:
            raise ModelError(
                f"backbone.adapter.options.feedforward is no regular expression: {error}"
            ) from None
        missing = [kind for kind in IA3_KINDS if kind not in ends]
        if missing and self.config.target_modules == "all-linear":
            raise ModelError(
                f"adapter ia3: {name} has no {' or '.join(missing)}, its layers end in"
                f" {', '.join(ends)}: name those whose output is scaled and the MLP's last in"
                " backbone.adapter.target_modules, the latter in"
                " backbone.adapter.options.feedforward too, or take another method, such as vera"
            )

    def peft_config(self, blank: bool = False) -> IA3Config:
        return IA3Config(
            target_modules=self.targets,
            feedforward_modules=self.options["feedforward"],
            task_type=CAUSAL,
        )


class OFT(Tuner):
    """OFT (Qiu et al. 2023, arXiv 2306.07280): W R x, R block-diagonal and orthogonal by Cayley's
    transform (I + Q)(I - Q)⁻¹, Q = 0 at the start.
    """

    compared = ("oft_block_size", "use_cayley_neumann")

    def peft_config(self, blank: bool = False) -> OFTConfig:
        return OFTConfig(
            r=0,
            oft_block_size=self.options["block"],
            use_cayley_neumann=self.options["neumann"],
            target_modules=self.config.target_modules,
            task_type=CAUSAL,
        )

    def misfit(self, inputs: int, outputs: int) -> str | None:
        return _uneven(inputs, self.options["block"])


class BlockDiagonal:
    """PEFT's kernel for products of blocks, in torch: PEFT would compile one with CUDA's tools, or
    fall back to a single factor without a word.
    """

    def forward(self, blocks_Z_D_H_H: Tensor) -> list[Tensor]:
        """Blocks on the diagonal of one matrix each, [Z, D H, D H]."""
        return [torch.stack([torch.block_diag(*blocks) for blocks in blocks_Z_D_H_H])]

    def backward(self, grad_Z_DH_DH: Tensor, blocks_Z_D_H_H: Tensor) -> list[Tensor]:
        """What of the gradient lies on the blocks."""
        _, d, h, _ = blocks_Z_D_H_H.shape
        grad = grad_Z_DH_DH.unflatten(1, (d, h)).unflatten(3, (d, h))
        return [grad.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2).contiguous()]


class BOFT(Tuner):
    """BOFT (Liu et al. 2023, arXiv 2311.06243): OFT whose rotation is a product of block-diagonal
    factors in butterfly order, outputs scaled.
    """

    compared = ("boft_block_size", "boft_n_butterfly_factor")

    def wrap(self, model: Any) -> Any:
        layer._FBD_CUDA = BlockDiagonal()
        return super().wrap(model)

    def peft_config(self, blank: bool = False) -> BOFTConfig:
        return BOFTConfig(
            boft_block_size=self.options["block"],
            boft_n_butterfly_factor=self.options["factors"],
            boft_dropout=self.config.dropout,
            target_modules=self.config.target_modules,
            task_type=CAUSAL,
        )

    def misfit(self, inputs: int, outputs: int) -> str | None:
        return _uneven(inputs, self.options["block"] * 2 ** (self.options["factors"] - 1))


class ReflectingLinear(HRALinear):
    """PEFT's layer with the reflections on its input, not on its weight: 4-bit weights take part,
    and no product of I x I matrices is kept.

    With unit vectors U [I, R] the chain is Π_i (I - 2 u_i u_iᵀ) = I - U T Uᵀ, T upper triangular
    with T⁻¹ = I / 2 + the part of UᵀU above its diagonal (Joffrain et al. 2006, "Accumulating
    Householder transformations, revisited", ACM TOMS 32(2)): the cost of one LoRA.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters or self.merged:
            return super().forward(x, *args, **kwargs)
        for name in reversed(self.active_adapters):
            if name in self.hra_u:
                x = x - product(x, *self._reflections(name)).to(x.dtype)
        out: Tensor = self.base_layer(x, *args, **kwargs)
        return out

    def _reflections(self, name: str) -> tuple[Tensor, Tensor]:
        """Uᵀ [R, I] and U T [I, R]."""
        with torch.autocast(self.hra_u[name].device.type, enabled=False):
            u_I_R = self.hra_u[name] / self.hra_u[name].norm(dim=0)
            eye_R_R = torch.eye(u_I_R.shape[1], device=u_I_R.device)
            t_R_R = torch.linalg.solve_triangular(
                (u_I_R.T @ u_I_R).triu(1) + eye_R_R / 2, eye_R_R, upper=True
            )
            return u_I_R.T, u_I_R @ t_R_R


class HRA(Tuner):
    """HRA (Yuan et al. 2024, arXiv 2405.17484): W Π_i (I - 2 u_i u_iᵀ) x; the reflections start in
    equal pairs, which undo each other.

    PEFT's switch to reflections at right angles (``apply_GS``) is not here: equal pairs cannot be
    at right angles, so it starts at another model.
    """

    compared = ("r", "apply_GS")

    def wrap(self, model: Any) -> Any:
        wrapped = super().wrap(model)
        for part in self.layers:
            part.__class__ = ReflectingLinear  # PEFT finds layers by the "Linear" in the name
        return wrapped

    def peft_config(self, blank: bool = False) -> HRAConfig:
        return HRAConfig(
            r=2 if blank else self.config.r,
            target_modules=self.config.target_modules,
            task_type=CAUSAL,
        )

    def misfit(self, inputs: int, outputs: int) -> str | None:
        if self.config.r % 2:
            return (
                "hra starts at the model's outputs with an even number of reflections only,"
                f" backbone.adapter.r is {self.config.r}"
            )
        return over(self.config.r, inputs)


class MiSS(Tuner):
    """MiSS (Kang & Yin 2024, arXiv 2409.15371): W x + Dᵀ Σ_k x_k, x cut into pieces of length r; D
    = 0 at the start.
    """

    compared = ("r", "init_weights")

    def peft_config(self, blank: bool = False) -> Any:
        return MissConfig(
            r=1 if blank else self.config.r,
            miss_dropout=self.config.dropout,
            target_modules=self.config.target_modules,
            task_type=CAUSAL,
        )

    def misfit(self, inputs: int, outputs: int) -> str | None:
        return over(self.config.r, inputs)


def _uneven(inputs: int, block: int) -> str | None:
    if inputs % block or block > inputs:
        return (
            f"its {inputs} inputs are no multiple of {block}: change backbone.adapter.options.block"
        )
    return None
