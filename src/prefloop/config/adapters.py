"""The catalog of adapter methods and what each of them can do. It is read before anything is
loaded, so this module imports nothing heavy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from prefloop.base.console import shortened
from prefloop.base.redact import short
from prefloop.config import AdapterConfig, BackboneConfig
from prefloop.config.base import usable
from prefloop.config.ranges import LARGE, MOST, TINY, Range
from prefloop.errors import ConfigError, among, nearest

Handover = Literal["adapter", "merged", "none"]
FLOATS = ("bf16", "fp32")
EVERY = ("nf4", *FLOATS)
EXPERTS = "such as experts '[runs/a:sft, runs/b:sft]'"
"""Example of an option that is a list, as it is written on the command line."""


COUNT, WHOLE = Range(int, 1, MOST), Range(int, 0, MOST)
POSITIVE, NOT_NEGATIVE = Range(float, TINY, LARGE), Range(float, TINY, LARGE, zero=True)
PART = Range(float, 0.0, 0.999)
"""A share below 1."""
TOKENS = Range(int, 1, 10_000)


@dataclasses.dataclass(frozen=True)
class Card:
    """One method: its name, its source, and what it can do."""

    name: str
    title: str
    paper: str
    """arXiv number, or another source."""
    precisions: tuple[str, ...] = EVERY
    """The values of ``backbone.precision`` on which it trains."""
    handover: Handover = "merged"
    """How vLLM gets a policy: as a LoRA adapter or as merged weights ('adapter'), as merged weights
    only ('merged'), or not at all ('none').
    """
    merges: bool = True
    """Whether the adapter can be merged into plain weights that do the same."""
    ours: bool = False
    """The method is prefloop's own, and PEFT cannot load its files."""
    reads_data: bool = False
    """Whether a new adapter is initialized from a sample of the stage's own data."""
    file_rank: int = 1
    """The rank of its LoRA files as a multiple of ``adapter.r``."""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The keys that ``adapter.options`` may hold, with their defaults."""
    ranges: Mapping[str, Range] = dataclasses.field(default_factory=dict)
    """The permitted numbers of each numeric option."""
    dropout: bool = True
    """Whether the method uses ``adapter.dropout``."""
    places: str = ""
    """The part of the model that it changes, where ``adapter.target_modules`` has no say."""


def _virtual(name: str, title: str, paper: str, **options: int) -> Card:
    """A method of virtual tokens, which vLLM does not support and which cannot be merged into
    weights.
    """
    return Card(
        name,
        title,
        paper,
        handover="none",
        merges=False,
        options={"tokens": 20, **options},
        ranges={"tokens": TOKENS, **dict.fromkeys(options, WHOLE)},
        dropout=False,
        places="the prompt or the keys of every layer",
    )


CARDS: dict[str, Card] = {
    card.name: card
    for card in (
        Card("lora", "LoRA", "2106.09685", handover="adapter"),
        Card(
            "rslora",
            "rank-stabilized LoRA: scale alpha / sqrt(r)",
            "2312.03732",
            handover="adapter",
        ),
        Card("dora", "LoRA on the direction of weights, magnitudes learned apart", "2402.09353"),
        Card(
            "pissa",
            "LoRA from the largest singular values of the weight",
            "2404.02948",
            handover="adapter",
            file_rank=2,
        ),
        Card(
            "olora",
            "LoRA from the QR factors of the weight",
            "2406.01775",
            handover="adapter",
            file_rank=2,
        ),
        Card(
            "eva",
            "LoRA along the largest variance of each layer's inputs",
            "2410.07170",
            handover="adapter",
            reads_data=True,
        ),
        Card(
            "adalora",
            "LoRA whose rank budget moves to the layers that need it",
            "2303.10512",
            options={
                "start": 1.5,
                "warmup": 0.1,
                "final": 0.3,
                "every": 1,
                "orthogonal": 0.1,
                "beta1": 0.85,
                "beta2": 0.85,
            },
            ranges={
                "start": Range(float, 1.0, 1000.0),
                "every": COUNT,
                **dict.fromkeys(("warmup", "final", "beta1", "beta2"), PART),
                "orthogonal": NOT_NEGATIVE,
            },
        ),
        Card(
            "lora+",
            "LoRA whose B learns faster than A",
            "2402.12354",
            handover="adapter",
            options={"ratio": 16.0},
            ranges={"ratio": POSITIVE},
        ),
        Card("lora-fa", "LoRA with A frozen", "2308.03303", handover="adapter"),
        Card(
            "vera",
            "vectors that scale random matrices all layers share",
            "2310.11454",
            options={"d_initial": 0.1, "key": 0},
            ranges={"d_initial": POSITIVE, "key": WHOLE},
        ),
        Card(
            "ia3",
            "vectors that scale keys, values and the MLP's inner activations",
            "2205.05638",
            options={"feedforward": r".*\.down_proj"},
            dropout=False,
        ),
        Card(
            "oft",
            "orthogonal rotations of the input, block by block",
            "2306.07280",
            dropout=False,
            options={"block": 32, "neumann": False},
            ranges={"block": Range(int, 2, MOST)},
        ),
        Card(
            "boft",
            "orthogonal rotations made of butterfly factors",
            "2311.06243",
            options={"block": 4, "factors": 2},
            ranges={"block": Range(int, 2, MOST), "factors": COUNT},
        ),
        Card(
            "hra",
            "a chain of Householder reflections of the input",
            "2405.17484",
            dropout=False,
        ),
        Card("miss", "one small matrix, repeated over the input", "2409.15371"),
        Card(
            "randlora",
            "full-rank sums of random bases with learned scales",
            "2502.00987",
            options={"scale": 20.0, "key": 0},
            ranges={"scale": POSITIVE, "key": WHOLE},
        ),
        _virtual("prompt", "prompt tuning", "2104.08691"),
        _virtual("p-tuning", "P-tuning", "2103.10385", hidden=0),
        _virtual("prefix", "prefix tuning", "2101.00190", hidden=0),
        _virtual("p-tuning-v2", "P-tuning v2", "2110.07602"),
        Card(
            "bitfit",
            "biases alone; merges where the model has them all",
            "2106.10199",
            ours=True,
            dropout=False,
        ),
        Card(
            "bottleneck",
            "small networks in series with attention and MLP",
            "1902.00751",
            handover="none",
            merges=False,
            ours=True,
            options={"activation": "gelu"},
            places="every attention and MLP",
        ),
        Card(
            "delta-lora",
            "LoRA whose weights follow the change of B A",
            "2309.02411",
            ours=True,
            options={"ratio": 2.0, "start": 0.1},
            ranges={"ratio": NOT_NEGATIVE, "start": NOT_NEGATIVE},
            dropout=False,
        ),
        Card(
            "lora-drop",
            "LoRA that layers of small output share",
            "2402.07721",
            handover="adapter",
            reads_data=True,
            options={"share": 0.9, "steps": 8},
            ranges={"share": Range(float, TINY, 1.0), "steps": COUNT},
        ),
        Card(
            "mole",
            "a learned gate over frozen LoRA experts",
            "2404.13628",
            handover="none",
            merges=False,
            ours=True,
            options={"experts": [], "temperature": 1.0, "top_k": 0, "balance": 0.0},
            ranges={"temperature": POSITIVE, "top_k": WHOLE, "balance": NOT_NEGATIVE},
            places="the layers of its experts",
        ),
        Card(
            "full",
            "every weight, in a copy for each role",
            "no adapter",
            FLOATS,
            ours=True,
            dropout=False,
            places="every weight",
        ),
    )
}


def card_of(method: str) -> Card:
    """The card of a method. Raises ``ConfigError`` with the nearest name and a list of all
    names.
    """
    if method not in CARDS:
        raise ConfigError(
            f"backbone.adapter.method: unknown method {short(method)} ({among(method, CARDS)})"
        )
    return CARDS[method]


def others(able: str) -> str:
    """Names of the methods that have a property, for messages. ``able`` is a boolean field of
    ``Card``, a precision, or a value of ``handover``.
    """
    return ", ".join(
        c.name
        for c in CARDS.values()
        if able in (*c.precisions, c.handover) or getattr(c, able, False) is True
    )


def options_of(config: AdapterConfig) -> dict[str, Any]:
    """The method's options: its defaults, overridden by ``adapter.options``.

    Raises ``ConfigError`` for an unknown option, for a value of the wrong type or out of range, and
    for dropout or target modules that the method would ignore.
    """
    card = card_of(config.method)
    if config.dropout and not card.dropout:
        raise ConfigError(
            f"backbone.adapter.dropout is {config.dropout:g}, but method {card.name} has none: set"
            f" 0, or take one of {others('dropout')}"
        )
    if config.target_modules != "all-linear" and card.places:
        able = ", ".join(c.name for c in CARDS.values() if not c.places)
        raise ConfigError(
            f"backbone.adapter.target_modules is {short(config.target_modules)}, but method"
            f" {card.name} sits on {card.places}: leave it out, or take one of {able}"
        )
    known = dict(card.options)
    for name, value in config.options.items():
        if name not in known:
            hint = (
                f"{nearest(name, known)}; it knows {', '.join(known)}" if known else "it has none"
            )
            raise ConfigError(
                f"backbone.adapter.options.{shortened(name)}: method '{config.method}' has no such"
                f" option ({hint})"
            )
        known[name] = _valued(
            f"backbone.adapter.options.{name}", value, known[name], card.ranges.get(name)
        )
    return known


def _valued(where: str, value: Any, default: Any, span: Range | None) -> Any:
    """``value`` in the type of ``default``."""
    kind = type(default)
    right = (
        isinstance(value, int | float) and not isinstance(value, bool)
        if kind is float
        else type(value) is kind
    )
    if not right:
        form = (
            f"a list, {EXPERTS} (with quotes in a shell)"
            if kind is list
            else f"a value such as {default!r}"
        )
        raise ConfigError(f"{where} is {short(value)}, expected {form}")
    if span is not None and not span.holds(value):
        raise ConfigError(f"{where} is {short(value)}: give {span}")
    return kind(value)


def experts_of(options: Mapping[str, Any]) -> list[str]:
    """The experts in MoLE's options, as the user typed them. Raises ``ConfigError`` for fewer than
    two.
    """
    experts = options["experts"]
    if len(experts) < 2 or not all(isinstance(expert, str) for expert in experts):
        raise ConfigError(
            "backbone.adapter.options.experts: mole mixes two or more LoRA adapters, list them,"
            f" {EXPERTS} (found {short(experts)})"
        )
    for expert in experts:
        try:
            usable(expert)
        except ValueError as error:
            raise ConfigError(
                f"backbone.adapter.options.experts: {error} ({short(expert)})"
            ) from None
    if options["top_k"] > len(experts):
        raise ConfigError(
            f"backbone.adapter.options.top_k is {options['top_k']}: there are {len(experts)}"
            " experts"
        )
    return experts


def require(config: BackboneConfig) -> Card:
    """The card of ``config.adapter``. Raises ``ConfigError`` when the method cannot train in
    ``config.precision``; the message names methods that can.
    """
    card = card_of(config.adapter.method)
    options = options_of(config.adapter)
    if "experts" in options:
        experts_of(options)
    if config.precision not in card.precisions:
        raise ConfigError(
            f"backbone.adapter.method {card.name} trains on {' and '.join(card.precisions)} weights"
            f" only, backbone.precision is {config.precision}: change one of them; with"
            f" {config.precision} go {others(config.precision)}"
        )
    return card
