"""The largest group of a file of comparisons or thumbs: all responses to one prompt, which
``data.groups`` joins and nothing cuts.
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
"""Records of a file that are looked at, which takes a few seconds."""
Stamp = tuple[tuple[str, int, int], ...]
ENDS = 4
"""Tokens that end a turn, at most; beside them no tokenizer makes more tokens than a text has
bytes.
"""


@dataclasses.dataclass(frozen=True)
class Group:
    """A bound on every group: most responses to a prompt, and most tokens of a prompt with all of
    its responses.
    """

    responses: int
    tokens: int


def candidates(config: RLHFConfig) -> Group:
    """Of a prompt whose candidates are sampled anew in each round, and whose comparisons of earlier
    rounds are kept.
    """
    each, pairs = config.sample.candidates, config.label.pairs_per_prompt
    return sampled(
        config, min(each, 2 * pairs) + (config.rounds - 1) * min(each, 2 * max(2, pairs))
    )


def sampled(config: RLHFConfig, responses: int) -> Group:
    """Of a prompt with that many sampled responses, each as long as may be."""
    length = config.backbone.max_length
    longest = min(config.generation.max_new_tokens, length)
    return Group(responses, max(1, length - longest) + responses * longest)


def of_file(config: RLHFConfig, thumbs: bool = False) -> Group | None:
    """Of ``data.comparisons``, as pairs or (``thumbs``, where the file holds such) as every rated
    response; None where it cannot be read.
    """
    source, data = config.data.comparisons, config.data
    if source is None or not source.exists():
        return None
    limit = min(data.limit or LOOKED, LOOKED)
    return _largest(source, source.stamp(), data.layout, limit, thumbs, config.backbone.max_length)


def unseen(config: RLHFConfig) -> str | None:
    """What is not known of the groups of a run that reads them from a file; None where all is."""
    path = config.data.comparisons
    if config.label.source != "file" or config.algo == SFT_ONLY:
        return None
    if of_file(config) is None and of_file(config, thumbs=True) is None:
        said = (
            f"data.comparisons '{path}' cannot be read" if path else "data.comparisons is not set"
        )
        return (
            f"groups of more than 2 responses to a prompt: {said}, and all pairs of a prompt are"
            " trained on together"
        )
    rows = count_rows(path) if path else None
    if rows and min(rows, config.data.limit or rows) > LOOKED:
        return f"groups that only rows after the first {LOOKED:,} of {path} make larger"
    return None


@functools.lru_cache(maxsize=16)
def _largest(
    source: Source, stamp: Stamp, layout: str, limit: int, thumbs: bool, length: int
) -> Group | None:
    """``stamp`` is that of the source's files, so that others under its name are read anew."""
    found = _bytes(source, stamp, layout, limit, thumbs)
    most = tokens = 0
    for responses in found.values():
        cut = [min(n + ENDS, length - 1) for n in responses.values()]
        # Prompt and response fill max_length at most, so the longest response leaves the rest to
        # the prompt.
        most, tokens = max(most, len(cut)), max(tokens, length - max(cut) + sum(cut))
    return Group(most, tokens) if found else None


@functools.lru_cache(maxsize=2)
def _bytes(
    source: Source, stamp: Stamp, layout: str, limit: int, thumbs: bool
) -> dict[int, dict[int, int]]:
    """By prompt, the bytes of each distinct response; empty where the file does not hold such
    records.
    """
    from prefloop.data import sources
    from prefloop.records import Comparison, Rating, prompt_key

    found: dict[int, dict[int, int]] = {}

    def look(record: Any) -> bool:
        responses = found.setdefault(hash(prompt_key(record.prompt)), {})
        for response in (record.response,) if thumbs else record.responses:
            whole = response.key() if response.turns else response.text
            responses[hash(response.key())] = len(whole.encode())
        return False

    kind: Any = Rating if thumbs else Comparison
    try:
        if thumbs and not sources.holds(Rating, source, layout):
            return {}
        with tempfile.TemporaryDirectory() as aside:
            options: Any = {
                "layout": layout,
                "bad_rows": "quarantine",
                "quarantine_dir": aside,
                "limit": limit,
            }
            sources.copy_records(kind, source, Path(aside) / "none.jsonl", keep=look, **options)
    except PrefloopError:
        return {}
    return found
