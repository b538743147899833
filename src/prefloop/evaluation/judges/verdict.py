"""The answers of judges and graders."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Grade:
    """A grader's answer on one response."""

    score: float
    """Higher is better; NaN where the answer was unparsable or the request failed."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """A rubric's score of each criterion."""
    raw: tuple[str, ...] = ()
    """The grader's replies, as text, in the order they were given."""
    unparsable: int = 0
    """1 where no reply held a grade, even when asked again."""
    failed: str = ""
    """Why there is no answer; such a grade enters no mean and no cache."""
    prompt_tokens: int = 0
    """Tokens that the grader read for it."""
    completion_tokens: int = 0
    """Tokens that the grader wrote for it."""

    @classmethod
    def failure(cls, why: str) -> Grade:
        """An answer that is missing, with the reason."""
        return cls(math.nan, failed=why)


@dataclass(frozen=True)
class Verdict:
    """A judge's answer on response a against response b."""

    score: float
    """1 when a wins, 0 when b wins, 0.5 for a tie; NaN where ``failed`` says why there is none."""
    orders_agree: bool | None = None
    """Whether asking in the other order gave the same answer; ``None`` when only one order was
    asked, or one held no verdict.
    """
    raw: tuple[str, ...] = ()
    """The judge's replies, as text, in the order they were given."""
    unparsable: int = 0
    """Questions whose answer held no verdict even when asked again; each counted as a tie."""
    failed: str = ""
    """Why the judge gave no answer; such a verdict enters no rate and no cache."""
    prompt_tokens: int = 0
    """Tokens that the judge read for it."""
    completion_tokens: int = 0
    """Tokens that the judge wrote for it."""
    by_order: tuple[float, ...] = ()
    """Score of a when it was shown first, and when it was shown second; empty where one order was
    asked.
    """
    grades: tuple[Grade, ...] = ()
    """Grades of a and of b, where each was graded alone."""

    @classmethod
    def failure(cls, why: str) -> Verdict:
        """An answer that is missing, with the reason."""
        return cls(math.nan, failed=why)
