"""Model folders, which other people made: the only place where configuration, tokenizer and weights
of one are opened.

Nothing in a folder is run: no code of its own (``trust_remote_code``), no pickles. What is wrong
with it is a ``ModelError`` that names the folder, and is looked for before memory is spent. Nothing
heavy is imported before it is needed.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefloop.base.console import neutral, shortened
from prefloop.base.json_object import read_object, require_end
from prefloop.errors import ModelError, PrefloopError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CONFIG, INDEX, WEIGHTS = "config.json", "model.safetensors.index.json", "model.safetensors"
_SIZES = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2_000),
    **dict.fromkeys(
        ("num_attention_heads", "num_key_value_heads", "n_head", "n_heads", "head_dim"), 1 << 16
    ),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model"), 1 << 20),
    **dict.fromkeys(
        ("intermediate_size", "moe_intermediate_size", "n_inner", "vocab_size"), 1 << 26
    ),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 1 << 14),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 1 << 40),
}
"""Sizes in a config.json and the largest that makes sense; 1 is the least, 0 of experts."""
_OBJECTS = ("text_config", "quantization_config", "rope_scaling", "rope_parameters")


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """Whatever transformers, tokenizers or safetensors raise on ``what``, a thing of the user's,
    becomes a ``ModelError`` with it as cause.

    For calls of those libraries alone: a fault of ours must stay one. A full GPU is no fault of the
    folder.
    """
    try:
        yield
    except PrefloopError:
        raise
    except BaseException as error:  # a panic in tokenizers is no Exception
        rust = type(error).__name__ == "PanicException"
        if type(error).__name__ == "OutOfMemoryError" or not (rust or isinstance(error, Exception)):
            raise
        words = shortened(neutral(" ".join(str(error).split())), 300)
        if "trust_remote_code" in str(error):
            words = (
                "it brings code of its own, which prefloop never runs; take a model that"
                " transformers knows"
            )
        raise ModelError(f"{what} cannot be used: {words or type(error).__name__}") from error


def described(folder: Path) -> dict[str, Any]:
    """The content of config.json. Raises ``ModelError`` where it is no object, or a size in it
    makes no sense.

    Also for a pipe or a device beside it, which transformers would open: a tokenizer's file, a chat
    template, generation_config.json.
    """
    found = read_object(folder / CONFIG)
    for part in (found, *(value for value in found.values() if isinstance(value, dict))):
        _require_sense(part, f"'{folder.name}': {CONFIG}")
    for path in (*folder.glob("*"), *folder.glob("additional_chat_templates/*")):
        require_end(path)
    return found


def text_part(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a config.json says of the language model, where it describes more than that."""
    return found.get("text_config") or found


def _require_sense(part: Mapping[str, Any], where: str) -> None:
    for name in _OBJECTS:
        if not isinstance(part.get(name), dict | None):
            raise ModelError(
                f"{where}: {name} is {shortened(repr(part[name]), 40)}, where an object belongs"
            )
    for name, most in _SIZES.items():
        for value in part[name] if isinstance(part.get(name), list) else [part.get(name)]:
            least = 0 if "expert" in name else 1
            if value is None or (type(value) is int and least <= value <= most):
                continue
            found = (
                shortened(repr(value), 40)
                if not isinstance(value, int) or abs(value) < 10**20
                else "far more"
            )
            raise ModelError(
                f"{where}: {name} is {found}; it is a whole number from {least} to {most:,}"
            )


def configuration(folder: Path) -> Any:
    """transformers' configuration. Raises ``ModelError`` as ``described``, and for a model that
    transformers does not know.
    """
    from transformers import AutoConfig

    described(folder)
    with reading(f"the configuration in '{folder.name}'"):
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)


