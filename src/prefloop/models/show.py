"""Records as the model will read them, decoded, with what is learnt between ⟦ and ⟧."""

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
from prefloop.records import BestOf, Comparison, Demonstration, Rating, Record, answer_turns


def chat_of(model: str, template: str, cache: Path) -> ChatFormat:
    """The chat format of a model, by its tokenizer alone. Raises ``ModelError``."""
    return ChatFormat.load(tokenizer(resolve(model, cache)), template)


def shown(record: Record, chat: ChatFormat, every: bool = True) -> Iterator[str]:
    """What becomes of a record: a demonstration's sequences, each answer of a pair or a thumb, a
    prompt up to where it is answered.

    ``every``: all assistant turns of a demonstration are learnt, or the last alone. Where the chat
    template refuses the record, the reason.
    """
    try:
        if isinstance(record, Demonstration):
            for tokens in chat.sequences(record.prompt, answer_turns(record), every):
                yield f"{record.id}:\n{chat.marked(tokens)}"
            return
        ids = chat.prompt_ids(record.prompt)
        before = chat.marked(Tokens(ids, [False] * len(ids)))
        answers = record.responses if isinstance(record, Comparison | BestOf) else []
        answers = [record.response] if isinstance(record, Rating) else answers
        if not answers:
            yield f"{record.id}:\n{before}"
        for place, answer in enumerate(answers):
            shown = chat.marked(chat.answer(record.prompt, answer))
            yield f"{record.id}, {_standing(record, place)}:\n{before}{shown}"
    except DataError as error:
        yield f"{record.id}: {error}"


class Fitting:
    """Whether a model takes records: its chat template, its tokens, and the length where one is
    given.
    """

    def __init__(self, chat: ChatFormat, max_length: int | None, every: bool) -> None:
        self.encoder, self.every = Encoder(chat, max_length or sys.maxsize), every
        self.problems: list[str] = []
        self.refused = 0

    def look(self, record: Record) -> None:
        """Take a record in. What is wrong with the first few that are refused stands in
        ``problems``.
        """
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
        answers = record.responses if isinstance(record, Comparison | BestOf) else []
        for answer in [record.response] if isinstance(record, Rating) else answers:
            self.encoder.response(record.id, record.prompt, answer, length)


def _standing(record: Record, place: int) -> str:
    """What people said of an answer."""
    if isinstance(record, BestOf):
        return f"response {place} ({'good' if place in record.best else 'not good'})"
    if isinstance(record, Rating):
        return ", ".join(
            f"{sum(v.value == way for v in record.votes)} thumbs {way}" for way in ("up", "down")
        )
    assert isinstance(record, Comparison)
    mine = sum(vote.choice == place for vote in record.votes)
    return f"response {place} ({mine} of {len(record.votes)} votes)"
