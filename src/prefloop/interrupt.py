"""Ctrl-C and requests to end that are never lost."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_HEEDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_received = 0


class Ended(BaseException):
    """SIGTERM or SIGHUP: the process is to end, where Ctrl-C may end less. No library catches it."""

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
        global _received
        _received = number
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


def check_interrupted() -> None:
    """Raise the ``KeyboardInterrupt`` or ``Ended`` that got lost, if one did."""
    if _received:
        raise KeyboardInterrupt if _received == signal.SIGINT else Ended(_received)


def forget_interrupt() -> None:
    """Ctrl-C was heeded where it ends less than the process."""
    global _received
    if _received == signal.SIGINT:
        _received = 0
