"""The adapter methods: ``method_of`` creates the method that ``backbone.adapter`` names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefloop.config import AdapterConfig
from prefloop.config.adapters import CARDS, Card, card_of

if TYPE_CHECKING:  # importing torch takes seconds, and the cards do not need it
    from prefloop.models.adapters.method import Method

__all__ = ["CARDS", "Card", "card_of", "method_of"]


def method_of(config: AdapterConfig) -> Method:
    """The method of ``config.method``. Raises ``ConfigError`` for an unknown method or option."""
    from prefloop.models.adapters import (
        adalora,
        bitfit,
        bottleneck,
        delta,
        eva,
        full,
        lora,
        lora_drop,
        mole,
        peft_methods,
        pissa,
        prompt_tuning,
    )

    card = card_of(config.method)
    methods: dict[str, type[Method]] = {
        "lora": lora.LoRA,
        "rslora": lora.LoRA,
        "dora": lora.DoRA,
        "lora+": lora.LoRAPlus,
        "lora-fa": lora.LoRAFA,
        "pissa": pissa.PiSSA,
        "olora": pissa.OLoRA,
        "eva": eva.EVA,
        "adalora": adalora.AdaLoRA,
        "vera": peft_methods.VeRA,
        "ia3": peft_methods.IA3,
        "oft": peft_methods.OFT,
        "boft": peft_methods.BOFT,
        "hra": peft_methods.HRA,
        "miss": peft_methods.MiSS,
        "randlora": peft_methods.RandLoRA,
        "prompt": prompt_tuning.PromptTuning,
        "p-tuning": prompt_tuning.PTuning,
        "prefix": prompt_tuning.PrefixTuning,
        "p-tuning-v2": prompt_tuning.PTuningV2,
        "bitfit": bitfit.BitFit,
        "bottleneck": bottleneck.Bottleneck,
        "delta-lora": delta.DeltaLoRA,
        "lora-drop": lora_drop.LoRADrop,
        "mole": mole.MoLE,
        "full": full.Full,
    }
    return methods[card.name](config, card)
