"""The arguments of a trainer of TRL: a user's, in the types of its configuration class, and those
that prefloop sets.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import typing
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError
from transformers import TrainingArguments

from prefloop.base.console import shortened
from prefloop.base.redact import short
from prefloop.config.trl import TRAINERS
from prefloop.errors import ConfigError, nearest
from prefloop.runs.runtime import Runtime


def trainer_class(name: str) -> Any:
    """TRL's class of one of ``TRAINERS``."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    return getattr(importlib.import_module(TRAINERS[name].module), name)


def checked_arguments(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for the configuration of a trainer, in the types of its fields.

    Raises ``ConfigError`` for one that it does not have, with the nearest, or whose value it cannot
    take.
    """
    kind = _arguments_class(name)
    known = {field.name for field in dataclasses.fields(kind) if field.init}
    hints, out = typing.get_type_hints(kind), {}
    for key, value in given.items():
        if key not in known:
            raise ConfigError(
                f"trl.args: {kind.__name__} has no argument {short(key)} ({nearest(key, known)})"
            )
        try:
            adapter: TypeAdapter[Any] = TypeAdapter(
                hints[key], config=ConfigDict(arbitrary_types_allowed=True)
            )
        except (PydanticSchemaGenerationError, PydanticUserError):
            out[key] = value  # a type that pydantic does not know: the class itself will look
            continue
        try:
            out[key] = adapter.validate_python(value)
        except ValidationError as error:
            said = error.errors(include_url=False, include_context=False)[0]["msg"]
            raise ConfigError(f"trl.args.{key}: {said} (found {short(value)})") from None
    return out


def arguments(
    name: str, given: Mapping[str, Any], folder: Path, every: int, runtime: Runtime | None = None
) -> TrainingArguments:
    """The configuration of a trainer: ``given`` over TRL's defaults, and what prefloop sets.

    Without a ``runtime`` model, sampling and seed are left open, to check the rest. Raises
    ``ConfigError`` for what the class refuses.
    """
    kind = _arguments_class(name)
    cuda = torch.cuda.is_available()
    own: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": not cuda,
        "bf16": False,
        "save_strategy": "steps",
        "save_steps": every,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
        "disable_dropout": True,
        "completion_only_loss": True,
        "activation_checkpointing": False,
    }
    if runtime is not None:
        backbone, generation = runtime.backbone, runtime.generation
        own |= {
            "bf16": backbone.compute_dtype == torch.bfloat16,
            "activation_checkpointing": backbone.config.gradient_checkpointing == "block",
            "activation_checkpointing_kwargs": {"use_reentrant": False},
            "max_length": backbone.config.max_length,
            "temperature": generation.temperature,
            "max_completion_length": generation.max_new_tokens,
            "seed": runtime.seed,
        }
    known = {field.name for field in dataclasses.fields(kind)}
    own = {key: value for key, value in own.items() if key in known}
    with refusals(kind.__name__):
        made = kind(**checked_arguments(name, given), **own)
        if made.n_gpu > 1:
            made._n_gpu = 1  # else transformers puts nn.DataParallel around the model
    return made


def _arguments_class(name: str) -> Any:
    trainer_class(name)
    module = importlib.import_module(TRAINERS[name].module)
    return getattr(module, name.removesuffix("Trainer") + "Config")


@contextlib.contextmanager
def refusals(who: str) -> Iterator[None]:
    """What TRL refuses in its own words as a ``ConfigError``."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (ValueError, TypeError, NotImplementedError, ImportError) as error:
        raise ConfigError(
            f"trl.args: {who} refuses them: {shortened(' '.join(str(error).split()), 400)}"
        ) from error
