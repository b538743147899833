"""A language model behind any OpenAI-compatible endpoint as a pairwise judge."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

from prefloop.endpoint import Endpoint, Reply, parsed_url
from prefloop.errors import ConfigError, JudgeError
from prefloop.judging.judges import Item, OnVerdict
from prefloop.judging.prompts import CRITERIA, REASK, TEMPLATE_VERSION, pairwise_messages, parse_verdict
from prefloop.judging.verdict import Verdict
from prefloop.records import Message

_ADVICE = {
    400: "the endpoint refused a parameter; temperature and max_tokens can be None, extra_body adds others",
    401: "set the environment variable that api_key_env names to a valid key",
    403: "the key has no access to this model; check the key and the model name",
    404: "check base_url (it usually ends in /v1) and the model name",
    429: "the endpoint limits requests; lower max_concurrency or raise max_retries",
}


@dataclass
class OpenAIJudge:
    """One order of a pairwise comparison, asked over ``{base_url}/chat/completions``; ``BothOrders`` makes it both.

    Only the judge's own reply is parsed for a verdict, and the responses it compares stand between markers they
    cannot forge (``prefloop.judging.prompts``): a response that says ``[[A]]`` decides nothing. A reply without a
    verdict is answered with one request for the verdict alone; if that fails too the verdict is a tie with
    ``unparsable=1``.

    The key is read from the environment for each request and is held nowhere else. Raises ``ConfigError`` for
    impossible settings and ``JudgeError``, with the URL, the status and the start of the body, when the endpoint
    cannot be used.
    """

    base_url: str
    """Up to and including the version, such as ``http://localhost:8000/v1``."""
    model: str
    """The model's name at the endpoint."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the key; ``None`` sends no key."""
    temperature: float | None = 0.0
    """``None`` leaves it out of the request."""
    max_tokens: int | None = 1024
    """Longest reply, reasons included; ``None`` leaves it out of the request."""
    criteria: str = CRITERIA
    """What makes a response better; goes into the system prompt."""
    timeout: float = 60.0
    """Seconds without a byte after which a request has failed."""
    max_retries: int = 5
    """Further attempts after 408, 429, 5xx and connection errors."""
    backoff: float = 1.0
    """Seconds before the first retry, doubled for each next one; a ``Retry-After`` header takes precedence."""
    max_concurrency: int = 8
    """Requests in flight in ``compare_many``."""
    extra_body: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Further fields of the request."""

    def __post_init__(self) -> None:
        # A key pasted in place of a name must not come back in an error message, so the value is not quoted.
        if self.api_key_env is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", self.api_key_env):
            raise ConfigError(
                "api_key_env must be the NAME of an environment variable (upper case), not the key itself"
            )
        for name, low in (("max_concurrency", 1), ("max_retries", 0), ("backoff", 0)):
            if getattr(self, name) < low:
                raise ConfigError(f"{name} must be {low} or more, found {getattr(self, name)}")
        url = parsed_url(
            f"{self.base_url.rstrip('/')}/chat/completions",
            "base_url",
            key="put the key in a variable, name it in api_key_env",
        )
        self.name = f"openai:{self.model}"
        self._endpoint = Endpoint(
            url,
            who=f"judge {url}",
            setting="base_url",
            key_env=self.api_key_env,
            key_required=True,
            timeout=self.timeout,
            max_retries=self.max_retries,
            backoff=self.backoff,
            advice=_ADVICE,
            max_connections=self.max_concurrency,
        )

    def compare(self, prompt: list[Message], a: str, b: str) -> Verdict:
        """The model's verdict on ``a`` shown first against ``b`` shown second."""
        return self._compare((prompt, a, b), threading.Event())

    def compare_many(self, items: Sequence[Item], on_verdict: OnVerdict | None = None) -> list[Verdict]:
        """Verdicts in the order of ``items``, ``max_concurrency`` at a time.

        ``on_verdict(index, verdict)`` is called as they arrive. After an error nothing further is asked, answers
        already on their way are still reported, and the error is raised.
        """
        stop = threading.Event()
        failure: BaseException | None = None
        verdicts: dict[int, Verdict] = {}
        pool = ThreadPoolExecutor(self.max_concurrency)
        indices: dict[Future[Verdict], int] = {
            pool.submit(self._compare, item, stop): i for i, item in enumerate(items)
        }

        def report(future: Future[Verdict]) -> None:
            index = indices.pop(future)
            verdicts[index] = future.result()
            if on_verdict:
                on_verdict(index, verdicts[index])

        try:
            for future in as_completed(list(indices)):
                if failure := future.exception():
                    break
                report(future)
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
        if failure:
            for future in [future for future in indices if not future.cancelled() and future.exception() is None]:
                report(future)
            raise failure
        return [verdicts[index] for index in range(len(items))]

    def fingerprint(self) -> str:
        """Hash of what determines a reply: model, template, criteria and sampling. The address is no part of it."""
        what = [TEMPLATE_VERSION, self.model, self.criteria, self.temperature, self.max_tokens, dict(self.extra_body)]
        return f"{self.name}:{hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()}"

    def _compare(self, item: Item, stop: threading.Event) -> Verdict:
        messages = pairwise_messages(*item, criteria=self.criteria)
        reply = self._ask(messages, stop)
        score = parse_verdict(reply)
        if score is not None:
            return Verdict(score, raw=(reply,))
        again = [*messages, {"role": "assistant", "content": reply}, {"role": "user", "content": REASK}]
        second = self._ask(again, stop)
        score = parse_verdict(second)
        return Verdict(0.5 if score is None else score, raw=(reply, second), unparsable=int(score is None))

    def _ask(self, messages: list[dict[str, str]], stop: threading.Event) -> str:
        """One reply of the model."""
        body: dict[str, Any] = {"model": self.model, "messages": messages, **self.extra_body}
        body.update(
            {k: v for k in ("temperature", "max_tokens") if (v := getattr(self, k)) is not None and k not in body}
        )
        return self._reply_text(self._endpoint.post(body, stop))

    def _reply_text(self, reply: Reply) -> str:
        try:
            content = reply.json()["choices"][0]["message"]["content"]
            if not isinstance(content, str | None):
                raise TypeError
        except (ValueError, LookupError, TypeError):
            raise JudgeError(
                f"{self._endpoint.who}: HTTP {reply.status}, but not a chat completion: {reply.excerpt()}; "
                "check that base_url is an OpenAI-compatible API"
            ) from None
        return reply.without_key(content or "")
