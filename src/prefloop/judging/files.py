"""Judging two files of responses to the same prompts against each other: what ``prefloop judge`` runs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from prefloop.errors import ConfigError, DataError
from prefloop.judging.cache import VerdictCache
from prefloop.judging.judges import BothOrders, CachedJudge, Item, Judge, compare_many
from prefloop.judging.length import length_controlled_win_rate
from prefloop.judging.statistics import WinRate, verdict_win_rate
from prefloop.records import Message, Prompt, from_dict


@dataclass(frozen=True)
class JudgedFiles:
    """The outcome of ``judge_files``: win rates of a over b, and counts that say how far to trust them."""

    win_rate: WinRate
    length_controlled: WinRate
    """The win rate at equal length, in characters."""
    n_comparisons: int
    """Pairs of responses compared."""
    n_asked: int
    """Questions put to the judge now (two for a comparison in both orders)."""
    n_cached: int
    """Questions answered from the cache."""
    n_disagreed: int
    """Comparisons where the two orders disagreed, hence ties."""
    disagreement: float
    """``n_disagreed / n_comparisons``: the judge's position bias."""
    n_unparsable: int
    """Questions whose answer held no verdict, hence ties."""


def judge_files(
    a_path: str | Path,
    b_path: str | Path,
    judge: Judge,
    cache_path: str | Path,
    *,
    pairs_per_prompt: int | None = None,
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
) -> JudgedFiles:
    """Win rate of the responses in file a over those in file b. A killed run resumes; a repeated one asks nothing.

    Both are JSONL files with rows ``{"id", "prompt": [{"role", "content"}, ...], "response"}``; an id may have
    several rows, and other fields are ignored. All pairs of a prompt's responses are compared, or the first
    ``pairs_per_prompt`` of an order that uses every response before it repeats one. A judge of one order is asked in
    both. Raises ``DataError`` naming file, row and field, or the prompt on which the files differ.
    """
    if pairs_per_prompt is not None and pairs_per_prompt < 1:
        raise ConfigError(f"pairs_per_prompt must be 1 or more, found {pairs_per_prompt}")
    side_a, side_b = _read(Path(a_path)), _read(Path(b_path))
    _require_same(side_a, side_b, a_path, b_path)
    items: dict[str, list[Item]] = {}
    for prompt_id, (prompt, of_a) in side_a.items():
        of_b = side_b[prompt_id][1]
        items[prompt_id] = [(prompt, of_a[i], of_b[j]) for i, j in _pairs(len(of_a), len(of_b))[:pairs_per_prompt]]

    cached = CachedJudge(judge, VerdictCache(cache_path))
    asked: Judge = cached if getattr(judge, "symmetric", False) else BothOrders(cached)
    flat = compare_many(asked, [item for group in items.values() for item in group])
    n_disagreed = sum(verdict.orders_agree is False for verdict in flat)
    verdicts = iter(flat)
    scores = {prompt_id: [next(verdicts).score for _ in group] for prompt_id, group in items.items()}
    leads = {prompt_id: [float(len(a) - len(b)) for _, a, b in group] for prompt_id, group in items.items()}
    return JudgedFiles(
        win_rate=verdict_win_rate(scores, seed=seed, resamples=resamples, level=level),
        length_controlled=length_controlled_win_rate(scores, leads, seed=seed, resamples=resamples, level=level),
        n_asked=cached.n_asked,
        n_cached=cached.n_cached,
        n_comparisons=len(flat),
        n_disagreed=n_disagreed,
        disagreement=n_disagreed / len(flat),
        n_unparsable=sum(verdict.unparsable for verdict in flat),
    )


def _pairs(n_a: int, n_b: int) -> list[tuple[int, int]]:
    """All index pairs once, diagonal by diagonal, so that any start of the list spreads over both sides."""
    period = math.lcm(n_a, n_b)
    return [(k % n_a, (k + k // period) % n_b) for k in range(n_a * n_b)]


def _read(path: Path) -> dict[str, tuple[list[Message], list[str]]]:
    """Prompt and responses by id, in the order of the file."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give a JSONL file of responses") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}); save the file as UTF-8") from None
    rows: dict[str, tuple[list[Message], list[str]]] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, row {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{where}: not JSON ({error})") from None
        missing = [name for name in ("id", "prompt", "response") if not isinstance(row, dict) or name not in row]
        if missing:
            raise DataError(f'{where}: no field \'{missing[0]}\'; a row is {{"id", "prompt": [messages], "response"}}')
        if not isinstance(row["response"], str):
            raise DataError(f"{where}: field 'response' must be text, found {row['response']!r:.80}")
        try:
            prompt = from_dict(Prompt, {"id": row["id"], "prompt": row["prompt"]})
        except ValueError as error:
            raise DataError(f"{where}: {error}") from None
        known, responses = rows.setdefault(prompt.id, (prompt.prompt, []))
        if known != prompt.prompt:
            raise DataError(
                f"{where}: id '{prompt.id}' stands for another prompt in an earlier row; ids must be unique to a prompt"
            )
        responses.append(row["response"])
    if not rows:
        raise DataError(f"{path}: holds no rows; expected JSONL rows of id, prompt and response")
    return rows


def _require_same(
    side_a: Mapping[str, tuple[list[Message], list[str]]],
    side_b: Mapping[str, tuple[list[Message], list[str]]],
    a_path: str | Path,
    b_path: str | Path,
) -> None:
    for one, other, has, lacks in ((side_a, side_b, a_path, b_path), (side_b, side_a, b_path, a_path)):
        missing = [prompt_id for prompt_id in one if prompt_id not in other]
        if missing:
            raise DataError(
                f"prompt '{missing[0]}' is in {has} but not in {lacks} ({len(missing)} such prompts); "
                "both files must answer the same prompts"
            )
    for prompt_id, (prompt, _) in side_a.items():
        if prompt != side_b[prompt_id][0]:
            raise DataError(
                f"prompt '{prompt_id}' is worded differently in {a_path} and {b_path}; "
                "both files must answer the same prompts"
            )
