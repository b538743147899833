"""Read the answers of an Argilla dataset as votes: one annotator's answers to one record, by an
:class:`ArgillaReading`.

A ranking gives a vote for every pair of responses (rank 1 is the best, equal ranks are a tie). A
label names the better or best response. Ratings of the responses give a vote whose strength is
their difference, and a rating of the pair a vote whose strength is the distance from the middle of
its scale. Only submitted answers count. Suggestions are not answers.

Nothing here imports argilla: it reads the server's own JSON and the files that Argilla exports.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

from prefloop.base.console import listed
from prefloop.data.answers import answer_in
from prefloop.data.check import BadRow, check_distinct, check_prompt, check_text, json_type, mended
from prefloop.data.messages import messages_of
from prefloop.data.prompts import turns_at
from prefloop.data.responses import common_start, whole_prompt
from prefloop.data.row import Habits, Row
from prefloop.data.surroundings import SYSTEMS, around, is_system
from prefloop.records import (
    Comparison,
    Conversation,
    Message,
    Prompt,
    Rating,
    Record,
    Response,
    Thumb,
    Vote,
)

_AS_SHOWN = Habits(None, None)
"""The habits of the file are unknown, and answers stay as the annotators saw them."""
HIDDEN = "prefloop"
"""The key in a record's metadata under which ``prefloop label push`` keeps what annotators do not
see.
"""
STRENGTHS: dict[str, int | float] = {"slight": 1, "clear": 2, "strong": 3}
Choice = Literal[0, 1, "tie"]


@dataclass(frozen=True)
class ArgillaAnswer:
    """One annotator's answers to one record: question name → value, as Argilla keeps it."""

    annotator: str
    status: str
    """``submitted``, ``draft`` or ``discarded``."""
    values: Mapping[str, Any]
    at: str | None = None
    """Time of the last change, in UTC."""


@dataclass(frozen=True)
class Item:
    """One record of a dataset and the answers to it, oldest first where that is known."""

    fields: Mapping[str, Any]
    answers: Sequence[ArgillaAnswer] = ()
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def submitted(self) -> list[ArgillaAnswer]:
        """The submitted answers, which are the ones that count."""
        return [answer for answer in self.answers if answer.status == "submitted"]

    def mended(self) -> tuple[Item, int]:
        """The item with characters replaced that no file can hold, and the number of answers in
        which the annotator typed such characters.
        """
        answers = [
            replace(one, annotator=mended(one.annotator), values=mended(dict(one.values)))
            for one in self.answers
        ]
        changed = sum(new != old for new, old in zip(answers, self.answers, strict=True))
        return (replace(self, answers=answers) if changed else self), changed


@dataclass(frozen=True)
class ArgillaQuestion:
    """A question of a dataset, and what its values mean as a vote or a thumb."""

    name: str
    type: str
    """``ranking``, ``label_selection``, ``rating``, ``text``, ``multi_label_selection`` or
    ``span``.
    """
    options: tuple[Any, ...] = ()
    """The values to choose from, in the order of the page; in an exported file, those that its row
    holds.
    """
    known: bool = True
    """Whether ``options`` are complete."""
    means: Mapping[Any, Any] = field(default_factory=dict)
    """For votes: value → index of a response, or ``tie``. For thumbs: value → ``up`` or ``down``.
    ``None`` where the value means neither.
    """

    def describe(self) -> str:
        """Name, type and values: ``'better' (label: A, B, tie)``."""
        kind = self.type.removesuffix("_selection").replace("_", "-")
        shown = [str(option)[:40] for option in self.options]
        return f"'{self.name}' ({kind}{': ' if shown else ''}{', '.join(shown)})"


