"""Virtual tokens that every document begins with: prompt tuning, P-tuning, prefix tuning, P-tuning
v2.

What comes later sees virtual tokens through their keys and values alone, and those depend on
nothing that comes later. So the keys and values are made once a pass and put ahead of everybody's
in each layer's attention: packs, branches, cached generation and padded rows stay as they are, and
a pack of a hundred documents costs one row of virtual tokens instead of a hundred. Files are
PEFT's.

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
"""What the model's config calls these attentions."""
EMBEDDINGS = "prompt_embeddings"
"""PEFT's name of the finished virtual tokens in a file."""


@dataclasses.dataclass
class Ahead:
    """Keys and values [1, K, V, D] ahead of everybody's in one layer, or a list that takes those of
    the virtual tokens.
    """

    keys: Tensor | None = None
    values: Tensor | None = None
    position_B_Q: Tensor | None = None
    """Of the queries, virtual tokens counted: a sliding window ends within them, too."""
    heard: list[tuple[Tensor, Tensor]] | None = None


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, Any]:
    """transformers' attention interface with ``module.ahead`` before the keys; a mask lets every
    query see all of it.
    """
    ahead: Ahead | None = getattr(module, "ahead", None)
    if ahead is not None and ahead.heard is not None:
        ahead.heard.append((key, value))
    if ahead is not None and ahead.keys is not None and ahead.values is not None:
        rows, queries, own, virtual = (
            key.shape[0],
            query.shape[2],
            key.shape[2],
            ahead.keys.shape[2],
        )
        if attention_mask is None and queries > 1:
            causal_Q_T = torch.ones(queries, own, dtype=torch.bool, device=key.device).tril(
                own - queries
            )
            attention_mask = causal_Q_T[None, None]
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
    """The mask [B, 1, Q, T] with V columns before it: seen, unless a sliding window has left them
    behind.
    """
    if mask is None:
        mask = torch.ones(1, 1, query.shape[2], own, dtype=torch.bool, device=query.device)
    if window is None or position_B_Q is None:
        return nn.functional.pad(mask, (virtual, 0), value=1 if mask.dtype == torch.bool else 0)
    near = position_B_Q[..., None] - torch.arange(virtual, device=mask.device) < window
    near_B_1_Q_V = near[:, None]
    if mask.dtype != torch.bool:
        lowest = torch.finfo(mask.dtype).min
        near_B_1_Q_V = torch.zeros_like(near_B_1_Q_V, dtype=mask.dtype).masked_fill(
            ~near_B_1_Q_V, lowest
        )
    rows = max(len(mask), len(near_B_1_Q_V))
    return torch.cat(
        [near_B_1_Q_V.expand(rows, -1, -1, -1), mask.expand(rows, mask.shape[1], -1, -1)], dim=-1
    )


for _name, _mask in ((SDPA, sdpa_mask), (EAGER, eager_mask)):
    AttentionInterface.register(_name, attend)
    AttentionMaskInterface.register(_name, _mask)


