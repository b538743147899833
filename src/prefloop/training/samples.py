"""Responses that a person can read while the policy learns: a few of every n-th rollout, as rows of
``samples.jsonl``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefloop.base.console import say
from prefloop.base.jsonl import write_rows
from prefloop.data.chat import ChatFormat
from prefloop.records import Prompt, to_dict
from prefloop.training.scoring import Scored

FILE = "samples.jsonl"
PROMPTS = 4
"""Prompts of a rollout that are written, with one response each."""


class SampleLog:
    """Writes sample responses of every ``every``-th step; 0 writes none."""

    def __init__(self, stage: str, folder: Path, every: int, done: int) -> None:
        """``done`` steps are done already: rows of later ones are dropped, because training is
        about to repeat them.
        """
        self.path, self.every = folder / FILE, every
        if every:
            keep_until(self.path, done)
            say(f"  {stage}: sample responses go to {self.path}", "dim")

    def write(self, step: int, chat: ChatFormat, batch: Sequence[Prompt], scored: Scored) -> None:
        """Add the rows of the 0-based ``step`` if they are due."""
        if self.every and step % self.every == 0:
            append(self.path, rows(chat, batch, scored, step + 1))


def keep_until(path: Path, step: int) -> None:
    """Drop the rows after ``step`` and everything from a torn row on."""
    kept = []
    if path.is_file():
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    row = json.loads(line)
                    if row["step"] <= step:
                        kept.append(row)
                except (ValueError, KeyError, TypeError):
                    break
    write_rows(path, kept)


def rows(
    chat: ChatFormat, batch: Sequence[Prompt], scored: Scored, step: int
) -> list[dict[str, Any]]:
    """One response to each of a few prompts, with its reward, KL to the reference in nats and
    length in tokens.

    Prompts are ordered by a hash of their id, so that the same ones are taken whenever a rollout
    has them.
    """
    each = len(scored.rollouts) // len(batch)
    order = sorted(range(len(batch)), key=lambda i: hashlib.sha256(batch[i].id.encode()).digest())
    kl_B = scored.kl_B
    return [
        {
            "step": step,
            "id": batch[i].id,
            **{
                key: value for key, value in to_dict(batch[i]).items() if key in ("prompt", "tools")
            },
            "response": chat.decode(scored.rollouts[i * each].token_ids),
            "reward": round(float(scored.reward_B[i * each]), 4),
            "kl": round(float(kl_B[i * each]), 4),
            "length": int(scored.length_B[i * each]),
            "finished": scored.rollouts[i * each].finished,
        }
        for i in order[:PROMPTS]
    ]


def append(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Add rows to the file."""
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
