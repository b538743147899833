"""The cost of judging: requests, tokens and, where prices are known, money."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Prices:
    """Price of a million tokens in the user's currency; ``None`` where it is not known."""

    prompt: float | None = None
    completion: float | None = None

    def cost(self, prompt_tokens: int, completion_tokens: int, unreported: int = 0) -> float | None:
        """Cost of the tokens; ``None`` unless both prices are known, and where no reply reported a
        token.
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
    """Requests, tokens and cost; answers from a cache use nothing."""

    requests: int = 0
    """Requests sent; each attempt counts."""
    retries: int = 0
    """How many of the requests were repeated after a failure."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    unreported: int = 0
    """Replies that did not report their tokens: the counts and the cost lack them."""
    cost: float | None = None
    """In the currency of the prices; ``None`` without prices or where no reply reported tokens."""