class Virtual(Method):
    """Shared by the methods below: subclasses say what makes the virtual tokens of a role."""

    per_layer = False
    """Whether a role holds keys and values of every layer, and not embeddings that the model makes
    them from.
    """

    def __init__(self, config: AdapterConfig, card: Card) -> None:
        super().__init__(config, card)
        self.tokens = int(self.options["tokens"])
        self.roles = nn.ModuleDict()
        self.role: str | None = None
        self._making = False

    def check(self, model: Any, name: str, folder: Path | None) -> None:
        layers, found = model.config.get_text_config().num_hidden_layers, len(attentions(model))
        if found != layers:
            raise ModelError(
                f"adapter {self.card.name}: {name} has {layers} layers, and keys to put virtual"
                f" tokens before in {found}: take a method that changes weights, such as lora"
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
            raise ModelError("method or number of virtual tokens differ")
        if saved.keys() == {EMBEDDINGS} != own.keys():
            # PEFT keeps the finished tokens alone: they go on by themselves.
            self.roles[role] = nn.Embedding.from_pretrained(saved[EMBEDDINGS].float()).to(
                self.model.device
            )
            return
        parameters = self.parameters(role)
        if any(n not in saved or saved[n].shape != p.shape for n, p in parameters.items()):
            raise ModelError("method or size of the encoder differ")
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(saved[name])

    def describe(self, role: str) -> dict[str, Any]:
        config = self.peft_config()
        config.inference_mode = True
        return dict(config.to_dict())

    def encoder(self) -> nn.Module:
        """A fresh role's module; called with the numbers 0 to V - 1 it gives what ``embeddings``
        is.
        """
        raise NotImplementedError

    def peft_config(self) -> Any:
        """PEFT's words for it."""
        raise NotImplementedError

    def embeddings(self, role: str) -> Tensor:
        """[V, H], or [V, 2 L K D] where each layer has its own."""
        index_V = torch.arange(self.tokens, device=self.model.device)
        out: Tensor = self.roles[role](index_V[None])[0]
        return out

    def _shape(self) -> dict[str, Any]:
        text = self.model.config.get_text_config()
        of_layers = {
            "num_attention_heads": self.key_heads,
            "token_dim": self.key_heads * self.head_size,
        }
        of_embeddings = {
            "num_attention_heads": text.num_attention_heads,
            "token_dim": text.hidden_size,
        }
        return {
            "task_type": "CAUSAL_LM",
            "num_virtual_tokens": self.tokens,
            "num_transformer_submodules": 1,
            "num_layers": text.num_hidden_layers,
            **(of_layers if self.per_layer else of_embeddings),
        }

    def _before_pass(self, decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Keys and values of the active role for this pass; everybody else's positions begin behind
        them.
        """
        if self._making or self.role is None:
            return None
        layers = self._keys_and_values(decoder, self.embeddings(self.role))
        positions = kwargs.get("position_ids")
        if positions is None:
            given = (
                kwargs.get("inputs_embeds")
                if kwargs.get("input_ids") is None
                else kwargs["input_ids"]
            )
            given = args[0] if given is None else given
            past = next((kwargs[name] for name in CACHES if kwargs.get(name) is not None), None)
            start = past.get_seq_length() if past is not None else 0
            positions = torch.arange(start, start + given.shape[1], device=given.device)[None]
        positions = positions + self.tokens
        self._put(layers, positions)
        return (args, {**kwargs, "position_ids": positions}) if self._takes_positions else None

    def _put(
        self, layers: list[tuple[Tensor, Tensor]] | None, position_B_Q: Tensor | None = None
    ) -> None:
        for place, module in enumerate(self.attentions):
            module.ahead = None if layers is None else Ahead(*layers[place], position_B_Q)

    def _keys_and_values(self, decoder: Any, virtual: Tensor) -> list[tuple[Tensor, Tensor]]:
        if self.per_layer:
            whole = virtual.view(self.tokens, -1, self.key_heads, self.head_size).permute(
                1, 2, 0, 3
            )
            return [
                (whole[2 * k][None], whole[2 * k + 1][None]) for k in range(len(self.attentions))
            ]
        return self._heard(decoder, virtual)

    def _heard(self, decoder: Any, virtual: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values [1, K, V, D] that each layer makes of embeddings [V, H]."""
        heard: list[tuple[Tensor, Tensor]] = []
        # A block that recomputes would lose the gradient of what is heard inside it.
        blocks = [
            m for m in decoder.modules() if isinstance(m, GradientCheckpointingLayer) and m.training
        ]
        for module in self.attentions:
            module.ahead = Ahead(heard=heard)
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
        return heard


def _some_words(model: Any, count: int) -> Tensor:
    """Embeddings [V, H] of ``count`` tokens of the vocabulary, as layers get them (Gemma scales
    them), in float32.
    """
    embed = model.get_input_embeddings()
    chosen_V = torch.randperm(len(embed.weight))[:count].to(embed.weight.device)
    with torch.no_grad():
        return embed(chosen_V).float()


def attentions(model: Any) -> list[Any]:
    """The attention modules of a model that make keys."""
    return [m for m in model.modules() if hasattr(m, "layer_idx") and hasattr(m, "k_proj")]


class PromptTuning(Virtual):
    """Prompt tuning (Lester et al. 2021, arXiv 2104.08691): embeddings of V tokens, begun as those
    of tokens from the vocabulary.
    """

    def encoder(self) -> nn.Module:
        return nn.Embedding.from_pretrained(_some_words(self.model, self.tokens), freeze=False)

    def peft_config(self) -> PromptTuningConfig:
        return PromptTuningConfig(**self._shape())


class PTuning(Virtual):
    """P-tuning (Liu et al. 2021, arXiv 2103.10385): embeddings of V tokens out of an MLP, which
    makes them depend on each other.
    """

    def encoder(self) -> nn.Module:
        return PromptEncoder(self.peft_config())

    def peft_config(self) -> PromptEncoderConfig:
        shape = self._shape()
        width = int(self.options["hidden"] or shape["token_dim"])
        return PromptEncoderConfig(**shape, encoder_hidden_size=width)


class PrefixTuning(Virtual):
    """Prefix tuning (Li and Liang 2021, arXiv 2101.00190): keys and values of V tokens in every
    layer, out of an MLP while it learns.
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
    """P-tuning v2 (Liu et al. 2021, arXiv 2110.07602): keys and values of V tokens in every layer,
    learnt directly.

    They begin as what the model makes of tokens of its vocabulary (arXiv 2101.00190, section 7.4):
    attention to normal draws, PEFT's start, tears a language model's text apart.
    """

    projected = False

    def begin(self, role: str) -> None:
        with torch.no_grad():
            try:
                heard = self._heard(self.model.get_decoder(), _some_words(self.model, self.tokens))
            finally:
                self._put(None)
            whole = torch.cat([part for of_layer in heard for part in of_layer])  # [2 L, K, V, D]
            self.roles[role].weight.copy_(whole.permute(2, 0, 1, 3).reshape(self.tokens, -1))  # type: ignore[operator]
