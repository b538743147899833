"""The catalogue of adapter methods: ``method_of`` makes the one that ``backbone.adapter`` names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefloop.config import AdapterConfig
from prefloop.config.adapters import CARDS, Card, card_of

if TYPE_CHECKING:  # torch, which whoever reads cards alone need not wait for
    from prefloop.models.adapters.method import Method

__all__ = ["CARDS", "Card", "card_of", "method_of"]


def method_of(config: AdapterConfig) -> Method:
    """The method of ``config.method``. Raises ``ConfigError`` for an unknown one or an unknown
    option.
    """
    from prefloop.models.adapters import adalora, bitfit, bottleneck, delta, eva, full, mole
    from prefloop.models.adapters import lora as tuner
    from prefloop.models.adapters import lora_drop as drop
    from prefloop.models.adapters import peft_methods as wrapped
    from prefloop.models.adapters import pissa as halves
    from prefloop.models.adapters import prompt_tuning as virtual

    card = card_of(config.method)
    kinds: dict[str, type[Method]] = {
        "lora": tuner.LoRA,
        "rslora": tuner.LoRA,
        "dora": tuner.DoRA,
        "lora+": tuner.LoRAPlus,
        "lora-fa": tuner.LoRAFA,
        "pissa": halves.PiSSA,
        "olora": halves.OLoRA,
        "eva": eva.EVA,
        "adalora": adalora.AdaLoRA,
        "vera": wrapped.VeRA,
        "ia3": wrapped.IA3,
        "oft": wrapped.OFT,
        "boft": wrapped.BOFT,
        "hra": wrapped.HRA,
        "miss": wrapped.MiSS,
        "randlora": wrapped.RandLoRA,
        "prompt": virtual.PromptTuning,
        "p-tuning": virtual.PTuning,
        "prefix": virtual.PrefixTuning,
        "p-tuning-v2": virtual.PTuningV2,
        "bitfit": bitfit.BitFit,
        "bottleneck": bottleneck.Bottleneck,
        "delta-lora": delta.DeltaLoRA,
        "lora-drop": drop.LoRADrop,
        "mole": mole.MoLE,
        "full": full.Full,
    }
    return kinds[card.name](config, card)
