"""``prefloop chat``: talk to a trained model in the terminal."""

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
    """Talk to a model that a run trained, or to two at once and vote between their answers.

    Inside the chat, /help lists the commands.
    """

    run_folder: tyro.conf.Positional[str]
    """Folder of a run, such as runs/demo, or one model: runs/demo:ppo, or an adapter's folder."""
    adapter: str | None = None
    """The model to talk to: sft, ppo, dpo or another slot of the run, or base for the bare model.
    Default: the run's aligned policy.
    """
    beside: str | None = None
    """A second model that answers the same messages."""
    system: str = ""
    """System message at the start of the chat."""
    tools: Path | None = None
    """JSON file with a list of tool schemas. The model may call these tools; calls are shown but
    not run.
    """
    temperature: NotNegative | None = None
    """Sampling temperature; 0 always takes the most likely token. Default: the run's."""
    max_new_tokens: Count | None = None
    """Longest answer in tokens. Default: the run's."""
    seed: Seed = 0
    """The n-th answer is sampled with seed + n, so the same piped input gives the same answers."""
    votes: Path | None = None
    """File that /prefer writes to. Default: chat.jsonl in the run's folder."""
    annotator: str = "me"
    """Your name in the votes."""
    model: str | None = None
    """Path or name of the base model, if it has moved since training."""

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
        # Messages while the model loads contain times. They go to stderr in a piped chat, so that
        # its output is the same each time.
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
        """The run (``None`` for a lone adapter), and the names of the one or two models."""
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
                f"--adapter chooses a model of a run, but '{self.run_folder}' is already one model:"
                " leave --adapter out"
            )
        return None, [self.run_folder, *beside]
