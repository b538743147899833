"""Judges made of other assessors, and what an evaluation asks them through.

``prepare(judge, VerdictCache(path))`` puts them together: a judge is asked in both orders and never
asked the same question twice. The cache sits inside the two orders, so a killed run loses only the
answers on their way, and exchanging the sides asks nothing new. A judge from scores keeps the
scores.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

from prefloop.errors import ConfigError
from prefloop.evaluation.judges.assessor import Assessor, Judge, OnAnswer, Pair, Single
from prefloop.evaluation.judges.cache import Cached, VerdictCache
from prefloop.evaluation.judges.tally import Tally
from prefloop.evaluation.judges.usage import Usage
from prefloop.evaluation.judges.verdict import Grade, Verdict
from prefloop.records import Conversation, Message, Prompt, prompt_key

Q = TypeVar("Q", contravariant=True)
A = TypeVar("A", Verdict, Grade)


class Asked(Protocol[Q, A]):
    """Anything that is asked as an ``Assessor`` is."""

    def ask(self, questions: Sequence[Q], on_answer: OnAnswer[A] | None = None) -> list[A]:
        """Answers in the order of ``questions``."""
        ...


class ScoreJudge(Judge):
    """A judge from a grader: the higher score wins, scores within ``tie_margin`` tie.

    ``prompts`` gives the grader the ids and ``meta`` of known prompts; the id of any other prompt
    is a hash, and its ``meta`` is empty. A response without a readable grade makes a tie that
    counts as unparsable. One whose request failed makes a failed verdict. ``raw`` keeps the scores.
    """

    symmetric = True

    def __init__(
        self,
        grader: Assessor[Single, Grade],
        *,
        tie_margin: float = 0.0,
        prompts: Iterable[Prompt] = (),
    ) -> None:
        if not tie_margin >= 0:
            raise ConfigError(f"tie_margin must be 0 or more, found {tie_margin}")
        self.grader, self.tie_margin = grader, tie_margin
        self.name, self.address, self.unproven = grader.name, grader.address, grader.unproven
        self._asked: Asked[Single, Grade] = grader
        self._known: Mapping[str, Prompt] = {
            prompt_key(prompt.prompt): prompt for prompt in prompts
        }

    def ask(
        self, questions: Sequence[Pair], on_answer: OnAnswer[Verdict] | None = None
    ) -> list[Verdict]:
        """Verdicts in the order of ``questions``; all responses go to the grader in one batch."""
        singles = [(self._prompt(prompt), reply) for prompt, *both in questions for reply in both]
        return _in_twos(self._asked, singles, self._verdict, on_answer)

    def fingerprint(self) -> str:
        """The grader's fingerprint and the tie margin."""
        return f"{self.grader.fingerprint()}|tie_margin={self.tie_margin}"

    def cached(self, cache: VerdictCache) -> tuple[ScoreJudge, Tally]:
        """The same judge with every score kept in ``cache``, and its counts. A response in several
        pairs is graded once.
        """
        judge, asked = copy.copy(self), Cached(self.grader, cache)
        judge._asked = asked
        return judge, asked.tally

    @property
    def usage(self) -> Usage:
        """Requests, tokens and cost of the grader so far."""
        return self.grader.usage

    def close(self) -> None:
        """Give back the grader's memory and connections."""
        self.grader.close()

    def _prompt(self, prompt: Sequence[Message]) -> Prompt:
        key = prompt_key(prompt)
        return self._known.get(key) or Prompt(id=key[:16], prompt=Conversation.of(prompt))

    def _verdict(self, a: Grade, b: Grade) -> Verdict:
        if a.failed or b.failed:
            return Verdict.failure(a.failed or b.failed)
        lead = a.score - b.score
        score = 0.5 if math.isnan(lead) or abs(lead) <= self.tie_margin else float(lead > 0)
        return Verdict(
            score,
            raw=(*(a.raw or (repr(a.score),)), *(b.raw or (repr(b.score),))),
            unparsable=a.unparsable + b.unparsable,
            grades=(a, b),
            prompt_tokens=a.prompt_tokens + b.prompt_tokens,
            completion_tokens=a.completion_tokens + b.completion_tokens,
        )


class BothOrders:
    """Asks a judge (a, b) and (b, a). Where the two answers differ the verdict is a tie.

    A comparison fails when either order fails. One with an unparsable order is a tie that says
    nothing about the order.
    """

    def __init__(self, judge: Asked[Pair, Verdict]) -> None:
        self.judge = judge

    def ask(
        self, questions: Sequence[Pair], on_answer: OnAnswer[Verdict] | None = None
    ) -> list[Verdict]:
        """Verdicts in the order of ``questions``; both orders of all of them are one batch."""
        both = [pair for prompt, a, b in questions for pair in ((prompt, a, b), (prompt, b, a))]
        return _in_twos(self.judge, both, _of_both_orders, on_answer)


def _of_both_orders(forward: Verdict, backward: Verdict) -> Verdict:
    if forward.failed or backward.failed:
        return Verdict.failure(forward.failed or backward.failed)
    by_order = forward.score, 1 - backward.score
    unparsable = forward.unparsable + backward.unparsable
    agree = None if unparsable else by_order[0] == by_order[1]
    return Verdict(
        by_order[0] if agree else 0.5,
        orders_agree=agree,
        raw=forward.raw + backward.raw,
        unparsable=unparsable,
        prompt_tokens=forward.prompt_tokens + backward.prompt_tokens,
        completion_tokens=forward.completion_tokens + backward.completion_tokens,
        by_order=by_order,
    )


def prepare(judge: Judge, cache: VerdictCache) -> tuple[Asked[Pair, Verdict], Tally]:
    """What an evaluation asks in place of ``judge``: in both orders unless it is ``symmetric``,
    with answers kept in ``cache``. And the counts of its questions.

    ``ask`` raises ``JudgeError`` when the judge cannot be used
    (``prefloop.evaluation.judges.tally``).
    """
    if isinstance(judge, ScoreJudge):
        return judge.cached(cache)
    cached = Cached(judge, cache)
    return cached if judge.symmetric else BothOrders(cached), cached.tally


def _in_twos(
    asked: Asked[Q, A],
    questions: Sequence[Q],
    combine: Callable[[A, A], Verdict],
    on_verdict: OnAnswer[Verdict] | None,
) -> list[Verdict]:
    """The verdict of pair k from the answers to questions 2 k and 2 k + 1, which may arrive in any
    order.
    """
    answers: dict[int, A] = {}
    verdicts: dict[int, Verdict] = {}

    def arrived(index: int, answer: A) -> None:
        answers[index] = answer
        if index ^ 1 in answers:  # the other one of its pair
            pair = index // 2
            verdicts[pair] = combine(answers[2 * pair], answers[2 * pair + 1])
            if on_verdict:
                on_verdict(pair, verdicts[pair])

    asked.ask(questions, arrived)
    return [verdicts[pair] for pair in range(len(questions) // 2)]
