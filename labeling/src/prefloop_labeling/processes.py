"""Processes that outlive the command that started them, and how they are found again without mistaking another for them."""

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

# Start times are counted from the boot time, which moves by a little when the clock is set.
START_TOLERANCE = 2.0


@dataclass(frozen=True)
class Process:
    """A process as its pid file names it: a pid alone may belong to another program by now."""

    pid: int
    started: float
    command: list[str]

    def running(self) -> bool:
        """Whether this very process runs: the same pid, start time and command line, and not a zombie."""
        try:
            found = psutil.Process(self.pid)
            return (
                found.status() != psutil.STATUS_ZOMBIE
                and abs(found.create_time() - self.started) < START_TOLERANCE
                and found.cmdline() == self.command
            )
        except psutil.NoSuchProcess:
            return False
        except psutil.AccessDenied:
            return False  # another user's: not one that we started

    def stop(self, seconds: float) -> None:
        """End the process and what it started: SIGTERM, and SIGKILL after `seconds`. Does nothing when it is gone."""
        if not self.running():
            return
        found = psutil.Process(self.pid)
        family = [found, *found.children(recursive=True)]
        with contextlib.suppress(psutil.NoSuchProcess):
            found.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs([found], timeout=seconds)
        for process in {*alive, *(member for member in family if member.is_running())}:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family, timeout=seconds)


def start(command: Sequence[str], environment: Mapping[str, str], log: Path, pid_file: Path, cwd: Path) -> Process:
    """Start a process in a session of its own, its output appended to `log`, its identity in `pid_file`.

    Neither a closed terminal nor Ctrl-C in it reaches the process.
    """
    with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as output:
        child = subprocess.Popen(
            command,
            env=dict(environment),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    # exec has happened when Popen returns, so the command line is the final one.
    found = psutil.Process(child.pid)
    try:
        process = Process(child.pid, found.create_time(), found.cmdline() or list(command))
    except psutil.NoSuchProcess:
        process = Process(child.pid, 0.0, list(command))
    partial = pid_file.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(process)))
    partial.replace(pid_file)
    return process


def recorded(pid_file: Path) -> Process | None:
    """The process that a pid file names if it still runs, else None."""
    try:
        process = Process(**json.loads(pid_file.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return process if process.running() else None
