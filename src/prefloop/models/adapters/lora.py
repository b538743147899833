"""LoRA and its variants, as PEFT layers around a model's linear layers, with one adapter per
role.
"""

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
_DROPOUTS = ("lora_dropout", "vera_dropout", "boft_dropout", "miss_dropout", "randlora_dropout")
"""Attributes of PEFT's layers with the dropout of each adapter."""


class Tuner(Method):
    """Any method whose adapters are PEFT layers; ``peft_config`` chooses the kind of layer."""

    turns_off: ClassVar[bool] = True
    """Whether the layers are turned off for the bare model. Otherwise the blank adapter is active,
    which must add exactly nothing; fused layers need it this way.
    """

    def __init__(self, config: AdapterConfig, card: Card) -> None:
        super().__init__(config, card)
        self.model: PeftModel
        self.layers: list[BaseTunerLayer] = []
        """The layers that hold adapters."""

    def peft_config(self, blank: bool = False) -> PeftConfig:
        """PEFT's settings of an adapter; with ``blank`` those of the smallest possible one."""
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
            for name in _DROPOUTS:
                dropouts = getattr(layer, name, {})
                if role in dropouts:
                    dropouts[role].train(on)
            # PEFT's DoRA forward checks the mode of the layer, which is in eval mode with its base.
            if self.card.name == "dora":
                layer.training = on

    def learns(self, name: str) -> bool:
        """Whether an adapter's parameter learns."""
        return True

    def parameters(self, role: str) -> dict[str, nn.Parameter]:
        own = {}
        for name, parameter in sorted(self.model.named_parameters()):
            parts = name.split(".")
            if role in parts and self.learns(name):
                parts.remove(role)
                own[".".join(parts)] = parameter
        return own

    def state(self, role: str) -> dict[str, Tensor]:
        return get_peft_model_state_dict(self.model, adapter_name=role)

    def describe(self, role: str) -> dict[str, Any]:
        return dict(self.model.peft_config[role].to_dict())

    def restore(self, role: str, saved: dict[str, Tensor], described: dict[str, Any]) -> None:
        own = self.describe(role)
        # Older versions of PEFT lack some switches and do not write them; they count as off.
        fields = [name for name in ("peft_type", *self.compared) if name in own]
        if any(described.get(name, False) != own[name] for name in fields):
            raise ModelError(DIFFERS)
        super().restore(role, saved, described)

    compared: ClassVar[tuple[str, ...]] = ()
    """Fields of PEFT's settings that change an adapter's outputs without changing its shapes."""


class LoRA(Tuner):
    """LoRA (Hu et al. 2021, arXiv 2106.09685): W x + alpha / r · B A x, with B = 0 at the start.

    rsLoRA (2312.03732) scales by alpha / sqrt(r).
    """

    turns_off = False
    waits: ClassVar = {"lora_A": ("lora_B",)}
    compared = ("lora_alpha", "use_rslora", "use_dora")

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
    """DoRA (Liu et al. 2024, arXiv 2402.09353): m (W + s B A) / |W + s B A|.

    Each output has its own norm and its own learned magnitude m.
    """

    turns_off = True


class LoRAPlus(LoRA):
    """LoRA+ (Hayou et al. 2024, arXiv 2402.12354): B's learning rate is ``ratio`` times that of
    A.
    """

    def rates(self, role: str, learning_rate: float) -> dict[str, float]:
        faster = float(self.options["ratio"]) * learning_rate
        return {name: faster for name in self.parameters(role) if ".lora_B." in name}


class LoRAFA(LoRA):
    """LoRA-FA (Zhang et al. 2023, arXiv 2308.03303): only B learns, and A keeps its random
    values.
    """

    def learns(self, name: str) -> bool:
        return ".lora_A." not in name

    def extra(self, role: str) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self.state(role).items() if ".lora_A." in name}

    def take_extra(self, role: str, tensors: dict[str, Tensor]) -> None:
        own = self.state(role)
        for name, tensor in tensors.items():
            own[name].copy_(tensor)


def over(rank: int, smallest: int) -> str | None:
    """The message about a rank above a layer's smaller side; ``None`` for a rank that fits."""
    if rank <= smallest:
        return None
    return f"a rank of {rank} is over its smaller side, {smallest}: lower backbone.adapter.r"


@contextlib.contextmanager
def unfused(model: nn.Module) -> Iterator[None]:
    """Within this block fused decoder layers run their original code.

    A fused layer does not call its projections, so hooks on them would not run.
    """
    from prefloop.models.fused.layer import FusedLayer

    with contextlib.ExitStack() as stack:
        for module in model.modules():
            ours = module.__dict__.get("forward")
            if isinstance(ours, FusedLayer):
                stack.callback(setattr, module, "forward", ours)
                module.forward = ours.original
        yield
