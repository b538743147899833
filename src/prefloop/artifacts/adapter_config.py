"""What an adapter's own ``adapter_config.json`` says of it, prefloop's or PEFT's; nothing heavy is
imported here.

Everyone reads it by ``read_adapter``, so that whatever else stands there is told with the folder
and the field.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import ConfigDict, Field
from typing_extensions import TypedDict

from prefloop.base.json_object import read_as
from prefloop.config.adapters import CARDS

KEY = "prefloop_method"
"""In ``adapter_config.json``: the method, where PEFT's fields do not tell it. PEFT and vLLM pass it
over.
"""
_VIRTUAL = {"prompt_tuning": "prompt", "p_tuning": "p-tuning", "prefix_tuning": "prefix"}
"""PEFT's names of the methods that have virtual tokens."""
_OPTIONS = {
    "vera": {"d_initial": "d_initial", "key": "projection_prng_key"},
    "ia3": {"feedforward": "feedforward_modules"},
    "oft": {"block": "oft_block_size", "neumann": "use_cayley_neumann"},
    "boft": {"block": "boft_block_size", "factors": "boft_n_butterfly_factor"},
    "randlora": {"key": "projection_prng_key"},
    "prompt": {"tokens": "num_virtual_tokens"},
    "p-tuning": {"tokens": "num_virtual_tokens", "hidden": "encoder_hidden_size"},
    "prefix": {"tokens": "num_virtual_tokens", "hidden": "encoder_hidden_size"},
    "p-tuning-v2": {"tokens": "num_virtual_tokens"},
}
"""By method: PEFT's fields of its options."""
_MOVED = ("pissa", "olora", "corda", "loftq")
"""PEFT's starts that change the base's weights, which the folder does not hold."""

FILE = "adapter_config.json"
Size = Annotated[int, Field(ge=0, le=1 << 20)] | None
Number = Annotated[int | float, Field(allow_inf_nan=False, ge=-1e9, le=1e9)] | None
Modules = str | list[str] | None


class Described(TypedDict):
    """The fields that prefloop looks at; an adapter says those of its method, and whatever else
    PEFT writes.
    """

    __pydantic_config__ = ConfigDict(extra="allow", strict=True)  # type: ignore[misc]

    base_model_name_or_path: str | None
    peft_type: NotRequired[str]
    prefloop_method: NotRequired[str | None]
    r: NotRequired[Size]
    target_r: NotRequired[Size]
    init_r: NotRequired[Size]
    lora_alpha: NotRequired[Number]
    randlora_alpha: NotRequired[Number]
    target_modules: NotRequired[Modules]
    feedforward_modules: NotRequired[Modules]
    use_rslora: NotRequired[bool | None]
    use_dora: NotRequired[bool | None]
    init_lora_weights: NotRequired[bool | str | None]
    rank_pattern: NotRequired[dict[str, Any] | None]
    alpha_pattern: NotRequired[dict[str, Any] | None]
    prefix_projection: NotRequired[bool | None]
    d_initial: NotRequired[Number]
    projection_prng_key: NotRequired[int | None]
    oft_block_size: NotRequired[Size]
    use_cayley_neumann: NotRequired[bool | None]
    boft_block_size: NotRequired[Size]
    boft_n_butterfly_factor: NotRequired[Size]
    num_virtual_tokens: NotRequired[Size]
    encoder_hidden_size: NotRequired[Size]
    experts: NotRequired[list[str] | None]


def read_adapter(folder: Path) -> dict[str, Any]:
    """The content of an adapter's ``adapter_config.json``. Raises ``ModelError`` naming folder and
    field where it describes none.
    """
    return dict(read_as(Described, folder / FILE))


def described_shape(described: Mapping[str, Any]) -> dict[str, Any]:
    """Method and shape of an adapter by the fields of ``AdapterConfig``, as far as its
    ``adapter_config.json`` says them.

    Raises ``ValueError`` for a method that is not in the catalogue, and for what PEFT can and
    prefloop cannot.
    """
    kind = str(described.get("peft_type", "lora")).lower()
    method = described.get(KEY) or _VIRTUAL.get(kind, kind)
    if method == "lora":
        method = next((name for name in ("rslora", "dora") if described.get(f"use_{name}")), method)
    if method == "prefix" and not described.get("prefix_projection"):
        method = "p-tuning-v2"
    if method not in CARDS:
        raise ValueError(f"method {method} is none of {', '.join(CARDS)}")
    start = str(described.get("init_lora_weights", "")).lower()
    if KEY not in described and start.startswith(_MOVED):
        raise ValueError(
            f"init_lora_weights {start}: PEFT has changed the base's weights for it; save it with"
            " PEFT's path_initial_model_for_weight_conversion, which makes it a LoRA of the base"
            " as it is"
        )
    if pattern := next(
        (name for name in ("rank_pattern", "alpha_pattern") if described.get(name)), None
    ):
        raise ValueError(
            f"{pattern} {described[pattern]}: layers of different ranks or scales, which no method"
            " here has"
        )
    rank = described.get("target_r") if method == "adalora" else described.get("r")
    found = {
        "method": method,
        "r": rank // CARDS[method].file_rank if rank else None,
        "alpha": described.get("lora_alpha"),
        "target_modules": _modules(described.get("target_modules")),
        "options": _options(method, described),
    }
    return {name: value for name, value in found.items() if value}


def _modules(modules: Any) -> Any:
    return sorted(modules) if isinstance(modules, list) else modules


def _options(method: str, described: Mapping[str, Any]) -> dict[str, Any]:
    """Those that PEFT's fields tell."""
    named = _OPTIONS.get(method, {})
    found = {
        option: described[field]
        for option, field in named.items()
        if described.get(field) is not None
    }
    if isinstance(found.get("feedforward"), list):
        found["feedforward"] = matching(found["feedforward"])
    if method == "randlora" and described.get("r") and described.get("randlora_alpha"):
        found["scale"] = described["randlora_alpha"] / described["r"]
    if method == "adalora" and described.get("target_r") and described.get("init_r"):
        found["start"] = described["init_r"] / described["target_r"]
    return found


def matching(modules: list[str]) -> str:
    """The regular expression for full names that PEFT's list of their ends stands for."""
    return rf"(.*\.)?({'|'.join(map(re.escape, sorted(modules)))})"
