"""Counts of an evaluation's questions, and when to stop it: an unusable judge must not cost
thousands of requests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path

from prefloop.errors import JudgeError
from prefloop.evaluation.judges.usage import Prices, Usage
from prefloop.evaluation.judges.verdict import Grade, Verdict

MAX_UNPARSABLE = 0.05
"""Share of questions answered without a verdict above which an evaluation has no result."""
ENOUGH = 20
"""Questions before which an evaluation under way is not stopped."""
SURE = 4.0
"""Standard deviations above that share at which an evaluation stops early. The share is looked at
after every answer, so chance has many tries.
"""
MAX_FAILURES_IN_A_ROW = 10
_EXAMPLES = 3
_EXCERPT = 200


def progress_of(advance: Callable[..., None]) -> Callable[[int, Verdict], None]:
    """Moves a progress bar with each verdict. A pair that failed is not done; its count stands next
    to the bar.
    """
    failed = 0

    def on_verdict(index: int, verdict: Verdict) -> None:
        nonlocal failed
        failed += bool(verdict.failed)
        advance(0 if verdict.failed else 1, note=f"{failed:,} failed" if failed else "")

    return on_verdict


class Tally:
    """Counts every distinct question of an evaluation once, from the cache or asked.

    Raises ``JudgeError`` with three of the replies: from ``asked`` and ``remembered`` when so many
    of at least 20 answers are unparsable that the share is surely over 5 %, from ``finished`` when
    the share is over 5 %. ``asked`` also raises it when 10 requests in a row failed.
    """

    def __init__(
        self, name: str, prices: Prices | None = None, cache: Path | None = None, valid: str = ""
    ) -> None:
        self.name, self.prices, self.cache, self.valid = name, prices or Prices(), cache, valid
        self.n_asked = 0
        """Questions put to the judge in this run, without those that failed."""
        self.n_cached = 0
        """Questions answered from the cache; a repeated question counts each time."""
        self.n_failed = 0
        """Questions whose request failed after all retries."""
        self.n_unparsable = 0
        """Answers without a verdict, those from the cache included."""
        self._kept_unparsable = self._answers = self._prompt_tokens = self._completion_tokens = (
            self._unreported
        ) = 0
        self._seen: set[str] = set()
        self._failures_in_a_row = 0
        self._last_failure = ""
        self._examples: list[str] = []

    @property
    def total(self) -> Usage:
        """Tokens and cost of all answers, including those that an earlier run paid for. Failed
        questions have none.
        """
        tokens = self._prompt_tokens, self._completion_tokens
        return Usage(
            0,
            0,
            *tokens,
            unreported=self._unreported,
            cost=self.prices.cost(*tokens, self._unreported),
        )

    def remembered(self, answers: Iterable[tuple[str, Verdict | Grade]], repeats: int = 0) -> None:
        """Count answers from the cache by key, and ``repeats`` of questions."""
        for key, answer in answers:
            self.n_cached += 1
            self._count(key, answer)
        self._kept_unparsable = self.n_unparsable
        self.n_cached += repeats
        self._stop_if_surely_unparsable()

    def asked(self, key: str, answer: Verdict | Grade) -> None:
        """Count an answer that has just arrived."""
        if answer.failed:
            self.n_failed += 1
            self._last_failure = answer.failed
            self._failures_in_a_row += 1
            if self._failures_in_a_row == MAX_FAILURES_IN_A_ROW:
                raise JudgeError(
                    f"judge {self.name}: {MAX_FAILURES_IN_A_ROW} questions in a row failed; the"
                    f" last one: {answer.failed}\n       What was answered is kept: with the judge"
                    " mended, the same command asks only what is missing"
                )
            return
        self._failures_in_a_row = 0
        self.n_asked += 1
        self._count(key, answer)
        self._stop_if_surely_unparsable()

    def finished(self) -> None:
        """Raise when there were questions and every one failed, or when over 5 % of the answers,
        and 2 or more, are unparsable.
        """
        if self.n_failed and not self._answers:
            raise JudgeError(
                f"judge {self.name}: every question failed ({self.n_failed}); the last one:"
                f" {self._last_failure}"
            )
        if self.n_unparsable >= 2 and self.n_unparsable > MAX_UNPARSABLE * self._answers:
            raise self._unusable()

    def _count(self, key: str, answer: Verdict | Grade) -> None:
        if key in self._seen:
            return
        self._seen.add(key)
        self._answers += 1
        self._prompt_tokens += answer.prompt_tokens
        self._completion_tokens += answer.completion_tokens
        # A model that replied has read something, so 0 tokens mean that it did not report them.
        self._unreported += bool(answer.raw) and not answer.prompt_tokens
        self.n_unparsable += answer.unparsable
        if answer.unparsable and len(self._examples) < _EXAMPLES:
            self._examples.append(answer.raw[0][:_EXCERPT] if answer.raw else "")

    def _stop_if_surely_unparsable(self) -> None:
        expected = MAX_UNPARSABLE * self._answers
        if self._answers >= ENOUGH and self.n_unparsable > expected + SURE * math.sqrt(
            expected * (1 - MAX_UNPARSABLE)
        ):
            raise self._unusable()

    def _unusable(self) -> JudgeError:
        shown = "\n".join(f"       - {example!r}" for example in self._examples)
        valid = f"       One that can be read: {self.valid}\n" if self.valid else ""
        return JudgeError(
            f"judge {self.name}: {self.n_unparsable} of {self._answers} answers held no verdict,"
            f" even when asked again; over {MAX_UNPARSABLE:.0%} there is no result. Some"
            f" replies:\n{shown}\n{valid}       Take a stronger judge, raise --max-tokens if they"
            f" are cut off, or another mode{self._kept()}"
        )

    def _kept(self) -> str:
        """Where unreadable answers of an earlier run are stored, and how to ask again."""
        if not self._kept_unparsable or self.cache is None:
            return ""
        return (
            f"\n       {self._kept_unparsable} of the {self.n_unparsable} are from an earlier run,"
            f" stored in {self.cache}: to ask them again, delete that file or name another --cache"
        )
