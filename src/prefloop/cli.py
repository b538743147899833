"""Align a language model with human preferences: everything around a run.

To train, run pipelines/rlhf.py. The commands below prepare its data and configuration, and use its
results.
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
    """Rewrite the report.html of a finished run, or compare several runs on one page."""

    run_folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Folder of a run, such as runs/demo."""
    others: Annotated[
        tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="[RUN ...]")
    ] = ()
    """Folders of other runs, to compare with the first one."""
    output: Path | None = None
    """File to write. Default: report.html in the run's folder; with several runs, compare.html next
    to the first run's folder.
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
    """Print the versions of all packages, the device and the commit."""

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
"""Commands whose name is two words. tyro gets the two as one, so that usage lines and errors show
the command as it is typed.
"""


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
"""The message of an interrupted pipeline."""
REPEAT = "no file is left half written; the same command may be run again"
"""The message of any other interrupted command."""


_PATH_ERRORS = {
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
"""The message for each error of a path that the user chose. Any other ``OSError`` is our own bug
and prints its traceback.
"""
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Errors of the user's disk even where the system names no path, as in a write to an open file."""
_NUL = re.compile(r"(?:\w+: )?embedded null (?:byte|character)(?: in \w+)?")
"""Python's message about a path with a NUL character."""


def guarded(
    run: Callable[[Sequence[str]], None], arguments: Sequence[str], interrupted: str = REPEAT
) -> int:
    """Run a command and return its exit status.

    A user's mistake prints its message without a traceback and returns 2. Ctrl-C returns 130,
    SIGTERM 143, SIGHUP 129, and a closed pipe 141 without a message.
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
        problem = _PATH_ERRORS.get(error.errno or 0)
        if problem is None or (error.filename is None and error.errno not in _DISK_ERRORS):
            raise
        path = f"'{error.filename}': " if error.filename is not None else ""
        complain(f"error: {path}{problem}; choose another path, or correct this one")
        return 2
    except ValueError as error:
        if not _NUL.fullmatch(str(error)):
            raise
        complain(
            "error: the name of a file or folder contains a NUL character; remove it from the"
            " configuration"
        )
        return 2
    return 0


def _traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Print an uncaught error's traceback without secrets and without terminal control codes."""
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
    """Print a warning in the same safe way."""
    from prefloop.base.console import complain

    complain(warnings.formatwarning(message, category, filename, lineno).rstrip())


def main() -> None:
    """Entry point of ``prefloop``."""
    sys.exit(guarded(_main, sys.argv[1:]))