def blank(config: Any, name: str) -> Any:
    """The model of a configuration on torch's meta device, without weights. Raises ``ModelError``
    where transformers cannot build it.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with reading(f"the model '{name}'"), torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def tokenizer(folder: Path) -> Any:
    """The tokenizer. Raises ``ModelError`` where it cannot be loaded."""
    from transformers import AutoTokenizer

    described(folder)  # transformers looks into it for the kind of tokenizer
    with reading(f"the tokenizer in '{folder.name}'"):
        found = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return found


def weights(
    folder: Path, name: str, dtype: torch.dtype, device: torch.device, **options: Any
) -> Any:
    """The model with its weights on ``device``; ``options`` are transformers' own.

    Raises ``ModelError`` as ``require_weights``, and where a weight is missing, has another shape,
    or cannot be read.
    """
    from transformers import AutoModelForCausalLM

    require_weights(folder)
    with reading(f"the model '{name}'"):
        model, told = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            device_map={"": device},
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    if missing := sorted(told["missing_keys"]):
        raise ModelError(
            f"the weights in '{folder.name}' lack {len(missing):,} tensors that its {CONFIG} asks"
            f" for (first {shortened(missing[0], 80)}): copy or make the folder again"
        )
    return model


def require_weights(folder: Path, model: Any = None) -> None:
    """Raise ``ModelError`` unless all weights are there as safetensors and whole, and enough for
    ``model`` (on the meta device) and config.json.

    Headers alone are read.
    """
    from safetensors import safe_open

    known, stored = set(), 0
    for path, expected in shards(folder).items():
        with reading(f"'{folder.name}': {path.name}"), safe_open(path, "pt") as file:
            names = set(file.keys())
        if lacking := sorted(expected - names):
            raise ModelError(
                f"'{folder.name}': {path.name} lacks {shortened(lacking[0], 80)}, which {INDEX}"
                " places there"
            )
        known |= names
        stored += path.stat().st_size
    found = described(folder)
    asked = text_part(found).get("num_hidden_layers") or 0
    if asked > len(known):
        raise ModelError(
            f"'{folder.name}': {CONFIG} asks for {asked:,} layers, and the weights hold"
            f" {len(known):,} tensors in all"
        )
    per_byte = (
        8 if found.get("quantization_config") else 2
    )  # quantised weights may have as little as a bit each
    if (
        model is not None
        and (size := sum(math.prod(p.shape) for p in model.parameters())) > per_byte * stored
    ):
        raise ModelError(
            f"'{folder.name}': {CONFIG} asks for {size:,} weights, far more than the {stored:,}"
            " bytes of its files hold"
        )


def read_tensors(
    folder: Path, device: str = "cpu", file: str = "adapter_model.safetensors"
) -> dict[str, Tensor]:
    """The tensors of an adapter or a head. Raises ``ModelError`` where the file cannot be read, or
    holds numbers that are none.
    """
    import torch
    from safetensors.torch import load_file

    require_end(folder / file)
    with reading(f"'{folder.name}': {file}"):
        found: dict[str, Tensor] = load_file(folder / file, device=device)
    for name, tensor in found.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ModelError(
                f"'{folder.name}': {file}: {shortened(name, 80)} holds NaN or infinity: copy or"
                " make it again"
            )
    return found


def shards(folder: Path) -> dict[Path, set[str]]:
    """The files that hold the weights, each with the tensors that the index places there."""
    index = folder / INDEX
    if index.is_file():
        placed = read_object(index).get("weight_map")
        if (
            not isinstance(placed, dict)
            or not placed
            or not all(isinstance(name, str) for name in placed.values())
        ):
            raise ModelError(
                f"'{folder.name}': {INDEX}: weight_map is no object of tensors and their files"
            )
        files: dict[Path, set[str]] = {}
        for tensor, name in placed.items():
            files.setdefault(folder / name, set()).add(tensor)
        for path in files:
            name = str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)
            if name != path.name or not name.endswith(".safetensors"):
                raise ModelError(
                    f"'{folder.name}': {INDEX} names {shortened(neutral(name), 80)!r}: shards are"
                    " safetensors files in the folder itself"
                )
            if not path.is_file():
                raise ModelError(
                    f"'{folder.name}': {path.name} is missing, which {INDEX} names: copy the folder"
                    " again"
                )
        return files
    if (folder / WEIGHTS).is_file():
        return {folder / WEIGHTS: set()}
    pickles = sorted(
        path.name for end in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(end)
    )
    raise ModelError(
        f"'{folder.name}' holds no {WEIGHTS}"
        + (
            f": {pickles[0]} is a pickle, which could run code; load it elsewhere and save it with"
            " save_pretrained"
            if pickles
            else " and no index of shards: give a folder saved by save_pretrained"
        )
    )
