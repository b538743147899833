"""YAML of configurations and rubrics. A key given twice is an error, and so is everything that YAML
cannot make a value of.
"""

from __future__ import annotations

from typing import Any

import yaml

from prefloop.base.console import shortened
from prefloop.errors import ConfigError

MOST_VALUES = 100_000
"""Most values in a file with its aliases written out. A few hundred bytes of aliases can stand for
more than memory holds.
"""
SAID = 400
"""Longest quote of YAML's own errors, in characters. They quote the file."""


class _Loader(yaml.SafeLoader):
    """A loader that refuses a key given twice, with both lines, and counts what aliases stand
    for.
    """

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        if node is not None and _written_out(node, {}) > MOST_VALUES:
            raise ConfigError(
                f"its aliases (*name) stand for more than {MOST_VALUES:,} values: write out what"
                " the run needs"
            )
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:  # as they are written: what `<<` brings in may be given again
            if not isinstance(key, yaml.ScalarNode) or key.value == "<<":
                continue
            line, name = key.start_mark.line + 1, (key.tag, key.value)
            if name in lines:
                raise ConfigError(
                    f"the key '{key.value[:80]}' is given twice, in lines {lines[name]} and {line}:"
                    " keep one"
                )
            lines[name] = line
        return node


def _written_out(node: yaml.Node, known: dict[int, int]) -> int:
    """Number of values in a node, itself included, where an alias counts as all that it stands for.
    Raises ``ConfigError`` for an alias inside the value that it names.
    """
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = -1
        inner = (
            part for item in node.value for part in (item if isinstance(item, tuple) else (item,))
        )
        known[id(node)] = 1 + sum(_written_out(part, known) for part in inner)
    if known[id(node)] < 0:
        raise ConfigError(
            f"the value in line {node.start_mark.line + 1} holds an alias to itself: write it out"
        )
    return known[id(node)]


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text. Raises ``ConfigError`` that begins with ``where``."""
    try:
        return yaml.load(text, _Loader)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not valid YAML: {shortened(str(error), SAID)}") from None
    except RecursionError:
        raise ConfigError(f"{where} is not valid YAML: it is nested too deeply") from None
    except (ValueError, OverflowError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{where} is not valid YAML: a value is none of its type ({str(error)[:120]})"
        ) from None
