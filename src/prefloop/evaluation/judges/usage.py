"""What judging costs: requests, tokens and, where prices are known, money."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Prices:
    """Price of a million tokens in the user's currency; ``None`` where it is not known."""

    prompt: float | None = None
    completion: float | None = None

    def cost(self, prompt_tokens: int, completion_tokens: int, unreported: int = 0) -> float | None:
        """What the tokens cost; ``None`` unless both prices are known, and where ``unreported``
        replies leave no token to count.
        """
        if (
            self.prompt is None
            or self.completion is None
            or (unreported and not prompt_tokens + completion_tokens)
        ):
            return None
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6


@dataclass(frozen=True)
class Usage:
    """What was used; answers from a cache use nothing."""

    requests: int = 0
    """Requests sent, each attempt counted."""
    retries: int = 0
    """Of these, attempts after one that failed."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    unreported: int = 0
    """Replies that did not say their tokens: the counts above and the cost lack them."""
    cost: float | None = None
    """In the currency of the prices; ``None`` without prices, or where no reply said its tokens."""
