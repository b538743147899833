"""The largest group of a file of comparisons or thumbs.

A group has all responses to one prompt. ``data.groups`` forms it, and packs never split it.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from pathlib import Path
from typing import Any

from prefloop.config import RLHFConfig
from prefloop.config.algorithms import SFT_ONLY
from prefloop.data.files import count_rows
from prefloop.data.source import Source
from prefloop.errors import PrefloopError

LOOKED = 100_000
"""How many records of a file are read, which takes a few seconds."""
Stamp = tuple[tuple[str, int, int], ...]
ENDS = 4
"""The most tokens at the end of a turn. A text's own tokens are never more than its bytes."""


@dataclasses.dataclass(frozen=True)
class Group:
    """Upper bounds for all groups: responses to a prompt, and tokens of a prompt with all of
    them.
    """

    responses: int
    tokens: int


def candidates(config: RLHFConfig) -> Group:
    """The group of a prompt with sampled candidates, of this round and of all earlier rounds."""
    each, pairs = config.sample.candidates, config.label.pairs_per_prompt
    earlier = (config.rounds - 1) * min(each, 2 * max(2, pairs))
    return sampled(config, min(each, 2 * pairs) + earlier)


def sampled(config: RLHFConfig, responses: int) -> Group:
    """The group of a prompt with ``responses`` sampled responses of the greatest length."""
    length = config.backbone.max_length
    longest = min(config.generation.max_new_tokens, length)
    return Group(responses, max(1, length - longest) + responses * longest)


def of_file(config: RLHFConfig, thumbs: bool = False) -> Group | None:
    """The largest group of ``data.comparisons``; ``None`` if the file cannot be read.

    With ``thumbs`` the file must hold thumbs, and all rated responses count.
    """
    source, data = config.data.comparisons, config.data
    if source is None or not source.exists():
        return None
    limit = min(data.limit or LOOKED, LOOKED)
    return _largest(source, source.stamp(), data.layout, limit, thumbs, config.backbone.max_length)


def unseen(config: RLHFConfig) -> str | None:
    """The unknowns about a run's groups in its file, as a description; ``None`` if there are
    none.
    """
    path = config.data.comparisons
    if config.label.source != "file" or config.algo == SFT_ONLY:
        return None
    if of_file(config) is None and of_file(config, thumbs=True) is None:
        unread = f"'{path}' cannot be read" if path else "is not set"
        return (
            f"groups of more than 2 responses to a prompt: data.comparisons {unread}, and all pairs"
            " of a prompt are trained on together"
        )
    rows = count_rows(path) if path else None
    if rows and min(rows, config.data.limit or rows) > LOOKED:
        return f"groups that grow in rows after the first {LOOKED:,} of {path}"
    return None


@functools.lru_cache(maxsize=16)
def _largest(
    source: Source, stamp: Stamp, layout: str, limit: int, thumbs: bool, length: int
) -> Group | None:
    """``of_file``. A changed file has another ``stamp``, so it is read again."""
    groups = _bytes(source, stamp, layout, limit, thumbs)
    most = tokens = 0
    for responses in groups.values():
        cut = [min(n + ENDS, length - 1) for n in responses.values()]
        # Prompt and response together have at most max_length tokens, so the prompt has at most
        # those that the longest response leaves.
        most, tokens = max(most, len(cut)), max(tokens, length - max(cut) + sum(cut))
    return Group(most, tokens) if groups else None


@functools.lru_cache(maxsize=2)
def _bytes(
    source: Source, stamp: Stamp, layout: str, limit: int, thumbs: bool
) -> dict[int, dict[int, int]]:
    """Prompt → distinct response → its bytes, by hashes; empty for a file without such records."""
    from prefloop.data import sources
    from prefloop.records import Comparison, Rating, prompt_key

    groups: dict[int, dict[int, int]] = {}

    def look(record: Any) -> bool:
        responses = groups.setdefault(hash(prompt_key(record.prompt)), {})
        for response in (record.response,) if thumbs else record.responses:
            whole = response.key() if response.turns else response.text
            responses[hash(response.key())] = len(whole.encode())
        return False

    kind: Any = Rating if thumbs else Comparison
    try:
        if thumbs and not sources.holds(Rating, source, layout):
            return {}
        with tempfile.TemporaryDirectory() as scratch:
            sources.copy_records(
                kind,
                source,
                Path(scratch) / "none.jsonl",
                keep=look,
                layout=layout,
                bad_rows="quarantine",
                quarantine_dir=Path(scratch),
                limit=limit,
            )
    except PrefloopError:
        return {}
    return groups
