"""Check data, label it with Argilla, judge two sets of answers, benchmark adapters, measure a
reward model, talk to a result, export it, list adapter methods, merge adapters, advise on a
configuration, say what a run will need, write a report again, say what is installed.

The pipeline itself is pipelines/rlhf.py.
"""

from __future__ import annotations

import dataclasses
import errno
import importlib.metadata
import json
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Annotated, TextIO

import tyro

from prefloop.commands.adapters import AdaptersCommand, Merge
from prefloop.commands.advise import Advise
from prefloop.commands.bench import BenchCommand
from prefloop.commands.chat import Chat
from prefloop.commands.check import Check
from prefloop.commands.export import Export
from prefloop.commands.judge import Calibrate, JudgeCommand
from prefloop.commands.label import LabelCommand
from prefloop.commands.plan import Plan, split
from prefloop.commands.presets import Presets
from prefloop.commands.reward import RewardCommand
from prefloop.config.flags import flags
from prefloop.errors import ConfigError, PrefloopError


@dataclasses.dataclass
class Report:
    """Write report.html of a finished run again; with several runs, a page that compares them."""

    run_folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Folder of a run, such as runs/demo."""
    others: Annotated[
        tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="[RUN ...]")
    ] = ()
    """Folders of the runs to compare it with."""
    output: Path | None = None
    """File to write; report.html in the run's folder, or compare.html beside the first run's
    folder, when left out.
    """

    def run(self) -> None:
        from prefloop.base.console import say
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
        from prefloop.base.console import say
        from prefloop.runs.runtime import environment

        say(json.dumps(environment(), indent=2))


Command = (
    Annotated[Check, tyro.conf.subcommand("check")]
    | Annotated[LabelCommand, tyro.conf.subcommand("label")]
    | Annotated[JudgeCommand, tyro.conf.subcommand("judge")]
    | Annotated[Calibrate, tyro.conf.subcommand("judge calibrate")]
    | Annotated[BenchCommand, tyro.conf.subcommand("bench")]
    | Annotated[RewardCommand, tyro.conf.subcommand("reward eval")]
    | Annotated[Chat, tyro.conf.subcommand("chat")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[AdaptersCommand, tyro.conf.subcommand("adapters")]
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
    if words[:2] == ["label", "watch"]:
        raise ConfigError("`prefloop label watch` is `prefloop label pull --every 60` now")
    if words[:2] in TWO_WORDS:
        words[:2] = [" ".join(words[:2])]
    overrides: tuple[str, ...] = ()
    if words[:1] == ["plan"]:
        words, overrides = split(words)
    command = flags(Command, words, prog="prefloop", description=__doc__)
    if isinstance(command, Plan):
        command.overrides = overrides
    command.run()


TRAINED = "finished stages and the last checkpoint are kept; the same command goes on from there"
"""What an interrupted pipeline says."""
REPEAT = "no file is left half written; the same command may be run again"
"""What any other interrupted command says."""


_OF_THE_PLACE = {
    errno.ENAMETOOLONG: "the name is too long",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "you may not read or write there",
    errno.EPERM: "the system does not allow it",
    errno.ENOTDIR: "a part of the path is a file",
    errno.EISDIR: "it is a folder",
    errno.ELOOP: "its links lead in a circle",
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "your quota of disk space is used up",
}
"""What is wrong with a path that a user named; any other ``OSError`` is a fault of ours, with its
traceback.
"""
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Those that are of the place even where the system names none, as in a write to an open file."""
_NUL = re.compile(r"(?:\w+: )?embedded null (?:byte|character)(?: in \w+)?")
"""What Python says of a path with a NUL character."""


def guarded(
    run: Callable[[Sequence[str]], None], arguments: Sequence[str], interrupted: str = REPEAT
) -> int:
    """Run a command and return its exit status.

    User errors print their message alone and give 2, Ctrl-C 130, SIGTERM 143, SIGHUP 129; a closed
    pipe is quiet.
    """
    from prefloop.base.console import complain
    from prefloop.base.interrupt import Ended, heeding

    sys.excepthook, warnings.showwarning = _traceback, _warning
    try:
        with heeding():
            run(arguments)
    except PrefloopError as error:
        complain(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        complain(f"\ninterrupted: {interrupted}")
        return 130
    except Ended as ended:
        complain(f"\nended by {ended}: {interrupted}")
        return 128 + ended.number
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        wrong = _OF_THE_PLACE.get(error.errno or 0)
        if wrong is None or (error.filename is None and error.errno not in _OF_THE_DISK):
            raise
        named = f"'{error.filename}': " if error.filename is not None else ""
        complain(f"error: {named}{wrong}; name another place, or put that right")
        return 2
    except ValueError as error:
        if not _NUL.fullmatch(str(error)):
            raise
        complain(
            "error: the name of a file or folder holds a NUL character; take it out of the"
            " configuration"
        )
        return 2
    return 0


def _traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """What Python prints of a fault of ours, without secrets and power over the terminal."""
    from prefloop.base.console import complain

    for line in "".join(traceback.format_exception(kind, error, trace)).splitlines():
        complain(line)


def _warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """What Python prints of a warning, likewise."""
    from prefloop.base.console import complain

    complain(warnings.formatwarning(message, category, filename, lineno).rstrip())


def main() -> None:
    """Entry point of ``prefloop``."""
    sys.exit(guarded(_main, sys.argv[1:]))