@dataclass(frozen=True)
class ArgillaReading:
    """What the fields and questions of a dataset mean."""

    prompt: tuple[str, ...]
    """Fields of the prompt, joined by a line break; none where each response is a whole
    conversation.
    """
    responses: tuple[str, ...]
    """Fields of the responses, in the order of the record; none where the dataset holds prompts
    only.
    """
    system: str | None = None
    preferred: ArgillaQuestion | None = None
    """The question which response is better: a ranking, a label, or a rating of the pair (low
    values are for the first response).
    """
    rated: tuple[ArgillaQuestion, ...] = ()
    """Ratings, one for each response."""
    thumb: ArgillaQuestion | None = None
    strength: ArgillaQuestion | None = None
    why: ArgillaQuestion | None = None
    unused: tuple[str, ...] = ()
    """Descriptions of the questions that are not used."""

    def describe(self) -> str:
        """A description of the reading, for the log."""
        parts = []
        if self.preferred is not None:
            parts.append(
                f"question {self.preferred.describe()} is read as the"
                f" vote{self._scale(self.preferred)}"
            )
        if self.rated:
            of = ", ".join(question.describe() for question in self.rated)
            parts.append(f"questions {of} are read as a vote with the difference as its strength")
        if self.thumb is not None:
            ups, downs, rest = (
                [str(v) for v, means in self.thumb.means.items() if means == m]
                for m in ("up", "down", None)
            )
            none = f", {', '.join(rest)} neither" if rest else ""
            parts.append(
                f"question {self.thumb.describe()} is read as the thumb: {', '.join(ups)} up,"
                f" {', '.join(downs)} down{none}"
            )
        parts += [
            f"question '{question.name}' is the {what}"
            for what, question in (("strength", self.strength), ("why", self.why))
            if question is not None
        ]
        fields = (
            "the prompt is"
            f" {' and '.join(map(repr, self.prompt)) or 'what the responses begin with'}"
        )
        fields += f", the system's turn {self.system!r}" if self.system else ""
        fields += (
            f", the responses {', '.join(map(repr, self.responses))}"
            if self.responses
            else "; there are no responses"
        )
        parts.append(fields)
        if self.unused:
            parts.append(f"not used: {listed(self.unused)}")
        return "; ".join(parts)

    def _scale(self, question: ArgillaQuestion) -> str:
        if question.type == "ranking":
            return ", rank 1 the best"
        if question.type != "rating":
            none = [str(value) for value, means in question.means.items() if means is None]
            return f", {', '.join(none)} no vote" if none else ""
        low, high = min(question.options), max(question.options)
        return (
            f": {low} for {self.responses[0]!r}, {high} for {self.responses[1]!r}, the middle for"
            " neither"
        )


def row_of(
    item: Item, reading: ArgillaReading, id: str, source: str, habits: Habits = _AS_SHOWN
) -> Row:
    """The item's fields as a row, in which ``records_of`` notes what it does to them."""
    fields = dict(item.fields)
    if reading.system is not None and not is_system(reading.system):
        free = next((name for name in SYSTEMS if fields.get(name) is None), SYSTEMS[0])
        fields[free] = fields.pop(reading.system, None)
    return Row(fields, id, source, habits)


def records_of(item: Item, reading: ArgillaReading, row: Row) -> list[Record]:
    """The records that an item holds: a pair, a rating or a prompt, or, of more than two responses,
    every pair, ``<id>/<i>-<j>``.

    Of several pairs, those that no answer compares are left out where others are compared. ``row``
    is the result of ``row_of``. Raises ``BadRow``.
    """
    prompt, answers = _turns(row, reading)
    kept = {name: value for name, value in row.items() if name in (*row.unused, "id", "meta")}
    id, meta = row.id, {**item.meta, **kept}
    if not answers:
        return [Prompt(id, prompt, meta)]
    responses = [Response.of(turns, row.source) for turns in answers]
    texts = [response.text for response in responses]
    if len(texts) == 1:
        thumbs = [
            thumb for answer in item.submitted if (thumb := _thumb(reading, answer)) is not None
        ]
        return [Rating(id, prompt, responses[0], thumbs, meta)]
    if len(texts) == 2:
        check_distinct(texts[0], texts[1], *reading.responses)
    votes = [list(_votes(reading, answer)) for answer in item.submitted]
    pairs: list[Record] = []
    for i, j in itertools.combinations(range(len(texts)), 2):
        on_pair = [vote for each in votes for pair, vote in each if pair == (i, j)]
        if texts[i].strip() == texts[j].strip() or (not on_pair and any(votes)):
            continue
        pair_id = id if len(texts) == 2 else f"{id}/{i}-{j}"
        pairs.append(Comparison(pair_id, prompt, [responses[i], responses[j]], on_pair, meta))
    return pairs


def _turns(row: Row, reading: ArgillaReading) -> tuple[Conversation, list[list[Message]]]:
    """The prompt with its system text, history and tools, and the turns of each response."""
    needed = (*reading.prompt, *reading.responses)
    if missing := [name for name in needed if name not in row]:
        raise BadRow(missing[0], f"is missing (found: {listed(row) or 'nothing'})")
    # Taken out of the row, so that a prompt or response called 'history' is not read again as the
    # history.
    values = {name: row.pop(name) for name in dict.fromkeys(needed)}
    if not reading.prompt:
        if texts := [name for name in reading.responses if not isinstance(values[name], list)]:
            raise BadRow(texts[0], f"is {json_type(values[texts[0]])}, and there is no prompt")
        wholes = [messages_of(values[name], name, row) for name in reading.responses]
        return common_start(row, wholes, reading.responses)
    name, *more = reading.prompt
    turns = turns_at(row, name, values[name])
    if more:
        asked = "\n".join(check_text(values[name], name) for name in reading.prompt)
        turns = [Message("user", asked)]
    # A text called 'history' next to the prompt may be anything.
    prompt = around(row, turns, history=isinstance(row.get("history"), list))
    check_prompt(prompt, name)
    answers = [answer_in(row, values[name], name, prompt) for name in reading.responses]
    return whole_prompt(prompt, answers, reading.responses), [answer.turns for answer in answers]


