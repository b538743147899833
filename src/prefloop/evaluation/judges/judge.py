"""What a judge is, and judges made from other things: a score, both orders, a cache.

``prepare(judge, VerdictCache(path))`` composes them for an evaluation:
``BothOrders(CachedJudge(judge, cache))`` asks a model in both orders and never asks the same thing
twice, a judge from scores keeps the scores. Caching sits inside the two orders, so a killed run
loses only the answers on their way and exchanging the sides costs nothing.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

from prefloop.data.replies import Reply, text_of
from prefloop.errors import ConfigError, JudgeError
from prefloop.evaluation.judges.cache import VerdictCache, through_cache, verdict_key
from prefloop.evaluation.judges.graders import (
    CachedGrader,
    FunctionGrader,
    Grader,
    fingerprint_of,
    grade_many,
)
from prefloop.evaluation.judges.tally import Tally, valid_of
from prefloop.evaluation.judges.usage import Usage
from prefloop.evaluation.judges.verdict import Grade, Verdict
from prefloop.records import Conversation, Message, Prompt, prompt_key

Item = tuple[Sequence[Message], Reply, Reply]
"""One question to a judge: prompt, response a, response b."""
OnVerdict = Callable[[int, Verdict], None]
A = TypeVar("A")

__all__ = [
    "BothOrders",
    "CachedJudge",
    "FunctionGrader",
    "Grader",
    "Item",
    "Judge",
    "PreparedJudge",
    "ScoreJudge",
    "Verdict",
    "VerdictCache",
    "compare_many",
    "prepare",
]


class Judge(Protocol):
    """Says which of two responses is better. It may have ``compare_many(items, on_verdict)``,
    ``fingerprint()``.
    """

    name: str

    def compare(self, prompt: Sequence[Message], a: str, b: str) -> Verdict:
        """Verdict on response ``a`` against response ``b``, both as text; ``compare_many`` is given
        their turns too.
        """
        ...


class ScoreJudge:
    """A judge from a grader: the higher score wins, scores within ``tie_margin`` tie. Its verdict
    has no order to swap.

    ``prompts`` gives the grader the ids and ``meta`` of known prompts; any other reaches it with a
    hash for an id and no meta. A response without a readable grade makes a tie that counts as
    unparsable, one whose request failed a failed verdict.
    """

    symmetric = True

    def __init__(
        self, grader: Grader, *, tie_margin: float = 0.0, prompts: Iterable[Prompt] = ()
    ) -> None:
        if not tie_margin >= 0:
            raise ConfigError(f"tie_margin must be 0 or more, found {tie_margin}")
        self.grader, self.tie_margin, self.name = grader, tie_margin, grader.name
        self.address: str = getattr(grader, "address", "")
        self.unproven: str = getattr(grader, "unproven", "")
        self._known: Mapping[str, Prompt] = {
            prompt_key(prompt.prompt): prompt for prompt in prompts
        }

    def compare(self, prompt: Sequence[Message], a: Reply, b: Reply) -> Verdict:
        """Verdict from the two scores, which ``raw`` keeps. Raises ``JudgeError`` when a request
        failed.
        """
        verdict = self.compare_many([(prompt, a, b)])[0]
        if verdict.failed:
            raise JudgeError(verdict.failed)
        return verdict

    def compare_many(
        self, items: Sequence[Item], on_verdict: OnVerdict | None = None
    ) -> list[Verdict]:
        """Verdicts in the order of ``items``; all responses go to the grader in one batch."""
        graded = [(self._record(prompt), response) for prompt, a, b in items for response in (a, b)]
        return _in_twos(
            lambda arrived: grade_many(self.grader, graded, arrived),
            self._verdict,
            len(items),
            on_verdict,
        )

    def fingerprint(self) -> str:
        """The grader's fingerprint and the tie margin."""
        return f"{fingerprint_of(self.grader)}|tie_margin={self.tie_margin}"

    def cached(self, cache: VerdictCache) -> ScoreJudge:
        """The same judge with every score kept in ``cache``: a response in several pairs is graded
        once.
        """
        return ScoreJudge(
            CachedGrader(self.grader, cache),
            tie_margin=self.tie_margin,
            prompts=self._known.values(),
        )

    def close(self) -> None:
        """Give back what the grader holds: memory, connections."""
        close: Callable[[], None] = getattr(self.grader, "close", lambda: None)
        close()

    @property
    def tally(self) -> Tally:
        """The counts of a judge from ``cached``; a question is a response to grade."""
        if not isinstance(self.grader, CachedGrader):
            raise AttributeError("only a judge from cached() or prepare() counts its questions")
        return self.grader.tally

    @property
    def usage(self) -> Usage:
        """What the grader has used so far."""
        return getattr(self.grader, "usage", Usage())

    def _record(self, prompt: Sequence[Message]) -> Prompt:
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
    """Asks a judge (a, b) and (b, a). Where the two answers differ the verdict is a tie, and it is
    counted.

    ``n_asked`` counts comparisons (two questions each) and ``n_disagreed`` those whose orders
    disagreed. A comparison of which an order failed is a failed one and in neither count; one of
    which an order held no verdict is a tie that says nothing about the order.
    """

    symmetric = True

    def __init__(self, judge: Judge) -> None:
        self.judge, self.name = judge, judge.name
        self.n_asked = self.n_disagreed = 0
        self._lock = threading.Lock()

    def compare(self, prompt: Sequence[Message], a: Reply, b: Reply) -> Verdict:
        """Verdict that survives an order swap, or a tie. Raises ``JudgeError`` when a request
        failed.
        """
        verdict = self.compare_many([(prompt, a, b)])[0]
        if verdict.failed:
            raise JudgeError(verdict.failed)
        return verdict

    def compare_many(
        self, items: Sequence[Item], on_verdict: OnVerdict | None = None
    ) -> list[Verdict]:
        """Verdicts in the order of ``items``; both orders of all of them go to the judge in one
        batch.
        """
        both = [ordered for prompt, a, b in items for ordered in ((prompt, a, b), (prompt, b, a))]
        return _in_twos(
            lambda arrived: compare_many(self.judge, both, arrived),
            self._combine,
            len(items),
            on_verdict,
        )

    def fingerprint(self) -> str:
        """The judge's fingerprint, marked as asked in both orders."""
        return f"{fingerprint_of(self.judge)}|both-orders"

    @property
    def tally(self) -> Tally:
        """The counts of the ``CachedJudge`` inside; a question is one order of a pair."""
        found: Tally = self.judge.tally  # type: ignore[attr-defined]
        return found

    @property
    def usage(self) -> Usage:
        """What the judge has used so far."""
        return getattr(self.judge, "usage", Usage())

    def _combine(self, forward: Verdict, backward: Verdict) -> Verdict:
        if forward.failed or backward.failed:
            return Verdict.failure(forward.failed or backward.failed)
        by_order = forward.score, 1 - backward.score
        unparsable = forward.unparsable + backward.unparsable
        agree = None if unparsable else by_order[0] == by_order[1]
        with self._lock:
            self.n_asked += 1
            self.n_disagreed += agree is False
        return Verdict(
            by_order[0] if agree else 0.5,
            orders_agree=agree,
            raw=forward.raw + backward.raw,
            unparsable=unparsable,
            prompt_tokens=forward.prompt_tokens + backward.prompt_tokens,
            completion_tokens=forward.completion_tokens + backward.completion_tokens,
            by_order=by_order,
        )


