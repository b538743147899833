"""Check data, label it with Argilla, judge two sets of answers, benchmark adapters, measure a reward model, talk to a result, export it, list
adapter methods, merge adapters, advise on a configuration, say what a run will need, write a report again, say what is installed.

The pipeline itself is pipelines/rlhf.py.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import tyro

from prefloop.commands.adapters import Adapters, Merge
from prefloop.commands.advise import Advise
from prefloop.commands.bench import Bench
from prefloop.commands.chat import Chat
from prefloop.commands.check import Check
from prefloop.commands.export import Export
from prefloop.commands.judge import Calibrate, Compare
from prefloop.commands.label import Label
from prefloop.commands.plan import Plan, split
from prefloop.commands.presets import Presets
from prefloop.commands.reward import Reward
from prefloop.errors import PrefloopError


@dataclasses.dataclass
class Report:
    """Write report.html of a finished run again; with several runs, a page that compares them."""

    run_folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Folder of a run, such as runs/demo."""
    others: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="[RUN ...]")] = ()
    """Folders of the runs to compare it with."""
    output: Path | None = None
    """File to write; report.html in the run's folder, or compare.html beside the first run's folder, when left out."""

    def run(self) -> None:
        from prefloop.console import say
        from prefloop.report.compare import write_comparison
        from prefloop.report.html import write_report

        if self.others:
            say(str(write_comparison([self.run_folder, *self.others], self.output)))
        else:
            say(str(write_report(self.run_folder, self.output)))


@dataclasses.dataclass
class Env:
    """Print versions, device and commit."""

    def run(self) -> None:
        from prefloop.console import say
        from prefloop.runtime import environment

        say(json.dumps(environment(), indent=2))


Command = (
    Annotated[Check, tyro.conf.subcommand("check")]
    | Annotated[Label, tyro.conf.subcommand("label")]
    | Annotated[Compare, tyro.conf.subcommand("judge")]
    | Annotated[Calibrate, tyro.conf.subcommand("judge calibrate")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
    | Annotated[Reward, tyro.conf.subcommand("reward eval")]
    | Annotated[Chat, tyro.conf.subcommand("chat")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Adapters, tyro.conf.subcommand("adapters")]
    | Annotated[Merge, tyro.conf.subcommand("adapters merge")]
    | Annotated[Advise, tyro.conf.subcommand("advise")]
    | Annotated[Plan, tyro.conf.subcommand("plan")]
    | Annotated[Presets, tyro.conf.subcommand("presets")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Env, tyro.conf.subcommand("env")]
)
TWO_WORDS = (["judge", "calibrate"], ["reward", "eval"], ["adapters", "merge"])
"""Commands whose name is two words: usage lines and errors show them as they are typed."""


def _main(arguments: Sequence[str]) -> None:
    if list(arguments) == ["--version"]:
        print(f"prefloop {importlib.metadata.version('prefloop')}")
        return
    words = list(arguments)
    if words[:2] in TWO_WORDS:
        words[:2] = [" ".join(words[:2])]
    overrides: tuple[str, ...] = ()
    if words[:1] == ["plan"]:
        words, overrides = split(words)
    command = tyro.cli(Command, args=words, prog="prefloop", description=__doc__)
    if isinstance(command, Plan):
        command.overrides = overrides
    command.run()


TRAINED = "finished stages and the last checkpoint are kept; the same command goes on from there"
"""What an interrupted pipeline says."""
REPEAT = "no file is left half written; the same command may be run again"
"""What any other interrupted command says."""


MOST_SAID = 8_000
"""Characters of an error: what people's rows bring into one is cut where it is made, and here for certain."""


def shown(text: str) -> str:
    """The text as a terminal may have it: without control characters, and not endless."""
    from prefloop.console import neutral

    cut = f"{text[:MOST_SAID]} … ({len(text) - MOST_SAID:,} characters more)" if len(text) > MOST_SAID else text
    return neutral(cut)


def guarded(run: Callable[[Sequence[str]], None], arguments: Sequence[str], interrupted: str = REPEAT) -> int:
    """Run a command; user errors print their message alone and exit with 2, Ctrl-C with 130, a closed pipe quietly."""
    from prefloop.interrupt import heed_interrupts

    heed_interrupts()
    try:
        run(arguments)
    except PrefloopError as error:
        print(f"error: {shown(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"\ninterrupted: {interrupted}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0


def main() -> None:
    """Entry point of ``prefloop``."""
    sys.exit(guarded(_main, sys.argv[1:]))
