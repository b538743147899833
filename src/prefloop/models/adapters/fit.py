"""Check from its configuration, before reading weights, that an adapter method works on a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefloop.config import BackboneConfig
from prefloop.config import adapters as catalog
from prefloop.errors import ModelError
from prefloop.models import folder, rope
from prefloop.models.adapters import method_of
from prefloop.models.adapters.method import Method
from prefloop.models.adapters.targets import targeted


def fitting(config: BackboneConfig, place: Path) -> tuple[Method, Any]:
    """The method of ``config.adapter``, and the model in the folder ``place`` without its weights.

    Raises ``ConfigError`` or ``ModelError`` as ``fits`` does, and ``ModelError`` for an unusable
    configuration in the folder.
    """
    catalog.require(config)
    return fits(config, folder.configuration(place), place)


def fits(config: BackboneConfig, model_config: Any, place: Path | None) -> tuple[Method, Any]:
    """The method of ``config.adapter``, and the model of ``model_config`` without weights.

    Args:
        config: the backbone's settings.
        model_config: the model's transformers configuration.
        place: the model's folder, if it exists already.

    Raises ``ConfigError`` or ``ModelError`` for invalid settings of the method, a precision that
    the method does not train on, and a context that is too short. Also raises them for a method
    that does not work on this model: ``adapter.target_modules`` matches no layer, a matching layer
    does not fit the settings, or ``Method.check`` fails.
    """
    catalog.require(config)
    method = method_of(config.adapter)
    rope.stretch(model_config, config)
    model = folder.blank(model_config, config.model)
    method.check(model, config.model, place)
    for name, module in targeted(model, method.targets).items():
        if problem := method.misfit(module.in_features, module.out_features):
            raise ModelError(f"adapter {method.card.name} does not fit {name}: {problem}")
    return method, model
