"""A vLLM server, on this machine or another, that samples from the policy's adapter.

Start it on the model that is trained. Adapters must be loadable while it runs, and log-probs must
be those of the distribution that is sampled from:

    VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve MODEL --enable-lora --max-lora-rank 16 \\
        --logprobs-mode processed_logprobs --quantization bitsandbytes

Leave ``--quantization`` out where ``backbone.precision`` is not nf4. Add ``--dtype float32`` where
the trainer computes in float32, and the ``--hf-overrides`` of the model card where the run has a
``backbone.rope``.

Every version of the policy is a new adapter under a new name, so neither the server's prefix cache
nor a lost answer can bring an old policy back. Adapters are files: the server must see
``generation.server_adapters`` under the same path. Every stage that samples compares the server's
log-probs with the trainer's.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from prefloop.base.endpoint import Endpoint, parsed_url
from prefloop.config import GenerationConfig
from prefloop.errors import EngineError, RequestError
from prefloop.models.backbone import Backbone
from prefloop.rollouts.check import SERVER, SERVER_KEY, check
from prefloop.rollouts.engine import SAVED, Rollout

HOW = "start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and --enable-lora"
TIMEOUT_S = 600.0
MOST_BYTES = 256 << 20
"""Largest answer. A token with its log-prob takes about 100 bytes, and one request may ask for a
million tokens.
"""


class ServerEngine:
    """Rollouts over HTTP from a vLLM server."""

    name = "server"

    def __init__(self, backbone: Backbone, generation: GenerationConfig) -> None:
        check(self.name, generation, backbone.config)
        self.backbone = backbone
        self.generation = generation
        self.url = str(generation.server).rstrip("/")
        self._session = uuid.uuid4().hex[:8]
        self._version = 0
        self._adapter: str | None = None
        given = generation.server_adapters
        self._folder = (
            Path(tempfile.mkdtemp(prefix="prefloop-")) if given is None else given / self._session
        )
        self.model, longest = self._served(
            self._ask(lambda: self._endpoint("/v1/models").get().json())
        )
        if longest is not None and longest < backbone.config.max_length:
            raise EngineError(
                f"{self.url} was started with --max-model-len {longest}, backbone.max_length is"
                f" {backbone.config.max_length}"
            )

    @property
    def _workers(self) -> int:
        return max(1, min(64, self.generation.max_num_seqs))

    def load_policy(self, role: str | None) -> None:
        if role is None:
            self._unload()
            return
        self._version += 1
        name = f"prefloop-{self._session}-{self._version}"
        self.backbone.save_role(role, self._folder / name)
        place = str((self._folder / name).resolve())
        self._ask(
            lambda: self._endpoint("/v1/load_lora_adapter").post(
                {"lora_name": name, "lora_path": place}
            )
        )
        self._unload()
        self._adapter = name

    def generate(
        self,
        prompts_ids: Sequence[Sequence[int]],
        n: int,
        seed: int,
        advance: Callable[..., None] | None = None,
        temperature: float | None = None,
    ) -> list[Rollout]:
        heat = self.generation.temperature if temperature is None else temperature
        vocabulary = self.backbone.causal_lm.config.get_text_config().vocab_size

        completions = self._endpoint("/v1/completions", connections=self._workers)

        def ask(i: int) -> list[Rollout]:
            body = {
                "model": self._adapter or self.model,
                "prompt": list(prompts_ids[i]),
                "n": n,
                "max_tokens": self.generation.max_new_tokens,
                "temperature": heat,
                "seed": (seed * 1_000_003 + i * n) % 2**31,  # response k gets seed + k from vLLM
                # The server would take what is not sent from the model's generation_config.
                "top_p": 1.0,
                "top_k": 0,
                "min_p": 0.0,
                "repetition_penalty": 1.0,
                "presence_penalty": 0.0,
                "frequency_penalty": 0.0,
                "stop_token_ids": [self.backbone.chat.stop_id],
                "ignore_eos": True,
                "logprobs": 0,
                "return_token_ids": True,
            }
            answer = completions.post(body, stop).json()
            return rollouts_of(answer, i, n, self.backbone.chat.stop_id, vocabulary, self.url)

        rollouts: dict[int, list[Rollout]] = {}
        stop = threading.Event()
        pool = ThreadPoolExecutor(self._workers)
        futures = {pool.submit(ask, i): i for i in range(len(prompts_ids))}
        try:
            for future in as_completed(futures):
                rollouts[futures[future]] = self._ask(future.result)
                if advance:
                    advance(n)
        finally:
            # After a failure or an interrupt the other requests are dropped: the process could not
            # end before its threads.
            stop.set()
            completions.close()
            pool.shutdown(wait=False, cancel_futures=True)
        return [r for i in range(len(prompts_ids)) for r in rollouts[i]]

    def _served(self, answer: Any) -> tuple[str, int | None]:
        """The name of the first model that is not an adapter, and its longest context where the
        server gives it.
        """
        models = answer.get("data") if isinstance(answer, dict) else None
        for model in models if isinstance(models, list) else ():
            if (
                isinstance(model, dict)
                and isinstance(model.get("id"), str)
                and not model.get("parent")
            ):
                longest = model.get("max_model_len")
                return model["id"], longest if isinstance(longest, int) else None
        raise EngineError(f"{self.url} serves no model: {str(answer)[:200]}")

    def pause(self) -> None:
        """Nothing to free: the server has memory of its own."""

    def close(self) -> None:
        """Unload the adapter from the server and delete its files."""
        self._unload()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _unload(self) -> None:
        if self._adapter is not None:
            name, self._adapter = self._adapter, None
            with contextlib.suppress(EngineError):  # a server that was restarted does not know it
                self._ask(
                    lambda: self._endpoint("/v1/unload_lora_adapter").post({"lora_name": name})
                )
            shutil.rmtree(self._folder / name, ignore_errors=True)

    def _endpoint(self, path: str, connections: int = 1) -> Endpoint:
        return Endpoint(
            url=parsed_url(self.url + path, SERVER, f"the key goes into {SERVER_KEY}"),
            who=f"vLLM server {self.url}{path}",
            setting=SERVER,
            key_env=SERVER_KEY,
            key_required=False,
            timeout=TIMEOUT_S,
            max_retries=4,
            backoff=1.0,
            advice={
                401: f"set {SERVER_KEY}",
                404: HOW,
                400: "see the message: adapter rank, folder or length do not fit the server",
            },
            max_connections=connections,
            most_bytes=MOST_BYTES,
        )

    def _ask(self, request: Callable[[], Any]) -> Any:
        try:
            return request()
        except RequestError as error:
            raise EngineError(f"{error}\n{SAVED}") from error
        except ValueError as error:
            raise EngineError(
                f"{self.url} answered with something that is not JSON: {error}"
            ) from error


def rollouts_of(
    answer: Any, prompt: int, n: int, stop_id: int, vocabulary: int, who: str
) -> list[Rollout]:
    """The ``n`` responses to a prompt in a server's answer. Raises ``EngineError`` for an answer of
    any other form.
    """
    try:
        choices = sorted(answer["choices"], key=lambda c: c["index"])
        responses = [(list(c["token_ids"]), list(c["logprobs"]["token_logprobs"])) for c in choices]
    except (LookupError, TypeError) as error:
        cause = f"{type(error).__name__}: {error}"
        raise EngineError(
            f"{who}: the answer has no token ids and log-probs ({cause:.200}): the server needs"
            " vLLM 0.22 or later"
        ) from error
    if len(responses) != n or any(
        len(ids) != len(logps) or None in logps for ids, logps in responses
    ):
        raise EngineError(
            f"{who}: {len(responses)} responses where {n} were asked for, or tokens without"
            " log-probs"
        )
    if not all(
        _is_token(i, vocabulary) and _is_logp(logp)
        for each in responses
        for i, logp in zip(*each, strict=True)
    ):
        raise EngineError(
            f"{who}: the answer holds a token that is not among the model's {vocabulary:,}, or a"
            " log-prob that is not finite: serve the model that is trained, with vLLM 0.22 or later"
        )
    return [
        Rollout(prompt, ids, logps, bool(ids) and ids[-1] == stop_id) for ids, logps in responses
    ]


def _is_token(value: Any, known: int) -> bool:
    return type(value) is int and 0 <= value < known


def _is_logp(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30
