"""``prefloop plan``: what fits into memory, how long it takes, what to change. Nothing is
loaded.
"""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from prefloop.base.redact import short
from prefloop.config.ranges import LARGE
from prefloop.errors import ConfigError

if TYPE_CHECKING:
    from prefloop.config import RLHFConfig
    from prefloop.planning.shapes import Shape
    from prefloop.planning.stages import StagePlan

UNITS = {"": 2**30, "gib": 2**30, "g": 2**30, "gb": 10**9, "mib": 2**20, "mb": 10**6}
CPU = "CPU"
OWN = ("--gpu", "--card", "--help", "-h")
ROWS = (
    "weights",
    "adapters",
    "optimizer",
    "activations",
    "logits",
    "audit",
    "vLLM",
    "KV cache",
    "workspace",
    "context",
)


@dataclasses.dataclass
class Plan:
    """Show what every stage of a configuration needs before anything is loaded: trained parameters,
    memory by part, peak, time and disk.

    Where it does not fit, the command shows flags that make it fit, or the setting that helps most,
    and the exit status is 1. Every other flag overrides a field of the configuration, as for
    pipelines/rlhf.py (--backbone.pack-tokens 2048).
    """

    config: tyro.conf.Positional[Path]
    """YAML file of the run. Its backbone.model may be a shape, such as shape:7b."""
    gpu: str | None = None
    """Memory of the card, such as 24GiB. Default: the memory of this machine's GPU, or of the
    machine where it has none.
    """
    card: str | None = None
    """Kind of card, for the time estimate: H200, H100, A100, L4, 4090, 3090 or T4. CPU plans a run
    without a GPU: this machine's memory, and time on two cores. Default: the GPU of this machine,
    or CPU where it has none.
    """
    overrides: tyro.conf.Suppress[tuple[str, ...]] = ()

    def run(self) -> None:
        from prefloop.base.console import duration, say
        from prefloop.config.load import parse
        from prefloop.models.adapters.fit import fits as fitted
        from prefloop.planning import time as clock
        from prefloop.planning.memory import GIB, SOLD, Device
        from prefloop.planning.propose import fits
        from prefloop.planning.refusals import samples, settled, uncounted
        from prefloop.planning.shapes import configuration, shape_of
        from prefloop.planning.stages import Planner
        from prefloop.planning.worth import doubts
        from prefloop.rollouts.check import reach

        config = parse(
            ["--config", str(self.config), *self.overrides],
            "prefloop plan CONFIG",
            self.__doc__ or "",
        )
        memory, name = self._place()
        cpu = name == CPU
        named, cache = config.backbone.model, config.output / ".store" / "models"
        shape = shape_of(named, cache)
        settled(config, shape, cpu)
        local = Path(named) if Path(named).is_dir() else None
        method, model = fitted(config.backbone, configuration(named, cache), local)
        if samples(config):
            reach(config.rollout, method, model)
        stages = Planner(config, shape, memory, cpu).stages()
        card = clock.card_named(name)
        device = Device.of(shape, config.backbone)
        times = clock.Clock(config, device, card)
        say(
            f"{shape.name}: {shape.parameters:,} parameters, {shape.layers} layers,"
            f" {config.backbone.precision}, adapter {config.backbone.adapter.method} r ="
            f" {config.backbone.adapter.r}"
        )
        seconds = {stage.name: times.seconds(stage.name) for stage in stages}
        steps = {stage.name: times.steps(stage.name) for stage in stages}
        for line in table(stages, seconds, steps):
            say(line)
        say(
            f"in GiB; disk {clock.disk(config, device) / GIB:.2f} GiB; time without"
            f" {duration(clock.OVERHEAD)} to load and to start, on {card.source}"
        )
        for line in doubts(seconds, steps):
            say(line, "yellow")
        if left_out := uncounted(config):
            say(f"not counted: {'; '.join(left_out)}", "yellow")
        if fits(stages, memory):
            say(
                f"fits {memory / GIB:.1f} GiB: at most"
                f" {max(s.at_most for s in stages) / GIB:.1f} GiB",
                "green",
            )
            if self.gpu is not None and not fits(stages, int(SOLD * memory)):
                say(
                    "that is close: cards have less than they are sold with (a T4 14.6 of 16 GiB,"
                    " an L40S 44.5 of 48); give the size that nvidia-smi shows",
                    "yellow",
                )
            if not cpu and (shown := max(s.shown for s in stages)) > max(s.at_most for s in stages):
                say(
                    f"torch may keep up to {shown / GIB:.1f} GiB where there is room, and gives"
                    " that back when there is none",
                    "dim",
                )
            return
        _advise(config, shape, memory, cpu, stages)
        raise SystemExit(1)

    def _place(self) -> tuple[int, str | None]:
        """The memory to plan for, and the name of the device; ``CPU`` for a processor. Raises
        ``ConfigError`` for a size that is none.
        """
        from prefloop.base.console import say

        if self.gpu is not None:
            return bytes_of(self.gpu), CPU if self._processor else self.card
        gpu = None if self._processor else present()
        if gpu is not None:
            return gpu[0], self.card or gpu[1]
        if self.card is not None and not self._processor:
            raise ConfigError(
                f"this machine has no GPU whose memory --card {self.card} could have: give it, such"
                " as --gpu 24GiB"
            )
        if self.card is None:
            say(
                "this machine has no GPU, so this is the plan of a run without one; for a card say"
                " its memory, such as --gpu 24GiB",
                "yellow",
            )
        return machine_memory(), CPU

    @property
    def _processor(self) -> bool:
        return self.card is not None and self.card.upper() == CPU


