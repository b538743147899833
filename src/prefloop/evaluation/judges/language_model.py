"""A language model as a judge or a grader, wherever it runs.

A model that replies without an answer is asked once more, for the answer alone. An endpoint holds
many such dialogues at a time; a model in this process steps a batch of them together.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from prefloop.errors import DataError, JudgeError
from prefloop.evaluation.judges.assessor import A, Grader, Judge, OnAnswer, Pair, Single
from prefloop.evaluation.judges.modes import Grading, Pairwise, Rubric
from prefloop.evaluation.judges.prompts import Chat, Question
from prefloop.evaluation.judges.usage import Prices, Usage
from prefloop.evaluation.judges.verdict import Grade, Verdict
from prefloop.records import Message, Prompt, prompt_key

V = TypeVar("V")
PROBE = [Message("user", "probe")]
"""The prompt of the question whose words enter a fingerprint."""


@dataclass(frozen=True)
class Completion:
    """A model's reply."""

    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True)
class Dialogue(Generic[V]):
    """A question and a model's replies to it so far."""

    question: Question[V]
    replies: tuple[Completion, ...] = ()
    value: V | None = None
    """The answer; ``None`` where the last reply held none."""

    @property
    def over(self) -> bool:
        """Whether there is an answer, or two replies without one."""
        return self.value is not None or len(self.replies) == 2

    def messages(self, structured: bool) -> Chat:
        """What the model is asked next."""
        unread = self.replies[-1].text if self.replies else None
        return self.question.messages(structured, unread)

    def then(self, reply: Completion) -> Dialogue[V]:
        """The dialogue with one more reply."""
        value = self.question.form.parse(reply.text)
        return Dialogue(self.question, (*self.replies, reply), value)

    @property
    def texts(self) -> tuple[str, ...]:
        """Of the replies."""
        return tuple(reply.text for reply in self.replies)

    @property
    def prompt_tokens(self) -> int:
        """Tokens that the model read."""
        return sum(reply.prompt_tokens for reply in self.replies)

    @property
    def completion_tokens(self) -> int:
        """Tokens that the model wrote."""
        return sum(reply.completion_tokens for reply in self.replies)


OnDone = Callable[[int, Dialogue[Any] | JudgeError], None]


class LanguageModel(Protocol):
    """Holds dialogues."""

    name: str
    """Its name in reports."""
    address: str
    """Of the endpoint; empty for a model on this machine."""
    prices: Prices

    @property
    def usage(self) -> Usage:
        """Requests, tokens and cost so far."""
        ...

    def identity(self) -> str:
        """What determines a reply besides the words: the model and how it samples."""
        ...

    def hold(self, questions: Sequence[Question[Any]], on_done: OnDone) -> None:
        """Ask every question until its dialogue is over; ``on_done(index, dialogue)`` is called in
        this thread as they end, with an error in place of a dialogue that failed.

        Raises ``JudgeError`` for what every other question would meet too.
        """
        ...

    def close(self) -> None:
        """Give back memory and connections."""
        ...


class _Asking:
    """What a judge and a grader by a language model have in common."""

    def __init__(self, model: LanguageModel, form: Pairwise | Grading | Rubric) -> None:
        self.model, self.valid = model, form.valid
        self.name, self.address, self.prices = model.name, model.address, model.prices

    def close(self) -> None:
        """Give back the model's memory and connections."""
        self.model.close()

    @property
    def usage(self) -> Usage:
        """Requests, tokens and cost of the model so far."""
        return self.model.usage

    def _ask(
        self,
        questions: Sequence[Question[V]],
        read: Callable[[Dialogue[V]], A],
        failure: Callable[[str], A],
        on_answer: OnAnswer[A] | None,
    ) -> list[A]:
        """``read(dialogue)`` of each dialogue, or ``failure(error)``, in the order of
        ``questions``.
        """
        answers: dict[int, A] = {}

        def done(index: int, end: Dialogue[V] | JudgeError) -> None:
            answers[index] = failure(str(end)) if isinstance(end, JudgeError) else read(end)
            if on_answer:
                on_answer(index, answers[index])

        self.model.hold(questions, done)
        return [answers[index] for index in range(len(questions))]

    def _fingerprint(self, probe: Question[Any], more: str = "") -> str:
        parts = "\0".join((self.model.identity(), probe.fingerprint(), more))
        return f"{self.name}:{hashlib.sha256(parts.encode()).hexdigest()}"


