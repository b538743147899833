"""A model's shape and exact parameter counts, from its configuration; no weights are downloaded.

``shape:7b`` and similar names are built-in shapes, which the GPU benchmarks use.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefloop.errors import ConfigError, ModelError, among

SHAPES: dict[str, dict[str, int]] = {
    "7b": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "tie_word_embeddings": False,
    },
    "70b": {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "tie_word_embeddings": False,
    },
    "1.5b": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "smollm2": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
    "deep": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 28,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 1024,
        "tie_word_embeddings": True,
    },
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 1024,
        "tie_word_embeddings": True,
    },
}
"""Built-in shapes with Qwen2's layers, by the fields of its configuration; ``smollm2`` is
0.135B.
"""
SIZES = {"smollm2": 0.135, "1.5b": 1.5, "7b": 7.6, "70b": 70.0}
"""Parameters in 10^9 of the shapes that resemble models in use."""
PREFIX = "shape:"
_PROJECTIONS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


@dataclasses.dataclass(frozen=True)
class Linear:
    """A linear layer that can have an adapter."""

    name: str
    """Full name in the model, such as ``model.layers.0.self_attn.q_proj``."""
    inputs: int
    outputs: int
    bias: bool

    @property
    def weights(self) -> int:
        return self.inputs * self.outputs


@dataclasses.dataclass(frozen=True)
class Shape:
    """The sizes of a model, as far as planning needs them."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool
    parameters: int
    """Parameters of the plain model; tied embeddings count once."""
    embeddings: int
    """Weights of input and output embeddings, which stay in the compute dtype."""
    linears: tuple[Linear, ...]
    """All linear layers except the output head."""
    biases: tuple[int, ...]
    """Elements of each bias outside these layers."""
    sizes: tuple[int, ...]
    """Elements of each parameter; tied ones once."""
    sublayers: int
    """Number of attentions and MLPs, each of which can have a serial adapter."""
    fused: bool
    """Whether ``models.fused.layer`` runs every decoder layer, which must be of the Llama
    family.
    """
    stored_4bit: bool = False
    eager: bool = False
    """Whether the model needs its own eager attention (for soft caps or sinks), which keeps the
    scores of every head.
    """
    capped: bool = False
    """Whether logits have a soft cap, so that log-probs need float32 logits."""
    described: Mapping[str, Any] = dataclasses.field(
        default_factory=dict, repr=False, compare=False
    )
    """The model's text configuration, for the limits of its position embeddings."""

    @property
    def linear_weights(self) -> int:
        """Weights that NF4 stores in 4 bits."""
        return sum(linear.weights for linear in self.linears)

    def targets(self, wanted: str) -> tuple[Linear, ...]:
        """The linear layers that ``adapter.target_modules`` matches. Raises ``ModelError`` for
        none.
        """
        from prefloop.models.adapters.targets import matched

        names = set(matched([linear.name for linear in self.linears], wanted))
        return tuple(linear for linear in self.linears if linear.name in names)


def shape_of(name: str, cache: Path) -> Shape:
    """The shape of a built-in name (``shape:7b``), a local folder, or a model on the hub or in a
    wheel.

    Reads the configuration only. Raises ``ModelError`` if there is none, and ``ConfigError`` for an
    unknown built-in shape.
    """
    config = configuration(name, cache)
    return _measured(name, config, _in_4bit(config))


def configuration(name: str, cache: Path) -> Any:
    """A model's transformers configuration. Searches and raises as ``shape_of`` does."""
    if not name.startswith(PREFIX):
        return _configuration(name, cache)
    key = name.removeprefix(PREFIX)
    if key not in SHAPES:
        raise ConfigError(f"backbone.model: unknown shape '{key}' ({among(key, SHAPES)})")
    from transformers import Qwen2Config

    return Qwen2Config(**SHAPES[key], max_position_embeddings=32768)


def _configuration(name: str, cache: Path) -> Any:
    from prefloop.models import folder
    from prefloop.models.lookup import WHEELS, resolve, unavailable

    local = Path(name).expanduser()
    if not local.is_dir() and not name.startswith((".", "/", "~")):
        config = _without_weights(name, local_only=True)
        if config is None and name in WHEELS:
            config = _from_gguf(name)
        if config is not None:
            return config
        if (why := unavailable(name)) is not None:
            raise ModelError(_nowhere(name, why))
        if (config := _without_weights(name, local_only=False)) is not None:
            return config
    return folder.configuration(resolve(name, cache))


