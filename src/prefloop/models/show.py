"""Records as the model reads them, decoded to text, with the learned tokens between ⟦ and ⟧."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from prefloop.data.chat import ChatFormat
from prefloop.data.check import SHOWN
from prefloop.data.encode import Encoder
from prefloop.data.tokens import Tokens
from prefloop.errors import DataError
from prefloop.models.folder import tokenizer
from prefloop.models.lookup import resolve
from prefloop.records import (
    BestOf,
    Comparison,
    Demonstration,
    Rating,
    Record,
    Response,
    answer_turns,
)


def chat_of(model: str, template: str, cache: Path) -> ChatFormat:
    """A model's chat format; only the tokenizer is read. Raises ``ModelError`` without one."""
    return ChatFormat.load(tokenizer(resolve(model, cache)), template)


def shown(record: Record, chat: ChatFormat, every: bool = True) -> Iterator[str]:
    """Yield a record's texts: a demonstration's sequences, each rated answer, or a bare prompt.

    Yields the reason instead if the chat template rejects the record. ``every`` chooses between
    learning all assistant turns of a demonstration and learning the last one.
    """
    try:
        if isinstance(record, Demonstration):
            for tokens in chat.sequences(record.prompt, answer_turns(record), every):
                yield f"{record.id}:\n{chat.marked(tokens)}"
            return
        ids = chat.prompt_ids(record.prompt)
        prompt = chat.marked(Tokens(ids, [False] * len(ids)))
        answers = _answers(record)
        if not answers:
            yield f"{record.id}:\n{prompt}"
        for index, answer in enumerate(answers):
            text = chat.marked(chat.answer(record.prompt, answer))
            yield f"{record.id}, {_votes(record, index)}:\n{prompt}{text}"
    except DataError as error:
        yield f"{record.id}: {error}"


class Fitting:
    """Checks whether records fit a model: its chat template, its tokens and ``max_length``.

    ``refused`` counts the records that do not fit; ``problems`` has the reasons of the first few.
    """

    def __init__(self, chat: ChatFormat, max_length: int | None, every: bool) -> None:
        self.encoder, self.every = Encoder(chat, max_length or sys.maxsize), every
        self.problems: list[str] = []
        self.refused = 0

    def look(self, record: Record) -> None:
        """Check one record."""
        try:
            self._encode(record)
        except DataError as error:
            self.refused += 1
            if len(self.problems) < SHOWN:
                self.problems.append(str(error))

    def _encode(self, record: Record) -> None:
        if isinstance(record, Demonstration):
            self.encoder.conversation(record, self.every)
            return
        length = len(self.encoder.prompt(record.id, record.prompt))
        for answer in _answers(record):
            self.encoder.response(record.id, record.prompt, answer, length)


def _answers(record: Record) -> list[Response]:
    if isinstance(record, Comparison | BestOf):
        return record.responses
    return [record.response] if isinstance(record, Rating) else []


def _votes(record: Record, index: int) -> str:
    """People's judgment of an answer, as a label."""
    if isinstance(record, BestOf):
        return f"response {index} ({'good' if index in record.best else 'not good'})"
    if isinstance(record, Rating):
        return ", ".join(
            f"{sum(v.value == way for v in record.votes)} thumbs {way}" for way in ("up", "down")
        )
    assert isinstance(record, Comparison)
    votes = sum(vote.choice == index for vote in record.votes)
    return f"response {index} ({votes} of {len(record.votes)} votes)"
