"""Virtual tokens at the start of every document: prompt tuning, P-tuning, prefix tuning, P-tuning
v2.

Later tokens see virtual tokens only through their keys and values, which do not depend on later
tokens. The keys and values are therefore computed once per pass and put before all others in each
layer's attention. Packs, branches, cached generation and padded rows need no change, and a pack of
a hundred documents costs one row of virtual tokens instead of a hundred. The files are PEFT's.

Shape letters: B rows, V virtual tokens, L layers, K key heads, D head size, H hidden size, Q
queries, T keys.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from pathlib import Path
from typing import Any

import torch
from peft import PromptEncoder, PromptEncoderConfig, PromptTuningConfig
from peft.tuners.prefix_tuning import PrefixEncoder, PrefixTuningConfig
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask
from transformers.modeling_layers import GradientCheckpointingLayer

from prefloop.config import AdapterConfig
from prefloop.config.adapters import Card
from prefloop.errors import ModelError
from prefloop.models.adapters.method import TREE, Method
from prefloop.models.fused.layer import CACHES

SDPA, EAGER = "prefloop-prefix-sdpa", "prefloop-prefix-eager"
"""The names of these attentions in the model's config."""
EMBEDDINGS = "prompt_embeddings"
"""PEFT's name for the computed virtual tokens in a file."""


@dataclasses.dataclass
class Ahead:
    """The virtual tokens' keys and values [1, K, V, D] in one layer, which come before all
    others.
    """

    keys: Tensor | None = None
    values: Tensor | None = None
    position_B_Q: Tensor | None = None
    """The queries' positions, with virtual tokens counted, for a sliding window that ends in
    them.
    """
    recorded: list[tuple[Tensor, Tensor]] | None = None
    """A list that attention adds its keys and values to, while they are computed."""


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, Any]:
    """transformers' attention interface, with the keys of ``module.ahead`` before all others.

    Query [B, heads, Q, D], key and value [B, K, T, D] → [B, Q, heads, D]. Every query sees all
    virtual tokens, up to its sliding window.
    """
    ahead: Ahead | None = getattr(module, "ahead", None)
    if ahead is not None and ahead.recorded is not None:
        ahead.recorded.append((key, value))
    if ahead is not None and ahead.keys is not None and ahead.values is not None:
        rows, virtual = key.shape[0], ahead.keys.shape[2]
        queries, own = query.shape[2], key.shape[2]
        if attention_mask is None and queries > 1:
            all_Q_T = torch.ones(queries, own, dtype=torch.bool, device=key.device)
            attention_mask = all_Q_T.tril(own - queries)[None, None]
        window = kwargs.get("sliding_window")
        if attention_mask is not None or window is not None:
            attention_mask = _with_virtual(
                attention_mask, ahead.position_B_Q, window, virtual, query, own
            )
        key = torch.cat([ahead.keys.to(key.dtype).expand(rows, -1, -1, -1), key], dim=2)
        value = torch.cat([ahead.values.to(value.dtype).expand(rows, -1, -1, -1), value], dim=2)
    if module.config._attn_implementation == EAGER:
        return sys.modules[type(module).__module__].eager_attention_forward(
            module, query, key, value, attention_mask, **kwargs
        )
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


def _with_virtual(
    mask: Tensor | None,
    position_B_Q: Tensor | None,
    window: int | None,
    virtual: int,
    query: Tensor,
    own: int,
) -> Tensor:
    """The mask [B, 1, Q, T] with V columns before it, visible inside the sliding window."""
    if mask is None:
        mask = torch.ones(1, 1, query.shape[2], own, dtype=torch.bool, device=query.device)
    if window is None or position_B_Q is None:
        return nn.functional.pad(mask, (virtual, 0), value=1 if mask.dtype == torch.bool else 0)
    near = position_B_Q[..., None] - torch.arange(virtual, device=mask.device) < window
    near_B_1_Q_V = near[:, None]
    if mask.dtype != torch.bool:
        lowest = torch.finfo(mask.dtype).min
        zeros = torch.zeros_like(near_B_1_Q_V, dtype=mask.dtype)
        near_B_1_Q_V = zeros.masked_fill(~near_B_1_Q_V, lowest)
    rows = max(len(mask), len(near_B_1_Q_V))
    parts = (near_B_1_Q_V, mask)
    return torch.cat([part.expand(rows, -1, -1, -1) for part in parts], dim=-1)


for _name, _mask in ((SDPA, sdpa_mask), (EAGER, eager_mask)):
    AttentionInterface.register(_name, attend)
    AttentionMaskInterface.register(_name, _mask)


