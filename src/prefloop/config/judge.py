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
    """Name of the first field, at any depth, that holds text under a name for keys, such as
    ``x-api-key`` or ``accessToken``, but not ``max_tokens``. Empty where there is none.
    """
    if isinstance(value, dict):
        return next(
            (secret for key, item in value.items() if (secret := _secret(item, str(key)))), ""
        )
    if isinstance(value, list | tuple):
        return next((secret for item in value if (secret := _secret(item, name))), "")
    words = [word.lower() for word in _WORD.findall(name)]
    return name if isinstance(value, str) and words and words[-1] in _SECRET else ""


@dataclass(config=STRICT)
class JudgeConfig:
    """How a judge is asked. A reward model and a Python function ignore the settings of language
    models.
    """

    mode: Literal["pairwise", "grade", "rubric"] = "pairwise"
    """How a language model judges: it compares two responses, grades each from 1 to 10, or scores
    each by the criteria of rubric.
    """
    criteria: str | None = None
    """What makes a response better: a text, or the path of a .txt or .md file. Default: prefloop's
    own words.
    """
    rubric: str | None = None
    """Criteria and weights for mode rubric: the path of a .yaml or .json file, or YAML text."""
    tie_margin: NotNegative = 0.0
    """Two scores that differ by no more than this are a tie (0: only equal scores). It applies to
    grades, rubrics, reward models and functions.
    """
    temperature: NotNegative | None = 0.0
    """Sampling temperature of a language model; 0 takes its likeliest answer, none leaves the
    choice to the endpoint.
    """
    max_tokens: Count | None = 1024
    """Longest reply in tokens, reasons included; none leaves the choice to the endpoint."""
    structured: bool = True
    """Ask for a JSON object that follows a schema, where the endpoint or engine can enforce it."""
    api_key_env: str | None = aside(default=None)
    """Name of the environment variable with the endpoint's key; none sends no key."""
    max_concurrency: Few = aside(default=8)
    """Requests at the same time; for a local model, questions in a batch."""
    requests_per_minute: PerMinute | None = aside(default=None)
    """Limit on requests to an endpoint, retries included."""
    timeout: Positive = aside(default=60.0)
    """Seconds that one request may take, from connecting to the last byte of the answer."""
    max_retries: Retries = aside(default=5)
    """Further attempts after status 408, 429 or 5xx and after connection errors; 0 for none."""
    backoff: NotNegative = aside(default=1.0)
    """Seconds before the first retry (0: at once), doubled for each next one. A Retry-After header
    takes precedence.
    """
    price_prompt: NotNegative | None = aside(default=None)
    """Price per million prompt tokens, in your currency, for the cost estimate; 0 where they are
    free. Changing it does not rerun a finished judge stage, which then shows no cost.
    """
    price_completion: NotNegative | None = aside(default=None)
    """Price per million tokens of replies, as price_prompt; 0 where they are free."""
    engine: Literal["transformers", "vllm"] = "transformers"
    """Engine that runs a local model."""
    extra_body: Annotated[dict[str, Any], tyro.conf.Suppress] = field(default_factory=dict)
    """Further fields of a request to an endpoint. They are stored with the results, so they must
    hold no key.
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
        if name := _secret(self.extra_body):
            raise ConfigError(
                f"judge extra_body: '{name}' looks like a key, and extra_body is written into"
                " results and reports: put the key into an environment variable and name it in"
                " --api-key-env"
            )
        if (self.price_prompt is None) != (self.price_completion is None):
            raise ConfigError(
                "judge prices: give --price-prompt and --price-completion, or neither"
            )
