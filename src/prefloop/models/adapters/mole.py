"""MoLE: a learned gate mixes frozen LoRA adapters."""

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
"""How many tokens of a layer's input the balance term uses in each pass."""
_COMPARED = {
    "experts_sha256": "experts",
    "scales": "experts",
    "temperature": "temperature",
    "top_k": "top_k",
}
"""Field of a saved gate's description that must not change → its name in an error message."""


class MoLE(Native):
    """Mixture of LoRA experts (Wu et al. 2024, arXiv 2404.13628): y = W x + Σ_e g_e(x) s_e B_e A_e
    x.

    The experts are frozen and only the gates learn. Each adapted linear layer has one gate,
    g = softmax((G x + b) / temperature) over the experts, which reads that layer's input. The
    paper's gate reads the outputs of all experts of a block, so each pass would run them twice. A
    fresh gate gives all experts the same weight, so a fresh role is not the bare model. It is the
    mean of the experts or of ``top_k`` of them; with ``top_k`` 1, one expert's share of that mean.

    ``options.experts`` lists two or more LoRA adapters of this backbone: folders or results of
    runs. ``options.temperature`` defaults to 1. ``options.top_k`` mixes only the experts with the
    largest weights at each token (0: all). Their weights are divided by their sum. A single expert
    keeps its weight, as in Switch (Fedus et al. 2022, arXiv 2101.03961, eq. 2), since a weight
    divided by itself would give the gate no gradient. ``options.balance`` (default 0) multiplies
    the paper's balance loss: -Σ_e log mean g_e, averaged over layers, on tokens of the last pass.

    A gate depends on its input, so a role cannot be merged, and vLLM cannot run it.
    """

    def __init__(self, config: AdapterConfig, card: Card) -> None:
        super().__init__(config, card)
        options = self.options
        self.named = experts_of(options)
        """The experts as written in the settings."""
        self.folders = [expert_folder(name) for name in self.named]
        self.temperature = float(options["temperature"])
        self.top_k = int(options["top_k"]) or len(self.named)
        self.balance = float(options["balance"])
        self.scales, self.shapes = _agreeing(self.named, self.folders)
        self.low: dict[str, Tensor] = {}
        """Layer → A of all experts, [R, inputs], where R is the sum of their ranks."""
        self.high: dict[str, Tensor] = {}
        """Layer → s B of all experts, [outputs, R]."""
        self.expert: dict[str, Tensor] = {}
        """Layer → the index of each of the R rows' expert."""
        self.seen: dict[str, dict[str, Tensor]] = {}
        """Role → layer → some inputs of the last pass with gradient."""

    def check(self, model: Any, name: str, folder: Path | None) -> None:
        for typed, expert in zip(self.named, self.folders, strict=True):
            origin = origin_of(expert)
            if origin.fingerprint is not None and folder is not None:
                same = origin.fingerprint == fingerprint(folder)
            else:  # PEFT stores only the model's path or name, and a folder may have moved
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
            linear = isinstance(layer, nn.Linear)
            own = (layer.out_features, layer.in_features) if linear else None
            if own != shape:
                has = "no such linear layer" if own is None else f"one of {own[0]} × {own[1]}"
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
            scaled = [s * b for s, (_, b) in zip(self.scales, pairs, strict=True)]
            self.low[name] = torch.cat([a for a, _ in pairs]).to(device)
            self.high[name] = torch.cat(scaled, dim=1).to(device)
            ranks = torch.tensor([len(a) for a, _ in pairs])
            self.expert[name] = torch.arange(len(pairs)).repeat_interleave(ranks).to(device)
        return super().wrap(model)

    def fresh(self, name: str, layer: Any) -> dict[str, Tensor]:
        return {
            "gate.weight": torch.zeros(len(self.folders), layer.in_features),
            "gate.bias": torch.zeros(len(self.folders)),
        }

    def gates(self, role: str, name: str, x: Tensor) -> Tensor:
        """The experts' float32 weights [..., experts] at each token of a layer's input [...,
        inputs].

        They sum to 1, except with ``top_k`` 1.
        """
        weight = self._softmax(role, name, x.to(self.roles[role][name]["gate.weight"].dtype))
        if self.top_k == len(self.folders):
            return weight
        most = weight.topk(self.top_k, dim=-1)
        kept = most.values if self.top_k == 1 else most.values / most.values.sum(-1, keepdim=True)
        return torch.zeros_like(weight).scatter(-1, most.indices, kept)

    def _softmax(self, role: str, name: str, x: Tensor) -> Tensor:
        own = self.roles[role][name]
        score = F.linear(x, own["gate.weight"], own["gate.bias"]).float()
        return (score / self.temperature).softmax(-1)

    def attach(self, name: str, layer: Any) -> None:
        def mix(_: Any, inputs: tuple[Tensor], out: Tensor) -> Tensor:
            if self.active is None:
                return out
            x = self.dropout(inputs[0])
            gates = self.gates(self.active, name, x)
            if self.balance and torch.is_grad_enabled():
                rows = x.detach().reshape(-1, x.shape[-1])
                sample = rows[:: max(1, len(rows) // SAMPLE)][:SAMPLE].float()
                self.seen.setdefault(self.active, {})[name] = sample
            low = product(x, self.low[name])
            mixed = product(low * gates.index_select(-1, self.expert[name]), self.high[name])
            return out + mixed.to(out.dtype)

        layer.register_forward_hook(mix)

    def penalty(self, role: str) -> Tensor | None:
        if role not in self.seen:
            return None
        terms = []
        for name, x in self.seen[role].items():
            terms.append(-self._softmax(role, name, x).mean(0).log().sum())
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
        for key, label in _COMPARED.items():
            if described.get(key) != own[key]:
                raise ModelError(
                    f"its gate was trained with other {label}: experts {described.get('experts')}"
                    f" of scales {described.get('scales')}, temperature"
                    f" {described.get('temperature')}, top_k {described.get('top_k')}"
                )
        super().restore(role, saved, described)


def _agreeing(
    named: list[str], folders: list[Path]
) -> tuple[list[float], dict[str, tuple[int, int]]]:
    """Each expert's scale, and layer → shape (outputs, inputs). Reads only the files' headers.

    Raises ``ModelError`` for an expert that is not plain LoRA, and for experts that differ.
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
        plain = all(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in sizes)
        patterns = config.get("rank_pattern") or config.get("alpha_pattern")
        if config.get("peft_type") != "LORA" or not plain or patterns:
            raise ModelError(
                f"{where} is not a plain LoRA adapter; mole mixes adapters of lora and rslora"
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
                f"{where} is not a complete LoRA adapter (no usable {error}): make or copy it again"
            ) from None
        bases.append(config.get("base_model_name_or_path"))
    for typed, base, shape in zip(named[1:], bases[1:], shapes[1:], strict=True):
        if base and bases[0] and base != bases[0]:
            raise ModelError(
                f"backbone.adapter.options.experts: '{first}' is of {bases[0]} and '{typed}' of"
                f" {base}: give experts of one backbone"
            )
        either = shapes[0].keys() | shape.keys()
        differing = sorted(n for n in either if shapes[0].get(n) != shape.get(n))
        if differing:
            raise ModelError(
                f"backbone.adapter.options.experts: '{first}' and '{typed}' differ in"
                f" {len(differing)} layers (first {differing[0]}): give experts of the same"
                " backbone and target modules"
            )
    return scales, shapes[0]


def _names(folders: list[Path]) -> list[str]:
    """The folders' names without their paths; repeated names get a number."""
    names = [folder.absolute().name for folder in folders]
    before = [names[:k].count(name) for k, name in enumerate(names)]
    return [f"{name}-{n + 1}" if n else name for name, n in zip(names, before, strict=True)]


def _plain(name: str) -> str:
    return name.removeprefix("base_model.model.")


def _load(folder: Path) -> dict[str, Tensor]:
    return {_plain(n): t for n, t in read_tensors(folder).items()}


def _digest(folder: Path) -> str:
    return hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()
