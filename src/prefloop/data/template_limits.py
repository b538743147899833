"""Limits of time and size for chat templates, which are programs of other people.

transformers renders templates in jinja2's sandbox. The sandbox protects the process, but lets a
template loop forever and fill the memory. Here the sandbox also counts. Everything that a template
makes (texts, lists, its output) is paid for from a budget that grows with the conversation, mostly
before it is made. Loops, calls and the thread's processor time are counted too. Filters and methods
that no chat template needs, and that can grow or slow without limit, are missing. The limits depend
on the conversation only, so a template that renders within them always does. Processor time matters
only for what takes thousands of times longer than any template.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jinja2 import Template, nodes, pass_context
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer
from transformers.utils import chat_template_utils

from prefloop.data.template_costs import (
    COSTS,
    LAZY,
    PART,
    TURN,
    Budget,
    OverLimit,
    replaced,
    require_bits,
    shallow,
)

SOURCE = 1 << 18
"""Longest template in characters. The longest published ones have a tenth of it."""
_DROPPED_FILTERS = (
    "filesizeformat",
    "pprint",
    "random",
    "striptags",
    "urlize",
    "wordcount",
    "wordwrap",
    "xmlattr",
)
_DROPPED_GLOBALS = ("lipsum", "cycler")
_PADDING = frozenset(["center", "ljust", "rjust", "zfill"])
_METHODS = frozenset(
    [
        "capitalize",
        "casefold",
        "count",
        "endswith",
        "find",
        "format",
        "format_map",
        "index",
        "isalnum",
        "isalpha",
        "isascii",
        "isdecimal",
        "isdigit",
        "isidentifier",
        "islower",
        "isnumeric",
        "isprintable",
        "isspace",
        "istitle",
        "isupper",
        "join",
        "lower",
        "lstrip",
        "partition",
        "removeprefix",
        "removesuffix",
        "replace",
        "rfind",
        "rindex",
        "rpartition",
        "rsplit",
        "rstrip",
        "split",
        "splitlines",
        "startswith",
        "strip",
        "swapcase",
        "title",
        "upper",
        "copy",
        "get",
        "items",
        "keys",
        "values",
        "fromkeys",
        "bit_length",
        "is_integer",
    ]
).union(_PADDING)
"""Methods of Python's own types that templates may call."""
_GIVES = frozenset(
    ("get", "items", "keys", "values", "count", "index", "find", "startswith", "endswith")
)
"""Those of the methods that make nothing new."""
_OWN_TYPES = (str, bytes, int, float, list, tuple, dict, set, frozenset, range, type)
_COUNTED, _JOINED, _MADE = "prefloop counted", "prefloop joined", "prefloop made"
_SEARCHED, _SLICED = "prefloop searched", "prefloop sliced"
"""Filters that are inserted into a parsed template. No template can name them, because of the
blank.
"""


