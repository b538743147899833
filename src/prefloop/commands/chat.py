"""``prefloop chat``: talk to a result in the terminal."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import Any

import tyro

from prefloop.config.ranges import Count, NotNegative, Seed


@dataclasses.dataclass
class Chat:
    """Talk to a result of a run; switch between its adapters, or put two beside each other and
    vote. /help lists what can be said.
    """

    run_folder: tyro.conf.Positional[str]
    """Folder of the run, such as runs/demo, or one result: runs/demo:ppo, an adapter's folder."""
    adapter: str | None = None
    """Which result to talk to: a slot of the run (sft, ppo, dpo …), 'base' for the bare model; its
    aligned policy unless given.
    """
    beside: str | None = None
    """A second result that answers the same talk."""
    system: str = ""
    """System text at the start of the talk."""
    tools: Path | None = None
    """JSON file with a list of the tools' schemas, which the model may call; a call is shown and
    not run.
    """
    temperature: NotNegative | None = None
    """Sampling temperature; the run's unless given, 0 takes the likeliest token each time."""
    max_new_tokens: Count | None = None
    """Longest answer in tokens; the run's unless given."""
    seed: Seed = 0
    """The n-th answer is drawn with seed + n: the same lines through a pipe give the same talk."""
    votes: Path | None = None
    """File that /prefer writes to; chat.jsonl in the run's folder unless given."""
    annotator: str = "me"
    """Name that your votes carry."""
    model: str | None = None
    """The backbone, where its name of then no longer leads to it."""

    def run(self) -> None:
        from prefloop.chat.session import Talk, named, read_tools
        from prefloop.chat.terminal import Terminal
        from prefloop.runs.open import open_policies

        tools = read_tools(self.tools) if self.tools else []
        interactive = sys.stdin.isatty()
        home, names = self._names()
        sampling: dict[str, Any] = {}
        if self.max_new_tokens is not None:
            sampling["max_new_tokens"] = self.max_new_tokens
        # What is said while the model loads has times in it: a piped talk gives the same bytes each
        # time.
        with contextlib.nullcontext() if interactive else contextlib.redirect_stdout(sys.stderr):
            first = named(home, names[0])
            opened = open_policies(
                [first], model=self.model, generation=sampling, rollout="transformers"
            )
            talk = Talk(opened, names, home, self.seed)
        talk.system, talk.tools = self.system, tools
        if self.temperature is not None:
            talk.set_temperature(self.temperature)
        votes = self.votes or (home or Path()) / "chat.jsonl"
        Terminal(talk, votes, self.annotator, interactive).run()

    def _names(self) -> tuple[Path | None, list[str]]:
        """The run, where there is one, and who speaks."""
        from prefloop.artifacts.references import locate
        from prefloop.base.sealed import read_sealed
        from prefloop.chat.session import default_name
        from prefloop.errors import ConfigError

        beside = [self.beside] if self.beside else []
        folder = Path(self.run_folder)
        if (folder / "artifacts").is_dir():
            summary = folder / "summary.json"
            algo = read_sealed(summary, required=False).get("algo") if summary.is_file() else None
            return folder, [self.adapter or default_name(folder, algo), *beside]
        place = locate(self.run_folder)
        if place.run is not None and place.slot is not None:
            return place.run, [self.adapter or place.slot, *beside]
        if self.adapter:
            raise ConfigError(
                f"--adapter names a result of a run, and '{self.run_folder}' is one itself: leave"
                " it out"
            )
        return None, [self.run_folder, *beside]
