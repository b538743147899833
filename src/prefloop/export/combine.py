"""Arithmetic on what LoRA adapters add to the weights: sums, TIES, DARE; one LoRA adapter comes
out.

An adapter's change of a layer is s B A. PEFT's own ``linear``, ``ties`` and ``dare_*`` of
``add_weighted_adapter`` work on A and on B apart, and the product of two sums has cross terms B1 A2
that no paper means; so here all work on the changes themselves, and what comes out is cut to a rank
by its singular values (PEFT's ``*_svd``). The papers' operations are PEFT's
(``peft.utils.merge_utils``), but in TIES the weights come before the election of signs, which PEFT
holds among the unweighted changes. Shape letters: r rank, I inputs, O outputs.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prefloop.artifacts.adapter_config import read_adapter
from prefloop.errors import ConfigError, ModelError
from prefloop.models.folder import read_tensors

if TYPE_CHECKING:
    from torch import Tensor

HOWS = ("linear", "svd", "ties", "dare_linear", "dare_ties", "magnitude_prune")
AVERAGES = ("ties", "dare_ties")
"""These take the mean over the adapters that agree on a sign."""


@dataclasses.dataclass(frozen=True)
class Factors:
    """A LoRA adapter: by layer A [r, I] and B [O, r], and what their product is multiplied by."""

    a: dict[str, Tensor]
    b: dict[str, Tensor]
    scale: float
    rank: int


@dataclasses.dataclass(frozen=True)
class Combined:
    """One adapter out of several: scale 1."""

    a: dict[str, Tensor]
    b: dict[str, Tensor]
    rank: int
    kept: float
    """Share of the combined change's squared norm that the rank holds."""
    weights: tuple[float, ...]
    """Of the adapters, as they were taken."""

    def state(self, scale: float) -> dict[str, Tensor]:
        """Under the names of PEFT's files, for an adapter whose product is multiplied by
        ``scale``.
        """
        named = {f"{layer}.lora_A.weight": t for layer, t in self.a.items()}
        named |= {f"{layer}.lora_B.weight": t / scale for layer, t in self.b.items()}
        return dict(sorted(named.items()))


def read(folder: Path, name: str) -> Factors:
    """The adapter in ``folder``. Raises ``ModelError`` where its files hold more or less than
    LoRA's A and B of one rank.
    """
    try:
        config, tensors = read_adapter(folder), read_tensors(folder)
    except ModelError as error:
        raise ModelError(f"'{name}' cannot be read ({error}): make or copy it again") from error
    parts = {
        end: {n.removesuffix(end): t.float() for n, t in tensors.items() if n.endswith(end)}
        for end in _ENDS
    }
    odd = [n for n in tensors if not n.endswith(_ENDS)]
    if (
        odd
        or config.get("peft_type") != "LORA"
        or config.get("rank_pattern")
        or config.get("alpha_pattern")
    ):
        found = (
            f"it holds {odd[0]}"
            if odd
            else "peft_type, rank_pattern or alpha_pattern of its adapter_config.json say so"
        )
        raise ModelError(
            f"'{name}' is no plain LoRA adapter of one rank ({found}): only A and B can be combined"
        )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    flat = next((n for n, t in tensors.items() if t.ndim != 2), None)
    if flat is not None:
        raise ModelError(
            f"'{name}' is no whole LoRA adapter: {flat} is no matrix; make or copy it again"
        )
    sizes = {t.shape[0] for t in parts[_ENDS[0]].values()} | {
        t.shape[1] for t in parts[_ENDS[1]].values()
    }
    if (
        not rank
        or sizes != {rank}
        or not isinstance(alpha, int | float)
        or parts[_ENDS[0]].keys() != parts[_ENDS[1]].keys()
    ):
        raise ModelError(
            f"'{name}' is no whole LoRA adapter: its adapter_config.json says r {rank} and"
            f" lora_alpha {alpha}, its A and B have the ranks"
            f" {', '.join(map(str, sorted(sizes))) or 'of none'}; make or copy it again"
        )
    scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
    return Factors(parts[_ENDS[0]], parts[_ENDS[1]], scale, rank)


_ENDS = (".lora_A.weight", ".lora_B.weight")