class _Counting(NodeTransformer):
    """Puts our own filters around what the sandbox cannot intercept."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_filtered(nodes.Const(None), _COUNTED)))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node.nodes[0], _JOINED, node.nodes[1:])

    def visit_List(self, node: nodes.List | nodes.Dict | nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        parts = node.items
        if isinstance(node, nodes.Dict):
            parts = [part for pair in node.items for part in (pair.key, pair.value)]
        fixed = all(isinstance(part, nodes.Const) for part in parts)
        return node if fixed or getattr(node, "ctx", "load") != "load" else _filtered(node, _MADE)

    visit_Tuple = visit_Dict = visit_List

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, _SLICED) if isinstance(node.arg, nodes.Slice) else node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        searches = any(operand.op in ("in", "notin") for operand in node.ops)
        return _filtered(node, _SEARCHED) if searches else node


def _filtered(node: Any, name: str, args: Iterable[Any] = ()) -> nodes.Filter:
    made = nodes.Filter(node, name, list(args), [], None, None)
    made.set_lineno(getattr(node, "lineno", 1) or 1)
    return made


class _LimitedTemplate(Template):
    def render(self, *args: Any, **kwargs: Any) -> str:
        self.environment.start([*args, kwargs])  # type: ignore[attr-defined]
        return super().render(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Iterator[str]:
        self.environment.start([*args, kwargs])  # type: ignore[attr-defined]
        for part in super().generate(*args, **kwargs):
            self.environment.at_work.budget.pay(len(part) + PART)  # type: ignore[attr-defined]
            yield part


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """jinja2's sandbox with limits. It replaces the one that transformers uses for its chat
    templates.
    """

    template_class = _LimitedTemplate
    intercepted_binops = frozenset(("+", "-", "*", "**", "%", "/", "//"))

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.at_work = threading.local()
        """Its ``budget`` is that of the rendering in this thread, or of the template that is being
        compiled.
        """
        self.finalize = self._written
        for name in _DROPPED_FILTERS:
            del self.filters[name]
        for name in _DROPPED_GLOBALS:
            del self.globals[name]
        self.tests["in"] = self._searching(self.tests["in"])
        own: dict[str, Callable[..., Any]] = {
            _COUNTED: pass_context(lambda context, value: self.at_work.budget.step(TURN)),
            _JOINED: self._joined,
            _MADE: self._made,
            _SEARCHED: self._searching(lambda value: value),
            _SLICED: self._sliced,
        }
        self.filters |= own
        self._known = set(own)

    def start(self, given: Any) -> Budget:
        """Set and return a new budget for a rendering of ``given``."""
        self.at_work.budget = budget = Budget(given)
        return budget

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        if len(source) > SOURCE:
            raise OverLimit(f"it has {len(source):,} characters, over {SOURCE:,}")
        tree = _Counting().visit(super()._parse(source, name, filename))
        tree.set_environment(self)
        return tree

    def compile(self, source: Any, *args: Any, **kwargs: Any) -> Any:
        # Not in ``__init__``, because transformers adds its own filters after it.
        for name in self.filters.keys() - self._known:
            self.filters[name] = self._limited(name, self.filters[name])
            self._known.add(name)
        self.start(None)
        return super().compile(source, *args, **kwargs)

    def concat(self, parts: Iterable[str]) -> str:
        """Join all texts that a macro, a block or the whole template writes."""
        known = list(parts)
        self.at_work.budget.pay(sum(map(len, known)) + PART * len(known))
        return "".join(known)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        budget = self.at_work.budget
        if operator == "*":
            many, times = (right, left) if isinstance(left, int) else (left, right)
            if isinstance(many, int) and isinstance(times, int):
                require_bits(many.bit_length() + times.bit_length())
            elif isinstance(times, int) and isinstance(many, str | bytes | list | tuple):
                budget.pay(budget.weigh(many) * max(0, times))
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            require_bits(left.bit_length() * max(0, right))
        elif operator == "%" and isinstance(left, str):
            budget.pay_format(left, right)
        result = self.binop_table[operator](left, right)
        budget.weigh(result)
        return result

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        made = super().wrap_str_format(value)
        if made is None:
            return None

        @functools.wraps(made)
        def limited(*args: Any, **kwargs: Any) -> str:
            self.at_work.budget.pay_format(value.__self__, [*args, *kwargs.values()])
            return made(*args, **kwargs)

        return limited

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        budget = __self.at_work.budget
        budget.step()
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, _OWN_TYPES):
            name = __obj.__name__
            if name not in _METHODS:
                raise OverLimit(
                    f"it calls {type(owner).__name__}.{name}, which no chat template needs"
                )
            args = __self._paid(owner, name, args)
            result = super().call(__context, __obj, *args, **kwargs)
            if name not in _GIVES:
                budget.weigh(result)
            return result
        if isinstance(__obj, Macro):
            if __obj.catch_varargs or __obj.catch_kwargs:
                budget.weigh([args, kwargs])
            return super().call(__context, __obj, *args, **kwargs)
        # A text may be the format of a time.
        budget.weigh([a for a in (*args, *kwargs.values()) if isinstance(a, str)] * 32)
        result = super().call(__context, __obj, *args, **kwargs)
        if not isinstance(result, str):
            budget.weigh(result)
        return result

    def _paid(self, owner: Any, name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Pay for the result of a method, and return its arguments."""
        budget = self.at_work.budget
        if name in _PADDING and args and isinstance(args[0], int):
            budget.pay(max(0, args[0]))
        elif name == "replace" and len(args) > 1 and isinstance(owner, str):
            budget.pay(replaced(owner, *args[:2]))
        elif name == "join" and args:
            args = (self._listed(args[0], len(owner)), *args[1:])
        elif name == "fromkeys":
            args = (self._listed(args[0], 0), *args[1:])
            budget.pay(len(args[0]) * sum(budget.weigh(value) for value in args[1:]))
        return args

    def _listed(self, value: Any, between: int) -> Any:
        """The contents of an iterator as a list, paid for with ``between`` for each item."""
        if hasattr(value, "__next__"):
            value = list(value)
        self.at_work.budget.weigh(value)
        self.at_work.budget.pay(between * (len(value) if hasattr(value, "__len__") else 0))
        return value

    def _limited(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a filter so that it pays: for its input where it makes a list of it, for its result
        before it runs, and for the result itself.
        """
        ahead = 1 if hasattr(function, "jinja_pass_arg") else 0
        lazy, cost = name in LAZY, COSTS.get(name)

        @functools.wraps(function)
        def limited(*args: Any, **kwargs: Any) -> Any:
            budget = self.at_work.budget
            budget.step()
            if not lazy and len(args) > ahead:
                value = args[ahead]
                if isinstance(value, Namespace):
                    raise OverLimit("it writes a namespace")
                if hasattr(value, "__next__"):
                    value = list(value)
                    budget.weigh(value)
                    args = (*args[:ahead], value, *args[ahead + 1 :])
                if cost is not None:
                    cost(budget, *args[ahead:], **kwargs)
            result = function(*args, **kwargs)
            budget.weigh(result)
            return result

        return limited

    def _searching(self, function: Any) -> Callable[..., Any]:
        def searching(*args: Any) -> Any:
            self.at_work.budget.step(TURN)
            return function(*args)

        return searching

    def _joined(self, *values: Any) -> str:
        self.at_work.budget.weigh(values)
        return "".join(map(str, values))

    def _made(self, value: Any) -> Any:
        self.at_work.budget.weigh(value)
        return value

    def _sliced(self, value: Any) -> Any:
        # A slice of a list holds the list's items and copies none of them.
        self.at_work.budget.pay(shallow(value))
        return value

    def _written(self, value: Any) -> Any:
        if type(value) is str:  # nearly always
            self.at_work.budget.pay(len(value))
            return value
        if isinstance(value, Namespace):
            raise OverLimit("it writes a namespace")
        self.at_work.budget.weigh(value)
        return value


def limit() -> None:
    """Put the limits on every chat template that transformers renders in this process from now
    on.
    """
    # The class of which transformers makes its environments. It looks the class up whenever it
    # compiles a template.
    assert issubclass(LimitedEnvironment, chat_template_utils.ImmutableSandboxedEnvironment)
    chat_template_utils.ImmutableSandboxedEnvironment = LimitedEnvironment
