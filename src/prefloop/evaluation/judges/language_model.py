"""A language model as a judge or a grader, wherever it runs.

A dialogue is the question and, when the reply holds no answer, one request for the answer alone. It
is a generator that yields what to say next: an endpoint runs many side by side, a model in this
process steps a batch of them together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from prefloop.data.replies import Reply
from prefloop.errors import DataError, JudgeError
from prefloop.evaluation.judges.graders import Graded, OnGrade
from prefloop.evaluation.judges.judge import Item, OnVerdict
from prefloop.evaluation.judges.modes import Grading, Pairwise, Rubric
from prefloop.evaluation.judges.prompts import Chat, Question
from prefloop.evaluation.judges.usage import Prices, Usage
from prefloop.evaluation.judges.verdict import Grade, Verdict
from prefloop.records import Message, Prompt, prompt_key

V = TypeVar("V")
A = TypeVar("A")
PROBE = [Message("user", "probe")]


@dataclass(frozen=True)
class Turn:
    """What to say next; the model puts it into the form of answer that it can."""

    question: Question[Any]
    unread: str | None = None
    """The reply that held no answer."""

    def messages(self, structured: bool) -> Chat:
        return self.question.messages(structured, self.unread)


@dataclass(frozen=True)
class Completion:
    """A model's reply."""

    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True)
class Outcome(Generic[V]):
    """What came of a dialogue; ``value`` is ``None`` where no reply held an answer."""

    value: V | None
    replies: tuple[Completion, ...]

    @property
    def kept(self) -> dict[str, Any]:
        """Fields that a verdict and a grade take over."""
        return {
            "raw": tuple(said.text for said in self.replies),
            "unparsable": int(self.value is None),
            "prompt_tokens": sum(said.prompt_tokens for said in self.replies),
            "completion_tokens": sum(said.completion_tokens for said in self.replies),
        }


Dialogue = Generator[Turn, Completion, Outcome[Any]]
OnDone = Callable[[int, Outcome[Any] | JudgeError], None]


class LanguageModel(Protocol):
    """Holds dialogues. ``name`` is what reports call it."""

    name: str
    address: str
    """Where it is asked; empty for one on this machine."""
    prices: Prices

    @property
    def usage(self) -> Usage:
        """What it has used so far."""
        ...

    def identity(self) -> str:
        """What determines a reply beside the words: the model and how it samples."""
        ...

    def hold(self, dialogues: Sequence[Dialogue], on_done: OnDone) -> None:
        """Run every dialogue; ``on_done(index, answer)`` is called in this thread as they end, with
        an error for one that failed.

        Raises ``JudgeError`` for what no other dialogue would survive.
        """
        ...

    def close(self) -> None:
        """Give back what it holds: memory, connections."""
        ...


def dialogue(question: Question[V]) -> Generator[Turn, Completion, Outcome[V]]:
    """Ask; ask once more for the answer alone when the reply holds none."""
    first = yield Turn(question)
    value = question.form.parse(first.text)
    if value is not None:
        return Outcome(value, (first,))
    second = yield Turn(question, unread=first.text)
    return Outcome(question.form.parse(second.text), (first, second))


class _Asking:
    """What a judge and a grader have in common: the model that they ask."""

    def __init__(self, model: LanguageModel) -> None:
        self.model, self.name, self.address = model, model.name, model.address

    def close(self) -> None:
        """Give back what the model holds: memory, connections."""
        self.model.close()

    @property
    def usage(self) -> Usage:
        """What the model has used so far."""
        return self.model.usage

    @property
    def prices(self) -> Prices:
        """What its tokens cost."""
        return self.model.prices

    def _ask(
        self,
        questions: Sequence[Question[V]],
        read: Callable[[Outcome[V]], A],
        failure: Callable[[str], A],
        on_answer: Callable[[int, A], None] | None,
    ) -> list[A]:
        """What ``read`` makes of each answer, ``failure`` of each error, in the order of
        ``questions``.
        """
        out: dict[int, A] = {}

        def done(index: int, answer: Outcome[V] | JudgeError) -> None:
            out[index] = failure(str(answer)) if isinstance(answer, JudgeError) else read(answer)
            if on_answer:
                on_answer(index, out[index])

        self.model.hold([dialogue(question) for question in questions], done)
        return [out[index] for index in range(len(questions))]

    def _fingerprint(self, probe: Question[Any], more: str = "") -> str:
        what = "\0".join((self.model.identity(), probe.fingerprint(), more))
        return f"{self.name}:{hashlib.sha256(what.encode()).hexdigest()}"


