"""Whether a method fits a model, from the model's configuration alone: asked before gigabytes are read."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from prefloop.config import BackboneConfig
from prefloop.errors import ModelError
from prefloop.models import folder, rope
from prefloop.models.adapters import catalogue, method_of
from prefloop.models.adapters.method import Method


def fitting(config: BackboneConfig, place: Path) -> tuple[Method, Any]:
    """The method of ``config.adapter``, and the model in the folder ``place`` without weights.

    Raises ``ConfigError`` or ``ModelError`` as ``fits`` does, and ``ModelError`` where the folder's configuration cannot be used.
    """
    catalogue.require(config)
    return fits(config, folder.configuration(place), place)


def fits(config: BackboneConfig, described: Any, place: Path | None) -> tuple[Method, Any]:
    """The method of ``config.adapter``, and the model of transformers' configuration ``described`` without weights.

    Raises ``ConfigError`` or ``ModelError`` for a method or settings that cannot be, a precision that it does not train on, a context that is
    too short, and where it cannot work on this model: ``adapter.target_modules`` matches nothing, a layer that it matches cannot take the
    method's settings, or what the method itself asks for is missing (``Method.check``).
    """
    catalogue.require(config)
    method = method_of(config.adapter)
    rope.stretch(described, config)
    model = folder.blank(described, config.model)
    method.check(model, config.model, place)
    for name, module in targeted(model, method.targets).items():
        if problem := method.misfit(module.in_features, module.out_features):
            raise ModelError(f"adapter {method.card.name} does not fit {name}: {problem}")
    return method, model


def targeted(model: Any, pattern: str) -> dict[str, nn.Linear]:
    """Linear layers (float or 4-bit) but the output head whose whole name ``pattern`` matches; 'all-linear' matches all.

    Raises ``ModelError`` where it matches none.
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
    return {name: linear[name] for name in matched(linear, pattern)}


def matched(names: Iterable[str], pattern: str) -> list[str]:
    """Those of the full names of a model's linear layers that ``adapter.target_modules`` means. Raises ``ModelError`` where it means none."""
    names = list(names)
    if pattern == "all-linear":
        return names
    try:
        found = [name for name in names if re.fullmatch(pattern, name)]
    except re.error as error:
        raise ModelError(f"backbone.adapter.target_modules '{pattern}' is no regular expression: {error}") from None
    if not found:
        ends = sorted({name.rpartition(".")[2] for name in names})
        raise ModelError(
            f"backbone.adapter.target_modules '{pattern}' matches no layer of the model: say 'all-linear' or a regular expression for full "
            f"names, such as '.*\\.({'|'.join(ends[:3])})'; its layers end in {', '.join(ends)}"
        )
    return found
