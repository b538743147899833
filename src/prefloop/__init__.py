"""prefloop aligns a language model with human preferences on one machine.

The names below are its public API::

    from prefloop import SFT, Label, Pipeline, RewardModel, PPO, Evaluate

They load on first use: ``import prefloop`` does not import torch. Names that a module defines and
this list lacks may move between versions.
"""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path
from typing import Any

from prefloop.data.source import SCHEMES
from prefloop.moved import Moved

__version__ = "0.1.0"

_WHERE = {
    name.asname or name.name: (statement.module or "", name.name)
    for statement in ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")).body
    if isinstance(statement, ast.ImportFrom)
    for name in statement.names
}
"""Public name → (its module, its name in that module)."""
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'prefloop' has no attribute {name!r}")
    module, attribute = _WHERE[name]
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def where(name: str) -> str | None:
    """The module of a public name; ``None`` for any other name."""
    return _WHERE[name][0] if name in _WHERE else None


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _argilla(address: str, fetch: bool) -> Path | None:
    from prefloop.labeling.argilla import source

    return source.copy_of(f"argilla:{address}", fetch)


SCHEMES["argilla"] = _argilla
sys.meta_path.insert(0, Moved())  # ahead of the folders that older versions may have left behind
