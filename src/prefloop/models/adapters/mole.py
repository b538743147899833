"""MoLE: a learnt gate mixes LoRA adapters that stay as they are."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from prefloop.artifacts.adapter_config import KEY, read_adapter
from prefloop.artifacts.references import expert_folder, origin_of
from prefloop.config import AdapterConfig
from prefloop.config.adapters import Card, experts_of
from prefloop.errors import ModelError
from prefloop.models.adapters.in_place import Native, product
from prefloop.models.folder import read_tensors, reading
from prefloop.models.lookup import fingerprint

SAMPLE = 16
"""Tokens of a layer's input in a pass that the balance term looks at."""
_COMPARED = {
    "experts_sha256": "experts",
    "scales": "experts",
    "temperature": "temperature",
    "top_k": "top_k",
}
"""What of a saved gate's description must be the same where it is loaded, and what a message calls
it.
"""


class MoLE(Native):
    """Mixture of LoRA experts (Wu et al. 2024, arXiv 2404.13628): y = W x + Σ_e g_e(x) s_e B_e A_e
    x with frozen experts; the gates alone learn.

    g = softmax((G x + b) / temperature) over the experts, one gate for each adapted linear layer,
    from that layer's input (the paper's reads the outputs of all experts of a block, which would
    make each pass run all of them twice). A fresh gate is even: the mean of the experts (of
    ``top_k`` of them; with 1, one expert's share of that mean), not the bare model.

    ``options.experts``: two or more LoRA adapters of this backbone, folders or results of runs.
    ``options.temperature`` (1). ``options.top_k``: mix exactly that many experts of the largest
    weights at each token (0: all): their weights are divided by their sum, but a single one keeps
    its own, as in Switch (Fedus et al. 2022, arXiv 2101.03961, eq. 2), for divided by itself it
    would teach the gate nothing. ``options.balance`` (0): times -Σ_e log mean g_e, averaged over
    layers (the paper's balance loss, on the last pass's tokens). A gate depends on its input:
    nothing can be merged, and vLLM cannot run it.
    """

    def __init__(self, config: AdapterConfig, card: Card) -> None:
        super().__init__(config, card)
        options = self.options
        self.named = experts_of(options)
        """The experts as the settings have them."""
        self.folders = [expert_folder(name) for name in self.named]
        self.temperature = float(options["temperature"])
        self.top_k = int(options["top_k"]) or len(self.named)
        self.balance = float(options["balance"])
        self.scales, self.shapes = _agreeing(self.named, self.folders)
        self.low: dict[str, Tensor] = {}
        """By layer: A of all experts, [R, inputs], R the sum of their ranks."""
        self.high: dict[str, Tensor] = {}
        """By layer: s B of all experts, [outputs, R]."""
        self.expert: dict[str, Tensor] = {}
        """By layer: which expert each of the R rows is of."""
        self.seen: dict[str, dict[str, Tensor]] = {}
        """Role → layer → some inputs of its last pass that learns."""

    def check(self, model: Any, name: str, folder: Path | None) -> None:
        for typed, expert in zip(self.named, self.folders, strict=True):
            origin = origin_of(expert)
            if origin.fingerprint is not None and folder is not None:
                same = origin.fingerprint == fingerprint(folder)
            else:  # PEFT alone keeps a name, which of a local folder changes with its place
                same = not origin.model or Path(origin.model).name == Path(name).name
            if not same:
                raise ModelError(
                    f"backbone.adapter.options.experts: '{typed}' was trained on {origin.model},"
                    f" backbone.model is {name}: give experts of this backbone"
                )
        super().check(model, name, folder)

    def find(self, model: Any) -> dict[str, Any]:
        modules = dict(model.named_modules())
        for name, shape in self.shapes.items():
            layer: Any = modules.get(name)
            found = (
                (layer.out_features, layer.in_features) if isinstance(layer, nn.Linear) else None
            )
            if found != shape:
                has = "no such linear layer" if found is None else f"one of {found[0]} × {found[1]}"
                raise ModelError(
                    f"adapter mole: expert '{self.named[0]}' has {name} of {shape[0]} × {shape[1]},"
                    f" this backbone has {has}: give experts that were trained on it"
                )
        return {name: modules[name] for name in self.shapes}

    def wrap(self, model: Any) -> Any:
        device = model.device
        saved = [_load(folder) for folder in self.folders]
        for name in self.shapes:
            pairs = [
                (s[f"{name}.lora_A.weight"].float(), s[f"{name}.lora_B.weight"].float())
                for s in saved
            ]
            self.low[name] = torch.cat([a for a, _ in pairs]).to(device)
            self.high[name] = torch.cat(
                [s * b for s, (_, b) in zip(self.scales, pairs, strict=True)], dim=1
            ).to(device)
            ranks = torch.tensor([len(a) for a, _ in pairs])
            self.expert[name] = torch.arange(len(pairs)).repeat_interleave(ranks).to(device)
        return super().wrap(model)

    def fresh(self, name: str, layer: Any) -> dict[str, Tensor]:
        return {
            "gate.weight": torch.zeros(len(self.folders), layer.in_features),
            "gate.bias": torch.zeros(len(self.folders)),
        }

    def gates(self, role: str, name: str, x: Tensor) -> Tensor:
        """Weights of the experts at each token, [..., experts], float32; they sum to 1, but with
        ``top_k`` 1.
        """
        own = self.roles[role][name]
        score = (
            F.linear(x.to(own["gate.weight"].dtype), own["gate.weight"], own["gate.bias"]).float()
            / self.temperature
        )
        weight = score.softmax(-1)
        if self.top_k == len(self.folders):
            return weight
        most = weight.topk(self.top_k, dim=-1)
        kept = most.values if self.top_k == 1 else most.values / most.values.sum(-1, keepdim=True)
        return torch.zeros_like(weight).scatter(-1, most.indices, kept)

    def attach(self, name: str, layer: Any) -> None:
        def mix(_: Any, inputs: tuple[Tensor], out: Tensor) -> Tensor:
            if self.active is None:
                return out
            x = self.dropout(inputs[0])
            gates = self.gates(self.active, name, x)
            if self.balance and torch.is_grad_enabled():
                rows = x.detach().reshape(-1, x.shape[-1])
                self.seen.setdefault(self.active, {})[name] = rows[:: max(1, len(rows) // SAMPLE)][
                    :SAMPLE
                ].float()
            low = product(x, self.low[name])
            mixed = product(low * gates.index_select(-1, self.expert[name]), self.high[name])
            return out + mixed.to(out.dtype)

        layer.register_forward_hook(mix)

    def penalty(self, role: str) -> Tensor | None:
        if role not in self.seen:
            return None
        terms = []
        for name, x in self.seen[role].items():
            own = self.roles[role][name]
            even = (
                F.linear(x, own["gate.weight"], own["gate.bias"])
                .div(self.temperature)
                .softmax(-1)
                .mean(0)
            )
            terms.append(-even.log().sum())
        return self.balance * torch.stack(terms).mean()

    def drop(self, role: str) -> None:
        super().drop(role)
        self.seen.pop(role, None)

    def describe(self, role: str) -> dict[str, Any]:
        return {
            KEY: self.card.name,
            "experts": _names(self.folders),
            "experts_sha256": [_digest(folder) for folder in self.folders],
            "scales": self.scales,
            "temperature": self.temperature,
            "top_k": self.top_k,
        }

    def restore(self, role: str, saved: dict[str, Tensor], described: dict[str, Any]) -> None:
        own = self.describe(role)
        for key, what in _COMPARED.items():
            if described.get(key) != own[key]:
                raise ModelError(
                    f"its gate was trained with other {what}: experts {described.get('experts')} of"
                    f" scales {described.get('scales')}, temperature"
                    f" {described.get('temperature')}, top_k {described.get('top_k')}"
                )
        super().restore(role, saved, described)


def _agreeing(
    named: list[str], folders: list[Path]
) -> tuple[list[float], dict[str, tuple[int, int]]]:
    """Scale of each expert, and the shape [outputs, inputs] of each layer; read without loading.
    Raises ``ModelError`` where they differ.
    """
    first, scales, bases, shapes = named[0], [], [], []
    for typed, folder in zip(named, folders, strict=True):
        where = f"backbone.adapter.options.experts: '{typed}'"
        try:
            config = read_adapter(folder)
            with (
                reading(f"'{folder.name}'"),
                safe_open(folder / "adapter_model.safetensors", "pt") as file,
            ):
                sizes = {_plain(n): tuple(file.get_slice(n).get_shape()) for n in file.keys()}  # noqa: SIM118
        except ModelError as error:
            raise ModelError(
                f"{where} holds no adapter that can be read ({error}): make or copy it again"
            ) from error
        odd = [n for n in sizes if not n.endswith((".lora_A.weight", ".lora_B.weight"))]
        if (
            config.get("peft_type") != "LORA"
            or odd
            or config.get("rank_pattern")
            or config.get("alpha_pattern")
        ):
            raise ModelError(
                f"backbone.adapter.options.experts: '{typed}' is no plain LoRA adapter; mole mixes"
                " those of lora and rslora"
            )
        try:
            rank = config["r"] ** 0.5 if config.get("use_rslora") else config["r"]
            scales.append(config["lora_alpha"] / rank)
            names = [
                n.removesuffix(".lora_A.weight") for n in sizes if n.endswith(".lora_A.weight")
            ]
            shapes.append(
                {n: (sizes[f"{n}.lora_B.weight"][0], sizes[f"{n}.lora_A.weight"][1]) for n in names}
            )
        except (KeyError, TypeError, ZeroDivisionError, IndexError) as error:
            raise ModelError(
                f"{where} is no whole LoRA adapter (no usable {error}): make or copy it again"
            ) from None
        bases.append(config.get("base_model_name_or_path"))
    for typed, base, shape in zip(named[1:], bases[1:], shapes[1:], strict=True):
        if base and bases[0] and base != bases[0]:
            raise ModelError(
                f"backbone.adapter.options.experts: '{first}' is of {bases[0]} and '{typed}' of"
                f" {base}: give experts of one backbone"
            )
        differing = sorted(
            n for n in shapes[0].keys() | shape.keys() if shapes[0].get(n) != shape.get(n)
        )
        if differing:
            raise ModelError(
                f"backbone.adapter.options.experts: '{first}' and '{typed}' differ in"
                f" {len(differing)} layers (first {differing[0]}): give experts of the same"
                " backbone and target modules"
            )
    return scales, shapes[0]


def _names(folders: list[Path]) -> list[str]:
    """What the folders are called, without where they lie; further ones of a name are numbered."""
    names = [folder.absolute().name for folder in folders]
    before = [names[:k].count(name) for k, name in enumerate(names)]
    return [f"{name}-{n + 1}" if n else name for name, n in zip(names, before, strict=True)]


def _plain(name: str) -> str:
    return name.removeprefix("base_model.model.")


def _load(folder: Path) -> dict[str, Tensor]:
    return {_plain(n): t for n, t in read_tensors(folder).items()}


def _digest(folder: Path) -> str:
    return hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()
