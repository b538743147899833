"""``prefloop advise``: five questions, a configuration with its reasons."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import tyro

from prefloop.errors import ConfigError


@dataclasses.dataclass
class Advise:
    """Ask five questions and write a configuration for pipelines/rlhf.py, each choice with its reason and source.

    What a flag answers is not asked. An existing file is never overwritten.
    """

    data: str | None = None
    """Kind and size of the data: pairs:6000, thumbs:6000, demonstrations:6000 or prompts:6000."""
    gpu: str | None = None
    """Memory of the card, such as 24GiB; none for a machine without."""
    latency: str | None = None
    """any, or low: the result must answer as fast as a plain model."""
    tasks: Annotated[str | None, tyro.conf.arg(metavar="N")] = None
    """Number of kinds of task that the model is for."""
    alignment: str | None = None
    """none: imitate demonstrations; pairs: learn from preferences as they are; rollouts: learn from own answers."""
    preset: str = "chat"
    """Whose guide values to take: chat, classification, reasoning or domain (prefloop presets prints them)."""
    output: Path = Path("advised.yaml")
    """File to write."""

    def run(self) -> None:
        from prefloop.config.presets import NAMES
        from prefloop.console import say
        from prefloop.planning.advice import (  # fmt: skip
            KINDS,
            LATENCIES,
            NEEDS,
            UNFIT,
            Answers,
            config_of,
            data_of,
            one_of,
            place_of,
            tasks_of,
        )

        if self.output.exists():
            raise ConfigError(f"'{self.output}' exists already and is not overwritten: give another --output")
        if not self.output.absolute().parent.is_dir():
            raise ConfigError(f"'{self.output}' cannot be written: its folder does not exist")
        one_of("--preset", self.preset, NAMES)
        questions = (
            Question("--data", self.data, data_of, "What data, and how many rows of it?", _listed(KINDS), "pairs:6000"),
            Question("--gpu", self.gpu, _memory, "Memory of the GPU?", "such as 24GiB, or none", "24GiB"),
            Question("--latency", self.latency, lambda text: one_of("--latency", text, LATENCIES), "How fast must the result answer?", _listed(LATENCIES), "any"),
            Question("--tasks", self.tasks, tasks_of, "How many kinds of task?", "a number", "1"),
            Question("--alignment", self.alignment, lambda text: one_of("--alignment", text, NEEDS), "What must it learn beyond the demonstrations?", _listed(NEEDS), "pairs"),
        )  # fmt: skip
        said = {question.flag: question.read(question.said) for question in questions if question.said is not None}
        (kind, rows), memory, latency, tasks, alignment = (
            said[question.flag] if question.flag in said else question.ask() for question in questions
        )
        text = config_of(Answers(kind, rows, memory, latency, tasks, alignment, self.preset))
        expectation = _expected(text, rows, cpu=not memory)
        try:
            with self.output.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            raise ConfigError(f"'{self.output}' exists already and is not overwritten: give another --output") from None
        except OSError as error:
            raise ConfigError(f"'{self.output}' cannot be written: {error}") from None
        if UNFIT in " ".join(line.strip(" #") for line in text.splitlines()):
            say(f"{memory / 2**30:g} GiB: {UNFIT}", "yellow")
        say(expectation)
        command = f"prefloop plan {shlex.quote(str(self.output))} {place_of(memory)}"
        say(f"{self.output}: put your files' paths in, then `{command}`")


@dataclasses.dataclass(frozen=True)
class Question:
    """One of the five: what its flag said, and what is asked where that said nothing."""

    flag: str
    said: str | None
    read: Callable[[str], Any]
    """The answer from its text. Raises ``ConfigError``."""
    text: str
    choices: str
    default: str

    def ask(self) -> Any:
        """The answer from the terminal, asked for until there is one. Raises ``ConfigError`` naming the flag when nobody can answer."""
        from prefloop.console import say

        nobody = ConfigError(f"advise has nobody to ask '{self.text}': answer with {self.flag} ({self.choices})")
        if not sys.stdin.isatty():
            raise nobody
        while True:
            try:
                return self.read(input(f"{self.text}\n  {self.choices}\n[{self.default}] ").strip() or self.default)
            except EOFError:
                raise nobody from None
            except ConfigError as error:
                say(str(error), "yellow")


def _expected(text: str, rows: int, cpu: bool) -> str:
    """Steps and time of every stage. Raises ``ConfigError`` for a run that cannot learn or takes more than a day."""
    import yaml

    from prefloop.config import RLHFConfig
    from prefloop.planning.advice import MODELS
    from prefloop.planning.shapes import shape_of
    from prefloop.planning.worth import expected
    from prefloop.settings import validated

    config: RLHFConfig = validated(yaml.safe_load(text), "advice")
    return expected(config, shape_of(MODELS[config.backbone.model], Path(".")), rows, cpu)


def _memory(text: str) -> int:
    """'24GiB' in bytes, 0 for 'none'. Raises ``ConfigError``."""
    from prefloop.commands.plan import bytes_of

    return 0 if text.strip().lower() == "none" else bytes_of(text)


def _listed(choices: dict[str, str]) -> str:
    return "; ".join(f"{name}: {what}" for name, what in choices.items())