def _nowhere(name: str, why: str) -> str:
    """The message about a model that is neither on this machine nor on the hub."""
    from prefloop.config.presets import billions
    from prefloop.models.lookup import WHEELS

    size = billions(name) or SIZES["7b"]
    near = min(SIZES, key=lambda shape: abs(math.log(SIZES[shape] / size)))
    install = ""
    if name in WHEELS:
        install = (
            " Install the wheel with this model (pip install --no-deps"
            f" {WHEELS[name].distribution})."
        )
    return (
        f"model '{name}' is not a local folder and not in the hub's cache, and the hub: {why}."
        f"{install} Give a folder saved by save_pretrained (its config.json is enough to plan), or"
        f" plan a built-in shape of about that size: --backbone.model {PREFIX}{near} (one of"
        f" {', '.join(PREFIX + shape for shape in SIZES)}). HF_HUB_OFFLINE=1 searches only the"
        " cache."
    )


def _without_weights(name: str, local_only: bool) -> Any:
    """A model's configuration from the hub or, with ``local_only``, its cache; ``None`` if
    missing.
    """
    import logging

    from huggingface_hub import hf_hub_download

    from prefloop.models import folder

    # Without a network the library logs every attempt.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        file = Path(hf_hub_download(name, folder.CONFIG, local_files_only=local_only))
    except (OSError, ValueError):
        return None
    return folder.configuration(file.parent)


def _from_gguf(name: str) -> Any:
    """The configuration in the header of a wheel's GGUF file; ``None`` without the wheel."""
    import importlib.metadata

    from transformers import AutoConfig

    from prefloop.models.folder import reading
    from prefloop.models.lookup import WHEELS

    wheel = WHEELS[name]
    try:
        distribution = importlib.metadata.distribution(wheel.distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
    file = Path(str(distribution.locate_file(wheel.gguf)))
    with reading(f"the wheel {wheel.distribution}"):
        return AutoConfig.from_pretrained(
            str(file.parent), gguf_file=file.name, trust_remote_code=False
        )


def _in_4bit(config: Any) -> bool:
    stored = getattr(config, "quantization_config", None) or {}
    stored = stored if isinstance(stored, dict) else stored.to_dict()
    return bool(stored.get("load_in_4bit"))


def _measured(name: str, config: Any, stored_4bit: bool) -> Shape:
    """The shape of a configuration's model, built on torch's meta device."""
    from torch import nn

    from prefloop.models.adapters.bottleneck import sublayers_of
    from prefloop.models.folder import blank
    from prefloop.models.rope import read

    if getattr(config, "quantization_config", None) is not None:
        del config.quantization_config
    model = blank(config, name)
    text = config.get_text_config()
    head = model.get_output_embeddings()
    linears = tuple(
        Linear(path, module.in_features, module.out_features, module.bias is not None)
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    )
    embedding = model.get_input_embeddings().weight
    tied = head is None or bool(getattr(text, "tie_word_embeddings", False))
    model.tie_weights()
    sizes = tuple(p.numel() for p in model.parameters())
    known = {linear.name for linear in linears}
    biases = tuple(
        m.bias.numel()
        for n, m in model.named_modules()
        if n not in known and isinstance(getattr(m, "bias", None), nn.Parameter)
    )
    return Shape(
        name=name,
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        heads=text.num_attention_heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or text.num_attention_heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        intermediate=text.intermediate_size,
        vocabulary=text.vocab_size,
        tied=tied,
        parameters=sum(sizes),
        embeddings=embedding.numel() * (1 if tied else 2),
        linears=linears,
        biases=biases,
        sizes=sizes,
        sublayers=len(sublayers_of(model)),
        fused=_fused(model, [linear.name for linear in linears], text.num_hidden_layers),
        stored_4bit=stored_4bit,
        eager=bool(getattr(text, "attn_logit_softcapping", None))
        or not getattr(model, "_supports_sdpa", True),
        capped=bool(getattr(text, "final_logit_softcapping", None)),
        described=read(text),
    )


def _fused(model: Any, names: list[str], layers: int) -> bool:
    """Whether each layer has the Llama family's seven projections and two RMS norms.

    Norms of the heads are allowed too.
    """
    suffixes = tuple(f".{projection}" for projection in _PROJECTIONS)
    inside = [name for name in names if name.endswith(suffixes)]
    allowed = (
        *_PROJECTIONS,
        "input_layernorm",
        "post_attention_layernorm",
        "self_attn.q_norm",
        "self_attn.k_norm",
    )
    blocks = [p for p, _ in model.named_parameters() if re.search(r"\.layers\.\d+\.", p)]
    known = all(
        re.sub(r".*\.layers\.\d+\.", "", path).removesuffix(".weight").removesuffix(".bias")
        in allowed
        for path in blocks
    )
    return len(inside) == len(names) == layers * len(_PROJECTIONS) and known
