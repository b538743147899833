"""The critic of PPO: a value for every response token.

``shared``: linear on the policy's hidden states, detached, so it costs no pass of its own and
cannot bend the policy. ``adapter``: an adapter of its own on the backbone, started from the reward
model's (as InstructGPT's critic was, Ouyang et al. 2022, arXiv 2203.02155), with a linear head.

Shape letters: N tokens of a pack, H hidden size, R response tokens.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from prefloop.data.packing import Pack
from prefloop.models.backbone import Backbone
from prefloop.models.forward import hidden_N_H
from prefloop.models.heads import ScalarHead

VALUE = "value"


class Critic:
    """Values under the adapter ``value`` or from the policy's hidden states, by ``kind``: adapter
    or shared.
    """

    def __init__(self, backbone: Backbone, kind: str, start: Path | None = None) -> None:
        self.backbone = backbone
        self.own = kind == "adapter"
        self.head = ScalarHead(backbone.hidden_size).to(backbone.device)
        if self.own:
            backbone.add_role(VALUE, start=start)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """What learns, by a stable name; head and adapter are parts of their own, clipped apart."""
        found = {f"value_head/{name}": p for name, p in self.head.named_parameters()}
        if self.own:
            found |= {
                f"value_adapter/{name}": p for name, p in self.backbone.below_head(VALUE).items()
            }
        return found

    def values_R(self, pack: Pack, policy_N_H: Tensor | None, train: bool = False) -> Tensor:
        """The value where each response token is chosen, [R]; ``policy_N_H``: the policy's hidden
        states, which an adapter does not read.

        With ``train`` and an adapter the backbone is left under the critic's role: call
        ``backward`` before any other.
        """
        if not self.own:
            assert policy_N_H is not None
            return self.head(policy_N_H.index_select(0, pack.source_R).detach())
        with self.backbone.role(VALUE, train=train):
            return self.head(hidden_N_H(self.backbone, pack).index_select(0, pack.source_R))

    def save(self, folder: Path) -> None:
        """Write the head, beside its adapter where it has one, in the form that the adapter's
        method ends in.
        """
        folder.mkdir(parents=True, exist_ok=True)
        if self.own:
            self.backbone.method.finish(VALUE)
            self.backbone.save_role(VALUE, folder)
        self.head.save(folder)
