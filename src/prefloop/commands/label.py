"""Labelling with Argilla: run a server, send records to it, get votes back."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from prefloop.commands.votes import Agree, Next

if TYPE_CHECKING:
    from prefloop.labels.argilla import Argilla, Pulled
    from prefloop.records import Comparison, Rating


@dataclasses.dataclass
class _Home:
    home: Path | None = None
    """Folder of the server's data, logs and secrets; $XDG_DATA_HOME/prefloop/labeling unless given."""

    def _call(self, command: str, *rest: str, build: bool = True) -> int:
        """Run a command of the server's own package and pass on what it says."""
        from prefloop.console import say
        from prefloop.labels import server

        home = self.home or server.default_home()
        status, said = server.run([*command.split(), "--home", str(home), *rest], build)
        if said.strip():
            say(said.rstrip())
        return status


@dataclasses.dataclass
class Up(_Home):
    """Start Argilla, or find the one that runs; the first start makes the server's own environment."""

    port: int = 6900
    """Port on this machine's loopback."""

    def run(self) -> None:
        from prefloop.console import waiting
        from prefloop.labels import server

        server.server_python()  # shows a progress of its own
        with waiting("starting Argilla"):
            self._call("up", "--port", str(self.port))


@dataclasses.dataclass
class Down(_Home):
    """Stop the server. Its data stay."""

    def run(self) -> None:
        self._call("down", build=False)


@dataclasses.dataclass
class Status(_Home):
    """Show what runs, as JSON; exit status 1 when the server does not answer."""

    def run(self) -> None:
        if self._call("status", build=False):
            sys.exit(1)


@dataclasses.dataclass
class Users(_Home):
    """`users add NAME`: an account with a random password, which stands in the home's credentials.json."""

    action: tyro.conf.Positional[Literal["add"]] = dataclasses.field(kw_only=True)
    """What to do."""
    name: tyro.conf.Positional[str] = dataclasses.field(kw_only=True)
    """Name to sign in with."""
    role: Literal["annotator", "admin", "owner"] = "annotator"
    """An annotator only answers; an admin sees all answers of a workspace; an owner may do everything."""
    workspace: str = "default"
    """Workspace to let the user into; made when missing."""

    def run(self) -> None:
        self._call(f"users {self.action}", "--role", self.role, "--workspace", self.workspace, "--", self.name)


@dataclasses.dataclass
class _Server:
    dataset: str
    """Name of the dataset on the server."""
    workspace: str = "default"
    """Workspace of the dataset."""
    home: Path | None = None
    """Home of the server, which holds address and key; $XDG_DATA_HOME/prefloop/labeling when no server is named at all."""
    url: str | None = None
    """Address of a server that is not of `prefloop label up`; also ARGILLA_API_URL."""
    api_key: str | None = dataclasses.field(default=None, repr=False)
    """Key for it. Better in ARGILLA_API_KEY: others on this machine can read command lines."""

    def _argilla(self) -> Argilla:
        from prefloop.labels.argilla import Argilla
        from prefloop.labels.connection import Connection

        return Argilla(Connection.find(self.home, self.url, self.api_key))


