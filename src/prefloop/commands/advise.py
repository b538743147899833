"""``prefloop advise``: five questions, and a configuration with its reasons."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from prefloop.errors import ConfigError

if TYPE_CHECKING:
    from prefloop.planning.advice import Situation
    from prefloop.planning.worth import Expectation


@dataclasses.dataclass
class Advise:
    """Ask five questions and write a configuration for pipelines/rlhf.py, in which each choice has
    its reason and source.

    A question that a flag answers is not asked. An existing file is never overwritten.
    """

    data: str | None = None
    """Kind and size of the data: pairs:6000, thumbs:6000, demonstrations:6000 or prompts:6000."""
    gpu: str | None = None
    """Memory of the card, such as 24GiB; none for a machine without a card."""
    latency: str | None = None
    """any, or low if the result must answer as fast as a plain model."""
    tasks: Annotated[str | None, tyro.conf.arg(metavar="N")] = None
    """Number of kinds of task for the model."""
    alignment: str | None = None
    """none: imitate demonstrations; pairs: learn from existing preferences; rollouts: learn from
    the model's own answers.
    """
    preset: str = "chat"
    """Preset to use: chat, classification, reasoning or domain. 'prefloop presets' prints them."""
    output: Path = Path("advised.yaml")
    """File to write."""

    def run(self) -> None:
        from prefloop.base.console import duration, say
        from prefloop.config.presets import NAMES
        from prefloop.planning.advice import (  # fmt: skip
            KINDS,
            LATENCIES,
            NEEDS,
            UNFIT,
            Situation,
            config_of,
            data_of,
            one_of,
            place_of,
            tasks_of,
        )
        from prefloop.planning.worth import DAY, PROMPT, RESPONSE

        if self.output.exists():
            raise ConfigError(
                f"'{self.output}' exists already and is not overwritten: give another --output"
            )
        if not self.output.absolute().parent.is_dir():
            raise ConfigError(f"'{self.output}' cannot be written: its folder does not exist")
        one_of("--preset", self.preset, NAMES)
        questions = (
            AdviceQuestion(
                "--data",
                self.data,
                data_of,
                "What data, and how many rows of it?",
                _listed(KINDS),
                "pairs:6000",
            ),
            AdviceQuestion(
                "--gpu", self.gpu, _memory, "Memory of the GPU?", "such as 24GiB, or none", "24GiB"
            ),
            AdviceQuestion(
                "--latency",
                self.latency,
                lambda text: one_of("--latency", text, LATENCIES),
                "How fast must the result answer?",
                _listed(LATENCIES),
                "any",
            ),
            AdviceQuestion(
                "--tasks", self.tasks, tasks_of, "How many kinds of task?", "a number", "1"
            ),
            AdviceQuestion(
                "--alignment",
                self.alignment,
                lambda text: one_of("--alignment", text, NEEDS),
                "What must it learn beyond the demonstrations?",
                _listed(NEEDS),
                "pairs",
            ),
        )
        # All flags are checked before the first question is asked.
        given = {q.flag: q.read(q.given) for q in questions if q.given is not None}
        (kind, rows), memory, latency, tasks, alignment = (
            given[question.flag] if question.flag in given else question.ask()
            for question in questions
        )
        answers = Situation(kind, rows, memory, latency, tasks, alignment, self.preset)
        text = config_of(answers)
        expected = _expectation(answers, text)
        _require_worth(answers, expected)
        try:
            with self.output.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            raise ConfigError(
                f"'{self.output}' exists already and is not overwritten: give another --output"
            ) from None
        except OSError as error:
            raise ConfigError(f"'{self.output}' cannot be written: {error}") from None
        if UNFIT in " ".join(line.strip(" #") for line in text.splitlines()):
            say(f"{memory / 2**30:g} GiB: {UNFIT}", "yellow")
        place = "two CPU cores" if not memory else "a card of which its memory alone is known"
        say(
            f"expected on {place}, at {PROMPT:.0f} tokens a prompt and {RESPONSE:.0f} a response:"
            f" {expected.describe()}"
        )
        if expected.whole > DAY:
            say(
                f"that is {duration(expected.whole)} in all: `prefloop plan --card` knows the speed"
                " of several cards",
                "yellow",
            )
        command = f"prefloop plan {shlex.quote(str(self.output))} {place_of(memory)}"
        say(f"{self.output}: put your files' paths in, then `{command}`")


@dataclasses.dataclass(frozen=True)
class AdviceQuestion:
    """One of the five questions: what its flag gave, and what is asked where the flag is
    missing.
    """

    flag: str
    given: str | None
    read: Callable[[str], Any]
    """Turns the text of an answer into its value. Raises ``ConfigError``."""
    text: str
    choices: str
    default: str

    def ask(self) -> Any:
        """Ask on the terminal until there is a valid answer. Raises ``ConfigError`` naming the flag
        when nobody can answer.
        """
        from prefloop.base.console import say

        nobody = ConfigError(
            f"advise has nobody to ask '{self.text}': answer with {self.flag} ({self.choices})"
        )
        if not sys.stdin.isatty():
            raise nobody
        while True:
            try:
                return self.read(
                    input(f"{self.text}\n  {self.choices}\n[{self.default}] ").strip()
                    or self.default
                )
            except EOFError:
                raise nobody from None
            except ConfigError as error:
                say(str(error), "yellow")


def _expectation(answers: Situation, text: str) -> Expectation:
    """Steps and time of every stage of the configuration ``text``, which was made from these
    answers.
    """
    import yaml

    from prefloop.config import RLHFConfig
    from prefloop.config.load import validated
    from prefloop.planning.advice import MODELS
    from prefloop.planning.shapes import shape_of
    from prefloop.planning.worth import expect

    config: RLHFConfig = validated(yaml.safe_load(text), "advice")
    demonstrations = None if answers.kind == "prompts" else answers.rows
    return expect(
        config,
        shape_of(MODELS[config.backbone.model], Path(".")),
        demonstrations,
        answers.votes,
        not answers.memory,
    )


def _require_worth(answers: Situation, expected: Expectation) -> None:
    """Raise ``ConfigError`` for a run that cannot learn, or that takes more than a day where its
    speed is known. The message gives a number of rows that is suitable.
    """
    from prefloop.base.console import duration
    from prefloop.config.algorithms import FEW_STEPS
    from prefloop.planning.advice import config_of
    from prefloop.planning.worth import DAY

    def of(rows: int) -> Expectation:
        other = dataclasses.replace(answers, rows=rows)
        return _expectation(other, config_of(other))

    if expected.few:
        steps = " and ".join(f"{count:,} steps of {stage}" for stage, count in expected.few.items())
        enough = _first(lambda rows: not of(rows).few, answers.rows)
        raise ConfigError(
            f"{answers.rows:,} rows make {steps}, and under {FEW_STEPS} little is learnt: a run"
            f" like this takes {enough:,} rows or more"
        )
    if not answers.memory and expected.whole > DAY:
        most = _first(lambda rows: of(rows).whole > DAY, 1) - 1
        raise ConfigError(
            f"{answers.rows:,} rows would take about {duration(expected.whole)} on two CPU cores,"
            f" and {most:,} about a day: give such a number, or name a GPU"
        )


def _first(holds: Callable[[int], bool], start: int) -> int:
    """The smallest number above ``start`` for which a condition holds that holds for all larger
    ones.
    """
    low, high = start, 2 * start
    while not holds(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _memory(text: str) -> int:
    """'24GiB' in bytes, 0 for 'none'. Raises ``ConfigError``."""
    from prefloop.commands.plan import bytes_of

    return 0 if text.strip().lower() == "none" else bytes_of(text)


def _listed(choices: dict[str, str]) -> str:
    return "; ".join(f"{name}: {what}" for name, what in choices.items())
