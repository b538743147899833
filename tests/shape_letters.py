"""Checks at test time that tensors have the shapes that their names promise: ``score_B`` has one
dimension and ``rewards_B_T`` two, and a letter stands for one size within a call.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch import Tensor


def letters(name: str) -> str:
    """'BT' for ``rewards_B_T``; empty for a name without shape letters."""
    match = re.search(r"(?:_[A-Z])+$", name)
    return match.group().replace("_", "") if match else ""


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which raises ``TypeError`` where an argument or its result has another shape
    than its name (or the name of its field) says.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*positional: Any, **named: Any) -> Any:
        sizes: dict[str, int] = {}

        def require(name: str, value: Any) -> None:
            axes = letters(name)
            if not axes or not isinstance(value, Tensor):
                return
            expected = [sizes.setdefault(a, n) for a, n in zip(axes, value.shape, strict=False)]
            if len(axes) != value.ndim or expected != list(value.shape):
                where = f"{function.__name__}: {name} has shape {list(value.shape)}"
                raise TypeError(f"{where}, where {sizes} were seen")

        bound = signature.bind(*positional, **named)
        for name, value in bound.arguments.items():
            require(name, value)
        result = function(*positional, **named)
        require(function.__name__, result)
        if dataclasses.is_dataclass(result):
            for name, value in vars(result).items():
                require(name, value)
        return result

    return call


def check_module(module: ModuleType) -> None:
    """Put ``checked`` functions in the place of a module's own."""
    for name, value in list(vars(module).items()):
        if inspect.isfunction(value) and value.__module__ == module.__name__:
            setattr(module, name, checked(value))
