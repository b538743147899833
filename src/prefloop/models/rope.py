"""Contexts longer than a model's own: YaRN (Peng et al. 2023, arXiv 2309.00071) and linear position
interpolation (Chen et al. 2023, arXiv 2306.15595), computed by transformers and vLLM from the same
entries of the model's configuration.

max_position_embeddings means what both libraries take it for: the stretched context with YaRN, the
context before with linear.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefloop.config import BackboneConfig, RopeConfig
from prefloop.config.adapters import options_of
from prefloop.errors import ModelError
from prefloop.models.folder import configuration, described

_FULL = "full_attention"


def stretch(model: Any, config: BackboneConfig) -> None:
    """Put ``config.rope`` into a transformers configuration. Raises ``ModelError`` for a model
    without plain RoPE or too short a context.
    """
    text = model.get_text_config()
    for name, value in stretched(read(text), config).items():
        setattr(text, name, value)


def stretched(text: Mapping[str, Any], config: BackboneConfig) -> dict[str, Any]:
    """``entries`` for a backbone. Raises ``ModelError`` as ``stretch`` does."""
    changes = entries(text, config.rope, config.model)
    longest, virtual = (
        context({**text, **changes}),
        int(options_of(config.adapter).get("tokens", 0)),
    )
    if longest is not None and config.max_length + virtual > longest:
        longer = (
            "" if config.rope.type != "none" else ", or make the context longer with backbone.rope"
        )
        ahead = f" behind {virtual} virtual tokens" if virtual else ""
        raise ModelError(
            f"backbone.max_length is {config.max_length}{ahead}, but {config.model} has a context"
            f" of {longest} tokens: lower it{longer}"
        )
    return changes


def context(text: Mapping[str, Any]) -> int | None:
    """Tokens that the model of a configuration (of its text part) takes, where it says so."""
    own = text.get("max_position_embeddings")
    scaled = text.get("rope_parameters") or text.get("rope_scaling") or {}
    scaled = scaled.get(_FULL) or scaled
    if own is None:
        return None
    linear = scaled.get("rope_type", scaled.get("type")) == "linear" and "gemma3" not in str(
        text.get("model_type")
    )
    return int(own * scaled["factor"]) if linear else int(own)  # Gemma 3 counts its own factor in


def entries(text: Mapping[str, Any], rope: RopeConfig, model: str) -> dict[str, Any]:
    """What ``rope`` changes in a configuration that transformers has read (its text part); empty
    for type none.

    Layers with a sliding window keep their rotations where the model gives them their own: they
    never look further than the window. Raises ``ModelError`` for a model without RoPE or with one
    that is scaled already.
    """
    if rope.type == "none":
        return {}
    parameters, own = text.get("rope_parameters"), text.get("max_position_embeddings")
    if not parameters or own is None:
        raise ModelError(
            f"backbone.rope is {rope.type}, but {model} has no rotary position embeddings: leave"
            " it out"
        )
    nested = isinstance(parameters.get(_FULL), dict)
    plain = dict(parameters[_FULL] if nested else parameters)
    if (kind := plain.get("rope_type", "default")) != "default":
        raise ModelError(
            f"backbone.rope is {rope.type}, but the position embeddings of {model} are scaled"
            f" already ({kind}, context {context(text)}): leave it out"
        )
    plain |= {"rope_type": rope.type, "factor": rope.factor}
    if rope.type == "yarn":
        plain["original_max_position_embeddings"] = own
    found = {"rope_parameters": {**parameters, _FULL: plain} if nested else plain}
    return found | (
        {"max_position_embeddings": int(own * rope.factor)} if rope.type == "yarn" else {}
    )


def overrides(folder: Path, rope: RopeConfig, model: str) -> dict[str, Any]:
    """``entries`` for the model in ``folder``, under text_config where its config.json has one:
    vLLM's ``hf_overrides``.
    """
    if rope.type == "none":
        return {}
    found = entries(read(configuration(folder).get_text_config()), rope, model)
    return {"text_config": found} if "text_config" in described(folder) else found


def written(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a config.json with ``overrides`` put in; an older name for the same thing
    would win over them, so it goes.
    """
    if "text_config" in changes:
        return {**config, "text_config": written(config["text_config"], changes["text_config"])}
    dropped = {"rope_scaling", "rope_theta"} if changes else set()
    return {**{k: v for k, v in config.items() if k not in dropped}, **changes}


def read(text: Any) -> dict[str, Any]:
    """The content of a configuration: some models have another name for the length of their
    context, which transformers knows.
    """
    return {
        **text.to_dict(),
        "max_position_embeddings": getattr(text, "max_position_embeddings", None),
    }
