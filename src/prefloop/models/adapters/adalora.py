"""AdaLoRA: adapters in SVD form whose singular values compete for one budget of ranks.

The layers are PEFT's. The budget is our own, since PEFT's allocator supports only one training
adapter, and several roles may train here.
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
    """AdaLoRA (Zhang et al. 2023, arXiv 2303.10512): W x + s P Λ Q x / rank.

    Λ is diagonal and starts at 0. A penalty keeps P and Q near orthogonal.

    ``adapter.r`` is the average rank of the layers at the end, and they start at ``start`` times
    that rank. Between the first ``warmup`` and the last ``final`` share of the steps, the budget
    falls as a cubic (eq. 12), and the least important values are set to 0 (eq. 6-10). In the final
    steps the choice is fixed.
    """

    waits: ClassVar = {"lora_A": ("lora_E",), "lora_B": ("lora_E",)}
    compared = ("lora_alpha", "init_r")

    def __init__(self, config: AdapterConfig, card: Card) -> None:
        super().__init__(config, card)
        # Role → parameter name → smoothed sensitivity, its smoothed uncertainty, and final choice.
        self._sensitivity: dict[str, dict[str, Tensor]] = {}
        self._uncertainty: dict[str, dict[str, Tensor]] = {}
        self._chosen: dict[str, dict[str, Tensor]] = {}

    @property
    def first(self) -> int:
        """Every layer's rank at the start."""
        return max(self.config.r, round(self.options["start"] * self.config.r))

    def peft_config(self, blank: bool = False) -> AdaLoraConfig:
        return AdaLoraConfig(
            init_r=1 if blank else self.first,
            target_r=self.config.r,
            r=self.config.r,
            lora_alpha=self.config.alpha,
            lora_dropout=self.config.dropout,
            total_step=1_000_000,  # required by PEFT, whose own schedule never runs
            inference_mode=True,  # PEFT supports only one adapter in training mode
            target_modules=self.config.target_modules,
            task_type="CAUSAL_LM",
        )

    def misfit(self, inputs: int, outputs: int) -> str | None:
        return over(self.first, min(inputs, outputs))

    def wrap(self, model: Any) -> Any:
        wrapped = super().wrap(model)
        # PEFT adds this adapter's penalty to any loss that the model computes.
        wrapped.base_model.trainable_adapter_name = BLANK
        wrapped.peft_config[BLANK].orth_reg_weight = 0.0
        return wrapped

    def drop(self, role: str) -> None:
        super().drop(role)
        for by_role in self._states().values():
            by_role.pop(role, None)

    def learns(self, name: str) -> bool:
        return ".ranknum." not in name

    def penalty(self, role: str) -> Tensor | None:
        """γ times the mean of the Frobenius norms |Pᵀ P - I| and |Q Qᵀ - I| over all layers.

        This follows the authors' code. Eq. 4 of the paper sums the squared norms.
        """
        terms = []
        for name, p in self.parameters(role).items():
            if not name.endswith("lora_E"):
                gram = p @ p.T if name.endswith("lora_A") else p.T @ p
                terms.append(torch.linalg.matrix_norm(gram - torch.eye(len(gram), device=p.device)))
        return self.options["orthogonal"] * torch.stack(terms).mean()

    def before_step(self, role: str, step: int, total_steps: int) -> None:
        """Smooth each number's sensitivity |w ∂L/∂w| and its uncertainty (eq. 9-10)."""
        mean = self._sensitivity.setdefault(role, {})
        uncertainty = self._uncertainty.setdefault(role, {})
        beta1, beta2 = self.options["beta1"], self.options["beta2"]
        for name, p in self.parameters(role).items():
            if p.grad is None:
                continue
            now = (p.detach() * p.grad).abs().float()
            mean[name] = beta1 * mean.get(name, torch.zeros_like(now)) + (1 - beta1) * now
            change = (now - mean[name]).abs()
            old = uncertainty.get(name, torch.zeros_like(now))
            uncertainty[name] = beta2 * old + (1 - beta2) * change

    @torch.no_grad()
    def after_step(self, role: str, step: int, total_steps: int) -> None:
        done, values = step + 1, self._values(role)
        start, stop = self.phases(total_steps)
        if done >= stop:
            if role not in self._chosen:
                self._chosen[role] = self._best(role, self.config.r * len(values))
        elif done <= start or (done - start) % self.options["every"]:
            return
        budget = self.budget(done, total_steps, len(values))
        chosen = self._chosen.get(role) or self._best(role, budget)
        for name, value in values.items():
            value.mul_(chosen[name].to(value.dtype))

    def settled(self, role: str) -> bool:
        """Whether the budget has its final value."""
        return role in self._chosen

    @torch.no_grad()
    def finish(self, role: str) -> None:
        """Cut the role to the final budget, by the importance so far, if training ended early."""
        if role in self._chosen or role not in self._sensitivity:
            return
        values = self._values(role)
        self._chosen[role] = self._best(role, self.config.r * len(values))
        for name, value in values.items():
            value.mul_(self._chosen[role][name].to(value.dtype))

    def phases(self, total_steps: int) -> tuple[int, int]:
        """The steps after which the budget begins to fall, and after which it has its final value.

        The second is at most the last step, in a run of two steps or more. The budget does not fall
        before the end of the first step, whose gradients of P and Q are zero because Λ = 0.
        """
        start = max(1, round(self.options["warmup"] * total_steps))
        return start, max(start + 1, total_steps - round(self.options["final"] * total_steps))

    def budget(self, step: int, total_steps: int, layers: int) -> int:
        """Sum of the ranks of all layers after ``step`` steps (eq. 12)."""
        first, last = self.first * layers, self.config.r * layers
        start, stop = self.phases(total_steps)
        remaining = min(1.0, max(0.0, 1 - (step - start) / (stop - start)))
        return round(last + (first - last) * remaining**3)

    def _values(self, role: str) -> dict[str, nn.Parameter]:
        """The singular values that have had a gradient, by name."""
        seen = self._sensitivity.get(role, {})
        own = self.parameters(role).items()
        return {name: p for name, p in own if name in seen and name.endswith("lora_E")}

    def _best(self, role: str, budget: int) -> dict[str, Tensor]:
        """Name → mask of the singular values that are among the ``budget`` most important.

        A value's importance is its own score plus the mean scores of its two vectors (eq. 7).
        """
        scores, values = {}, self._values(role)
        for name in values:
            value, right, left = (
                self._sensitivity[role][n] * self._uncertainty[role][n]
                for n in (name, name[:-1] + "A", name[:-1] + "B")
            )
            scores[name] = value[:, 0] + right.mean(1) + left.mean(0)
        # Values of equal importance, as before a critic's first gradient, are ordered by size.
        size = torch.cat([values[name][:, 0].abs() for name in scores])
        order = size.argsort(descending=True, stable=True)
        score = torch.cat(list(scores.values()))
        order = order[score[order].argsort(descending=True, stable=True)]
        kept = torch.zeros(len(order), dtype=torch.bool, device=order.device)
        kept[order[:budget]] = True
        parts = kept.split([len(s) for s in scores.values()])
        return {name: part[:, None] for name, part in zip(scores, parts, strict=True)}

    def _states(self) -> dict[str, dict[str, dict[str, Tensor]]]:
        """The budget's state by its names in a checkpoint."""
        return {"mean": self._sensitivity, "doubt": self._uncertainty, "chosen": self._chosen}

    def extra(self, role: str) -> dict[str, Tensor]:
        return {
            f"{kind}/{name}": tensor
            for kind, by_role in self._states().items()
            for name, tensor in by_role.get(role, {}).items()
        }

    def take_extra(self, role: str, tensors: dict[str, Tensor]) -> None:
        for kind, by_role in self._states().items():
            prefix = f"{kind}/"
            own = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
            by_role.pop(role, None)
            if own:
                by_role[role] = own
