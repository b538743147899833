"""Read YAML and the command line into a validated ``RLHFConfig``. This module imports nothing
heavy.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tyro
import yaml
from pydantic import TypeAdapter, ValidationError

from prefloop.base.console import say, shortened
from prefloop.base.redact import short
from prefloop.config import RLHFConfig
from prefloop.config.adapters import EXPERTS, require
from prefloop.config.flags import flags as read_flags
from prefloop.config.presets import Facts, guides, smallest_side
from prefloop.config.presets import tree as tree_of
from prefloop.config.ranges import FLAGS, range_of
from prefloop.config.yaml_file import parse_yaml
from prefloop.errors import ConfigError, nearest

SOURCES = ("simulated", "file", "argilla")
GONE = {
    "sft.packing": (
        "demonstrations always share packs, in which each attends to itself alone, and"
        " sft.batch_size counts demonstrations; leave it out"
    )
}
"""Settings that there were, and why there is none now."""


@FLAGS.primitive_rule
def _options(
    info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
    """Read an adapter method's options as one flag with pairs, each value as YAML reads it
    (``tokens 30``, ``experts '[one, two]'``).
    """
    if info.type != dict[str, Any]:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="[NAME VALUE ...]",
        instance_from_str=lambda parts: dict(
            _paired(parts, yaml.safe_load, f"; a list is one value, {EXPERTS}")
        ),
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [
            part for k, v in value.items() for part in (k, json.dumps(v))
        ],
    )


@FLAGS.primitive_rule
def _weights(
    info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
    """Read a dictionary of weights as one flag with pairs, which replace those of the file. tyro's
    own rule would make a flag of each key in the file.
    """
    span = range_of(typing.get_args(info.type)[1]) if info.type_origin is dict else None
    if span is None:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="[NAME WEIGHT ...]",
        instance_from_str=lambda parts: dict(_paired(parts, span.read)),
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [str(part) for pair in value.items() for part in pair],
    )


def _paired(
    parts: list[str], read: Callable[[str], Any], hint: str = ""
) -> Iterator[tuple[str, Any]]:
    """Pairs from names and values that alternate. Raises ``ValueError`` for a name without a value,
    and for a value that ``read`` refuses.
    """
    if len(parts) % 2:
        raise ValueError(f"expected a value after each name, found {' '.join(parts)}{hint}")
    for name, value in zip(parts[::2], parts[1::2], strict=True):
        try:
            yield name, read(value)
        except yaml.YAMLError as error:
            raise ValueError(f"{name}: '{value}' is no YAML value: {error}") from None


def load_config(path: Path) -> RLHFConfig:
    """Read a configuration from a YAML file. Raises ``ConfigError`` naming the file, the key and
    the nearest known key.
    """
    tree = _read(path)
    return _guided(tree, str(path), lambda default: default)


def _read(path: Path) -> dict[str, Any]:
    """The contents of a YAML file, with its keys checked by name."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"config file '{path}' does not exist: check the path (it is relative to the current"
            " folder)"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file '{path}' cannot be read: {error}") from None
    tree = parse_yaml(text, f"config file '{path}'") or {}
    if not isinstance(tree, dict):
        raise ConfigError(
            f"config file '{path}' holds {type(tree).__name__}, expected keys such as 'run:' and"
            " 'data:'"
        )
    _check_keys(tree, RLHFConfig, str(path), "")
    return tree


def _guided(
    tree: dict[str, Any], where: str, flags: Callable[[RLHFConfig], RLHFConfig]
) -> RLHFConfig:
    """A configuration from four layers: the defaults, the preset's values, the file's ``tree``, and
    ``flags``; each overrides those before it.

    The preset depends on settings of the file and the flags (method, rank, model, data), so its
    values are computed again once these are known. Raises ``ConfigError`` for settings that
    contradict each other on any model.
    """
    config = flags(validated(tree, where))
    if config.preset is None:
        return _agreeing(config)
    for ask in (lambda _: Facts(), facts_of):
        values = guides(str(config.preset), ask(config))
        config = flags(validated(_over(tree_of(values), tree), where))
    for guide in values:
        if guide.logged and config.backbone.adapter.r == guide.value:
            say(f"preset {config.preset}: {guide.field} is {guide.value}, {guide.source}", "yellow")
    return _agreeing(config)


def _agreeing(config: RLHFConfig) -> RLHFConfig:
    """Check what can be checked without a model, before anything heavy is imported."""
    require(config.backbone)
    config.sft.require()
    return config


def facts_of(config: RLHFConfig) -> Facts:
    """The settings on which a preset's values depend."""
    from prefloop.data.files import count_rows

    source, adapter = config.data.demonstrations, config.backbone.adapter
    rows = count_rows(source) if source else None
    if rows is not None and config.data.limit is not None:
        rows = min(rows, config.data.limit)
    smallest = smallest_side(config.backbone.model)
    optimizers = {
        "sft": config.sft.optim.name,
        "reward": config.reward.optim.name,
        "preference": config.preference.optim.name,
        "ppo": config.ppo.optim.name,
    }
    lion = frozenset(stage for stage, name in optimizers.items() if "lion" in name)
    return Facts(
        adapter.method,
        adapter.r,
        config.backbone.model,
        rows,
        config.sft.batch_size,
        lion,
        config.sft.eval_share > 0,
        smallest,
    )


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Merge two trees of keys; ``above`` wins."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _over(merged[key], value) if both else value
    return merged


def validated(tree: Any, where: str) -> RLHFConfig:
    """Check types and values. Raises ``ConfigError`` naming the field and its value."""
    try:
        return TypeAdapter(RLHFConfig).validate_python(tree)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_refusals(error)}") from None


