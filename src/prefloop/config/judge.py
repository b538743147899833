"""How a judge is asked."""

from __future__ import annotations

import json
import re
from dataclasses import field
from typing import Annotated, Any, Literal

import tyro
from pydantic.dataclasses import dataclass

from prefloop.base.console import shortened
from prefloop.base.redact import short
from prefloop.config.base import STRICT, aside
from prefloop.config.ranges import Count, Few, NotNegative, PerMinute, Positive, Retries
from prefloop.errors import ConfigError

_SECRET = {"key", "apikey", "token", "secret", "password", "passwd", "authorization"}
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


def _secret(value: Any, name: str = "") -> str:
    """The first field, at any depth, that holds text under the name of a key (``x-api-key``,
    ``accessToken``; not ``max_tokens``).
    """
    if isinstance(value, dict):
        return next(
            (found for key, item in value.items() if (found := _secret(item, str(key)))), ""
        )
    if isinstance(value, list | tuple):
        return next((found for item in value if (found := _secret(item, name))), "")
    words = [word.lower() for word in _WORD.findall(name)]
    return name if isinstance(value, str) and words and words[-1] in _SECRET else ""


@dataclass(config=STRICT)
class JudgeConfig:
    """How a judge is asked. Settings of language models mean nothing to a reward model or a
    function.
    """

    mode: Literal["pairwise", "grade", "rubric"] = "pairwise"
    """A language model compares two responses, grades each from 1 to 10, or scores each by the
    criteria of rubric.
    """
    criteria: str | None = None
    """What makes a response better: text, or the path of a .txt or .md file. Default: prefloop's
    own words.
    """
    rubric: str | None = None
    """Criteria and weights for mode rubric: path of a .yaml or .json file, or YAML text."""
    tie_margin: NotNegative = 0.0
    """Scores this close tie (0: equal ones): those of grades, of rubrics, of a reward model, of a
    function.
    """
    temperature: NotNegative | None = 0.0
    """Of a language model, 0 for its likeliest answer; none leaves it to the endpoint."""
    max_tokens: Count | None = 1024
    """Longest reply, reasons included; none leaves it to the endpoint."""
    structured: bool = True
    """Ask for a JSON object by its schema where endpoint or engine can enforce it."""
    api_key_env: str | None = aside(default=None)
    """Environment variable that holds the endpoint's key; none sends no key."""
    max_concurrency: Few = aside(default=8)
    """Requests in flight; of a local model, questions side by side."""
    requests_per_minute: PerMinute | None = aside(default=None)
    """Limit on requests to an endpoint, retries included."""
    timeout: Positive = aside(default=60.0)
    """Seconds that a request may take, from connecting to the last byte of its answer."""
    max_retries: Retries = aside(default=5)
    """Further attempts after 408, 429, 5xx and connection errors; 0 for none."""
    backoff: NotNegative = aside(default=1.0)
    """Seconds before the first retry (0: at once), doubled for each next one; a Retry-After header
    takes precedence.
    """
    price_prompt: NotNegative | None = aside(default=None)
    """Price of a million tokens read; 0 where they are free. No part of what a result is kept
    under: a run's finished judge stage shows no cost for a price set later.
    """
    price_completion: NotNegative | None = aside(default=None)
    """Price of a million tokens written; 0 and what it is part of as with price_prompt."""
    engine: Literal["transformers", "vllm"] = "transformers"
    """What runs a local model."""
    extra_body: Annotated[dict[str, Any], tyro.conf.Suppress] = field(default_factory=dict)
    """Further fields of a request to an endpoint. They are kept with the results, so no key may be
    among them.
    """

    def __post_init__(self) -> None:
        if (self.mode == "rubric") != (self.rubric is not None):
            raise ConfigError("a rubric and mode rubric go together: give both or neither")
        try:
            json.dumps(self.extra_body, allow_nan=False)
        except (ValueError, TypeError, RecursionError) as error:
            raise ConfigError(
                f"judge extra_body is {short(self.extra_body)}: it is sent as JSON, which cannot"
                f" hold that ({shortened(str(error))})"
            ) from None
        if found := _secret(self.extra_body):
            raise ConfigError(
                f"judge extra_body: '{found}' looks like a key, and extra_body is written into"
                " results and reports: put the key into an environment variable and name it in"
                " --api-key-env"
            )
        if (self.price_prompt is None) != (self.price_completion is None):
            raise ConfigError(
                "judge prices: give --price-prompt and --price-completion, or neither"
            )