class ModelJudge(_Asking):
    """One order of a pairwise comparison; ``BothOrders`` makes it both.

    Only the judge's own reply is parsed, and the responses stand between markers that they cannot
    forge: a response that says ``[[A]]`` decides nothing. Where two replies hold no verdict it is a
    tie with ``unparsable=1``. ``prompts`` give the reference answers, as ``meta["reference"]``.
    ``compare`` raises ``JudgeError`` when the request fails; ``compare_many`` gives that pair a
    failed verdict.
    """

    def __init__(
        self, model: LanguageModel, form: Pairwise | None = None, prompts: Iterable[Prompt] = ()
    ) -> None:
        super().__init__(model)
        self.form = form or Pairwise()
        self._references = {prompt_key(prompt.prompt): reference_of(prompt) for prompt in prompts}

    def compare(self, prompt: Sequence[Message], a: Reply, b: Reply) -> Verdict:
        """The model's verdict on ``a`` shown first against ``b`` shown second."""
        verdict = self.compare_many([(prompt, a, b)])[0]
        if verdict.failed:
            raise JudgeError(verdict.failed)
        return verdict

    def compare_many(
        self, items: Sequence[Item], on_verdict: OnVerdict | None = None
    ) -> list[Verdict]:
        """Verdicts in the order of ``items``; ``on_verdict(index, verdict)`` is called as they
        arrive.
        """

        def verdict(answer: Outcome[float]) -> Verdict:
            return Verdict(0.5 if answer.value is None else answer.value, **answer.kept)

        questions = [
            self.form.question(prompt, a, b, self.reference(prompt)) for prompt, a, b in items
        ]
        return self._ask(questions, verdict, Verdict.failure, on_verdict)

    def reference(self, prompt: Sequence[Message]) -> str:
        """The reference answer that is shown with ``prompt``; part of the cache key."""
        return self._references.get(prompt_key(prompt), "")

    def fingerprint(self) -> str:
        """The model and its address, how it samples and every word of the question beside the texts
        to judge.
        """
        return self._fingerprint(self.form.question(PROBE, "a", "b", "r"))


class ModelGrader(_Asking):
    """Grades single responses from 1 to 10, or by a rubric. A reference answer is the prompt's
    ``meta["reference"]``.

    ``grade`` raises ``JudgeError`` when there is no grade; ``grade_many`` gives that response a
    failed or an unparsable one.
    """

    def __init__(self, model: LanguageModel, form: Grading | Rubric | None = None) -> None:
        super().__init__(model)
        self.form = form or Grading()

    def grade(self, prompt: Prompt, response: Reply) -> float:
        """The grade of ``response``."""
        grade = self.grade_many([(prompt, response)])[0]
        if grade.failed:
            raise JudgeError(grade.failed)
        if grade.unparsable:
            raise JudgeError(
                f"judge {self.name}: no grade for prompt '{prompt.id}' in its reply"
                f" {grade.raw[-1]!r:.200}"
            )
        return grade.score

    def grade_many(self, items: Sequence[Graded], on_grade: OnGrade | None = None) -> list[Grade]:
        """Grades in the order of ``items``; ``on_grade(index, grade)`` is called as they arrive."""

        def grade(answer: Outcome[dict[str, float]]) -> Grade:
            if answer.value is None:
                return Grade(float("nan"), **answer.kept)
            parts = answer.value if isinstance(self.form, Rubric) else {}
            return Grade(self.form.total(answer.value), parts, **answer.kept)

        questions = [
            self.form.question(prompt.prompt, response, reference_of(prompt))
            for prompt, response in items
        ]
        return self._ask(questions, grade, Grade.failure, on_grade)

    def fingerprint(self) -> str:
        """The model, how it samples and every word of the question beside the texts to judge, and
        the rubric's weights.
        """
        weights = (
            repr([c.weight for c in self.form.rubric]) if isinstance(self.form, Rubric) else ""
        )
        return self._fingerprint(self.form.question(PROBE, "a", "r"), weights)


def reference_of(prompt: Prompt) -> str:
    """The reference answer in ``meta["reference"]``: a text, or a list with one for each user turn,
    of which that of the last turn counts.

    Raises ``DataError`` naming the prompt for anything else.
    """
    found = prompt.meta.get("reference") or ""
    if isinstance(found, list) and all(isinstance(text, str) for text in found):
        turn = sum(message.role == "user" for message in prompt.prompt)
        return found[turn - 1] if 1 <= turn <= len(found) else ""
    if not isinstance(found, str):
        raise DataError(
            f"prompt '{prompt.id}': meta.reference must be a text or a list of texts, one a turn;"
            f" found {found!r:.80}"
        )
    return found