def combine(
    adapters: Sequence[Factors],
    weights: Sequence[float] = (),
    how: str = "linear",
    density: float = 0.5,
    rank: int | None = None,
    seed: int = 0,
) -> Combined:
    """One adapter of adapters of the same layers.

    linear, svd: sum of w s B A (Ilharco et al. 2023, arXiv 2212.04089, eq. 2); ties: Yadav et al.
    2023, arXiv 2306.01708, algorithm 1 on the weighted changes, whose mean is over those that agree
    with the elected sign (a weight of 0 is none of them); dare_*: Yu et al. 2024, arXiv 2311.03099,
    eqs. 3-5 with drop rate 1 - density. The same ``seed`` gives the same adapter. Raises
    ``ConfigError`` for settings that do not fit.
    """
    import torch

    weights = list(weights) or [1.0 if how in AVERAGES else 1 / len(adapters)] * len(adapters)
    layers = sorted(adapters[0].a)
    smallest = min(min(adapters[0].a[n].shape[1], adapters[0].b[n].shape[0]) for n in layers)
    ranks = [adapter.rank for adapter in adapters]
    _check(weights, len(adapters), how, density, rank, smallest)
    size = rank or min(smallest, max(ranks) if how == "svd" else sum(ranks))
    if how == "linear" and sum(ranks) > smallest:
        raise ConfigError(
            f"the sum of the ranks, {sum(ranks)}, is over {smallest}, the smaller side of the"
            " smallest layer: take --how svd, which cuts it"
        )
    a: dict[str, Tensor] = {}
    b: dict[str, Tensor] = {}
    held = whole = 0.0
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for layer in layers:
            if how == "linear":
                a[layer] = torch.cat(
                    [w * f.scale * f.a[layer] for w, f in zip(weights, adapters, strict=True)]
                )
                b[layer] = torch.cat([f.b[layer] for f in adapters], dim=1)
                continue
            deltas = [f.scale * (f.b[layer] @ f.a[layer]) for f in adapters]
            a[layer], b[layer], of_rank, of_all = _cut(
                _mix(deltas, torch.tensor(weights), how, density), size
            )
            held, whole = held + of_rank, whole + of_all
    return Combined(
        a, b, next(iter(a.values())).shape[0], held / whole if whole else 1.0, tuple(weights)
    )


def _check(
    weights: Sequence[float],
    adapters: int,
    how: str,
    density: float,
    rank: int | None,
    smallest: int,
) -> None:
    if len(weights) != adapters:
        raise ConfigError(
            f"--weights: found {len(weights)} for {adapters} adapters, give one for each"
        )
    if not all(map(math.isfinite, weights)) or not any(weights):
        raise ConfigError(
            f"--weights: found {' '.join(f'{w:g}' for w in weights)}, give finite numbers of which"
            " one at least is not 0"
        )
    if how not in HOWS:
        raise ConfigError(f"--how: '{how}' is none of {', '.join(HOWS)}")
    if not 0 < density <= 1:
        raise ConfigError(
            f"--density is {density:g}: it is the share that is kept, above 0 and at most 1"
        )
    if how == "linear" and rank is not None:
        raise ConfigError(
            "--rank: linear keeps the sum whole, so its rank is the sum of the ranks; take --how"
            " svd to cut it"
        )
    if rank is not None and not 1 <= rank <= smallest:
        raise ConfigError(
            f"--rank is {rank}: give one from 1 to {smallest}, the smaller side of the smallest"
            " layer"
        )


def _mix(deltas: list[Tensor], weights: Tensor, how: str, density: float) -> Tensor:
    """The papers' operation on the changes of one layer, [O, I]."""
    import torch
    from peft.utils import merge_utils

    if how == "svd":
        return merge_utils.task_arithmetic(deltas, weights)
    operation = {
        "ties": merge_utils.ties,
        "dare_linear": merge_utils.dare_linear,
        "dare_ties": merge_utils.dare_ties,
        "magnitude_prune": merge_utils.magnitude_prune,
    }[how]
    if how in AVERAGES:  # a negative weight turns a vote around
        deltas, weights = (
            [w * delta for w, delta in zip(weights, deltas, strict=True)],
            torch.ones_like(weights),
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The density")  # 1 keeps everything, as asked
        mixed: Tensor = operation(deltas, weights, density)
    return mixed


def _cut(delta_O_I: Tensor, rank: int) -> tuple[Tensor, Tensor, float, float]:
    """A and B of the nearest matrix of a rank, at most the smaller side; squared norms of it and of
    the whole.
    """
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    u_O_K, s_K, v_K_I = (
        t.cpu() for t in torch.linalg.svd(delta_O_I.to(device), full_matrices=False)
    )
    a, b = v_K_I[:rank].contiguous(), u_O_K[:, :rank] * s_K[:rank]
    return a, b, float(s_K[:rank].square().sum()), float(s_K.square().sum())
