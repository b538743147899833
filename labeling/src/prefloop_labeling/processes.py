"""Processes that outlive the command that started them, and how they are found again without
mistaking another for them.
"""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from prefloop_labeling.files import write_private
from prefloop_labeling.identity import Identity

POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Process:
    """A process as its pid file names it: a pid alone may belong to another program by now."""

    pid: int
    started: str

    def running(self) -> bool:
        """Whether this very process runs: the same pid, started at the same moment, and not a
        zombie.
        """
        try:
            return (
                started_at(self.pid) == self.started
                and psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE
            )
        except psutil.Error:  # gone, or another user's and so not one that we started
            return False

    def worked(self) -> float:
        """Seconds of processor time that it has used; 0 when it is gone."""
        try:
            times = psutil.Process(self.pid).cpu_times()
        except psutil.Error:
            return 0.0
        return float(times.user + times.system)

    def stop(self, seconds: float) -> None:
        """End the process and what it started: SIGTERM, and SIGKILL after `seconds`. Does nothing
        when it is gone.
        """
        if not self.running():
            return
        found = psutil.Process(self.pid)
        family = [found, *found.children(recursive=True)]
        with contextlib.suppress(psutil.NoSuchProcess):
            found.send_signal(signal.SIGTERM)
        _wait_for_end([found], seconds)
        for process in filter(_runs, family):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        _wait_for_end(family, seconds)


def _wait_for_end(processes: Sequence[psutil.Process], seconds: float) -> None:
    """Until they have ended. That their parent has taken note is not waited for: in a container the
    first process may never do it.
    """
    deadline = time.monotonic() + seconds
    while any(map(_runs, processes)) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def started_at(pid: int) -> str:
    """When a process was started, as text that no other process ever has together with its pid.

    Linux counts clock ticks since the boot, which has a name; a time of day would move whenever the
    clock is set. (A command line would not do either: redis-server rewrites its own.) Raises
    psutil.NoSuchProcess.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # The second field, the name, may hold spaces and parentheses; the start time is the 20th
        # after it.
        return f"{boot}/{Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[19]}"
    except (FileNotFoundError, ProcessLookupError):
        return repr(psutil.Process(pid).create_time())


def start(
    command: Sequence[str], environment: Mapping[str, str], log: Path, pid_file: Path, cwd: Path
) -> Process:
    """Start a process in a session of its own, its output appended to `log`; `pid_file` says which
    it is, and of which home.

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
            umask=0o077,
        )
    process = Process(
        child.pid, started_at(child.pid)
    )  # a child that has ended already still has its entry
    home = Identity.of(pid_file.parent).to_json()
    write_private(
        pid_file, json.dumps({"pid": process.pid, "started": process.started, "home": home})
    )
    return process


def recorded(pid_file: Path) -> Process | None:
    """The process that a pid file names if it still runs for the directory that the file is in,
    else None.

    A copy of a home holds the pid files of the original, whose processes are none of its own.
    """
    try:
        written = json.loads(pid_file.read_text())
        process = Process(int(written["pid"]), str(written["started"]))
        home = Identity.of(pid_file.parent)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    if not process.running():
        return None
    # Earlier versions wrote no home; where the process works tells it then.
    of = Identity.read(written["home"]) if "home" in written else _works_in(process)
    return process if of is not None and of.same(home) else None


def _works_in(process: Process) -> Identity | None:
    try:
        return Identity.of(psutil.Process(process.pid).cwd())
    except (psutil.Error, OSError):
        return None
