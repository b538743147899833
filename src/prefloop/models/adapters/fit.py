"""Whether a method fits a model, from the model's configuration alone: asked before gigabytes are
read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefloop.config import BackboneConfig
from prefloop.config import adapters as catalogue
from prefloop.errors import ModelError
from prefloop.models import folder, rope
from prefloop.models.adapters import method_of
from prefloop.models.adapters.method import Method
from prefloop.models.adapters.targets import targeted


def fitting(config: BackboneConfig, place: Path) -> tuple[Method, Any]:
    """The method of ``config.adapter``, and the model in the folder ``place`` without weights.

    Raises ``ConfigError`` or ``ModelError`` as ``fits`` does, and ``ModelError`` where the folder's
    configuration cannot be used.
    """
    catalogue.require(config)
    return fits(config, folder.configuration(place), place)


def fits(config: BackboneConfig, described: Any, place: Path | None) -> tuple[Method, Any]:
    """The method of ``config.adapter``, and the model of transformers' configuration ``described``
    without weights.

    Raises ``ConfigError`` or ``ModelError`` for a method or settings that cannot be, a precision
    that it does not train on, a context that is too short, and where it cannot work on this model:
    ``adapter.target_modules`` matches nothing, a layer that it matches cannot take the method's
    settings, or what the method itself asks for is missing (``Method.check``).
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
