"""Logs without what people sent: Argilla logs the whole text of a request that it refuses,
passwords included.

An exception's own words may repeat any of it, so that its kind and the places in the code are all
that is kept.
"""

import logging
import re
import sys
import traceback
import warnings
from typing import Any

_FIELD = re.compile(r"[a-z_]{1,40}")


def quiet() -> None:
    """Let every log record and warning of this process, made by whatever library, leave out what
    was sent.
    """
    logging.setLogRecordFactory(_Record)
    warnings.showwarning = _warn


def _warn(
    message: Any,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: Any = None,
) -> None:
    print(f"{category.__name__} at {filename}:{lineno}", file=sys.stderr)


class _Record(logging.LogRecord):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        error = self.exc_info[1] if self.exc_info else None
        if isinstance(self.msg, BaseException):
            error = error or self.msg
        if error is None:
            return
        if isinstance(self.msg, BaseException):
            self.msg, self.args = _kinds(error), ()
        self.exc_info, self.exc_text = None, _places(error)


def _kinds(error: BaseException) -> str:
    """The exception's kind; of a failed check of a request the kind of each fault and the field,
    not what stood there.
    """
    name = type(error).__name__
    try:
        faults = [(str(fault["type"]), fault["loc"]) for fault in error.errors()]  # type: ignore[attr-defined]
    except Exception:
        return name
    said = [
        f"{kind} at {'.'.join(part for part in map(str, loc) if _known(part))}"
        for kind, loc in faults[:20]
    ]
    return f"{name}: {'; '.join(said)}"


def _known(part: str) -> bool:
    return part.isdigit() or bool(_FIELD.fullmatch(part))


def _places(error: BaseException) -> str:
    """The exception and those that led to it, each with the places in the code, and none of what
    they say.
    """
    lines: list[str] = []
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        lines += [f"{_kinds(one)}, raised at (innermost last)"]
        lines += [
            f"  {frame.filename}:{frame.lineno} {frame.name}"
            for frame in traceback.extract_tb(one.__traceback__)
        ]
        one = one.__cause__ or one.__context__
    return "\n".join(lines)