class ModelJudge(_Asking, Judge):
    """One order of a pairwise comparison; ``BothOrders`` makes it both.

    Only the judge's own reply is parsed, and the responses stand between markers that they cannot
    forge: a response that says ``[[A]]`` decides nothing. Where two replies hold no verdict it is a
    tie with ``unparsable=1``. ``prompts`` give the reference answers, as ``meta["reference"]``.
    """

    def __init__(
        self, model: LanguageModel, form: Pairwise | None = None, prompts: Iterable[Prompt] = ()
    ) -> None:
        self.form = form or Pairwise()
        super().__init__(model, self.form)
        self._references = {prompt_key(prompt.prompt): reference_of(prompt) for prompt in prompts}

    def ask(
        self, questions: Sequence[Pair], on_answer: OnAnswer[Verdict] | None = None
    ) -> list[Verdict]:
        """The model's verdicts on ``a`` shown first against ``b`` shown second."""

        def verdict(end: Dialogue[float]) -> Verdict:
            return Verdict(
                0.5 if end.value is None else end.value,
                raw=end.texts,
                unparsable=int(end.value is None),
                prompt_tokens=end.prompt_tokens,
                completion_tokens=end.completion_tokens,
            )

        in_words = [
            self.form.question(prompt, a, b, self.reference(prompt)) for prompt, a, b in questions
        ]
        return self._ask(in_words, verdict, Verdict.failure, on_answer)

    def reference(self, prompt: Sequence[Message]) -> str:
        """The reference answer that is shown with ``prompt``."""
        return self._references.get(prompt_key(prompt), "")

    def fingerprint(self) -> str:
        """The model and its address, how it samples, and every word of the question besides the
        texts to judge.
        """
        return self._fingerprint(self.form.question(PROBE, "a", "b", "r"))


class ModelGrader(_Asking, Grader):
    """Grades single responses from 1 to 10, or by a rubric. The reference answer is the prompt's
    ``meta["reference"]``.
    """

    def __init__(self, model: LanguageModel, form: Grading | Rubric | None = None) -> None:
        self.form = form or Grading()
        super().__init__(model, self.form)

    def ask(
        self, questions: Sequence[Single], on_answer: OnAnswer[Grade] | None = None
    ) -> list[Grade]:
        """The model's grades in the order of ``questions``."""

        def grade(end: Dialogue[dict[str, float]]) -> Grade:
            return Grade(
                math.nan if end.value is None else self.form.total(end.value),
                (end.value or {}) if isinstance(self.form, Rubric) else {},
                raw=end.texts,
                unparsable=int(end.value is None),
                prompt_tokens=end.prompt_tokens,
                completion_tokens=end.completion_tokens,
            )

        in_words = [
            self.form.question(prompt.prompt, response, reference_of(prompt))
            for prompt, response in questions
        ]
        return self._ask(in_words, grade, Grade.failure, on_answer)

    def fingerprint(self) -> str:
        """The model, how it samples, every word of the question besides the texts to judge, and the
        rubric's weights.
        """
        weights = (
            repr([c.weight for c in self.form.rubric]) if isinstance(self.form, Rubric) else ""
        )
        return self._fingerprint(self.form.question(PROBE, "a", "r"), weights)


def reference_of(prompt: Prompt) -> str:
    """The reference answer in ``meta["reference"]``: a text, or a list with one text for each user
    turn, of which the last turn's is taken.

    Raises ``DataError`` naming the prompt for anything else.
    """
    given = prompt.meta.get("reference") or ""
    if isinstance(given, list) and all(isinstance(text, str) for text in given):
        turn = sum(message.role == "user" for message in prompt.prompt)
        return given[turn - 1] if 1 <= turn <= len(given) else ""
    if not isinstance(given, str):
        raise DataError(
            f"prompt '{prompt.id}': meta.reference must be a text or a list of texts, one a turn;"
            f" found {given!r:.80}"
        )
    return given