class _Roles(nn.ModuleDict):
    """The encoder of every role. ``models.merge`` asks its ``method`` whether it can be merged."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method


class Virtual(Method):
    """The common part of the methods below, whose ``encoder`` makes a role's virtual tokens."""

    per_layer = False
    """Whether a role holds the keys and values of every layer. Otherwise it holds embeddings, which
    the model turns into keys and values.
    """

    def __init__(self, config: AdapterConfig, card: Card) -> None:
        super().__init__(config, card)
        self.tokens = int(self.options["tokens"])
        self.roles = _Roles(self)
        self.role: str | None = None
        self._making = False

    def check(self, model: Any, name: str, folder: Path | None) -> None:
        layers, with_keys = model.config.get_text_config().num_hidden_layers, len(attentions(model))
        if with_keys != layers:
            raise ModelError(
                f"adapter {self.card.name}: {name} has {layers} layers, but virtual tokens can only"
                f" be added to {with_keys} of them: use a method that changes weights, such as lora"
            )

    def wrap(self, model: Any) -> Any:
        self.model = model
        self.attentions = attentions(model)
        text = model.config.get_text_config()
        self.key_heads = int(getattr(text, "num_key_value_heads", None) or text.num_attention_heads)
        self.head_size = int(
            getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        )
        model.set_attn_implementation(EAGER if text._attn_implementation == "eager" else SDPA)
        model.add_module(TREE, self.roles)
        decoder = model.get_decoder()
        self._takes_positions = "position_ids" in inspect.signature(decoder.forward).parameters
        decoder.register_forward_pre_hook(self._before_pass, with_kwargs=True)
        return model

    def base(self) -> Any:
        return self.model

    def add(self, role: str) -> None:
        self.roles[role] = self.encoder().to(self.model.device, torch.float32)

    def drop(self, role: str) -> None:
        if self.role == role:
            self.activate(None)
        del self.roles[role]

    def activate(self, role: str | None) -> None:
        if role != self.role:
            self._put(None)
        self.role = role

    def parameters(self, role: str) -> dict[str, nn.Parameter]:
        encoder = self.roles[role]
        if isinstance(encoder, nn.Embedding):
            return {EMBEDDINGS: encoder.get_parameter("weight")}
        return {f"prompt_encoder.{name}": p for name, p in sorted(encoder.named_parameters())}

    def state(self, role: str) -> dict[str, Tensor]:
        with torch.no_grad():
            return super().state(role) | {EMBEDDINGS: self.embeddings(role).detach()}

    def restore(self, role: str, saved: dict[str, Tensor], described: dict[str, Any]) -> None:
        own = self.state(role)
        if EMBEDDINGS not in saved or saved[EMBEDDINGS].shape != own[EMBEDDINGS].shape:
            raise ModelError("the method or the number of virtual tokens differs")
        if saved.keys() == {EMBEDDINGS} != own.keys():
            # PEFT saves only the computed tokens, without the encoder: they become the role.
            computed = nn.Embedding.from_pretrained(saved[EMBEDDINGS].float())
            self.roles[role] = computed.to(self.model.device)
            return
        parameters = self.parameters(role)
        if any(n not in saved or saved[n].shape != p.shape for n, p in parameters.items()):
            raise ModelError("the method or the size of the encoder differs")
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(saved[name])

    def describe(self, role: str) -> dict[str, Any]:
        config = self.peft_config()
        config.inference_mode = True
        return dict(config.to_dict())

    def encoder(self) -> nn.Module:
        """A fresh role's module, from the indices 0 to V - 1 to the result of ``embeddings``."""
        raise NotImplementedError

    def peft_config(self) -> Any:
        """PEFT's settings of the method."""
        raise NotImplementedError

    def embeddings(self, role: str) -> Tensor:
        """A role's virtual tokens: embeddings [V, H], or with ``per_layer`` [V, 2 L K D]."""
        index_V = torch.arange(self.tokens, device=self.model.device)
        out: Tensor = self.roles[role](index_V[None])[0]
        return out

    def _shape(self) -> dict[str, Any]:
        text = self.model.config.get_text_config()
        keys = self.key_heads * self.head_size
        return {
            "task_type": "CAUSAL_LM",
            "num_virtual_tokens": self.tokens,
            "num_transformer_submodules": 1,
            "num_layers": text.num_hidden_layers,
            "num_attention_heads": self.key_heads if self.per_layer else text.num_attention_heads,
            "token_dim": keys if self.per_layer else text.hidden_size,
        }

    def _before_pass(self, decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Compute the active role's keys and values, and move all positions behind them."""
        if self._making or self.role is None:
            return None
        layers = self._keys_and_values(decoder, self.embeddings(self.role))
        positions = kwargs.get("position_ids")
        if positions is None:
            inputs = kwargs.get("input_ids")
            inputs = kwargs.get("inputs_embeds") if inputs is None else inputs
            inputs = args[0] if inputs is None else inputs
            past = next((kwargs[name] for name in CACHES if kwargs.get(name) is not None), None)
            start = past.get_seq_length() if past is not None else 0
            positions = torch.arange(start, start + inputs.shape[1], device=inputs.device)[None]
        positions = positions + self.tokens
        self._put(layers, positions)
        return (args, {**kwargs, "position_ids": positions}) if self._takes_positions else None

    def _put(
        self, layers: list[tuple[Tensor, Tensor]] | None, position_B_Q: Tensor | None = None
    ) -> None:
        for index, module in enumerate(self.attentions):
            module.ahead = None if layers is None else Ahead(*layers[index], position_B_Q)

    def _keys_and_values(self, decoder: Any, virtual: Tensor) -> list[tuple[Tensor, Tensor]]:
        if not self.per_layer:
            return self._recorded(decoder, virtual)
        by_token = virtual.view(self.tokens, -1, self.key_heads, self.head_size)
        parts = by_token.permute(1, 2, 0, 3)[:, None]  # [2 L, 1, K, V, D]
        return list(zip(parts[::2], parts[1::2], strict=True))

    def _recorded(self, decoder: Any, virtual: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Each layer's keys and values [1, K, V, D] for embeddings [V, H], by running the model."""
        recorded: list[tuple[Tensor, Tensor]] = []
        # A block that recomputes would lose the gradient of tensors recorded inside it.
        blocks = [
            m for m in decoder.modules() if isinstance(m, GradientCheckpointingLayer) and m.training
        ]
        for module in self.attentions:
            module.ahead = Ahead(recorded=recorded)
        for block in blocks:
            block.training = False
        self._making = True
        try:
            dtype = self.model.get_input_embeddings().weight.dtype
            decoder(inputs_embeds=virtual[None].to(dtype), use_cache=False)
        finally:
            self._making = False
            for block in blocks:
                block.training = True
        return recorded


def _some_words(model: Any, count: int) -> Tensor:
    """Float32 embeddings [V, H] of ``count`` random tokens, as the layers get them (Gemma scales
    them).
    """
    embed = model.get_input_embeddings()
    chosen_V = torch.randperm(len(embed.weight))[:count].to(embed.weight.device)
    with torch.no_grad():
        return embed(chosen_V).float()


def attentions(model: Any) -> list[Any]:
    """The attention modules of a model that compute keys."""
    return [m for m in model.modules() if hasattr(m, "layer_idx") and hasattr(m, "k_proj")]


class PromptTuning(Virtual):
    """Prompt tuning (Lester et al. 2021, arXiv 2104.08691): the embeddings of V tokens learn.

    They start as the embeddings of tokens from the vocabulary.
    """

    def encoder(self) -> nn.Module:
        return nn.Embedding.from_pretrained(_some_words(self.model, self.tokens), freeze=False)

    def peft_config(self) -> PromptTuningConfig:
        return PromptTuningConfig(**self._shape())


class PTuning(Virtual):
    """P-tuning (Liu et al. 2021, arXiv 2103.10385): an MLP makes the embeddings of V tokens.

    The MLP makes them depend on each other.
    """

    def encoder(self) -> nn.Module:
        return PromptEncoder(self.peft_config())

    def peft_config(self) -> PromptEncoderConfig:
        shape = self._shape()
        width = int(self.options["hidden"] or shape["token_dim"])
        return PromptEncoderConfig(**shape, encoder_hidden_size=width)


class PrefixTuning(Virtual):
    """Prefix tuning (Li and Liang 2021, arXiv 2101.00190): keys and values of V tokens in every
    layer.

    An MLP makes them during training.
    """

    per_layer = True
    projected = True

    def encoder(self) -> nn.Module:
        encoder = PrefixEncoder(self.peft_config())
        return encoder if self.projected else encoder.embedding

    def peft_config(self) -> PrefixTuningConfig:
        shape = self._shape()
        width = int(self.options.get("hidden") or self.model.config.get_text_config().hidden_size)
        return PrefixTuningConfig(
            **shape, encoder_hidden_size=width, prefix_projection=self.projected
        )


class PTuningV2(PrefixTuning):
    """P-tuning v2 (Liu et al. 2021, arXiv 2110.07602): learned keys and values in every layer.

    They start as the model's keys and values of tokens from the vocabulary (arXiv 2101.00190,
    section 7.4). PEFT starts from normal draws, and attention to these breaks the model's text.
    """

    projected = False

    def begin(self, role: str) -> None:
        with torch.no_grad():
            try:
                embeddings = _some_words(self.model, self.tokens)
                layers = self._recorded(self.model.get_decoder(), embeddings)
            finally:
                self._put(None)
            parts = torch.cat([part for layer in layers for part in layer])  # [2 L, K, V, D]
            weight = self.roles[role].get_parameter("weight")
            weight.copy_(parts.permute(2, 0, 1, 3).reshape(self.tokens, -1))