class CachedJudge:
    """A judge that looks in a ``VerdictCache`` first; ``tally`` counts where verdicts came from and
    stops a judge that cannot be used.
    """

    def __init__(self, judge: Judge, cache: VerdictCache) -> None:
        self.judge, self.cache, self.name = judge, cache, judge.name
        self.tally = Tally(judge.name, getattr(judge, "prices", None), cache.path, valid_of(judge))

    def compare(self, prompt: Sequence[Message], a: Reply, b: Reply) -> Verdict:
        """The stored verdict, or the judge's, which is stored. Raises ``JudgeError`` when the
        request failed.
        """
        verdict = self.compare_many([(prompt, a, b)])[0]
        if verdict.failed:
            raise JudgeError(verdict.failed)
        return verdict

    def compare_many(
        self, items: Sequence[Item], on_verdict: OnVerdict | None = None
    ) -> list[Verdict]:
        """Verdicts in the order of ``items``. Each new one is stored as it arrives; repeats are
        asked once.
        """
        identity = fingerprint_of(self.judge)
        reference: Callable[[Sequence[Message]], str] = getattr(
            self.judge, "reference", lambda prompt: ""
        )
        keys = [verdict_key(identity, *item, reference=reference(item[0])) for item in items]

        def ask(indices: list[int], arrived: OnVerdict) -> None:
            compare_many(self.judge, [items[index] for index in indices], arrived)

        return through_cache(self.cache, self.tally, keys, ask, on_verdict)

    def fingerprint(self) -> str:
        """The judge's own: a cache changes no verdict."""
        return fingerprint_of(self.judge)

    @property
    def usage(self) -> Usage:
        """What the judge has used so far."""
        return getattr(self.judge, "usage", Usage())


PreparedJudge = BothOrders | CachedJudge | ScoreJudge


def prepare(judge: Judge, cache: VerdictCache) -> PreparedJudge:
    """A judge ready for an evaluation: asked in both orders unless it is ``symmetric``, answers
    kept, questions counted in ``tally``.

    Its ``compare_many`` raises ``JudgeError`` when the judge cannot be used
    (``prefloop.evaluation.judges.tally``).
    """
    if isinstance(judge, ScoreJudge):
        return judge.cached(cache)
    cached = CachedJudge(judge, cache)
    return cached if getattr(judge, "symmetric", False) else BothOrders(cached)


def compare_many(
    judge: Judge, items: Sequence[Item], on_verdict: OnVerdict | None = None
) -> list[Verdict]:
    """Verdicts in the order of ``items``, through the judge's own ``compare_many`` where it has
    one; ``compare`` is given texts.

    ``on_verdict(index, verdict)`` is called once for each, in the calling thread, as verdicts
    arrive.
    """
    batched: Callable[[Sequence[Item], OnVerdict | None], list[Verdict]] | None = getattr(
        judge, "compare_many", None
    )
    if batched is not None:
        return batched(items, on_verdict)
    verdicts = []
    for index, (prompt, a, b) in enumerate(items):
        verdicts.append(judge.compare(prompt, text_of(a), text_of(b)))
        if on_verdict:
            on_verdict(index, verdicts[-1])
    return verdicts


def _in_twos(
    ask: Callable[[Callable[[int, A], None]], object],
    combine: Callable[[A, A], Verdict],
    count: int,
    on_verdict: OnVerdict | None,
) -> list[Verdict]:
    """Verdicts of ``count`` pairs from answers 2 k and 2 k + 1, which may arrive in any order."""
    answers: dict[int, A] = {}
    verdicts: dict[int, Verdict] = {}

    def arrived(index: int, answer: A) -> None:
        answers[index] = answer
        pair = index // 2
        if 2 * pair in answers and 2 * pair + 1 in answers:
            verdicts[pair] = combine(answers[2 * pair], answers[2 * pair + 1])
            if on_verdict:
                on_verdict(pair, verdicts[pair])

    ask(arrived)
    return [verdicts[pair] for pair in range(count)]
