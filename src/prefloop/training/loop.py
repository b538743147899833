"""One training loop for every stage that trains: packs in, an optimizer step whose loss is the mean
over its items.

Built on accelerate for device placement, precision and clipping. Checkpoints are safetensors and
JSON: parameters, the optimizer's moments, schedule position, torch's random state and whatever the
stage adds; a resumed run ends in the same weights as one that was never interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from prefloop.base.atomic import settle
from prefloop.base.console import complain, say
from prefloop.base.interrupt import heed, waiting
from prefloop.base.sealed import (
    SEAL,
    check_files,
    hashes_of,
    read_folder,
    read_sealed,
    remove,
    seal_folder,
)
from prefloop.config import OptimConfig
from prefloop.data.packing import Pack
from prefloop.errors import PrefloopError, StoreError
from prefloop.training import optimizers
from prefloop.training.adapter_hooks import Learner

STATE = "state.safetensors"
"""In a checkpoint: parameters, moments, and what the stage keeps with them."""
KEPT = 2
"""Newest checkpoints that stay: where one is damaged, training goes on from the one before."""
T = TypeVar("T")


class NonFiniteLoss(PrefloopError):
    """The loss or its gradient became NaN or infinite; the step was not applied."""


class Loop:
    """Optimizer, schedule and checkpoints over named parameters."""

    def __init__(
        self,
        parameters: dict[str, nn.Parameter],
        optim: OptimConfig,
        total_steps: int,
        folder: Path,
        learning_rates: dict[str, float] | None = None,
        ids_of: Callable[[Sequence[int]], list[str]] | None = None,
        learners: Sequence[Learner] = (),
        updates: int = 1,
    ) -> None:
        """``learning_rates`` maps a name prefix to its own peak rate; everything else learns at
        ``optim.learning_rate``. ``ids_of`` names the rows behind the keys of a pack for messages.
        ``learners`` are the roles that the adapters' parameters among ``parameters`` are of.
        ``updates`` are the optimizer steps in a step of the stage.
        """
        self.ids_of = ids_of
        self.learners = learners
        self.updates = updates
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available())
        self.parameters = parameters
        self.optim = optim
        self.total_steps = total_steps
        self.folder = folder
        self.step = 0
        self.saved = 0
        """The step of the newest checkpoint."""
        rates = learning_rates or {}
        groups: dict[float, list[nn.Parameter]] = {}
        own: dict[str, float] = {}
        for learner in learners:
            rate = next(
                (r for prefix, r in rates.items() if learner.prefix.startswith(prefix)),
                optim.learning_rate,
            )
            own |= learner.rates(rate)
        for name, parameter in parameters.items():
            rate = next(
                (r for prefix, r in rates.items() if name.startswith(prefix)), optim.learning_rate
            )
            rate = own.get(name, rate)
            groups.setdefault(rate, []).append(parameter)
        device = self.accelerator.device
        self.optimizer = optimizers.make(
            optim.name,
            [{"params": params, "lr": rate} for rate, params in groups.items()],
            optim.weight_decay,
            device,
        )
        self.fused = optim.name == "adamw" and device.type == "cuda"
        self.parts: dict[str, list[nn.Parameter]] = {}
        for name, parameter in parameters.items():
            self.parts.setdefault(name.split("/")[0], []).append(parameter)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._factor)

    def _factor(self, step: int) -> float:
        return factor(self.optim, step, self.total_steps)

    def update(
        self,
        packs: Iterable[Pack],
        loss_of: Callable[[Pack], Tensor | Iterator[Tensor]],
        items: int,
    ) -> dict[str, float]:
        """One optimizer step. ``loss_of`` returns the *sum* of the losses of a pack's items; the
        step's loss is their mean.

        Where adapters are switched within a pack it yields one loss for each, and each is
        backpropagated before the next is computed. Raises ``NonFiniteLoss`` naming the responses in
        the pack; weights stay as they were.
        """
        losses: list[tuple[Pack, Tensor]] = []
        torch.manual_seed(self.step)  # dropout, where a stage uses it, depends on the step alone
        self.optimizer.zero_grad(set_to_none=True)
        for pack in packs:
            found = loss_of(pack.to(self.accelerator.device))
            for part in [found] if isinstance(found, Tensor) else found:
                loss = part / items
                self.accelerator.backward(loss)
                losses.append((pack, loss.detach()))
        learning = [learner for learner in self.learners if learner.has_gradient()]
        for learner in learning:
            learner.before_step(self.step, self.total_steps)
        # Each part apart: a head's gradient must not decide how far the adapter's is cut.
        most = self.optim.max_grad_norm or float("inf")
        norms = [self.accelerator.clip_grad_norm_(part, most) for part in self.parts.values()]
        results = torch.stack(
            [*(loss.float() for _, loss in losses), *(norm.float() for norm in norms)]
        )
        rate = self.schedule.get_last_lr()[0]
        if self.fused:
            # The device itself leaves the weights as they are when a value is not finite, so the
            # host need not look first.
            self.optimizer.found_inf = (~results.isfinite().all()).float()  # type: ignore[attr-defined]
            self.optimizer.step()
        values = results.tolist()  # the one point where the host waits for the device
        norm = self._check([pack for pack, _ in losses], values)
        if not self.fused:
            self.optimizer.step()
        for learner in learning:
            learner.after_step(self.step, self.total_steps)
        self.schedule.step()
        self.step += 1
        return {"loss": sum(values[: len(losses)]), "grad_norm": norm, "lr": rate}

    def _check(self, packs: list[Pack], values: list[float]) -> float:
        """The largest of the gradient norms, which stand behind the packs' losses; raises
        ``NonFiniteLoss``.
        """
        for pack, value in zip(packs, values, strict=False):
            if not math.isfinite(value):
                where = f"responses {list(pack.keys)[:16]}"
                if self.ids_of:
                    ids = self.ids_of(pack.keys)
                    where = f"rows {', '.join(ids[:16])}" + (
                        f" and {len(ids) - 16} more" if len(ids) > 16 else ""
                    )
                raise NonFiniteLoss(
                    f"step {self.step + 1}: loss is {value} on {where}; the step was not applied,"
                    " lower the learning rate or look at these rows"
                )
        norms = values[len(packs) :]
        if bad := [norm for norm in norms if not math.isfinite(norm)]:
            raise NonFiniteLoss(
                f"step {self.step + 1}: gradient norm is {bad[0]}; the step was not applied, lower"
                " the learning rate"
            )
        return max(norms)

    @property
    def stage_step(self) -> int:
        """The steps of the stage that are done."""
        return self.step // self.updates

    def due(self) -> bool:
        """Whether a checkpoint is to be written at the end of this step: every
        ``checkpoint_every``, and when the run is asked to end.
        """
        return waiting() or self.stage_step % self.optim.checkpoint_every == 0

    def save(
        self,
        state: dict[str, Any],
        tensors: dict[str, Tensor] | None = None,
        needed: Sequence[Path] = (),
    ) -> None:
        """Write a checkpoint of this step, whole or not at all; all but the newest ``KEPT`` go. A
        run that is asked to end then ends.

        ``needed`` are files under ``folder`` that training goes on with beside it (``keep``): the
        checkpoint holds their hashes.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / ".partial"
        remove(partial)
        partial.mkdir()
        flat = self._flat() | {f"extra/{n}": t for n, t in (tensors or {}).items()}
        flat["rng"] = torch.get_rng_state()
        save_file({n: t.cpu().contiguous() for n, t in flat.items()}, partial / STATE)
        content = {"step": self.step, "schedule": self.schedule.last_epoch, "state": state}
        content["needed"] = hashes_of(self.folder, needed)
        seal_folder(partial, self.folder / f"step-{self.step:06d}", content)
        for old in self.checkpoints()[:-KEPT]:
            remove(old)
        self.saved = self.step
        end_where_asked(self.stage_step, self.total_steps // self.updates)

    def checkpoints(self) -> list[Path]:
        """What goes by the name of a checkpoint, oldest first."""
        return sorted(self.folder.glob("step-*"))

    def needed(self) -> set[Path]:
        """The files that checkpoints need beside them."""
        return {
            self.folder / name
            for place in self.checkpoints()
            for name in read_sealed(place / SEAL)["needed"]
        }

    def _flat(self) -> dict[str, Tensor]:
        """Parameters and optimizer moments by name."""
        flat = {f"parameter/{n}": p.detach() for n, p in self.parameters.items()}
        for name, parameter in self.parameters.items():
            for slot, value in optimizers.moments(self.optimizer, parameter).items():
                flat[f"optimizer/{slot}/{name}"] = value
        for learner in self.learners:
            flat |= {f"method/{learner.prefix}{name}": t for name, t in learner.extra().items()}
        return flat

    @torch.no_grad()
    def _take(self, flat: dict[str, Tensor]) -> None:
        """Put parameters and optimizer moments back."""
        for name, parameter in self.parameters.items():
            parameter.copy_(flat[f"parameter/{name}"])
            slots = {
                k.split("/", 2)[1]: v
                for k, v in flat.items()
                if k.startswith("optimizer/") and k.split("/", 2)[2] == name
            }
            optimizers.put_moments(self.optimizer, parameter, slots)
        for learner in self.learners:
            start = f"method/{learner.prefix}"
            learner.take_extra(
                {n.removeprefix(start): t for n, t in flat.items() if n.startswith(start)}
            )

    def keep(self, path: Path) -> None:
        """Write parameters and optimizer moments to a file, whole or not at all, for
        ``go_back``.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        save_file({n: t.cpu().contiguous() for n, t in self._flat().items()}, partial)
        settle(partial, path)

    def go_back(self, path: Path) -> None:
        """Take parameters and optimizer moments from ``keep``; the schedule goes on from where it
        is.
        """
        self._take(load_file(path))

    def restore(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """Go on from the newest checkpoint that is whole; returns the stage's state and tensors, or
        ``None`` when there is none.

        One that is damaged is told and removed.
        """
        found = newest_whole(self.checkpoints(), self._whole)
        if found is None:
            return None
        saved, flat = found
        self._take(flat)
        self.step = self.saved = saved["step"]
        self.schedule.last_epoch = saved["schedule"]
        for group, base in zip(self.optimizer.param_groups, self.schedule.base_lrs, strict=True):
            group["lr"] = base * self._factor(self.schedule.last_epoch)
        self.schedule._last_lr = [group["lr"] for group in self.optimizer.param_groups]
        torch.set_rng_state(flat["rng"])
        state: dict[str, Any] = saved["state"]
        return state, {
            k.removeprefix("extra/"): v for k, v in flat.items() if k.startswith("extra/")
        }

    def _whole(self, place: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
        saved = read_folder(place)
        check_files(self.folder, saved["needed"])
        return saved, load_file(place / STATE)


def step_of(checkpoint: Path) -> int:
    """The optimizer steps behind a checkpoint."""
    return int(checkpoint.name.removeprefix("step-"))


def end_where_asked(step: int, total: int) -> None:
    """End a run that was asked to, now that the checkpoint of this step of a stage is written:
    raises ``KeyboardInterrupt`` or ``Ended``.
    """
    if waiting():
        complain(f"checkpoint of step {step} of {total} written")
        heed()


def newest_whole(
    checkpoints: Sequence[Path],
    read: Callable[[Path], T],
    otherwise: str = "the start of the stage",
) -> T | None:
    """What ``read`` makes of the newest checkpoint, from which training goes on; ``None`` where
    there is none.

    One of which it raises ``StoreError`` is told and removed: training goes on from the one before,
    or from what ``otherwise`` says.
    """
    for number, place in reversed(list(enumerate(checkpoints))):
        try:
            return read(place)
        except StoreError as error:
            before = checkpoints[number - 1].name if number else otherwise
            say(f"  checkpoint {place.name} is damaged: {error}; going on from {before}", "yellow")
            remove(place)
    return None


def factor(optim: OptimConfig, step: int, total_steps: int) -> float:
    """Learning rate at 0-based ``step`` as a share of the peak: linear warm-up from above 0, then
    linear decay or constant.
    """
    warmup = optim.warmup(total_steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if optim.schedule == "constant":
        return 1.0
    return max(0.0, (total_steps - step) / max(1, total_steps - warmup))