def _votes(
    reading: ArgillaReading, answer: ArgillaAnswer
) -> Iterator[tuple[tuple[int, int], Vote]]:
    """An answer's vote on each pair of responses (i < j)."""
    count = len(reading.responses)
    why, given = _why(reading, answer), _strength(reading, answer)
    scores, only = _scores(reading, answer, count)
    for i, j in itertools.combinations(sorted(scores), 2):
        if only is not None and only not in (i, j):
            continue  # the best one says nothing of the others among themselves
        gap = scores[i] - scores[j]
        choice: Choice = "tie" if gap == 0 else 0 if gap > 0 else 1
        graded = reading.rated or (
            reading.preferred is not None and reading.preferred.type == "rating"
        )
        strength = given if given is not None else abs(gap) if graded and gap else None
        yield (i, j), Vote(answer.annotator, choice, strength, why, answer.at)


def _scores(
    reading: ArgillaReading, answer: ArgillaAnswer, count: int
) -> tuple[dict[int, int | float], int | None]:
    """A number for each response that the answer compares, where more is better; and, where it only
    chooses one response, that response's index.
    """
    if reading.rated:
        values = {i: answer.values.get(question.name) for i, question in enumerate(reading.rated)}
        return {
            i: _number(v, reading.rated[i].name) for i, v in values.items() if v is not None
        }, None
    question = reading.preferred
    value = answer.values.get(question.name) if question is not None else None
    if question is None or value is None:
        return {}, None
    if question.type == "ranking":
        return {index: -rank for index, rank in _ranks(question, value).items()}, None
    if question.type == "rating":
        low, high = min(question.options), max(question.options)
        # Low values are for the first response.
        off = (low + high) / 2 - _number(value, question.name)
        return {0: int(off) if off == int(off) else off, 1: 0}, None
    means = _meaning(question, value)
    if means is None:
        return {}, None
    if means == "tie":
        return dict.fromkeys(range(count), 0), None
    return {index: int(index == means) for index in range(count)}, int(means)


def _ranks(question: ArgillaQuestion, value: Any) -> dict[int, int]:
    """The rank of each response by its index; 1 is the best."""
    items = value if isinstance(value, list) else [value]
    ranks: dict[int, int] = {}
    for one in items:
        if not isinstance(one, Mapping):
            raise BadRow(
                question.name,
                "is a ranking without ranks: Argilla's SDK leaves them out and keeps the order of"
                " the page, so that nobody can tell which response was put first. Pull the dataset"
                " with `prefloop label pull`, which reads them",
            )
        rank = one.get("rank")
        if rank is None:
            continue
        if isinstance(rank, bool) or not isinstance(rank, int):
            raise BadRow(question.name, f"has the rank {str(rank)[:40]!r}, expected a whole number")
        index = _meaning(question, one.get("value"))
        if index in ranks:
            raise BadRow(question.name, f"ranks {str(one.get('value'))[:40]!r} twice")
        ranks[index] = rank
    return ranks


def _meaning(question: ArgillaQuestion, value: Any) -> Any:
    if not isinstance(value, str | int) or value not in question.means:
        known = listed(f"{one!r}" for one in question.means)
        raise BadRow(question.name, f"is {str(value)[:40]!r}, expected one of {known}")
    return question.means[value]


def _number(value: Any, name: str) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRow(name, f"is {json_type(value)}, expected a number")
    return value


def _strength(reading: ArgillaReading, answer: ArgillaAnswer) -> int | float | None:
    question = reading.strength
    value = answer.values.get(question.name) if question is not None else None
    if question is None or value is None:
        return None
    if question.type == "rating":
        return _number(value, question.name)
    return cast(int, _meaning(question, value))


def _why(reading: ArgillaReading, answer: ArgillaAnswer) -> str | None:
    value = answer.values.get(reading.why.name) if reading.why is not None else None
    return str(value).strip() or None if value is not None else None


def _thumb(reading: ArgillaReading, answer: ArgillaAnswer) -> Thumb | None:
    question = reading.thumb
    value = answer.values.get(question.name) if question is not None else None
    if question is None or value is None:
        return None
    means = _meaning(question, value)
    if means is None:
        return None
    return Thumb(answer.annotator, means, _why(reading, answer), answer.at)
