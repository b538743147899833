"""What a judge answers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """A judge's answer on response a against response b."""

    score: float
    """1 when a wins, 0 when b wins, 0.5 for a tie."""
    orders_agree: bool | None = None
    """Whether asking in the other order gave the same answer; ``None`` when only one order was asked."""
    raw: tuple[str, ...] = ()
    """The judge's replies, as text, in the order they were given."""
    unparsable: int = 0
    """Questions whose answer held no verdict even when asked again; each counted as a tie."""
