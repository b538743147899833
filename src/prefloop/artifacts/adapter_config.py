"""Reading ``adapter_config.json``, written by prefloop or by PEFT. Imports nothing heavy.

Everyone reads the file with ``read_adapter``, whose errors name the folder and the field.
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
"""The field with the method's name, where PEFT's fields do not identify it. PEFT and vLLM ignore
it.
"""
_VIRTUAL = {"prompt_tuning": "prompt", "p_tuning": "p-tuning", "prefix_tuning": "prefix"}
"""PEFT's name → ours, for methods with virtual tokens."""
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
"""Method → option → PEFT's field with that option."""
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq")
"""PEFT's initializations that also change the base weights, which the adapter's folder lacks."""

FILE = "adapter_config.json"
Size = Annotated[int, Field(ge=0, le=1 << 20)] | None
Number = Annotated[int | float, Field(allow_inf_nan=False, ge=-1e9, le=1e9)] | None
Modules = str | list[str] | None


class AdapterShape(TypedDict, total=False):
    """Method and shape of an adapter by the fields of ``AdapterConfig``; unknown fields are
    absent.
    """

    method: str
    r: int
    alpha: float
    target_modules: str | list[str]
    options: dict[str, Any]


class AdapterFile(TypedDict):
    """The fields of ``adapter_config.json`` that prefloop reads. Each method writes some of them,
    and PEFT writes more.
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
    """The content of an adapter's ``adapter_config.json``.

    Raises ``ModelError``, which names folder and field, for a file that describes no adapter.
    """
    return dict(read_as(AdapterFile, folder / FILE))


def described_shape(described: Mapping[str, Any]) -> AdapterShape:
    """Method and shape of an adapter, from the content of its ``adapter_config.json``.

    Raises ``ValueError`` for a method that is not in the catalog, and for features of PEFT that
    prefloop lacks.
    """
    kind = str(described.get("peft_type", "lora")).lower()
    method = described.get(KEY) or _VIRTUAL.get(kind, kind)
    if method == "lora":
        method = next((name for name in ("rslora", "dora") if described.get(f"use_{name}")), method)
    if method == "prefix" and not described.get("prefix_projection"):
        method = "p-tuning-v2"
    if method not in CARDS:
        raise ValueError(f"method {method} is not one of {', '.join(CARDS)}")
    start = str(described.get("init_lora_weights", "")).lower()
    if KEY not in described and start.startswith(_CHANGES_BASE):
        raise ValueError(
            f"with init_lora_weights {start} PEFT changes the base weights; save the adapter with"
            " PEFT's path_initial_model_for_weight_conversion, which turns it into a LoRA adapter"
            " of the original base"
        )
    for pattern in ("rank_pattern", "alpha_pattern"):
        if described.get(pattern):
            raise ValueError(
                f"{pattern} {described[pattern]}: prefloop has no method with different ranks or"
                " scales per layer"
            )
    shape: AdapterShape = {"method": method}
    if rank := described.get("target_r" if method == "adalora" else "r"):
        shape["r"] = rank // CARDS[method].file_rank
    if alpha := described.get("lora_alpha"):
        shape["alpha"] = alpha
    if modules := described.get("target_modules"):
        shape["target_modules"] = sorted(modules) if isinstance(modules, list) else modules
    if options := _options(method, described):
        shape["options"] = options
    return shape


def _options(method: str, described: Mapping[str, Any]) -> dict[str, Any]:
    """The method's options, as far as PEFT's fields hold them."""
    fields = _OPTIONS.get(method, {})
    options = {
        option: described[field]
        for option, field in fields.items()
        if described.get(field) is not None
    }
    if isinstance(options.get("feedforward"), list):
        options["feedforward"] = matching(options["feedforward"])
    if method == "randlora" and described.get("r") and described.get("randlora_alpha"):
        options["scale"] = described["randlora_alpha"] / described["r"]
    if method == "adalora" and described.get("target_r") and described.get("init_r"):
        options["start"] = described["init_r"] / described["target_r"]
    return options


def matching(modules: list[str]) -> str:
    """The regular expression for full module names that equals PEFT's list of their endings."""
    return rf"(.*\.)?({'|'.join(map(re.escape, sorted(modules)))})"
