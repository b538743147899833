"""YAML as configurations and rubrics hold it: a key given twice is an error, and so is everything that YAML cannot make a value of."""

from __future__ import annotations

from typing import Any

import yaml

from prefloop.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """Remembers the line of every key, so that a second one is refused with both."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:  # as they are written: what `<<` brings in may be given again
            if not isinstance(key, yaml.ScalarNode) or key.value == "<<":
                continue
            line, name = key.start_mark.line + 1, (key.tag, key.value)
            if name in lines:
                raise ConfigError(
                    f"the key '{key.value[:80]}' is given twice, in lines {lines[name]} and {line}: keep one"
                )
            lines[name] = line
        return node


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text. Raises ``ConfigError`` that begins with ``where``."""
    try:
        return yaml.load(text, _Loader)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not valid YAML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{where} is not valid YAML: it is nested too deeply") from None
    except (ValueError, OverflowError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{where} is not valid YAML: a value is none of its type ({str(error)[:120]})") from None
