"""What a function does, counted rather than timed: how many calls it makes, how much of a file it
holds at once.
"""

from __future__ import annotations

import gc
import sys
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar
from weakref import finalize

T = TypeVar("T")
HELD = 3
"""Lines that a reader may have in hand: the last one, the one before it in a loop's variable, and
one to spare.
"""


def calls(function: Callable[[], Any]) -> int:
    """Calls of Python and C functions in this thread while ``function`` runs; the same on every
    machine.
    """
    count = 0

    def seen(frame: FrameType, event: str, _: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    gc.collect()
    gc.disable()  # what is called when garbage is collected is not of the function
    sys.setprofile(seen)
    try:
        function()
    finally:
        sys.setprofile(before)
        gc.enable()
    return count


class Alive:
    """Counts objects that are in memory at the same time."""

    def __init__(self) -> None:
        self.now = self.most = self.ever = 0

    def see(self, thing: T) -> T:
        """Count ``thing`` until nothing refers to it any more; a string or list must be of a class
        that takes weak references.
        """
        self.now, self.ever = self.now + 1, self.ever + 1
        self.most = max(self.most, self.now)
        finalize(thing, self._gone).atexit = False
        return thing

    def _gone(self) -> None:
        self.now -= 1


class LineByLine(type(Path())):  # type: ignore[misc]
    """A path whose file may be read a line at a time only, and whose lines must be let go of."""

    def open(self, *arguments: Any, **options: Any) -> Any:
        return _Lines(super().open(*arguments, **options))


class _Lines:
    def __init__(self, file: Any) -> None:
        self._file = file
        self._given: deque[str | bytes] = deque()

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[str | bytes]:
        while line := self.readline():
            yield line
            del line

    def readline(self) -> str | bytes:
        if len(self._given) == HELD:
            oldest = self._given.popleft()
            # Two references: the name here and the argument of the function that counts.
            assert sys.getrefcount(oldest) == 2, (
                "a line is still held after the next ones were read"
            )
        line = self._file.readline()
        self._given.append(line)
        return line

    def seek(self, offset: int) -> None:
        self._file.seek(offset)

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the file is read by {name}(), not line by line")
