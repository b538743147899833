"""A role of the backbone where TRL trains, and its frozen copy as TRL's reference.

TRL takes a PEFT model as it comes: the adapter called ``default`` learns, and a frozen copy that
TRL calls ``ref`` is the reference. Three things would go wrong without a word, and are
seen to here:

- TRL fills ``ref`` from parameters that have ``.default.`` in their names, which methods such as
  VeRA and IA3 do not have: their reference would be an adapter drawn at random. Both adapters are
  read from the SFT artifact again once the trainer is made.
- On 4-bit weights TRL rounds what learns to bfloat16. It is float32 again before the first step.
- PEFT's ``set_adapter``, by which TRL turns to the reference and back, does not reach fused layers,
  and would go back to another role than ``Backbone.activate`` chose.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import GenerationConfig as NeutralDefaults

from prefloop.artifacts.adapter_config import read_adapter
from prefloop.models.backbone import Backbone
from prefloop.models.folder import read_tensors
from prefloop.runs.work import Work

POLICY, REFERENCE = "default", "ref"
"""What TRL calls the adapter that learns, and its frozen copy."""


@dataclasses.dataclass(frozen=True)
class Seat:
    """A backbone on which TRL trains: role ``default`` is active and learns."""

    backbone: Backbone
    start: Path
    """The SFT adapter."""
    dropout: bool
    """Whether the adapter's dropout is on while it learns."""

    def learn(self) -> None:
        """Run the policy, and let its parameters alone take gradients."""
        self.backbone.activate(POLICY, dropout=self.dropout)
        self.backbone.model.active_adapter = POLICY
        for parameter in self.backbone.parameters(POLICY):
            parameter.requires_grad_(True)

    def read_again(self) -> None:
        """Put the SFT adapter's own float32 numbers into the policy, and into the reference."""
        saved = read_tensors(self.start, str(self.backbone.device))
        described = read_adapter(self.start)
        for role in (POLICY, REFERENCE):
            if role in self.backbone.model.peft_config:
                self.backbone.roles.add(role)
                self.backbone.made_anew(role)
                for parameter in self.backbone.parameters(role):
                    parameter.data = parameter.data.float()
                self.backbone.method.restore(role, saved, described)

    def switch(self, role: str, **_: Any) -> None:
        """Take the place of PEFT's ``set_adapter`` on the model: what learns stays what it is."""
        self.backbone.active.role = role
        self.backbone.method.activate(role)
        self.backbone.model.active_adapter = role
        for known in {POLICY, REFERENCE} & self.backbone.roles:
            for parameter in self.backbone.parameters(known):
                parameter.requires_grad_(known == POLICY)

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        """Let the block run other roles (``Backbone.role``), and go back to training after it."""
        modes = [(module, module.training) for module in self.backbone.model.modules()]
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            self.learn()


@contextlib.contextmanager
def seated(work: Work, sft: Path, dropout: bool) -> Iterator[Seat]:
    """The policy on the backbone for TRL. At the end all that TRL has changed of the model is as it
    was, and its adapters are gone.
    """
    backbone = work.runtime.backbone
    model, bare = backbone.model, backbone.causal_lm
    forwards = [(m, m.__dict__.get("forward")) for m in (model, bare)]
    text = bare.config.get_text_config()
    generation, pad, active = bare.generation_config, text.pad_token_id, model.active_adapter
    bare.generation_config = NeutralDefaults(eos_token_id=backbone.chat.stop_id)
    seat = Seat(backbone, sft, dropout)
    try:
        backbone.add_role(POLICY, start=sft)
        seat.learn()
        model.set_adapter = seat.switch
        yield seat
    finally:
        model.__dict__.pop("set_adapter", None)
        model.__dict__.pop("_original_forward", None)
        for module, forward in forwards:
            module.__dict__.pop("forward", None)
            if forward is not None:
                module.forward = forward
        if getattr(bare, "_require_grads_hook", None) is not None:
            bare.disable_input_require_grads()
        bare.generation_config, text.pad_token_id = generation, pad
        model.eval()
        # A trainer that could not be made may have left its reference.
        for role in {*backbone.roles, *({REFERENCE} & set(model.peft_config))}:
            backbone.roles.add(role)
            backbone.drop_role(role)
        model.active_adapter = active
