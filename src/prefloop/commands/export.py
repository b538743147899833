"""``prefloop export``: write a trained model to a folder that others can load."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import tyro


@dataclasses.dataclass
class Export:
    """Write a trained model to a folder that PEFT, transformers and vLLM can load.

    The folder includes a model card, the tokenizer and the chat template.
    """

    result: tyro.conf.Positional[str]
    """The model, such as runs/demo:ppo. Reward models can be exported too."""
    folder: tyro.conf.Positional[Path]
    """Folder to write; it must not exist yet."""
    merge: bool = False
    """Merge the adapter into the base model and write full weights instead of the adapter."""
    model: str | None = None
    """Path or name of the base model, if it has moved since training."""

    def run(self) -> None:
        from prefloop.base.console import say
        from prefloop.export.adapter import export

        folder = export(self.result, self.folder, self.merge, self.model)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        say(f"{folder}: {self.result}, {size / 2**20:.1f} MiB; README.md is its model card")
