"""Which of a model's linear layers ``backbone.adapter.target_modules`` means."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from torch import nn

from prefloop.errors import ModelError


def targeted(model: Any, pattern: str) -> dict[str, nn.Linear]:
    """Linear layers (float or 4-bit) but the output head whose whole name ``pattern`` matches;
    'all-linear' matches all.

    Raises ``ModelError`` where it matches none.
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    linear = {
        name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head
    }
    return {name: linear[name] for name in matched(linear, pattern)}


def matched(names: Iterable[str], pattern: str) -> list[str]:
    """Those of the full names of a model's linear layers that ``adapter.target_modules`` means.
    Raises ``ModelError`` where it means none.
    """
    names = list(names)
    if pattern == "all-linear":
        return names
    try:
        found = [name for name in names if re.fullmatch(pattern, name)]
    except re.error as error:
        raise ModelError(
            f"backbone.adapter.target_modules '{pattern}' is no regular expression: {error}"
        ) from None
    if not found:
        ends = sorted({name.rpartition(".")[2] for name in names})
        raise ModelError(
            f"backbone.adapter.target_modules '{pattern}' matches no layer of the model: say"
            " 'all-linear' or a regular expression for full names, such as"
            f" '.*\\.({'|'.join(ends[:3])})'; its layers end in {', '.join(ends)}"
        )
    return found
