"""LoRA-drop: layers whose LoRA contributes little share one LoRA."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prefloop.config import AdapterConfig
from prefloop.config.adapters import Card
from prefloop.errors import ModelError
from prefloop.models.adapters.lora import LoRA, unfused
from prefloop.models.adapters.method import Inputs
from prefloop.models.heads import head_logits


class LoRADrop(LoRA):
    """LoRA-drop (Zhou et al. 2024, arXiv 2402.07721).

    Important layers keep their own LoRA, and the rest share one LoRA for each kind of layer.

    As in the paper, a LoRA is first trained for a few steps on a sample (``options.steps``, default
    8). A layer's importance is the mean squared norm of its output s B A x over the sample's
    tokens. The most important layers that make up ``options.share`` (default 0.9) of the sum are
    kept. The others share A and B if they have the same name in their block and the same shape.

    Here the short training minimizes the next-token loss on the sample, since an adapter does not
    know the stage's own loss. B is zeroed afterwards, so the role starts at the bare model's
    outputs.

    The files are plain LoRA with repeated tensors, so PEFT and vLLM load them. Layers of one kind
    that are equal to the bit in a file share again when it is loaded.
    """

    def __init__(self, config: AdapterConfig, card: Card) -> None:
        super().__init__(config, card)
        options = self.options
        self.share, self.steps = float(options["share"]), int(options["steps"])
        self.shared: dict[str, list[list[str]]] = {}
        """Role → groups of layers that share one LoRA."""

    def named_layers(self) -> dict[str, Any]:
        """Name in the bare model → layer with adapters."""
        adapted = set(map(id, self.layers))
        return {name: m for name, m in self.base().named_modules() if id(m) in adapted}

    def fit(self, role: str, run: Inputs) -> None:
        """Train for a few steps, measure the layers, and let some share. ``run`` runs ``role``."""
        own = self.parameters(role)
        start = {name: p.detach().clone() for name, p in own.items()}
        learned = {name: p.requires_grad for name, p in own.items()}
        for p in own.values():
            p.requires_grad_(True)
        try:
            self._train(list(own.values()), run)
            with torch.no_grad():
                importance = self._measure(role, run)
        finally:
            with torch.no_grad():
                for name, p in own.items():
                    p.copy_(start[name])
                    p.grad = None
                    p.requires_grad_(learned[name])
        self._tie(role, self.groups(importance))

    def _train(self, parameters: list[nn.Parameter], run: Inputs) -> None:
        optimizer = torch.optim.AdamW(parameters, lr=2e-4)
        taken = 0
        with self._language_loss(parameters) as losses:
            while taken < self.steps:
                before = taken
                for _ in run():
                    optimizer.zero_grad()
                    # The first packed pass tries kernels before it runs: only the last loss counts.
                    loss = losses.pop()
                    losses.clear()
                    loss.backward()
                    optimizer.step()
                    taken += 1
                    if taken == self.steps:
                        break
                if taken == before:
                    raise ModelError("adapter lora-drop: the sample of the stage's data is empty")

    @contextlib.contextmanager
    def _language_loss(self, parameters: list[nn.Parameter]) -> Iterator[list[Tensor]]:
        """Yield a list that collects the next-token loss of each forward pass, with its graph.

        Gradients are turned on for every pass inside the block, whatever its caller has set.
        """
        losses: list[Tensor] = []
        modes: list[bool] = []
        model = self.base()

        def before(*_: Any) -> None:
            modes.append(torch.is_grad_enabled())
            torch.set_grad_enabled(True)
            for parameter in parameters:  # activating a role has frozen them
                parameter.requires_grad_(True)

        def after(_: Any, __: Any, given: dict[str, Any], out: Any) -> None:
            try:
                ids, positions = given["input_ids"], given["position_ids"]
                # A token follows the previous one unless a document or a branch begins.
                follows = positions[:, 1:] == positions[:, :-1] + 1
                # Padded rows have a mask [B, W]. A pack has one by pairs, or a dict of these.
                mask = given.get("attention_mask")
                if isinstance(mask, Tensor) and mask.dim() == 2:
                    follows &= mask[:, 1:].bool()
                logits = head_logits(model, out.last_hidden_state[:, :-1][follows])
                losses.append(F.cross_entropy(logits, ids[:, 1:][follows]))
            finally:
                torch.set_grad_enabled(modes.pop())

        decoder = model.get_decoder()
        hooks = [
            decoder.register_forward_pre_hook(before),
            decoder.register_forward_hook(after, with_kwargs=True),
        ]
        try:
            yield losses
        finally:
            for hook in hooks:
                hook.remove()

    def _measure(self, role: str, run: Inputs) -> dict[str, float]:
        """Layer → mean squared norm of its s B A x over the sample's tokens."""
        total: dict[str, float] = {}
        tokens: dict[str, int] = {}
        hooks = []
        for name, layer in self.named_layers().items():

            def add(layer: Any, inputs: tuple[Tensor], _: Any, name: str = name) -> None:
                x = inputs[0].detach().float()
                x = x.reshape(-1, x.shape[-1])
                low = x @ layer.lora_A[role].weight.float().T
                b = layer.lora_B[role].weight.float()
                # |B l|² = lᵀ (Bᵀ B) l, without computing the wide output.
                squared = ((low @ (b.T @ b)) * low).sum() * layer.scaling[role] ** 2
                total[name] = total.get(name, 0.0) + float(squared)
                tokens[name] = tokens.get(name, 0) + len(x)

            hooks.append(layer.register_forward_hook(add))
        try:
            with unfused(self.base()):
                for _ in run():
                    pass
        finally:
            for hook in hooks:
                hook.remove()
        return {name: total[name] / tokens[name] for name in total}

    def groups(self, importance: dict[str, float]) -> list[list[str]]:
        """Groups of layers of one kind that share a LoRA.

        The most important layers, until their sum reaches ``share`` of the total, are in no group.
        """
        rest, kept, total = dict(importance), 0.0, sum(importance.values())
        for name in sorted(importance, key=lambda n: -importance[n]):
            if kept >= self.share * total:
                break
            kept += rest.pop(name)
        layers = self.named_layers()
        kinds: dict[tuple[str, int, int], list[str]] = {}
        for name in sorted(rest):
            base = layers[name].get_base_layer()
            kind = (name.rpartition(".")[2], base.out_features, base.in_features)
            kinds.setdefault(kind, []).append(name)
        return [names for names in kinds.values() if len(names) > 1]

    def _tie(self, role: str, groups: list[list[str]]) -> None:
        layers = self.named_layers()
        for first, *rest in groups:
            for part in ("lora_A", "lora_B"):
                shared = getattr(layers[first], part)[role].weight
                for name in rest:
                    getattr(layers[name], part)[role].weight = shared
        self.shared[role] = groups

    def drop(self, role: str) -> None:
        super().drop(role)
        self.shared.pop(role, None)

    def state(self, role: str) -> dict[str, Tensor]:
        seen: set[int] = set()
        tensors = {}
        for name, tensor in super().state(role).items():
            # Repeated tensors are copied, since safetensors refuses tensors that share memory.
            tensors[name] = tensor.detach().clone() if tensor.data_ptr() in seen else tensor
            seen.add(tensor.data_ptr())
        return tensors

    def restore(self, role: str, saved: dict[str, Tensor], described: dict[str, Any]) -> None:
        super().restore(role, saved, described)
        equal: dict[tuple[bytes, ...], list[str]] = {}
        for name, layer in sorted(self.named_layers().items()):
            pair = [getattr(layer, part)[role].weight.detach() for part in ("lora_A", "lora_B")]
            content = [tensor.float().cpu().numpy().tobytes() for tensor in pair]
            kind = name.rpartition(".")[2].encode()
            equal.setdefault((kind, *content), []).append(name)
        self._tie(role, [names for names in equal.values() if len(names) > 1])
