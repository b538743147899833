"""Costs of rendering a chat template: a budget that grows with the conversation, and the costs of a
template's filters and methods.

A cost is paid before the result is made, wherever the result can be many times as large as its
input.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any, cast

from jinja2 import TemplateRuntimeError
from jinja2.utils import Namespace

BUDGET = 1 << 25
"""Bytes, roughly, that a template may make in all, plus ``PER_BYTE`` for each of the conversation.
"""
PER_BYTE = 64
SECONDS = 10.0
"""Processor time for one rendering."""
CALL, TURN, PART = 128, 16, 8
"""The cost in bytes of a call, of one turn of a loop, and of one piece of text that is written."""
_BITS = 4096
"""Longest whole number in bits."""
_WIDTH = re.compile(r"%(\([^)]*\))?[-+ #0]*(\*|\d{5}|\d*\.(\*|\d{5}))|\{[^{}]*:[^{}]*(\{|\d{5})")
"""In a format string: a width of five digits, or one that an argument gives."""
_MANY: tuple[type, ...] = (
    list,
    tuple,
    dict,
    set,
    frozenset,
    type({}.keys()),
    type({}.values()),
    type({}.items()),
)


class OverLimit(TemplateRuntimeError):
    """A template has exceeded a limit."""


class Budget:
    """What one rendering may still use."""

    __slots__ = ("left", "steps", "until")

    def __init__(self, given: Any = None) -> None:
        self.left, self.steps, self.until = 1 << 62, 0, 0.0
        self.weigh(given)
        self.left = BUDGET + PER_BYTE * ((1 << 62) - self.left)

    def pay(self, cost: int) -> None:
        """Raise ``OverLimit`` where ``cost`` is more than is left."""
        self.left -= cost
        if self.left < 0:
            raise OverLimit("it makes far more than a conversation of this length needs")

    def step(self, cost: int = CALL) -> None:
        """Pay for one call, or one turn of a loop."""
        self.steps += 1
        self.pay(cost)
        if self.steps & 63:  # the clock costs more than a step; most renderings never look at it
            return
        now = time.thread_time()
        self.until = self.until or now + SECONDS
        if now > self.until:
            raise OverLimit(f"it was still running after {SECONDS:g} s of processor time")

    def weigh(self, value: Any) -> int:
        """Pay for a value and everything in it, as often as it occurs. Returns the cost."""
        if isinstance(value, str):
            self.pay(len(value))
            return len(value)
        if not isinstance(value, _MANY):
            return 0
        before, waiting = self.left, [value]
        while waiting:
            item = waiting.pop()
            if isinstance(item, str):
                self.pay(8 + len(item))
            elif isinstance(item, _MANY):
                item = cast("list[Any]", item)
                self.pay(shallow(item))
                waiting.extend(item)
                if isinstance(item, dict):
                    waiting.extend(item.values())
            elif isinstance(item, Namespace):
                raise OverLimit("it puts a namespace into a list")
            else:
                self.pay(8)
        return before - self.left

    def text(self, value: Any) -> str:
        """Pay for a value and return it as a text."""
        self.weigh(value)
        return str(value)

    def pay_format(self, text: str, values: Any) -> None:
        """Pay for the largest result of formatting ``text`` with ``values``. Raise ``OverLimit``
        where it pads to an unlimited width.
        """
        if _WIDTH.search(text):
            raise OverLimit("it pads a text to a width of five digits, or to one that it computes")
        self.pay((text.count("%") + text.count("{")) * (self.weigh([values]) + 8))


def shallow(value: Any) -> int:
    """The size of a value in bytes, roughly, without its contents."""
    if isinstance(value, str):
        return len(value)
    return 16 + 8 * len(cast("list[Any]", value)) if isinstance(value, _MANY) else 0


def require_bits(bits: int) -> None:
    if bits > _BITS:
        raise OverLimit("it computes a number of more than a thousand digits")


def replaced(text: Any, old: Any, new: Any) -> int:
    """The most characters that can result where ``old`` is replaced."""
    return (text.count(old) if isinstance(old, str) and old else len(text) + 1) * len(str(new))


# The costs of filters before they run, with jinja2's own parameters.


def _text(budget: Budget, value: Any, *_: Any, **__: Any) -> None:
    """A list becomes a text, and a text may become several times as long."""
    budget.pay(8 * budget.weigh(value))


def _replace(budget: Budget, s: Any, old: Any, new: Any, count: Any = None) -> None:
    budget.pay(replaced(budget.text(s), old, new))


def _join(budget: Budget, value: Any, d: Any = "", attribute: Any = None) -> None:
    budget.pay(len(str(d)) * (budget.weigh(value) and len(value)))


def _indent(
    budget: Budget, s: Any, width: Any = 4, first: bool = False, blank: bool = False
) -> None:
    budget.pay((budget.text(s).count("\n") + 1) * (width if isinstance(width, int) else len(width)))


def _center(budget: Budget, value: Any, width: int = 80) -> None:
    budget.pay(width + budget.weigh(value))


def _format(budget: Budget, value: Any, *args: Any, **kwargs: Any) -> None:
    budget.pay_format(budget.text(value), [*args, kwargs])


def _tojson(
    budget: Budget,
    x: Any,
    ensure_ascii: Any = False,
    indent: Any = None,
    separators: Any = None,
    **_: Any,
) -> None:
    wide = indent if isinstance(indent, int) else len(indent or ""), sum(map(len, separators or ()))
    budget.pay(budget.weigh(x) * (1 + sum(wide)))


def _parts(budget: Budget, value: Any, parts: int, fill_with: Any = None) -> None:
    budget.pay(16 * parts + parts * budget.weigh(fill_with))


def _batch(budget: Budget, value: Any, linecount: int, fill_with: Any = None) -> None:
    _parts(budget, value, linecount, fill_with)


def _slice(budget: Budget, value: Any, slices: int, fill_with: Any = None) -> None:
    _parts(budget, value, slices, fill_with)


def _round(budget: Budget, value: Any, precision: int = 0, method: str = "common") -> None:
    require_bits(4 * abs(precision))


def _int(budget: Budget, value: Any, *_: Any, **__: Any) -> None:
    if isinstance(value, str):
        require_bits(4 * len(value))


def _sum(budget: Budget, iterable: Any, attribute: Any = None, start: Any = 0) -> None:
    if not isinstance(start, int | float):
        raise OverLimit("it sums up something else than numbers")


LAZY = frozenset(("map", "select", "selectattr", "reject", "rejectattr", "default", "d", "attr"))
COSTS: dict[str, Callable[..., None]] = {
    **dict.fromkeys(
        ("string", "safe", "upper", "lower", "title", "capitalize", "trim", "truncate"), _text
    ),
    **dict.fromkeys(("e", "escape", "forceescape", "urlencode"), _text),
    "replace": _replace,
    "join": _join,
    "indent": _indent,
    "center": _center,
    "format": _format,
    "tojson": _tojson,
    "batch": _batch,
    "slice": _slice,
    "round": _round,
    "int": _int,
    "sum": _sum,
}
