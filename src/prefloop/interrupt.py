"""Ctrl-C that is never lost."""

from __future__ import annotations

import signal
from types import FrameType

_interrupted = False


def heed_interrupts() -> None:
    """Let Ctrl-C stop the process even where its exception is swallowed (in a destructor, in a library's callback): progress asks again."""
    before = signal.getsignal(signal.SIGINT)

    def stop(number: int, frame: FrameType | None) -> None:
        global _interrupted
        _interrupted = True
        if callable(before):
            before(number, frame)

    signal.signal(signal.SIGINT, stop)


def check_interrupted() -> None:
    """Raise the ``KeyboardInterrupt`` that got lost, if one did."""
    if _interrupted:
        raise KeyboardInterrupt


def forget_interrupt() -> None:
    """Ctrl-C was heeded where it ends less than the process."""
    global _interrupted
    _interrupted = False