@dataclasses.dataclass
class Push(_Server):
    """Send the records of a file that the dataset does not hold yet; the dataset is made when missing."""

    file: tyro.conf.Positional[Path] = dataclasses.field(kw_only=True)
    """Comparisons or ratings in any layout that `prefloop check` reads. Votes in it stay behind."""
    kind: Literal["auto", "comparisons", "ratings"] = "auto"
    """Which of two responses is better, or thumbs up or down on one; auto asks for thumbs where the file holds single responses. Of a file
    of pairs, ratings asks about each response."""
    bad_rows: Literal["error", "quarantine"] = "error"
    """What to do with rows that cannot be used: stop, or write them to <file>.quarantine.jsonl and send the rest."""
    guidelines: Path | None = None
    """Markdown file with what annotators should know; at most 10,000 characters."""
    min_submitted: int | None = None
    """Answers that complete a record: 1 unless given, for a new dataset."""

    def run(self) -> None:
        from prefloop.console import say
        from prefloop.labels.forms import read_guidelines

        guidelines = read_guidelines(self.guidelines) if self.guidelines else None
        records = self._records()
        with self._argilla() as argilla:
            done = argilla.push(records, self.dataset, self.workspace, guidelines, self.min_submitted)
            say(
                f"{done.sent} records sent to {self.dataset}, {done.present} were there; annotate at {argilla.rest.connection.url}"
            )

    def _records(self) -> list[Comparison] | list[Rating]:
        from prefloop.console import say
        from prefloop.data.convert import unrated
        from prefloop.data.sources import holds, load_comparisons, load_ratings
        from prefloop.records import Rating

        thumbs = holds(Rating, self.file)
        if thumbs and self.kind != "comparisons":
            ratings = load_ratings(self.file, bad_rows=self.bad_rows)
            say(ratings.describe())
            return ratings.records
        pairs = load_comparisons(self.file, bad_rows=self.bad_rows)
        say(pairs.describe())
        return list(unrated(pairs.records)) if self.kind == "ratings" else pairs.records


@dataclasses.dataclass
class Pull(_Server):
    """Write every record that has a submitted answer, with its votes, to a file. Repeat it at will."""

    output: Path = dataclasses.field(kw_only=True)
    """JSON lines in the prefloop layout; replaced as a whole."""

    def run(self) -> None:
        from prefloop.console import say, waiting
        from prefloop.data.sources import write_jsonl

        with self._argilla() as argilla:
            with waiting(f"pulling {self.dataset}"):
                found = argilla.pull(self.dataset, self.workspace)
            write_jsonl(self.output, found.records)
            say(f"{self.output}: {_came(found)}")
            far = argilla.progress(self.dataset, self.workspace)
            say(f"{far.completed} of {far.total} records have the answers that they need")


@dataclasses.dataclass
class Watch(_Server):
    """Keep a file at the votes of a dataset while they arrive, until Ctrl-C. Argilla must run on this machine."""

    output: Path = dataclasses.field(kw_only=True)
    """JSON lines in the prefloop layout; replaced as a whole at every news."""
    port: int = 0
    """Port on the loopback where Argilla's messages arrive; 0 takes a free one."""

    def run(self) -> None:
        from prefloop.console import say
        from prefloop.labels import watch

        signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
        with (
            self._argilla() as argilla,
            contextlib.suppress(KeyboardInterrupt),
            watch.Watch(argilla, self.dataset, self.output, self.workspace, self.port) as watching,
        ):
            say(f"watching {self.dataset}; Ctrl-C ends it")
            for found in watching.updates():
                say(f"{self.output}: {_came(found)}")
        say("stopped")


def _came(found: Pulled) -> str:
    left = f"{found.drafts} drafts and {found.discards} discards left out"
    foreign = f"; {found.foreign} answered records that prefloop did not push left out" if found.foreign else ""
    return f"{len(found.records)} records with {found.votes} votes ({left}{foreign})"


Command = (
    Annotated[Up, tyro.conf.subcommand("up")]
    | Annotated[Down, tyro.conf.subcommand("down")]
    | Annotated[Status, tyro.conf.subcommand("status")]
    | Annotated[Users, tyro.conf.subcommand("users")]
    | Annotated[Push, tyro.conf.subcommand("push")]
    | Annotated[Pull, tyro.conf.subcommand("pull")]
    | Annotated[Watch, tyro.conf.subcommand("watch")]
    | Annotated[Agree, tyro.conf.subcommand("agree")]
    | Annotated[Next, tyro.conf.subcommand("next")]
)


@dataclasses.dataclass
class Label:
    """Labelling: run an Argilla server, send records to it, get votes back, measure agreement, choose the next pairs."""

    command: tyro.conf.OmitArgPrefixes[tyro.conf.OmitSubcommandPrefixes[Command]]

    def run(self) -> None:
        self.command.run()
