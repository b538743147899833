"""Read tools and tool calls in the forms that files have: OpenAI's, flat objects, JSON written as
text.
"""

from __future__ import annotations

import ast
import io
import itertools
import json
import tokenize
import warnings
from typing import Any

from prefloop.base.console import listed
from prefloop.data.check import BadRow, check_strings, check_text, json_type
from prefloop.records import ToolCall, ToolSchema

_CALL_KEYS = frozenset({"name", "id", "type", "index", "function", "arguments", "parameters"})
_EXPECTED_CALL = 'expected {"name": …, "arguments": {…}}'


# A null counts as absent here too, since the record is written and read again.
_decode = json.JSONDecoder(
    object_pairs_hook=lambda pairs: {k: v for k, v in pairs if v is not None}
).decode


def parsed(text: str) -> Any:
    """The value of a JSON text; ``None`` for any other text."""
    try:
        value = _decode(text)
        check_strings(value)
    except (ValueError, RecursionError):
        return None
    return value


def spelt(text: str) -> Any:
    """The value of a text in JSON, or in Python's repr, which pandas writes for lists in CSV;
    ``None`` for any other text.
    """
    value = parsed(text)
    if value is not None or not text.lstrip().startswith(("[", "{", "(")):
        return value
    try:
        # NumPy prints no commas between texts, and Python would read such a list as one text.
        kinds = [
            token.type for token in tokenize.generate_tokens(io.StringIO(text.strip()).readline)
        ]
        if any(
            a == b == tokenize.STRING
            for a, b in itertools.pairwise(kind for kind in kinds if kind != tokenize.NL)
        ):
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Converted through JSON, so that no tuples, bytes or numbers as keys remain.
            value = _decode(json.dumps(ast.literal_eval(text.strip()), allow_nan=False))
        check_strings(value)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError, tokenize.TokenError):
        return None
    return value


def tools_of(value: Any, name: str) -> list[ToolSchema]:
    """The JSON schemas in a column of tools, given as a list, as one object, or as JSON text of
    either. An empty column has none.

    A bare ``{"name", "parameters"}`` is wrapped as ``{"type": "function", "function": …}``, which
    chat templates expect.
    """
    if isinstance(value, str):
        if not value.strip():
            return []
        text, value = value, spelt(value)
        if value is None:
            raise BadRow(name, f"is text that is no JSON ({text[:40]!r}), expected a list of tools")
    if isinstance(value, dict):
        value = [value] if value else []
    if not isinstance(value, list):
        raise BadRow(name, f"is {json_type(value)}, expected a list of tools")
    return [_tool(item, f"{name}.{index}") for index, item in enumerate(value)]


def _tool(value: Any, name: str) -> ToolSchema:
    given = value
    if isinstance(value, str):
        value = spelt(value)
    if not isinstance(value, dict):
        raise BadRow(name, f"is {_shown(given)}, expected a tool's JSON schema")
    wrapped = value.get("function")
    if wrapped is None:
        check_text(value.get("name", ""), f"{name}.name")
        return {"type": "function", "function": value}
    if not isinstance(wrapped, dict):
        raise BadRow(f"{name}.function", f"is {json_type(wrapped)}, expected an object")
    check_text(wrapped.get("name", ""), f"{name}.function.name")
    return {"type": "function", **value}


def _shown(value: Any) -> str:
    return f"the text {value[:40]!r}" if isinstance(value, str) else json_type(value)


def calls_of(value: Any, name: str, unused: dict[str, None]) -> list[ToolCall]:
    """Tool calls, given as a list, as one call, or as JSON text of either. Keys that are not used
    are added to ``unused``.
    """
    if isinstance(value, str):
        text, value = value, parsed(value)
        if not isinstance(value, dict | list):
            raise BadRow(name, f"holds no tool call as JSON ({text[:40]!r}), {_EXPECTED_CALL}")
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise BadRow(name, f"is {json_type(value)}, expected a list of tool calls")
    return [_call(item, f"{name}.{index}", unused) for index, item in enumerate(value)]


def _call(value: Any, name: str, unused: dict[str, None]) -> ToolCall:
    read = parsed(value) if isinstance(value, str) else value
    if not isinstance(read, dict):
        raise BadRow(name, f"is {_shown(value)}, {_EXPECTED_CALL}")
    value = read
    kind, function = value.get("type") or "function", value.get("function") or value
    if kind != "function" or not isinstance(function, dict):
        raise BadRow(name, f"is a call of type {str(kind)[:40]!r}, {_EXPECTED_CALL}")
    given: Any = next(
        (function[key] for key in ("arguments", "parameters") if function.get(key) is not None),
        None,
    )
    others = [
        key
        for part in (function, value)
        for key in part
        if part[key] is not None and key not in _CALL_KEYS
    ]
    if given is None:
        if others:
            raise BadRow(f"{name}.arguments", f"is missing (found: {listed(function)})")
        given = {}
    unused |= dict.fromkeys(f"tool_calls.{key}" for key in others)
    if isinstance(given, str):
        # Arguments that are no object stay as they were written.
        value_of = parsed(given) if given.strip() else {}
        given = value_of if isinstance(value_of, dict) else given
    if not isinstance(given, dict | str):
        raise BadRow(f"{name}.arguments", f"is {json_type(given)}, expected an object")
    id = value.get("id")
    if id is not None and (isinstance(id, bool) or not isinstance(id, str | int)):
        raise BadRow(f"{name}.id", f"is {json_type(id)}, expected text")
    called = function.get("name")
    return ToolCall(
        check_text("" if called is None else called, f"{name}.name"),
        given,
        None if id is None else str(id),
    )