def _advise(
    config: RLHFConfig, shape: Shape, memory: int, cpu: bool, stages: list[StagePlan]
) -> None:
    """Print what to change so that the run fits."""
    from prefloop.base.console import say
    from prefloop.planning.memory import GIB
    from prefloop.planning.propose import cards_needed, most_helpful, propose

    worst = max(stages, key=lambda stage: stage.at_most)
    say(
        f"does not fit {memory / GIB:.1f} GiB: {worst.name} may take {worst.at_most / GIB:.1f} GiB"
        f" while it does {worst.moment}",
        "red",
    )
    proposal = propose(config, shape, memory, cpu)
    if proposal is not None:
        say(f"fits with (at most {proposal.at_most / GIB:.1f} GiB):\n  {proposal.flags}")
        return
    alone = dataclasses.replace(config, rollout="transformers")
    proposal = propose(alone, shape, memory) if config.rollout == "vllm" and not cpu else None
    if proposal is not None:
        flags = f"--rollout transformers {proposal.flags}".rstrip()
        say(
            "fits without vLLM alone, and samples several times slower then (at most"
            f" {proposal.at_most / GIB:.1f} GiB):\n  {flags}"
        )
        return
    best, gain = most_helpful(config, shape, memory, cpu)
    if gain > 0:
        say(
            f"no combination of settings fits; what helps most, {gain / GIB:.1f} GiB less:\n "
            f" {best.flags}"
        )
    else:
        say("no combination of settings fits and none lowers the highest peak")
    if cpu:
        say("take a smaller backbone.model, or a machine of more memory")
        return
    cards = cards_needed(config, shape, memory)
    split_up = (
        f"; cut into equal parts the least plan would need {cards} such cards, and prefloop runs"
        " on one"
    )
    say(f"take a smaller backbone.model, or a card of more memory{split_up if cards else ''}")


def table(
    stages: list[StagePlan], seconds: dict[str, float | None], steps: dict[str, int | None]
) -> list[str]:
    """The table's lines, at most 80 characters wide: a column for each stage, a row for each part
    in GiB.
    """
    from prefloop.base.console import duration
    from prefloop.planning.memory import GIB

    def line(label: str, cells: list[str]) -> str:
        return f"{label:<13}" + "".join(f"{cell:>12}" for cell in cells)

    lines = [line("", [s.name for s in stages])]
    lines.append(line("trained", [f"{s.trained:,}" if s.trained else "-" for s in stages]))
    for row in ROWS:
        if any(row in s.parts for s in stages):
            lines.append(
                line(row, [f"{s.parts[row] / GIB:.2f}" if row in s.parts else "-" for s in stages])
            )
    lines.append(line("peak", [f"{s.peak / GIB:.2f}" for s in stages]))
    lines.append(line("at most", [f"{s.at_most / GIB:.2f}" for s in stages]))
    lines.append(line("highest in", [s.moment for s in stages]))
    if any(count is not None for count in steps.values()):
        lines.append(
            line("steps", ["-" if steps[s.name] is None else f"{steps[s.name]:,}" for s in stages])
        )
    times = [seconds[s.name] for s in stages]
    lines.append(line("time", ["no data" if taken is None else duration(taken) for taken in times]))
    return lines


def bytes_of(text: str) -> int:
    """A size such as '24GiB', '24' (GiB) or '24GB' in bytes. Raises ``ConfigError``."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    if not match or match[2].lower() not in UNITS or not 0 < float(match[1]) <= LARGE:
        raise ConfigError(f"--gpu: {short(text)} is no size of memory: give 24GiB, 24GB or 80GiB")
    return round(float(match[1]) * UNITS[match[2].lower()])


def present() -> tuple[int, str] | None:
    """Memory and name of this machine's GPU; ``None`` where there is none."""
    import torch

    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    return properties.total_memory, properties.name


def machine_memory(limit: Path = Path("/sys/fs/cgroup/memory.max")) -> int:
    """Memory of this machine in bytes, or of its container if that may use less."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(whole, int(limit.read_text()))
    except (OSError, ValueError):  # no container, or one without a limit
        return whole


def split(words: list[str]) -> tuple[list[str], tuple[str, ...]]:
    """Split the command's own arguments from the flags, with their values, that override the
    configuration.

    The words after a flag of the configuration, up to the next flag, are its value. So the
    configuration's path must come first.
    """
    own: list[str] = []
    rest: list[str] = []
    to = own
    for word in words:
        if word.startswith("-"):
            to = own if word.split("=")[0] in OWN else rest
        to.append(word)
    return own, tuple(rest)
