"""Check data, label it with Argilla, judge two sets of answers, write a report again, say what is installed.

The pipeline itself is pipelines/rlhf.py.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from prefloop.commands.label import Label
from prefloop.errors import ConfigError, PrefloopError


@dataclasses.dataclass
class Check:
    """Read a data file as a stage would and report every bad row by number."""

    path: tyro.conf.Positional[Path]
    """File to check: JSONL or a JSON array, gzipped or not."""
    kind: Literal["prompts", "demonstrations", "comparisons", "ratings"] = "comparisons"
    """What the file should give."""
    layout: str = "auto"
    """Layout of the file; detected when 'auto'."""
    quarantine: Path | None = None
    """Put bad rows into this folder and go on, instead of stopping."""

    def run(self) -> None:
        from prefloop.console import say
        from prefloop.data import sources

        load = getattr(sources, f"load_{self.kind}")
        found = load(
            self.path,
            layout=self.layout,
            bad_rows="quarantine" if self.quarantine else "error",
            quarantine_dir=self.quarantine,
        )
        say(found.describe())
        for finding in found.findings[:20]:
            say(f"  {finding}")


@dataclasses.dataclass
class Judge:
    """Compare two files of answers with an LLM judge, asked in both orders; rows are {id, prompt: [messages], response}."""

    a: Path
    """Answers of the first model."""
    b: Path
    """Answers of the second model to the same prompts."""
    base_url: str
    """OpenAI-compatible endpoint, such as http://127.0.0.1:8000/v1."""
    model: str
    """Model name that the endpoint expects."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key."""
    cache: Path = Path("verdicts.jsonl")
    """Verdicts are kept here: a killed comparison goes on, a repeated one is free."""
    max_concurrency: int = 8
    """Requests at a time."""
    output: Path | None = None
    """Also write the result as JSON."""

    def run(self) -> None:
        from prefloop.console import say
        from prefloop.judging.files import judge_files
        from prefloop.judging.openai import OpenAIJudge

        judge = OpenAIJudge(self.base_url, self.model, self.api_key_env, max_concurrency=self.max_concurrency)
        found = judge_files(self.a, self.b, judge, self.cache)
        rate = found.win_rate
        say(
            f"{self.a.name} wins {rate.rate:.1%} [{rate.low:.1%}, {rate.high:.1%}] against {self.b.name} "
            f"({rate.n_prompts} prompts, {found.n_comparisons} comparisons, ties {rate.ties:.1%})"
        )
        say(
            f"the two orders disagreed in {found.disagreement:.1%}; {found.n_unparsable} unparsable answers; {found.n_cached} verdicts from the cache"
        )
        if self.output:
            self.output.write_text(json.dumps(dataclasses.asdict(found), indent=2))


@dataclasses.dataclass
class Report:
    """Write report.html of a finished run again; with several runs, a page that compares them."""

    run_folders: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of runs, such as runs/demo."""
    output: Path | None = None
    """File to write; report.html in the run's folder, or compare.html beside the first run's folder, when left out."""

    def run(self) -> None:
        from prefloop.console import say
        from prefloop.report.compare import write_comparison
        from prefloop.report.html import write_report

        if not self.run_folders:
            raise ConfigError("report needs the folder of a run, such as runs/demo")
        if len(self.run_folders) == 1:
            say(str(write_report(self.run_folders[0], self.output)))
        else:
            say(str(write_comparison(self.run_folders, self.output)))


@dataclasses.dataclass
class Env:
    """Print versions, device and commit."""

    def run(self) -> None:
        from prefloop.console import say
        from prefloop.runtime import environment

        say(json.dumps(environment(), indent=2))


Command = (
    Annotated[Check, tyro.conf.subcommand("check")]
    | Annotated[Label, tyro.conf.subcommand("label")]
    | Annotated[Judge, tyro.conf.subcommand("judge")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Env, tyro.conf.subcommand("env")]
)


def _main(arguments: Sequence[str]) -> None:
    if list(arguments) == ["--version"]:
        print(f"prefloop {importlib.metadata.version('prefloop')}")
        return
    command = tyro.cli(Command, args=list(arguments), prog="prefloop", description=__doc__)
    command.run()


def guarded(run: Callable[[Sequence[str]], None], arguments: Sequence[str]) -> int:
    """Run a command; user errors print their message alone and exit with 2, Ctrl-C with 130, a closed pipe quietly."""
    from prefloop.interrupt import heed_interrupts

    heed_interrupts()
    try:
        run(arguments)
    except PrefloopError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(
            "\ninterrupted: finished stages and the last checkpoint are kept; the same command goes on from there",
            file=sys.stderr,
        )
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0


def main() -> None:
    """Entry point of ``prefloop``."""
    sys.exit(guarded(_main, sys.argv[1:]))
