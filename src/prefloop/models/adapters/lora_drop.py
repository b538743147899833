"""LoRA-drop: layers whose LoRA says little share one."""

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
    """LoRA-drop (Zhou et al. 2024, arXiv 2402.07721): layers of much output keep their LoRA, the
    rest share one for each kind of layer.

    As in the paper a LoRA is first trained for a few steps on a sample (``options.steps``, 8), then
    a layer counts by the mean squared norm of its output s B A x over the sample's tokens, and the
    layers that make up ``options.share`` (0.9) of the sum are kept. Those left share their A and B
    where they are the same kind of layer (same name in its block, same shape). Here the short
    training has the next-token loss on the sample's tokens, since the stage's own loss is not known
    to an adapter, and B goes back to zero after it: the role starts at the bare model's outputs.

    Files are plain LoRA, with shared tensors repeated, so PEFT and vLLM load them; layers of a kind
    that are equal to the bit in a file share again when it is loaded.
    """

    def __init__(self, config: AdapterConfig, card: Card) -> None:
        super().__init__(config, card)
        options = self.options
        self.share, self.steps = float(options["share"]), int(options["steps"])
        self.shared: dict[str, list[list[str]]] = {}
        """Role → groups of layers that are one LoRA."""

    def named_layers(self) -> dict[str, Any]:
        """The layers that hold adapters, by their names in the bare model."""
        held = set(map(id, self.layers))
        return {n: m for n, m in self.base().named_modules() if id(m) in held}

    def fit(self, role: str, run: Inputs) -> None:
        """Train shortly, measure, share. ``run`` passes the sample under ``role``."""
        own = self.parameters(role)
        start = {name: p.detach().clone() for name, p in own.items()}
        asked = {name: p.requires_grad for name, p in own.items()}
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
                    p.requires_grad_(asked[name])
        self._tie(role, self.groups(importance))

    def _train(self, parameters: list[nn.Parameter], run: Inputs) -> None:
        optimizer = torch.optim.AdamW(parameters, lr=2e-4)
        taken = 0
        with self._language_loss(parameters) as losses:
            while taken < self.steps:
                before = taken
                for _ in run():
                    optimizer.zero_grad()
                    loss = (
                        losses.pop()
                    )  # the last: the first packed pass of all tries kernels before it
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
        """The next-token loss of each pass, with its graph, whoever runs the pass and whether or
        not they want gradients.
        """
        losses: list[Tensor] = []
        modes: list[bool] = []
        model = self.base()

        def before(*_: Any) -> None:
            modes.append(torch.is_grad_enabled())
            torch.set_grad_enabled(True)
            for parameter in parameters:  # switching roles has frozen them
                parameter.requires_grad_(True)

        def after(_: Any, __: Any, given: dict[str, Any], out: Any) -> None:
            try:
                ids, places = given["input_ids"], given["position_ids"]
                follows = (
                    places[:, 1:] == places[:, :-1] + 1
                )  # neither over documents nor from branch to branch
                mask = given.get(
                    "attention_mask"
                    # of padded rows [B, W]; of a pack by pairs, in a dict where kinds of layers
                    # differ
                )
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
        """Mean squared norm of each layer's s B A x over the tokens of the sample."""
        total: dict[str, float] = {}
        tokens: dict[str, int] = {}
        hooks = []
        for name, layer in self.named_layers().items():

            def add(layer: Any, inputs: tuple[Tensor], _: Any, name: str = name) -> None:
                x = inputs[0].detach().float()
                x = x.reshape(-1, x.shape[-1])
                low = x @ layer.lora_A[role].weight.float().T
                b = layer.lora_B[role].weight.float()
                gram = b.T @ b  # |B l|² without the wide output
                total[name] = total.get(name, 0.0) + float(
                    layer.scaling[role] ** 2 * ((low @ gram) * low).sum()
                )
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
        """The layers that share, by kind: all but the fewest of the most important whose sum
        reaches ``share`` of the total.
        """
        left, kept, whole = dict(importance), 0.0, sum(importance.values())
        for name in sorted(importance, key=lambda n: -importance[n]):
            if kept >= self.share * whole:
                break
            kept += left.pop(name)
        layers = self.named_layers()
        kinds: dict[tuple[str, int, int], list[str]] = {}
        for name in sorted(left):
            base = layers[name].get_base_layer()
            kinds.setdefault(
                (name.rpartition(".")[2], base.out_features, base.in_features), []
            ).append(name)
        return [names for names in kinds.values() if len(names) > 1]

    def _tie(self, role: str, groups: list[list[str]]) -> None:
        layers = self.named_layers()
        for first, *rest in groups:
            for name in rest:
                for part in ("lora_A", "lora_B"):
                    getattr(layers[name], part)[role].weight = getattr(layers[first], part)[
                        role
                    ].weight
        self.shared[role] = groups

    def drop(self, role: str) -> None:
        super().drop(role)
        self.shared.pop(role, None)

    def state(self, role: str) -> dict[str, Tensor]:
        seen: set[int] = set()
        found = {}
        for name, tensor in super().state(role).items():
            # Repeats as copies: safetensors refuses tensors that share memory.
            found[name] = tensor.detach().clone() if tensor.data_ptr() in seen else tensor
            seen.add(tensor.data_ptr())
        return found

    def restore(self, role: str, saved: dict[str, Tensor], described: dict[str, Any]) -> None:
        super().restore(role, saved, described)
        alike: dict[tuple[bytes, ...], list[str]] = {}
        for name, layer in sorted(self.named_layers().items()):
            pair = [getattr(layer, part)[role].weight.detach() for part in ("lora_A", "lora_B")]
            kind = name.rpartition(".")[2].encode()
            alike.setdefault((kind, *(t.float().cpu().numpy().tobytes() for t in pair)), []).append(
                name
            )
        self._tie(role, [names for names in alike.values() if len(names) > 1])
