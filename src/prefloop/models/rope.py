"""Longer contexts: YaRN (Peng et al. 2023, arXiv 2309.00071) and linear position interpolation
(Chen et al. 2023, arXiv 2306.15595).

transformers and vLLM compute both from the same fields of the model's configuration. In both
libraries max_position_embeddings is the stretched context with YaRN, and the original context with
linear interpolation.
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


def stretch(model_config: Any, config: BackboneConfig) -> None:
    """Apply ``config.rope`` to a transformers configuration.

    Raises ``ModelError`` for a model without plain RoPE and for a context that is too short.
    """
    text = model_config.get_text_config()
    for name, value in stretched(read(text), config).items():
        setattr(text, name, value)


def stretched(text: Mapping[str, Any], config: BackboneConfig) -> dict[str, Any]:
    """The changes of ``entries`` for a backbone. Raises ``ModelError`` as ``stretch`` does."""
    changes = entries(text, config.rope, config.model)
    longest = context({**text, **changes})
    virtual = int(options_of(config.adapter).get("tokens", 0))
    if longest is not None and config.max_length + virtual > longest:
        stretched = config.rope.type != "none"
        longer = "" if stretched else ", or make the context longer with backbone.rope"
        plus = f" plus {virtual} virtual tokens" if virtual else ""
        raise ModelError(
            f"backbone.max_length is {config.max_length}{plus}, but {config.model} has a context"
            f" of {longest} tokens: lower it{longer}"
        )
    return changes


def context(text: Mapping[str, Any]) -> int | None:
    """The context in tokens of a model's text configuration; ``None`` if it states none."""
    own = text.get("max_position_embeddings")
    scaled = text.get("rope_parameters") or text.get("rope_scaling") or {}
    scaled = scaled.get(_FULL) or scaled
    if own is None:
        return None
    linear = scaled.get("rope_type", scaled.get("type")) == "linear"
    # Gemma 3's max_position_embeddings already includes its factor.
    if linear and "gemma3" not in str(text.get("model_type")):
        return int(own * scaled["factor"])
    return int(own)


def entries(text: Mapping[str, Any], rope: RopeConfig, model: str) -> dict[str, Any]:
    """The fields that ``rope`` changes in the text configuration ``text``; empty for type none.

    Layers with a sliding window keep their own rotations, if the model has separate ones for them,
    since they never look beyond the window. Raises ``ModelError`` for a model without RoPE, and for
    one whose RoPE is already scaled.
    """
    if rope.type == "none":
        return {}
    parameters, own = text.get("rope_parameters"), text.get("max_position_embeddings")
    if not parameters or own is None:
        raise ModelError(
            f"backbone.rope is {rope.type}, but {model} has no rotary position embeddings: leave"
            " backbone.rope out"
        )
    nested = isinstance(parameters.get(_FULL), dict)
    plain = dict(parameters[_FULL] if nested else parameters)
    if (kind := plain.get("rope_type", "default")) != "default":
        raise ModelError(
            f"backbone.rope is {rope.type}, but the position embeddings of {model} are scaled"
            f" already ({kind}, context {context(text)}): leave backbone.rope out"
        )
    plain |= {"rope_type": rope.type, "factor": rope.factor}
    if rope.type == "yarn":
        plain["original_max_position_embeddings"] = own
    changes: dict[str, Any] = {"rope_parameters": {**parameters, _FULL: plain} if nested else plain}
    if rope.type == "yarn":
        changes["max_position_embeddings"] = int(own * rope.factor)
    return changes


def overrides(folder: Path, rope: RopeConfig, model: str) -> dict[str, Any]:
    """The changes of ``entries`` in the form of vLLM's ``hf_overrides``.

    They are nested under text_config where the model's config.json has one.
    """
    if rope.type == "none":
        return {}
    changes = entries(read(configuration(folder).get_text_config()), rope, model)
    return {"text_config": changes} if "text_config" in described(folder) else changes


def written(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a config.json with ``overrides`` applied.

    Older names of the same fields would take precedence, so they are removed.
    """
    if "text_config" in changes:
        return {**config, "text_config": written(config["text_config"], changes["text_config"])}
    dropped = {"rope_scaling", "rope_theta"} if changes else set()
    return {**{k: v for k, v in config.items() if k not in dropped}, **changes}


def read(text: Any) -> dict[str, Any]:
    """A configuration as a dictionary. max_position_embeddings is read as an attribute, since some
    models store it under another name.
    """
    return {
        **text.to_dict(),
        "max_position_embeddings": getattr(text, "max_position_embeddings", None),
    }
