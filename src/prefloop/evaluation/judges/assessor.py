"""What answers questions about responses: a judge compares two, a grader scores one.

Both are asked in batches and report each answer as it arrives, so that one cache
(``prefloop.evaluation.judges.cache``) serves both.
"""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from prefloop.data.replies import Reply, same_as, text_of
from prefloop.errors import JudgeError
from prefloop.evaluation.judges.usage import Prices, Usage
from prefloop.evaluation.judges.verdict import Grade, Verdict
from prefloop.records import Message, Prompt, identity

Pair = tuple[Sequence[Message], Reply, Reply]
"""A question to a judge: prompt, response a, response b."""
Single = tuple[Prompt, Reply]
"""A question to a grader: prompt, response."""
Q = TypeVar("Q")
A = TypeVar("A", Verdict, Grade)
OnAnswer = Callable[[int, A], None]
"""Takes the index of a question and its answer."""


class Assessor(ABC, Generic[Q, A]):
    """Answers questions of type Q by verdicts or grades."""

    name: str
    """Its name in reports and errors."""
    address: str = ""
    """Of the endpoint; empty for an assessor on this machine."""
    unproven: str = ""
    """Why its answers name no winner, as of a reward model that may be guessing; else empty."""
    valid: str = ""
    """Example of a reply that can be read, where it is asked for one in a fixed form."""
    prices: Prices = Prices()
    """What its tokens cost."""

    @abstractmethod
    def ask(self, questions: Sequence[Q], on_answer: OnAnswer[A] | None = None) -> list[A]:
        """Answers in the order of ``questions``.

        ``on_answer(index, answer)`` is called once for each in the calling thread, as the answers
        arrive. A question whose request fails has an answer with ``failed``. Raises ``JudgeError``
        for what every other question would meet too.
        """

    @abstractmethod
    def keys(self, questions: Sequence[Q]) -> list[str]:
        """For each question the hash of everything that determines its answer."""

    def fingerprint(self) -> str:
        """What determines the answers besides the question."""
        return self.name

    @property
    def usage(self) -> Usage:
        """Requests, tokens and cost so far."""
        return Usage()

    def close(self) -> None:
        """Give back memory and connections."""


class Judge(Assessor[Pair, Verdict]):
    """Says which of two responses is better."""

    symmetric: bool = False
    """Whether exchanging the responses can change no verdict, so that one order is enough."""

    def compare(self, prompt: Sequence[Message], a: Reply, b: Reply) -> Verdict:
        """Verdict on response ``a`` against response ``b``. Raises ``JudgeError`` when the request
        fails.
        """
        verdict = self.ask([(prompt, a, b)])[0]
        if verdict.failed:
            raise JudgeError(verdict.failed)
        return verdict

    def reference(self, prompt: Sequence[Message]) -> str:
        """The reference answer that is shown with ``prompt``."""
        return ""

    def keys(self, questions: Sequence[Pair]) -> list[str]:
        """``verdict_key`` of each question."""
        judge = self.fingerprint()
        return [verdict_key(judge, *pair, self.reference(pair[0])) for pair in questions]


class Grader(Assessor[Single, Grade]):
    """Gives one response a score; higher is better."""

    def keys(self, questions: Sequence[Single]) -> list[str]:
        """``grade_key`` of each question."""
        grader = self.fingerprint()
        return [grade_key(grader, *single) for single in questions]

    def grade(self, prompt: Prompt, response: Reply) -> float:
        """The score of one response. Raises ``JudgeError`` when there is none."""
        grade = self.ask([(prompt, response)])[0]
        if not math.isfinite(grade.score):
            raise JudgeError(
                grade.failed or f"{self.name}: the reply on prompt '{prompt.id}' holds no grade"
            )
        return grade.score


class OwnJudge(Protocol):
    """A user's own judge. Three more members are used where it has them:
    ``compare_many(items, on_verdict)``, which is given responses with their turns in place of
    texts, ``fingerprint()`` and ``symmetric``.
    """

    name: str

    def compare(self, prompt: Sequence[Message], a: str, b: str) -> Verdict:
        """Verdict on response ``a`` against response ``b``, both as text."""
        ...


class _Wrapped(Judge):
    """An ``OwnJudge`` as a ``Judge``."""

    def __init__(self, own: Any) -> None:
        self._own, self.name = own, own.name
        self.symmetric = getattr(own, "symmetric", False)

    def ask(
        self, questions: Sequence[Pair], on_answer: OnAnswer[Verdict] | None = None
    ) -> list[Verdict]:
        if hasattr(self._own, "compare_many"):
            return list(self._own.compare_many(questions, on_answer))
        return one_by_one(
            lambda prompt, a, b: self._own.compare(prompt, text_of(a), text_of(b)),
            questions,
            on_answer,
        )

    def fingerprint(self) -> str:
        own = getattr(self._own, "fingerprint", None)
        return self.name if own is None else str(own())


def judge_of(given: Judge | OwnJudge) -> Judge:
    """``given`` itself, or a user's own judge wrapped."""
    return given if isinstance(given, Judge) else _Wrapped(given)


def one_by_one(
    answer: Callable[..., A], questions: Sequence[Any], on_answer: OnAnswer[A] | None
) -> list[A]:
    """``answer(*question)`` of each question, reported before the next one is asked."""
    answers = []
    for index, question in enumerate(questions):
        answers.append(answer(*question))
        if on_answer:
            on_answer(index, answers[-1])
    return answers


def verdict_key(
    judge: str, prompt: Sequence[Message], a: Reply, b: Reply, reference: str = ""
) -> str:
    """sha256 of everything that determines a verdict: the judge's fingerprint, the conversation,
    both responses in this order, the reference answer.
    """
    return _sha256(
        [judge, identity(prompt), same_as(a), same_as(b), *([reference] if reference else [])]
    )


def grade_key(grader: str, prompt: Prompt, response: Reply) -> str:
    """sha256 of everything that determines a grade: the grader's fingerprint, the prompt with its
    id and ``meta``, the response.
    """
    return _sha256([grader, prompt.id, identity(prompt.prompt), prompt.meta, same_as(response)])


def _sha256(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
