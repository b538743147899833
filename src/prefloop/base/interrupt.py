"""Ctrl-C and signals to end, none of which is lost. While a stage trains, they wait for the end of
the step and its checkpoint.

Waiting was chosen over stopping at once and saving the step before: an exception inside a library's
step may be swallowed or leave half an update behind. Work that can stop without loss, such as the
sampling of a rollout, stops at once (``at_once``).
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import threading
import time
from collections.abc import Iterator
from types import FrameType

_HEEDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
BURST_S = 1.0
"""Seconds in which further SIGTERMs and SIGHUPs count as the first: ``timeout``, shells and service
managers send one to the process and again to its group.
"""
_received = 0
_received_at = 0.0
_held = False
"""Whether a first signal waits for the end of a step."""


class Ended(BaseException):
    """SIGTERM or SIGHUP: the whole process must end, where Ctrl-C may end less. No library catches
    it.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextlib.contextmanager
def heeding() -> Iterator[None]:
    """Let Ctrl-C, SIGTERM and SIGHUP end the block as exceptions, so that it can tidy up.

    An exception that is swallowed (in a destructor, in a library's callback) is raised again by
    ``check_interrupted``. Signals that are ignored, as under ``nohup``, stay ignored.
    """
    global _received

    def stop(number: int, frame: FrameType | None) -> None:
        global _received, _received_at, _held
        if number == signal.SIGHUP:
            _leave_terminal()
        now = time.monotonic()
        if _held and not _received:
            _received, _received_at = number, now
            _report_waiting(number)
            return
        if _held and number != signal.SIGINT and now - _received_at < BURST_S:
            return
        _received, _received_at, _held = number, now, False
        check_interrupted()

    _received = 0
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in _HEEDED if main}
    heeded = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    for number in heeded:
        signal.signal(number, stop)
    try:
        yield
    finally:
        _received = 0
        for number in heeded:
            signal.signal(number, before[number])


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Let a first signal wait until the block asks (``waiting``) and ends itself (``heed``), or is
    over. A second signal ends it at once.

    Signals wait only inside ``heeding`` and in the main thread; elsewhere nothing changes.
    """
    global _held
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    check_interrupted()
    _held = True
    try:
        yield
    finally:
        _held = False
    check_interrupted()


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """In a ``deferred`` block: let a first signal, even one that waits, end this part at once. Code
    that catches it may still ask and ``heed``.
    """
    global _held
    held, _held = _held, False
    try:
        check_interrupted()
        yield
    finally:
        _held = held


def waiting() -> bool:
    """Whether a signal waits for the end of a step."""
    return _held and bool(_received)


def heed() -> None:
    """Raise the ``KeyboardInterrupt`` or ``Ended`` of a waiting signal, if there is one."""
    global _held
    if waiting():
        _held = False
        check_interrupted()


def check_interrupted() -> None:
    """Raise a ``KeyboardInterrupt`` or ``Ended`` that was swallowed, if there is one. A waiting
    signal is not raised.
    """
    if _received and not _held:
        raise KeyboardInterrupt if _received == signal.SIGINT else Ended(_received)


def pause(seconds: float) -> None:
    """Wait; a signal ends the wait at once. Raises as ``check_interrupted`` does."""
    threading.Event().wait(seconds)
    check_interrupted()


def forget_interrupt() -> None:
    """Forget a Ctrl-C that has ended something less than the process."""
    global _received
    if _received == signal.SIGINT:
        _received = 0


def _report_waiting(number: int) -> None:
    """Written straight to stderr: the interrupted code may hold the locks of ``console`` and of
    Python's own streams.
    """
    what = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
    line = (
        f"\n{what}: the step is finished first, for its checkpoint; a second one ends the run at"
        " once\n"
    )
    with contextlib.suppress(OSError):
        os.write(2, line.encode())


def _leave_terminal() -> None:
    """Send output to /dev/null if the terminal has hung up: writing to it fails, and the step would
    end in that error.
    """
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode) and not os.isatty(descriptor):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)