def _refusals(error: ValidationError) -> str:
    """All of pydantic's errors, each with its field and value."""
    errors = error.errors(include_url=False, include_context=False)
    lines = [
        f"'{shortened('.'.join(map(str, e['loc'])))}':"
        f" {shortened(e['msg'].removeprefix('Value error, '), 400)} (found {short(e['input'])})"
        for e in errors
    ]
    return "; ".join(lines[:8]) + (f"; and {len(lines) - 8} more" if len(lines) > 8 else "")


def _check_keys(tree: dict[str, Any], kind: type, where: str, prefix: str) -> None:
    """Raise ``ConfigError`` for an unknown key with the nearest known one. pydantic alone would
    only say that the key is not permitted.
    """
    hints = typing.get_type_hints(kind)
    known = {f.name: hints[f.name] for f in dataclasses.fields(kind)}
    for key, value in tree.items():
        if key not in known:
            _refuse_gone(f"{prefix}{key}", where)
            raise ConfigError(
                f"{where}: unknown key '{prefix}{shortened(str(key))}'"
                f" ({nearest(prefix + str(key), [prefix + k for k in known])})"
            )
        inner = known[key]
        if isinstance(value, dict) and dataclasses.is_dataclass(inner):
            _check_keys(value, typing.cast(type, inner), where, f"{prefix}{key}.")
        if (
            isinstance(value, list)
            and typing.get_origin(inner) is list
            and dataclasses.is_dataclass(typing.get_args(inner)[0])
        ):
            for i, item in enumerate(value):
                if isinstance(item, dict):
                    _check_keys(item, typing.get_args(inner)[0], where, f"{prefix}{key}[{i}].")


def _refuse_gone(name: str, where: str) -> None:
    """Raise ``ConfigError`` for a setting that is gone."""
    if name in GONE:
        raise ConfigError(f"{where}: '{name}' is gone: {GONE[name]}")


def parse(arguments: Sequence[str], prog: str, description: str) -> RLHFConfig:
    """Read a configuration from command-line arguments. ``--config file.yaml`` gives the defaults,
    and every other flag overrides one field.
    """
    rest = list(arguments)
    tree: dict[str, Any] = {}
    where = "flags"
    for i, argument in enumerate(rest):
        if argument == "--config" or argument.startswith("--config="):
            if argument == "--config" and i + 1 == len(rest):
                raise ConfigError("--config needs the path of a YAML file")
            path = argument.split("=", 1)[1] if "=" in argument else rest[i + 1]
            tree, where = _read(Path(path)), path
            del rest[i : i + (1 if "=" in argument else 2)]
            break

    for argument in rest:
        name = argument.partition("=")[0].removeprefix("--").replace(".no-", ".")
        _refuse_gone(name if argument.startswith("--") else "", "flags")

    def flags(default: RLHFConfig) -> RLHFConfig:
        try:
            return read_flags(RLHFConfig, rest, default=default, prog=prog, description=description)
        except ValidationError as error:
            raise ConfigError(f"flags: {_refusals(error)}") from None

    return _addressed(_guided(tree, where, flags))


def _addressed(config: RLHFConfig) -> RLHFConfig:
    """Write ``labels`` out into ``label``, and check what rounds and simulated votes need."""
    label, labels = config.label, config.labels
    if labels is not None:
        source, _, place = labels.partition("://")
        parts = place.split("/") if place else []
        if (
            source not in SOURCES
            or (parts and source != "argilla")
            or len(parts) not in (0, 2)
            or not all(parts)
            or ("://" in labels and not parts)
        ):
            known = ", ".join(SOURCES)
            raise ConfigError(
                f"labels: {short(labels)} is none of {known} and no address"
                " argilla://workspace/dataset"
            )
        label = dataclasses.replace(label, source=source)  # type: ignore[arg-type]
        if parts:
            label = dataclasses.replace(label, workspace=parts[0], dataset=parts[1])
    if label.source == "argilla" and label.dataset is None:
        label = dataclasses.replace(
            label, dataset=config.run + ("-simulated" if config.simulate else "")
        )
    if config.rounds > 1 and label.source == "file":
        raise ConfigError(
            f"rounds is {config.rounds} with votes from a file: only sampled candidates can be put"
            " to the vote again"
        )
    if config.simulate and label.source != "argilla":
        raise ConfigError(
            f"simulate is about votes through Argilla, and label.source is '{label.source}': say"
            " --labels argilla, or leave it out"
        )
    return dataclasses.replace(config, label=label)
