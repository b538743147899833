"""Open the configuration, tokenizer and weights of model folders, which other people made.

No other module opens them. Nothing in a folder is executed: no code of its own
(``trust_remote_code``), no pickles. Problems raise a ``ModelError`` that names the folder, before
memory is spent where possible. Heavy imports wait until they are needed.
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
"""Size in config.json → its largest valid value. The smallest is 1, and 0 for numbers of
experts.
"""
_OBJECTS = ("text_config", "quantization_config", "rope_scaling", "rope_parameters")


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn any error of transformers, tokenizers or safetensors into a ``ModelError`` about
    ``what``.

    Wrap only calls of these libraries, so that our own bugs keep their traceback. Running out of
    GPU memory is raised unchanged.
    """
    try:
        yield
    except PrefloopError:
        raise
    except BaseException as error:  # a panic in tokenizers is not an Exception
        rust = type(error).__name__ == "PanicException"
        if type(error).__name__ == "OutOfMemoryError" or not (rust or isinstance(error, Exception)):
            raise
        words = shortened(neutral(" ".join(str(error).split())), 300)
        if "trust_remote_code" in str(error):
            words = (
                "it brings code of its own, which prefloop never runs; use a model that"
                " transformers supports"
            )
        raise ModelError(f"{what} cannot be used: {words or type(error).__name__}") from error


def described(folder: Path) -> dict[str, Any]:
    """The content of config.json.

    Raises ``ModelError`` for a file that is not a JSON object or has an invalid size. Also raises
    it if any file in the folder is a pipe or a device, since transformers would open it.
    """
    config = read_object(folder / CONFIG)
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        _require_valid(part, f"'{folder.name}': {CONFIG}")
    for path in (*folder.glob("*"), *folder.glob("additional_chat_templates/*")):
        require_end(path)
    return config


def text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's part of a config.json, which may describe more than that."""
    return config.get("text_config") or config


def _require_valid(part: Mapping[str, Any], where: str) -> None:
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
            huge = isinstance(value, int) and abs(value) >= 10**20
            shown = "far more" if huge else shortened(repr(value), 40)
            raise ModelError(
                f"{where}: {name} is {shown}; it must be a whole number from {least} to {most:,}"
            )


def configuration(folder: Path) -> Any:
    """transformers' configuration of a folder.

    Raises ``ModelError`` as ``described`` does, and for a model that transformers does not support.
    """
    from transformers import AutoConfig

    described(folder)
    with reading(f"the configuration in '{folder.name}'"):
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)


def blank(config: Any, name: str) -> Any:
    """The model of a configuration on torch's meta device, without weights.

    Raises ``ModelError`` if transformers cannot build it.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with reading(f"the model '{name}'"), torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def tokenizer(folder: Path) -> Any:
    """A folder's tokenizer. Raises ``ModelError`` if it cannot be loaded."""
    from transformers import AutoTokenizer

    described(folder)  # transformers reads config.json for the kind of tokenizer
    with reading(f"the tokenizer in '{folder.name}'"):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def weights(
    folder: Path, name: str, dtype: torch.dtype, device: torch.device, **options: Any
) -> Any:
    """The model with its weights on ``device``; ``options`` are passed to transformers.

    Raises ``ModelError`` as ``require_weights`` does, and for a weight that is missing, has another
    shape, or cannot be read.
    """
    from transformers import AutoModelForCausalLM

    require_weights(folder)
    with reading(f"the model '{name}'"):
        model, loading = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            device_map={"": device},
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    if missing := sorted(loading["missing_keys"]):
        raise ModelError(
            f"the weights in '{folder.name}' lack {len(missing):,} tensors that its {CONFIG} asks"
            f" for (first {shortened(missing[0], 80)}): copy or make the folder again"
        )
    return model


def require_weights(folder: Path, model: Any = None) -> None:
    """Raise ``ModelError`` unless the folder has all weights as intact safetensors files.

    There must be enough of them for config.json and for ``model`` (on the meta device). Only the
    files' headers are read.
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
    config = described(folder)
    layers = text_part(config).get("num_hidden_layers") or 0
    if layers > len(known):
        raise ModelError(
            f"'{folder.name}': {CONFIG} asks for {layers:,} layers, but the weights hold only"
            f" {len(known):,} tensors"
        )
    if model is None:
        return
    size = sum(math.prod(p.shape) for p in model.parameters())
    # Quantized weights may take as little as one bit each.
    if size > (8 if config.get("quantization_config") else 2) * stored:
        raise ModelError(
            f"'{folder.name}': {CONFIG} asks for {size:,} weights, far more than the {stored:,}"
            " bytes of its files hold"
        )


def read_tensors(
    folder: Path, device: str = "cpu", file: str = "adapter_model.safetensors"
) -> dict[str, Tensor]:
    """The tensors of an adapter or a head.

    Raises ``ModelError`` for a file that cannot be read or holds NaN or infinity.
    """
    import torch
    from safetensors.torch import load_file

    require_end(folder / file)
    with reading(f"'{folder.name}': {file}"):
        tensors: dict[str, Tensor] = load_file(folder / file, device=device)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ModelError(
                f"'{folder.name}': {file}: {shortened(name, 80)} holds NaN or infinity: copy or"
                " make it again"
            )
    return tensors


def shards(folder: Path) -> dict[Path, set[str]]:
    """Each file of weights → the names of its tensors by the index (empty without an index)."""
    index = folder / INDEX
    if index.is_file():
        weight_map = read_object(index).get("weight_map")
        valid = isinstance(weight_map, dict) and {*map(type, weight_map.values())} == {str}
        if not weight_map or not valid:
            raise ModelError(
                f"'{folder.name}': {INDEX}: weight_map must be an object of tensors and their files"
            )
        files: dict[Path, set[str]] = {}
        for tensor, name in weight_map.items():
            files.setdefault(folder / name, set()).add(tensor)
        for path in files:
            name = str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)
            if name != path.name or not name.endswith(".safetensors"):
                raise ModelError(
                    f"'{folder.name}': {INDEX} names {shortened(neutral(name), 80)!r}: shards must"
                    " be safetensors files in the folder itself"
                )
            if not path.is_file():
                raise ModelError(
                    f"'{folder.name}': {path.name} is missing, which {INDEX} names: copy the folder"
                    " again"
                )
        return files
    if (folder / WEIGHTS).is_file():
        return {folder / WEIGHTS: set()}
    endings = ("*.bin", "*.pt", "*.pth", "*.ckpt")
    pickles = sorted(path.name for ending in endings for path in folder.glob(ending))
    if pickles:
        raise ModelError(
            f"'{folder.name}' holds no {WEIGHTS}: {pickles[0]} is a pickle, which could run code;"
            " load it elsewhere and save it with save_pretrained"
        )
    raise ModelError(
        f"'{folder.name}' holds no {WEIGHTS} and no index of shards: give a folder saved by"
        " save_pretrained"
    )
