"""Processes of their own that begin with the large libraries loaded: a fork takes milliseconds,
those imports six seconds of CPU.

Of prefloop only the hashes of its code are made before the fork, and a process that was forked is
killed, stopped and waited for like any other.
"""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import multiprocessing.forkserver
import os
import re
import runpy
import signal
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TextIO

# With one thread for OpenMP, the only thread that these start is that of pyarrow's allocator
# (jemalloc), which makes itself ready for forks. One that did not would be fatal: what it held at
# the moment of a fork, the child would wait for without end.
LIBRARIES = [
    "torch",
    "transformers.models.llama.modeling_llama",
    "bitsandbytes",
    "peft",
    "scipy.stats",
    "matplotlib.figure",
    "matplotlib.backends.backend_svg",
    "jinja2",
    "httpx",
    "tyro",
    "preloaded",
]
PIPE_BYTES = 4096
_context = multiprocessing.get_context("forkserver")


class Forked:
    """A script in a forked process, used like ``subprocess.Popen``: output and errors line by line
    in ``stdout``.

    All forks of a session hash alike; where order in a set could matter, compare with a process
    that was not forked. What the process prints waits for its reader after a few dozen lines, so
    that a signal that a line calls for comes long before the end. ``killed_at`` is a pattern: the
    process kills itself as soon as it has printed what matches.
    """

    def __init__(
        self,
        script: str,
        arguments: list[str],
        folder: Path,
        environment: dict[str, str],
        killed_at: str = "",
    ) -> None:
        _start_server(environment)
        reader, writer = _context.Pipe(duplex=False)
        fcntl.fcntl(writer.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._process = _context.Process(
            target=_begin,
            args=(writer, script, arguments, folder, environment, killed_at),
            daemon=True,
        )
        self._process.start()
        writer.close()
        self.stdout = os.fdopen(os.dup(reader.fileno()), encoding="utf-8")
        reader.close()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit code, the negative signal, or nothing while it runs."""
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(
            ProcessLookupError
        ):  # it has ended, and what it printed is still being read
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        assert self.returncode is not None, f"process {self.pid} still runs after {timeout} s"
        return self.returncode

    def communicate(self, timeout: float = 300) -> tuple[str, None]:
        """What is left of the output; a process that takes longer is killed, so that its output
        shows where it was.
        """
        guard = threading.Timer(timeout, self.kill)
        guard.start()
        try:
            with self.stdout:
                output = self.stdout.read()
            self.wait(timeout)
        finally:
            guard.cancel()
        return output, None


def _start_server(environment: dict[str, str]) -> None:
    """Libraries read some variables as they load (``OMP_NUM_THREADS``), so the server is started
    under those of its first child.
    """
    before = dict(os.environ)
    _context.set_forkserver_preload(LIBRARIES)
    here = Path(__file__).parent
    path = os.pathsep.join([str(here.parent / "src"), str(here)])
    os.environ.update(environment | {"PYTHONPATH": path})
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)


def _begin(
    output: Connection,
    script: str,
    arguments: list[str],
    folder: Path,
    environment: dict[str, str],
    killed_at: str,
) -> None:
    assert "preloaded" in sys.modules, "the server passes over what it cannot import"
    for stream in (1, 2):
        os.dup2(output.fileno(), stream)
    output.close()
    # Open for as long as the process lives.
    sys.stdout, sys.stderr = (
        open(stream, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115
        for stream in (1, 2)
    )
    if killed_at:
        _die_at(killed_at)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    # The script finds what a user's process finds: its neighbors, and not the tests' own modules.
    named = [str((folder / script).parent), *environment["PYTHONPATH"].split(os.pathsep)]
    sys.path[:] = [*named, *(p for p in sys.path if Path(p).parent != folder)]
    sys.argv = [script, *arguments]
    if not sys.modules["prefloop"].__file__.startswith(named[1]):
        _forget_prefloop()
    # What is written outlives a kill. Only a power cut would lose it, and waiting for the disk is a
    # tenth of a run.
    os.fsync = lambda descriptor: None
    import matplotlib.figure

    import prefloop.base.console

    matplotlib.figure.Figure.savefig = _undrawn
    # Progress lines on every step instead of every ten seconds, so that a test can stop the process
    # inside a stage.
    prefloop.base.console.PLAIN_EVERY_S = 0
    runpy.run_path(script, run_name="__main__")


def _undrawn(figure: object, file: TextIO, **options: object) -> None:
    """In the place of ``savefig``: a figure is composed of the run's numbers, and its ink left out.

    Drawing takes a second of every run. tests/report/ draw all figures, and so do processes that
    are not forked.
    """
    file.write('<svg viewBox="0 0 1 1"></svg>')


def _forget_prefloop() -> None:
    """Import another copy of the package than the server did, and read its code."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "prefloop"]:
        del sys.modules[name]
    sys.meta_path[:] = [f for f in sys.meta_path if not type(f).__module__.startswith("prefloop")]


def _die_at(pattern: str) -> None:
    """End this process by SIGKILL as soon as what matches was printed."""
    write = sys.stdout.write

    def last(text: str) -> int:
        count = write(text)
        if re.search(pattern, text, re.MULTILINE):
            sys.stdout.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return count

    sys.stdout.write = last  # type: ignore[method-assign]
