"""Methods that PEFT puts around a model's linear layers, one adapter a role."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any, ClassVar

from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from prefloop.config import AdapterConfig
from prefloop.config.adapters import Card
from prefloop.errors import ModelError
from prefloop.models.adapters.method import BLANK, Method

DIFFERS = "rank, alpha, method or target modules differ"


class Tuner(Method):
    """Any method whose adapters are PEFT layers; ``peft_config`` says which."""

    turns_off: ClassVar[bool] = True
    """Whether the bare model is had by turning layers off; else the blank adapter adds exactly
    nothing (and fused layers need it so).
    """

    def __init__(self, config: AdapterConfig, card: Card) -> None:
        super().__init__(config, card)
        self.model: PeftModel
        self.layers: list[BaseTunerLayer] = []
        """The layers that hold adapters."""

    def peft_config(self, blank: bool = False) -> PeftConfig:
        """PEFT's words for an adapter of these settings; the smallest there is when it is
        ``blank``.
        """
        raise NotImplementedError

    def wrap(self, model: Any) -> PeftModel:
        try:
            self.model = get_peft_model(model, self.peft_config(blank=True), adapter_name=BLANK)
        except ValueError as error:
            raise ModelError(f"adapter {self.card.name}: {str(error).splitlines()[0]}") from error
        self.layers = [
            module for module in self.model.modules() if isinstance(module, BaseTunerLayer)
        ]
        return self.model

    def base(self) -> Any:
        return self.model.get_base_model()

    def add(self, role: str) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*already.*|.*save_projection.*")
            self.model.add_adapter(role, self.peft_config())

    def drop(self, role: str) -> None:
        self.model.delete_adapter(role)

    def activate(self, role: str | None) -> None:
        tuner = self.model.base_model
        if list(tuner.active_adapters) != [role or BLANK]:
            tuner.set_adapter(role or BLANK)
        off = self.turns_off and role is None
        if self.layers and self.layers[0].disable_adapters != off:
            for layer in self.layers:
                layer.enable_adapters(not off)

    def set_dropout(self, role: str, on: bool) -> None:
        for layer in self.layers:
            for name in (
                "lora_dropout",
                "vera_dropout",
                "boft_dropout",
                "miss_dropout",
                "randlora_dropout",
            ):
                dropouts = getattr(layer, name, {})
                if role in dropouts:
                    dropouts[role].train(on)
            if (
                self.card.name == "dora"
            ):  # PEFT's forward of it asks the layer, which is in eval mode with its base
                layer.training = on

    def learns(self, name: str) -> bool:
        """Whether the parameter of an adapter learns."""
        return True

    def parameters(self, role: str) -> dict[str, nn.Parameter]:
        found = {}
        for name, parameter in sorted(self.model.named_parameters()):
            parts = name.split(".")
            if role in parts and self.learns(name):
                parts.remove(role)
                found[".".join(parts)] = parameter
        return found

    def state(self, role: str) -> dict[str, Tensor]:
        return get_peft_model_state_dict(self.model, adapter_name=role)

    def describe(self, role: str) -> dict[str, Any]:
        return dict(self.model.peft_config[role].to_dict())

    def restore(self, role: str, saved: dict[str, Tensor], described: dict[str, Any]) -> None:
        own = self.describe(role)
        # Older versions of PEFT do not write the switches that they do not know, which are off.
        if any(described.get(n, False) != own[n] for n in ("peft_type", *self.told) if n in own):
            raise ModelError(DIFFERS)
        super().restore(role, saved, described)

    told: ClassVar[tuple[str, ...]] = ()
    """Fields of PEFT's settings beside the shapes that change what an adapter computes."""


class LoRA(Tuner):
    """LoRA (Hu et al. 2021, arXiv 2106.09685): W x + alpha / r · B A x with B = 0 at the start;
    rsLoRA (2312.03732): alpha / sqrt(r).
    """

    turns_off = False
    waits: ClassVar = {"lora_A": ("lora_B",)}
    told = ("lora_alpha", "use_rslora", "use_dora")

    def peft_config(self, blank: bool = False) -> LoraConfig:
        config = self.config
        return LoraConfig(
            r=1 if blank else config.r * self.card.file_rank,
            lora_alpha=config.alpha * self.card.file_rank,
            lora_dropout=config.dropout,
            target_modules=config.target_modules,
            use_rslora=self.card.name == "rslora",
            use_dora=self.card.name == "dora",
            task_type="CAUSAL_LM",
        )

    def misfit(self, inputs: int, outputs: int) -> str | None:
        return over(self.config.r, min(inputs, outputs))


class DoRA(LoRA):
    """DoRA (Liu et al. 2024, arXiv 2402.09353): m (W + s B A) / |W + s B A| with a norm and a
    learnt magnitude m for each output.
    """

    turns_off = True


class LoRAPlus(LoRA):
    """LoRA+ (Hayou et al. 2024, arXiv 2402.12354): B learns at ``ratio`` times the rate of A."""

    def rates(self, role: str, learning_rate: float) -> dict[str, float]:
        faster = float(self.options["ratio"]) * learning_rate
        return {name: faster for name in self.parameters(role) if ".lora_B." in name}


class LoRAFA(LoRA):
    """LoRA-FA (Zhang et al. 2023, arXiv 2308.03303): A stays as it was drawn, B alone learns."""

    def learns(self, name: str) -> bool:
        return ".lora_A." not in name

    def extra(self, role: str) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self.state(role).items() if ".lora_A." in name}

    def take_extra(self, role: str, tensors: dict[str, Tensor]) -> None:
        own = self.state(role)
        for name, tensor in tensors.items():
            own[name].copy_(tensor)


def over(rank: int, smallest: int) -> str | None:
    """The message about a rank that is larger than a layer."""
    return (
        f"a rank of {rank} is over its smaller side, {smallest}: lower backbone.adapter.r"
        if rank > smallest
        else None
    )


@contextlib.contextmanager
def unfused(model: nn.Module) -> Iterator[None]:
    """Let decoder layers call their projections, so that hooks on these run, which layers that run
    as one step do not.
    """
    from prefloop.models.fused.layer import FusedLayer

    with contextlib.ExitStack() as stack:
        for module in model.modules():
            ours = module.__dict__.get("forward")
            if isinstance(ours, FusedLayer):
                stack.callback(setattr, module, "forward", ours)
                module.forward = ours.original
        yield
