"""PEFT's methods other than low-rank sums: they change a linear layer's input, output or weight.

All of them are affine maps of the layer's input, so they can be merged (``models.merge``). None is
fused, so they run under autocast.
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
    """A method with random matrices that all layers share.

    A key reproduces the matrices, so files do not include them.
    """

    matrices: ClassVar[tuple[str, str]]
    """The attributes of a layer with the matrices."""

    def wrap(self, model: Any) -> Any:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Specified to not save")
            return super().wrap(model)

    def add(self, role: str) -> None:
        # PEFT's add_adapter would draw the matrices again for each adapter, and would nest
        # RandLoRA's 4-bit layers.
        config = copy.deepcopy(self.model.peft_config[BLANK])
        self.model.peft_config[role] = config
        for part in self.layers:
            matrices = [getattr(part, name) for name in self.matrices]
            part.update_layer(role, *matrices, config.r, config=config)
        for parameter in self.parameters(role).values():
            parameter.data = parameter.data.float()  # as PEFT's add_adapter does

    def state(self, role: str) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self.parameters(role).items()}


class VeRA(Drawn):
    """VeRA (Kopiczko et al. 2023, arXiv 2310.11454): W x + b ∘ B (d ∘ A x).

    The vectors b, 0 at the start, and d learn. A and B are random and reproduced from a key.
    """

    waits: ClassVar = {"vera_lambda_d": ("vera_lambda_b",)}
    compared = ("projection_prng_key", "r")
    matrices = ("vera_A", "vera_B")

    def peft_config(self, blank: bool = False) -> VeraConfig:
        return VeraConfig(
            r=self.config.r,
            vera_dropout=self.config.dropout,
            d_initial=self.options["d_initial"],
            projection_prng_key=self.options["key"],
            save_projection=False,  # the key replaces gigabytes
            target_modules=self.config.target_modules,
            task_type=CAUSAL,
        )


class RandLoRA(Drawn):
    """RandLoRA (Albert et al. 2025, arXiv 2502.00987): W x + s Σ_k B_k Λ_k A Γ_k x.

    There are enough random bases for full rank. Λ, 0 at the start, and Γ learn.
    """

    waits: ClassVar = {"randlora_gamma": ("randlora_lambda",)}
    compared = ("projection_prng_key", "r", "randlora_alpha")
    matrices = ("randlora_A", "randlora_B")

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
    """IA³ (Liu et al. 2022, arXiv 2205.05638).

    Learned vectors, 1 at the start, scale the keys, the values and the input of the MLP's last
    layer. ``target_modules`` "all-linear", the default of all methods, means these three layers.
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
                f"backbone.adapter.options.feedforward is not a regular expression: {error}"
            ) from None
        missing = [kind for kind in IA3_KINDS if kind not in ends]
        if missing and self.config.target_modules == "all-linear":
            raise ModelError(
                f"adapter ia3: {name} has no {' or '.join(missing)}, its layers end in"
                f" {', '.join(ends)}: list the key, value and last MLP layers in"
                " backbone.adapter.target_modules, and the last MLP layer in"
                " backbone.adapter.options.feedforward too, or use another method, such as vera"
            )

    def peft_config(self, blank: bool = False) -> IA3Config:
        return IA3Config(
            target_modules=self.targets,
            feedforward_modules=self.options["feedforward"],
            task_type=CAUSAL,
        )


class OFT(Tuner):
    """OFT (Qiu et al. 2023, arXiv 2306.07280): W R x.

    R is block-diagonal, and orthogonal by Cayley's transform (I + Q)(I - Q)⁻¹, with Q = 0 at the
    start.
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
    """PEFT's kernel for products of blocks, written in torch.

    PEFT would compile it with CUDA's tools, or use a single factor without a message.
    """

    def forward(self, blocks_Z_D_H_H: Tensor) -> list[Tensor]:
        """Put the D blocks [H, H] of each of Z matrices on its diagonal: [Z, D H, D H]."""
        return [torch.stack([torch.block_diag(*blocks) for blocks in blocks_Z_D_H_H])]

    def backward(self, grad_Z_DH_DH: Tensor, blocks_Z_D_H_H: Tensor) -> list[Tensor]:
        """The part of the gradient on the blocks, [Z, D, H, H]."""
        _, d, h, _ = blocks_Z_D_H_H.shape
        grad = grad_Z_DH_DH.unflatten(1, (d, h)).unflatten(3, (d, h))
        return [grad.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2).contiguous()]


class BOFT(Tuner):
    """BOFT (Liu et al. 2023, arXiv 2311.06243): OFT with a product of rotations and scaled outputs.

    The rotation's block-diagonal factors are in butterfly order.
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
    """PEFT's layer with the reflections applied to its input instead of its weight.

    This works on 4-bit weights, keeps no product of I x I matrices, and costs as much as one LoRA.
    With unit vectors U [I, R] the chain is Π_i (I - 2 u_i u_iᵀ) = I - U T Uᵀ. T is upper
    triangular, and T⁻¹ = I / 2 + the part of UᵀU above its diagonal (Joffrain et al. 2006,
    "Accumulating Householder transformations, revisited", ACM TOMS 32(2)).
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
            inverse_R_R = (u_I_R.T @ u_I_R).triu(1) + eye_R_R / 2
            t_R_R = torch.linalg.solve_triangular(inverse_R_R, eye_R_R, upper=True)
            return u_I_R.T, u_I_R @ t_R_R


class HRA(Tuner):
    """HRA (Yuan et al. 2024, arXiv 2405.17484): W Π_i (I - 2 u_i u_iᵀ) x.

    The reflections start in equal pairs, which cancel. PEFT's option for orthogonal reflections
    (``apply_GS``) is not supported: equal pairs cannot be orthogonal, so training would start from
    another model.
    """

    compared = ("r", "apply_GS")

    def wrap(self, model: Any) -> Any:
        wrapped = super().wrap(model)
        for part in self.layers:
            part.__class__ = ReflectingLinear  # PEFT finds its layers by "Linear" in the name
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
                "hra starts at the model's outputs only with an even number of reflections, but"
                f" backbone.adapter.r is {self.config.r}"
            )
        return over(self.config.r, inputs)


class MiSS(Tuner):
    """MiSS (Kang & Yin 2024, arXiv 2409.15371): W x + Dᵀ Σ_k x_k, with D = 0 at the start.

    The x_k are the pieces of x of length r.
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
            f"its {inputs} inputs are not a multiple of {block}: change"
            " backbone.adapter.options.block"
        )
    return None
