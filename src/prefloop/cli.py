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
from typing import Annotated, Literal

import tyro

from prefloop.commands.adapters import Adapters, Merge
from prefloop.commands.advise import Advise
from prefloop.commands.bench import Bench
from prefloop.commands.chat import Chat
from prefloop.commands.export import Export
from prefloop.commands.judge import Calibrate, Compare
from prefloop.commands.label import Label
from prefloop.commands.plan import Plan, split
from prefloop.commands.presets import Presets
from prefloop.commands.reward import Reward
from prefloop.errors import PrefloopError

MOST_FINDINGS = 20
"""Bad rows that `check` prints; all of them stand in the quarantine file."""


@dataclasses.dataclass
class Check:
    """Read a data file as a stage would and report every bad row by number."""

    path: tyro.conf.Positional[Path]
    """File to check, in any form that a stage reads."""
    kind: Literal["auto", "prompts", "demonstrations", "comparisons", "ratings", "best_of"] = "auto"
    """What the file should give; what it holds when 'auto'."""
    layout: str = "auto"
    """Layout of the file; detected when 'auto'."""
    quarantine: Path | None = None
    """Put bad rows into this folder and go on, instead of stopping."""

    def run(self) -> None:
        from prefloop.console import say
        from prefloop.data import sources

        load = getattr(sources, f"load_{sources.kind_of(self.path, self.layout) if self.kind == 'auto' else self.kind}")
        found = load(
            self.path,
            layout=self.layout,
            bad_rows="quarantine" if self.quarantine else "error",
            quarantine_dir=self.quarantine,
        )
        say(found.describe())
        for finding in found.findings[:MOST_FINDINGS]:
            say(f"  {finding}")
        if len(found.findings) > MOST_FINDINGS:
            say(f"  and {len(found.findings) - MOST_FINDINGS} more")


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


def guarded(run: Callable[[Sequence[str]], None], arguments: Sequence[str], interrupted: str = REPEAT) -> int:
    """Run a command; user errors print their message alone and exit with 2, Ctrl-C with 130, a closed pipe quietly."""
    from prefloop.interrupt import heed_interrupts

    heed_interrupts()
    try:
        run(arguments)
    except PrefloopError as error:
        print(f"error: {error}", file=sys.stderr)
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
