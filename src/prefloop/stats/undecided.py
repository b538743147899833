"""Comparisons that have too few prompts to be decided, and how many prompts would be enough."""

from __future__ import annotations

import math
from statistics import NormalDist

POWER = 0.8
"""Chance that a comparison on the named number of prompts shows a difference that exists."""
MOST = 20_000
"""Prompts above which no number is named: nobody asks so many."""


def prompts_to_tell(
    rate: float, low: float, high: float, n_prompts: int, level: float = 0.95
) -> int | None:
    """Number of prompts that tells a true win rate of ``rate`` from one half with chance
    ``POWER``; None where that takes more than ``MOST``.

    ``low`` and ``high`` are the interval at ``level`` that ``n_prompts`` gave: its width falls with
    the square root of their number.
    """
    lead = abs(rate - 0.5)
    if not lead:
        return None
    normal = NormalDist()
    z = normal.inv_cdf((1 + level) / 2)
    needed = n_prompts * ((z + normal.inv_cdf(POWER)) / z * (high - low) / 2 / lead) ** 2
    return math.ceil(needed) if needed <= MOST else None


def undecided(name: str, rate: float, low: float, high: float, n_prompts: int) -> str:
    """A sentence on how many prompts would tell ``name`` from SFT; empty where the interval of its
    win rate excludes one half.
    """
    if low == high or not low <= 0.5 <= high:
        return ""
    result = (
        f"{n_prompts:,} prompts do not tell {name} from SFT: {100 * rate:.1f} % [{100 * low:.1f},"
        f" {100 * high:.1f}]."
    )
    needed = prompts_to_tell(rate, low, high, n_prompts)
    if needed is None:
        return f"{result} So small a difference takes more than {MOST:,}."
    return (
        f"{result} If that rate is right, {max(needed, n_prompts + 1):,} would, four times in five."
    )
