"""``prefloop export``: a result as a folder for others."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import tyro


@dataclasses.dataclass
class Export:
    """Write a result of a run to a folder that PEFT, transformers and vLLM load, with its model
    card, tokenizer and chat template.
    """

    result: tyro.conf.Positional[str]
    """Such as runs/demo:ppo; a reward model too."""
    folder: tyro.conf.Positional[Path]
    """New folder to write."""
    merge: bool = False
    """Write whole weights, with the adapter merged in, instead of the adapter."""
    model: str | None = None
    """The backbone, where its name of then no longer leads to it."""

    def run(self) -> None:
        from prefloop.base.console import say
        from prefloop.export.adapter import export

        made = export(self.result, self.folder, self.merge, self.model)
        size = sum(path.stat().st_size for path in made.rglob("*") if path.is_file())
        say(f"{made}: {self.result}, {size / 2**20:.1f} MiB, its card is README.md")
