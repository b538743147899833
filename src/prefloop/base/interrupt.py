"""Ctrl-C and requests to end that are never lost; while a stage trains, they wait for the end of
the step and its checkpoint.

Waiting was chosen over breaking off and saving the step before: an exception at any point of a
library's step may be swallowed or leave half an update behind. What may be broken off at no loss,
such as the sampling of a rollout, is (``at_once``).
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
    """SIGTERM or SIGHUP: the process is to end, where Ctrl-C may end less. No library catches
    it.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextlib.contextmanager
def heeding() -> Iterator[None]:
    """Let Ctrl-C, SIGTERM and SIGHUP end the block as exceptions, so that it can tidy up.

    An exception that is swallowed (in a destructor, in a library's callback) is raised again by
    ``check_interrupted``. Signals that are ignored, as ``nohup`` does, stay so.
    """
    global _received

    def stop(number: int, frame: FrameType | None) -> None:
        global _received, _received_at, _held
        if number == signal.SIGHUP:
            _leave_terminal()
        now = time.monotonic()
        if _held and not _received:
            _received, _received_at = number, now
            _say_that_it_waits(number)
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
    over; a second one ends it at once.

    Only ``heeding`` has signals that can wait, and only the main thread gets them: elsewhere
    nothing changes.
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
    """In a ``deferred`` block: let a first signal, also one that waits, end this part at once. What
    catches it may still ask and ``heed``.
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
    """Raise the ``KeyboardInterrupt`` or ``Ended`` that waits, if one does."""
    global _held
    if waiting():
        _held = False
        check_interrupted()


def check_interrupted() -> None:
    """Raise the ``KeyboardInterrupt`` or ``Ended`` that got lost, if one did; one that waits is not
    lost.
    """
    if _received and not _held:
        raise KeyboardInterrupt if _received == signal.SIGINT else Ended(_received)


def pause(seconds: float) -> None:
    """Wait so long; a signal ends the wait at once. Raises what ``check_interrupted`` raises."""
    threading.Event().wait(seconds)
    check_interrupted()


def forget_interrupt() -> None:
    """Ctrl-C was heeded where it ends less than the process."""
    global _received
    if _received == signal.SIGINT:
        _received = 0


def _say_that_it_waits(number: int) -> None:
    """Straight to stderr: the code that the signal came into may hold the locks of ``console`` and
    of Python's own streams.
    """
    what = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
    line = (
        f"\n{what}: the step is finished first, for its checkpoint; a second one ends the run at"
        " once\n"
    )
    with contextlib.suppress(OSError):
        os.write(2, line.encode())


def _leave_terminal() -> None:
    """Send output that went to a terminal which has hung up nowhere: writing to it fails, and the
    step would end in that error.
    """
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode) and not os.isatty(descriptor):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)
