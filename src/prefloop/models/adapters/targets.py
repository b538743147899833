"""The linear layers of a model that ``backbone.adapter.target_modules`` selects."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from torch import nn

from prefloop.errors import ModelError


def targeted(model: Any, pattern: str) -> dict[str, nn.Linear]:
    """Full name → linear layer (float or 4-bit) that ``pattern`` matches, without the output head.

    The pattern must match a layer's full name; 'all-linear' matches all layers. Raises
    ``ModelError`` if it matches none.
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    modules = model.named_modules()
    linear = {name: m for name, m in modules if isinstance(m, nn.Linear) and m is not head}
    return {name: linear[name] for name in matched(linear, pattern)}


def matched(names: Iterable[str], pattern: str) -> list[str]:
    """The full names of linear layers that ``pattern`` matches. Raises ``ModelError`` for none."""
    names = list(names)
    if pattern == "all-linear":
        return names
    try:
        matching = [name for name in names if re.fullmatch(pattern, name)]
    except re.error as error:
        raise ModelError(
            f"backbone.adapter.target_modules '{pattern}' is not a regular expression: {error}"
        ) from None
    if not matching:
        ends = sorted({name.rpartition(".")[2] for name in names})
        raise ModelError(
            f"backbone.adapter.target_modules '{pattern}' matches no layer of the model: use"
            " 'all-linear' or a regular expression for full names, such as"
            f" '.*\\.({'|'.join(ends[:3])})'; the names of its layers end in {', '.join(ends)}"
        )
    return matching
