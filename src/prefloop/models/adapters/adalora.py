"""AdaLoRA: SVD-shaped adapters whose singular values compete for one budget of ranks.

PEFT's layers, our own budget: PEFT's allocator knows one adapter that trains, and roles train side
by side.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from peft import AdaLoraConfig
from torch import Tensor, nn

from prefloop.config import AdapterConfig
from prefloop.config.adapters import Card
from prefloop.models.adapters.lora import Tuner, over
from prefloop.models.adapters.method import BLANK


class AdaLoRA(Tuner):
    """AdaLoRA (Zhang et al. 2023, arXiv 2303.10512): W x + s P Λ Q x / rank, Λ diagonal and 0 at
    the start, P and Q kept near orthogonal.

    ``adapter.r`` is the rank that layers have on average in the end; they start at ``start`` times
    it. Over the steps between ``warmup`` and ``final`` (shares of all steps) the budget falls as a
    cubic (eq. 12); the values of least importance are set to 0 (eq. 6-10), and in the final steps
    those that were chosen stay.
    """

    waits: ClassVar = {"lora_A": ("lora_E",), "lora_B": ("lora_E",)}
    compared = ("lora_alpha", "init_r")

    def __init__(self, config: AdapterConfig, card: Card) -> None:
        super().__init__(config, card)
        self._mean: dict[str, dict[str, Tensor]] = {}
        self._doubt: dict[str, dict[str, Tensor]] = {}
        self._chosen: dict[str, dict[str, Tensor]] = {}

    @property
    def first(self) -> int:
        """Rank of every layer at the start."""
        return max(self.config.r, round(self.options["start"] * self.config.r))

    def peft_config(self, blank: bool = False) -> AdaLoraConfig:
        return AdaLoraConfig(
            init_r=1 if blank else self.first,
            target_r=self.config.r,
            r=self.config.r,
            lora_alpha=self.config.alpha,
            lora_dropout=self.config.dropout,
            total_step=1_000_000,  # PEFT's own schedule, which never runs
            inference_mode=True,  # PEFT takes only one that trains
            target_modules=self.config.target_modules,
            task_type="CAUSAL_LM",
        )

    def misfit(self, inputs: int, outputs: int) -> str | None:
        return over(self.first, min(inputs, outputs))

    def wrap(self, model: Any) -> Any:
        wrapped = super().wrap(model)
        wrapped.base_model.trainable_adapter_name = (
            BLANK  # PEFT adds a penalty for it to any loss that the model computes
        )
        wrapped.peft_config[BLANK].orth_reg_weight = 0.0
        return wrapped

    def drop(self, role: str) -> None:
        super().drop(role)
        for kept in (self._mean, self._doubt, self._chosen):
            kept.pop(role, None)

    def learns(self, name: str) -> bool:
        return ".ranknum." not in name

    def penalty(self, role: str) -> Tensor | None:
        """γ times the mean of |Pᵀ P - I| and |Q Qᵀ - I| over all layers, Frobenius norms as they
        are.

        So in the authors' code; eq. 4 of the paper squares the norms and sums them.
        """
        terms = []
        for name, p in self.parameters(role).items():
            if not name.endswith("lora_E"):
                gram = p @ p.T if name.endswith("lora_A") else p.T @ p
                terms.append(torch.linalg.matrix_norm(gram - torch.eye(len(gram), device=p.device)))
        return self.options["orthogonal"] * torch.stack(terms).mean()

    def before_step(self, role: str, step: int, total_steps: int) -> None:
        """Smooth each number's sensitivity |w ∂L/∂w| and how much it wavers (eq. 9-10)."""
        mean, doubt = self._mean.setdefault(role, {}), self._doubt.setdefault(role, {})
        beta1, beta2 = self.options["beta1"], self.options["beta2"]
        for name, p in self.parameters(role).items():
            if p.grad is None:
                continue
            now = (p.detach() * p.grad).abs().float()
            mean[name] = beta1 * mean.get(name, torch.zeros_like(now)) + (1 - beta1) * now
            wavers = (now - mean[name]).abs()
            doubt[name] = beta2 * doubt.get(name, torch.zeros_like(now)) + (1 - beta2) * wavers

    @torch.no_grad()
    def after_step(self, role: str, step: int, total_steps: int) -> None:
        done, values = step + 1, self._values(role)
        start, stop = self.phases(total_steps)
        if done >= stop:
            if role not in self._chosen:
                self._chosen[role] = self._best(role, self.config.r * len(values))
        elif done <= start or (done - start) % self.options["every"]:
            return
        chosen = self._chosen.get(role) or self._best(
            role, self.budget(done, total_steps, len(values))
        )
        for name, value in values.items():
            value.mul_(chosen[name].to(value.dtype))

    def settled(self, role: str) -> bool:
        """Once the budget has its last value."""
        return role in self._chosen

    @torch.no_grad()
    def finish(self, role: str) -> None:
        """A run that stopped before its schedule's end is cut to the final budget here, by the
        importance so far.
        """
        if role in self._chosen or role not in self._mean:
            return
        values = self._values(role)
        self._chosen[role] = self._best(role, self.config.r * len(values))
        for name, value in values.items():
            value.mul_(self._chosen[role][name].to(value.dtype))

    def phases(self, total_steps: int) -> tuple[int, int]:
        """The steps after which the budget starts to fall and has its last value; the second is at
        most the last step, if there are two.

        It never falls after the first step, whose gradients say nothing yet: Λ = 0 hides P and Q
        from them.
        """
        start = max(1, round(self.options["warmup"] * total_steps))
        return start, max(start + 1, total_steps - round(self.options["final"] * total_steps))

    def budget(self, step: int, total_steps: int, layers: int) -> int:
        """Ranks that all layers have together after ``step`` steps (eq. 12)."""
        first, last = self.first * layers, self.config.r * layers
        start, stop = self.phases(total_steps)
        left = min(1.0, max(0.0, 1 - (step - start) / (stop - start)))
        return round(last + (first - last) * left**3)

    def _values(self, role: str) -> dict[str, nn.Parameter]:
        """The singular values that have had a gradient."""
        seen = self._mean.get(role, {})
        return {
            name: p
            for name, p in self.parameters(role).items()
            if name in seen and name.endswith("lora_E")
        }

    def _best(self, role: str, budget: int) -> dict[str, Tensor]:
        """Which singular values are among the ``budget`` most important: their own score and the
        mean score of their two vectors (eq. 7).
        """
        scores, values = {}, self._values(role)
        for name in values:
            value, right, left = (
                self._mean[role][n] * self._doubt[role][n]
                for n in (name, name[:-1] + "A", name[:-1] + "B")
            )
            scores[name] = value[:, 0] + right.mean(1) + left.mean(0)
        # Of values that matter alike, as before the first gradient of a critic, those that do
        # nothing go first.
        order = torch.cat([values[n][:, 0].abs() for n in scores]).argsort(
            descending=True, stable=True
        )
        order = order[torch.cat(list(scores.values()))[order].argsort(descending=True, stable=True)]
        kept = torch.zeros(len(order), dtype=torch.bool, device=order.device)
        kept[order[:budget]] = True
        parts = kept.split([len(s) for s in scores.values()])
        return {name: part[:, None] for name, part in zip(scores, parts, strict=True)}

    def extra(self, role: str) -> dict[str, Tensor]:
        kept = {"mean": self._mean, "doubt": self._doubt, "chosen": self._chosen}
        return {
            f"{what}/{name}": t for what, of in kept.items() for name, t in of.get(role, {}).items()
        }

    def take_extra(self, role: str, tensors: dict[str, Tensor]) -> None:
        for what, of in (("mean", self._mean), ("doubt", self._doubt), ("chosen", self._chosen)):
            taken = {
                n.removeprefix(f"{what}/"): t
                for n, t in tensors.items()
                if n.startswith(f"{what}/")
            }
            of.pop(role, None)
            if taken:
                of[role] = taken
