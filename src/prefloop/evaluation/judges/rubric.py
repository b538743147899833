"""The criteria of a rubric, from a YAML or JSON file or from text."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefloop.config.yaml_file import parse_yaml
from prefloop.errors import ConfigError

_SHAPE = (
    "a rubric is a mapping of criteria, such as {correct: {weight: 2, description: What it says is"
    " true}, short: 1}"
)
_NAME = re.compile(r"[^\W\d_][\w -]{0,39}")


@dataclass(frozen=True)
class Criterion:
    """One thing to score."""

    name: str
    weight: float = 1.0
    description: str = ""


def read_rubric(source: str) -> tuple[Criterion, ...]:
    """Criteria in order, from the path of a ``.yaml``, ``.yml`` or ``.json`` file or from YAML
    text.

    A criterion's value is its weight, its description (two words or more), or a mapping of
    ``weight`` and ``description``. Raises ``ConfigError`` naming the file and the criterion.
    """
    where, text = "rubric", source
    if "\n" not in source and source.lower().endswith((".yaml", ".yml", ".json")):
        where = f"rubric {source}"
        text = _text(Path(source), where)
    try:
        rubric = parse_yaml(text, where)
    except ConfigError as error:
        raise ConfigError(f"{str(error).splitlines()[0]}; {_SHAPE}") from None
    if not isinstance(rubric, dict) or not rubric:
        raise ConfigError(f"{where}: found {str(rubric)[:60]!r}; {_SHAPE}")
    criteria = tuple(_criterion(name, value, where) for name, value in rubric.items())
    if len({criterion.name.lower() for criterion in criteria}) < len(criteria):
        raise ConfigError(
            f"{where}: two criteria differ in upper and lower case only; give them different names"
        )
    return criteria


def _criterion(name: Any, value: Any, where: str) -> Criterion:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(
            f"{where}: criterion {name!r:.60} is no name: take letters, digits, spaces, _ and -, at"
            " most 40"
        )
    if isinstance(value, dict):
        unknown = sorted(map(str, value.keys() - {"weight", "description"}))
        if unknown:
            raise ConfigError(
                f"{where}, criterion '{name}': unknown field '{unknown[0]}'; known: weight,"
                " description"
            )
        weight, description = value.get("weight", 1.0), value.get("description", "")
    elif isinstance(value, str) and len(value.split()) > 1:
        weight, description = 1.0, value
    elif isinstance(value, str):  # "two" or "1/2" is meant as a weight
        raise ConfigError(
            f"{where}, criterion '{name}': found {value!r:.60}: a weight is a number above 0; a"
            f" description of one word stands in {{description: {value:.60}}}"
        )
    else:
        weight, description = value, ""
    if not isinstance(description, str):
        raise ConfigError(
            f"{where}, criterion '{name}': description must be text, found {description!r:.60}"
        )
    if (
        isinstance(weight, bool)
        or not isinstance(weight, int | float)
        or not (math.isfinite(weight) and weight > 0)
    ):
        raise ConfigError(
            f"{where}, criterion '{name}': weight must be a number above 0, found {weight!r:.60}"
        )
    return Criterion(name, float(weight), " ".join(description.split()))


def _text(path: Path, where: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{where}: cannot be read ({error.strerror}); the path is relative to the current"
            " folder"
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{where}: not UTF-8 text; save the file as UTF-8") from None
