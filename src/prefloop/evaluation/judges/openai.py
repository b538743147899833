"""A language model behind any OpenAI-compatible endpoint: a hosted one, or vLLM's own server."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import re
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from prefloop.base.endpoint import Endpoint, Pace, Reply, RequestFailed, parsed_url
from prefloop.errors import ConfigError, JudgeError, RequestError
from prefloop.evaluation.judges.language_model import Completion, Dialogue, OnDone
from prefloop.evaluation.judges.prompts import Question
from prefloop.evaluation.judges.usage import Prices, Usage

_ADVICE = {
    400: (
        "the endpoint refused the request: is it too long, or a parameter unknown? --temperature"
        " and --max-tokens can be None"
    ),
    401: "set the environment variable that --api-key-env names to a valid key",
    403: "the key has no access to this model; check the key and the model name",
    404: "check base_url (it usually ends in /v1) and the model name",
    429: (
        "the endpoint limits requests; set --requests-per-minute, lower --max-concurrency or raise"
        " --max-retries"
    ),
}
_HOPELESS = {301, 302, 303, 307, 308, 401, 403, 404, 405}
"""Statuses that every other question would meet too."""
_NO_SCHEMA = re.compile(r"response_format|json_schema|structured.?outputs?|guided", re.IGNORECASE)
_MOST_TOKENS = 10**9
"""Of one request: a server that reports more is taken to have reported none."""
_LONGEST = 1_000_000
"""Characters of a reply. Every reply is kept, so longer ones could fill the memory."""
_READINGS = 2
"""Attempts at a reply that is a chat completion."""


@dataclass
class ChatEndpoint:
    """Dialogues over ``{base_url}/chat/completions``, ``max_concurrency`` at a time.

    A structured answer is asked for with ``response_format`` (a JSON schema), which OpenAI and vLLM
    enforce. An endpoint that refuses the field, with a 4xx that names it, is asked in words from
    then on. A question that fails after all retries fails alone. An error that every question would
    meet (no key, no access, no such address) raises ``JudgeError``.

    The key is read from the environment for each request and is held nowhere else. Raises
    ``ConfigError`` for impossible settings.
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
    structured: bool = True
    """Ask for a JSON object by its schema where the endpoint takes one."""
    timeout: float = 60.0
    """Seconds that a request may take, from connecting to the last byte of its answer."""
    max_retries: int = 5
    """Further attempts after 408, 429, 5xx and connection errors."""
    backoff: float = 1.0
    """Seconds before the first retry, doubled for each next one; a ``Retry-After`` header takes
    precedence.
    """
    max_concurrency: int = 8
    """Requests in flight."""
    pace: Pace | None = None
    """Limit of requests a minute."""
    prices: Prices = dataclasses.field(default_factory=Prices)
    """What tokens cost."""
    extra_body: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Further fields of the request."""

    def __post_init__(self) -> None:
        # A key pasted in place of a name must not come back in an error message, so the value is
        # not quoted.
        if self.api_key_env is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", self.api_key_env):
            raise ConfigError(
                "--api-key-env must be the NAME of an environment variable (upper case), not the"
                " key itself"
            )
        limits = (
            ("--max-concurrency", self.max_concurrency, 1),
            ("--max-retries", self.max_retries, 0),
            ("--backoff", self.backoff, 0),
        )
        for flag, value, low in limits:
            if value < low:
                raise ConfigError(f"{flag} must be {low} or more, found {value}")
        url = parsed_url(
            f"{self.base_url.rstrip('/')}/chat/completions",
            "base_url",
            key="put the key in a variable, name it in --api-key-env",
        )
        self.name = f"openai:{self.model}"
        self.address = self.base_url.rstrip("/")
        self._lock = threading.Lock()
        self._takes_schema = self.structured
        self._prompt_tokens = self._completion_tokens = self._unreported = 0
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
            pace=self.pace,
        )

    @property
    def usage(self) -> Usage:
        """Requests, tokens and cost so far."""
        with self._lock:
            tokens = self._prompt_tokens, self._completion_tokens
            sent = self._endpoint.n_sent, self._endpoint.n_retried
            return Usage(
                *sent,
                *tokens,
                unreported=self._unreported,
                cost=self.prices.cost(*tokens, self._unreported),
            )

    def identity(self) -> str:
        """Address, model and sampling: a name may stand for another model elsewhere. Whether the
        endpoint turned out to take a schema is left out.
        """
        parts = [
            self.address,
            self.model,
            self.temperature,
            self.max_tokens,
            self.structured,
            dict(self.extra_body),
        ]
        return json.dumps(parts, sort_keys=True)

    def hold(self, questions: Sequence[Question[Any]], on_done: OnDone) -> None:
        """Hold every dialogue. After an error of the endpoint or of ``on_done`` no further question
        is asked; answers already on their way are still reported, and the error is raised.
        """
        stop = threading.Event()
        fatal: BaseException | None = None
        pool = ThreadPoolExecutor(self.max_concurrency)
        running: dict[Future[Dialogue[Any] | JudgeError], int] = {}
        waiting = iter(enumerate(questions))
        try:
            # The next question starts only when an answer was reported: a kill loses no more than
            # max_concurrency of them.
            while True:
                free = self.max_concurrency - len(running)
                for index, question in itertools.islice(waiting, free):
                    running[pool.submit(self._run, question, stop)] = index
                if not running:
                    break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    on_done(running.pop(future), future.result())
        except BaseException as error:
            fatal = error
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
        if fatal:
            for future, index in running.items():
                if isinstance(end := _result(future), Dialogue):
                    # The first error is raised, and every answer is kept.
                    with contextlib.suppress(BaseException):
                        on_done(index, end)
            raise fatal

    def close(self) -> None:
        """Close the connections; no question can be asked afterwards."""
        self._endpoint.close()

    def _run(self, question: Question[Any], stop: threading.Event) -> Dialogue[Any] | JudgeError:
        dialogue = Dialogue(question)
        try:
            while not dialogue.over:
                dialogue = dialogue.then(self._reply(dialogue, stop))
        except RequestError as error:
            failure = JudgeError(str(error))
            if not isinstance(error, RequestFailed) or error.status in _HOPELESS:
                raise failure from error
            return failure
        return dialogue

    def _reply(self, dialogue: Dialogue[Any], stop: threading.Event) -> Completion:
        """The model's next reply."""
        if self._takes_schema:
            try:
                return self._request(dialogue, True, stop)
            except RequestFailed as error:
                if error.status not in (400, 404, 415, 422, 501) or not _NO_SCHEMA.search(
                    error.body
                ):
                    raise
            # An endpoint may repeat the whole request in any error: only a success without the
            # field shows that it was the field.
            reply = self._request(dialogue, False, stop)
            self._takes_schema = False
            return reply
        return self._request(dialogue, False, stop)

    def _request(
        self, dialogue: Dialogue[Any], structured: bool, stop: threading.Event
    ) -> Completion:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": dialogue.messages(structured),
            **self.extra_body,
        }
        if self.temperature is not None:
            body.setdefault("temperature", self.temperature)
        if self.max_tokens is not None:
            body.setdefault("max_tokens", self.max_tokens)
        if structured:
            schema = {"name": "answer", "strict": True, "schema": dialogue.question.form.schema}
            body.setdefault("response_format", {"type": "json_schema", "json_schema": schema})
        for _ in range(_READINGS):
            reply = self._endpoint.post(body, stop)
            if (completion := self._completion(reply)) is not None:
                return completion
        raise RequestFailed(
            f"{self._endpoint.who}: HTTP {reply.status}, but not a chat completion, twice:"
            f" {reply.excerpt()}; check that base_url is an OpenAI-compatible API",
            reply.status,
        )

    def _completion(self, reply: Reply) -> Completion | None:
        """The text of a chat completion, or of a refusal; ``None`` when the body is neither."""
        try:
            body = reply.json()
            message = body["choices"][0]["message"]
            text = message.get("content") or message.get("refusal") or ""
            if not isinstance(text, str) or len(text) > _LONGEST:
                raise TypeError
        except (ValueError, LookupError, TypeError, AttributeError):
            return None
        tokens = _tokens(body)
        with self._lock:
            self._unreported += tokens is None
            self._prompt_tokens += tokens[0] if tokens else 0
            self._completion_tokens += tokens[1] if tokens else 0
        return Completion(reply.without_key(text), *(tokens or (0, 0)))


def _tokens(body: Mapping[str, Any]) -> tuple[int, int] | None:
    """Prompt and completion tokens that a reply reports."""
    usage = body.get("usage")
    if not isinstance(usage, dict):
        return None
    counts = [usage.get("prompt_tokens"), usage.get("completion_tokens")]
    whole = [n for n in counts if type(n) is int and 0 <= n <= _MOST_TOKENS]
    return (whole[0], whole[1]) if len(whole) == 2 else None


def _result(future: Future[Dialogue[Any] | JudgeError]) -> Dialogue[Any] | JudgeError | None:
    """The result of a finished future; ``None`` when it was cancelled or raised."""
    return None if future.cancelled() or future.exception() else future.result()
