"""``prefloop label``: run an Argilla server, send records to it, get votes back."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import tyro

from prefloop.base.interrupt import pause
from prefloop.commands.backup import Backup, Restore
from prefloop.commands.users import Home, Users
from prefloop.commands.votes import Agree, Next
from prefloop.config import DataSource
from prefloop.config.ranges import Count, Pause, Port

if TYPE_CHECKING:
    from prefloop.labeling.argilla.records import Argilla
    from prefloop.records import Comparison, Rating

R = TypeVar("R", "Comparison", "Rating")


@dataclasses.dataclass
class Up(Home):
    """Start Argilla, unless it runs already. The first start makes the server's own environment."""

    port: Port | None = None
    """Port on this machine's loopback. Default: the port of the last start, at first 6900."""
    allow_host: tuple[str, ...] = ()
    """Names by which a proxy in front of the server is called. Without them the server answers only
    to localhost, 127.0.0.1 and ::1.
    """

    def run(self) -> None:
        from prefloop.base.console import waiting
        from prefloop.labeling import server

        server.server_python()  # shows a progress of its own
        with waiting("starting Argilla"):
            port = () if self.port is None else ("--port", str(self.port))
            self.call("up", *port, *(f"--allow-host={name}" for name in self.allow_host))


@dataclasses.dataclass
class Down(Home):
    """Stop the server. Its data stays."""

    def run(self) -> None:
        self.call("down", build=False)


@dataclasses.dataclass
class Status(Home):
    """Show the state of the server as JSON. The exit status is 1 when the server does not
    answer.
    """

    def run(self) -> None:
        if self.call("status", build=False):
            sys.exit(1)


@dataclasses.dataclass
class _Server:
    dataset: str
    """Name of the dataset on the server."""
    workspace: str = "default"
    """Workspace of the dataset."""
    home: Path | None = None
    """Home of the server, which holds its address and key. Default where no server is named:
    $XDG_DATA_HOME/prefloop/labeling.
    """
    url: str | None = None
    """Address of a server other than that of `prefloop label up`; also ARGILLA_API_URL."""
    api_key: str | None = dataclasses.field(default=None, repr=False)
    """Key for that server. ARGILLA_API_KEY is safer, because other users of this machine can read
    command lines.
    """

    def _argilla(self) -> Argilla:
        from prefloop.labeling.argilla.connection import Connection
        from prefloop.labeling.argilla.records import Argilla

        return Argilla(Connection.find(self.home, self.url, self.api_key))


@dataclasses.dataclass
class Push(_Server):
    """Send the records of a file that the dataset does not hold yet. A missing dataset is made."""

    file: tyro.conf.Positional[DataSource] = dataclasses.field(kw_only=True)
    """Comparisons or ratings in any layout that `prefloop check` reads. Their votes are not sent.
    """
    kind: Literal["auto", "comparisons", "ratings"] = "auto"
    """What to ask: which of two responses is better (comparisons), or thumbs up or down on one
    (ratings). auto asks for thumbs where the file holds single responses. For a file of pairs,
    ratings asks about each response.
    """
    bad_rows: Literal["error", "quarantine"] = "error"
    """What to do with rows that cannot be used and records that Argilla does not take: stop with an
    error, or write them to <file>.quarantine.jsonl and <file>.refused.jsonl and send the rest.
    """
    guidelines: Path | None = None
    """Markdown file with guidelines for annotators, at most 10,000 characters. It replaces the
    guidelines of an existing dataset.
    """
    min_submitted: Count | None = None
    """Answers that complete a record, for a new dataset. Default: 1."""

    def run(self) -> None:
        from prefloop.base.console import counted, say
        from prefloop.labeling.argilla.forms import read_guidelines

        guidelines = read_guidelines(self.guidelines) if self.guidelines else None
        records = self._records()
        with self._argilla() as argilla:
            done = argilla.push(
                records, self.dataset, self.workspace, guidelines, self.min_submitted
            )
            present = f"{done.present:,} {'was' if done.present == 1 else 'were'} there"
            guided = "; guidelines replaced" if done.replaced else ""
            at = argilla.rest.connection.url
            say(
                f"{counted(done.sent, 'record')} sent to {self.dataset}, {present}{guided};"
                f" annotate at {at}"
            )

    def _records(self) -> list[Comparison] | list[Rating]:
        from prefloop.base.console import say
        from prefloop.data.convert import unrated
        from prefloop.data.sources import holds, load_comparisons, load_ratings
        from prefloop.records import Rating

        if self.kind != "comparisons" and holds(Rating, self.file):
            ratings = load_ratings(self.file, bad_rows=self.bad_rows)
            say(ratings.describe())
            return self._takeable(ratings.records)
        pairs = load_comparisons(self.file, bad_rows=self.bad_rows)
        say(pairs.describe())
        if self.kind == "ratings":
            return self._takeable(list(unrated(pairs.records)))
        return self._takeable(pairs.records)

    def _takeable(self, records: list[R]) -> list[R]:
        """The records that Argilla takes. Others are set aside in a file, if bad_rows says so."""
        from prefloop.base.console import counted, say
        from prefloop.data.sources import write_jsonl
        from prefloop.labeling.argilla.forms import untakeable

        refused = untakeable(records) if self.bad_rows == "quarantine" else []
        if not refused:
            return records
        file = self.file.folder / f"{self.file.stem}.refused.jsonl"
        write_jsonl(file, (record for record, _ in refused))
        first, why = refused[0]
        say(
            f"{counted(len(refused), 'record')} set aside in {file}, the first '{first.id}': {why}",
            "yellow",
        )
        ids = {record.id for record, _ in refused}
        return [record for record in records if record.id not in ids]


@dataclasses.dataclass
class Pull(_Server):
    """Write every record that has a submitted answer, with its votes, to a file. It can be repeated
    at any time. The dataset may be of `label push`, or made with Argilla's own templates or SDK.
    """

    output: Path = dataclasses.field(kw_only=True)
    """File for the records: JSON lines in the prefloop layout. It is replaced as a whole, and left
    as it is when nobody has answered.
    """
    every: Pause | None = None
    """Pull again every so many seconds, at least 1, until Ctrl-C. A line is printed when the number
    of votes has changed.
    """
    simulated: bool = False
    """Take votes of simulated annotators too, where people have voted."""
    questions: tuple[str, ...] = ()
    """For a dataset that was made elsewhere: what its fields and questions mean, where the guess
    that is printed is wrong. Several of prompt=FIELD system=FIELD responses=FIELD,FIELD
    preferred=QUESTION ratings=QUESTION,QUESTION thumb=QUESTION strength=QUESTION why=QUESTION.
    Values that do not name a response follow a colon: preferred=QUESTION:FIRST,SECOND,TIE or
    thumb=QUESTION:UP,DOWN.
    """

    def run(self) -> None:
        from prefloop.base.console import say
        from prefloop.errors import LabelError
        from prefloop.labeling.argilla.connection import is_away

        votes, silent = self._pull(None), False
        while self.every is not None:
            pause(self.every)
            try:
                votes, silent = self._pull(votes), False
            except LabelError as error:
                if not is_away(error):
                    raise
                if not silent:
                    say(f"{_clock()} {error}; asking again every {self.every:g} s", "yellow")
                silent = True

    def _pull(self, before: int | None) -> int:
        """Pull into the file, and print a summary unless the dataset still has ``before`` votes.
        Returns the number of votes.

        Raises ``LabelError`` where the server cannot be read. Raises ``DataError`` where nobody has
        answered, unless ``every`` waits for answers.
        """
        from prefloop.base.console import say, waiting
        from prefloop.data.sources import write_jsonl
        from prefloop.errors import DataError

        # After a restart the server may have another address, so every pull looks it up again.
        with self._argilla() as argilla:
            # Only the first pull shows how long it takes.
            with waiting(f"pulling {self.dataset}") if before is None else contextlib.nullcontext():
                pulled = argilla.pull(
                    self.dataset, self.workspace, simulated=self.simulated, questions=self.questions
                )
            if pulled.reading is not None and before is None:
                say(pulled.reading.describe())
            if pulled.records:
                write_jsonl(self.output, pulled.records)
                what = f"{self.output}: {pulled.describe()}"
            else:
                left = "is left as it is" if self.output.exists() else "is not written"
                what = f"dataset '{self.dataset}': nobody has answered yet, {pulled.describe()}. "
                what += f"{self.output} {left}"
                if self.every is None:
                    raise DataError(what)
            if pulled.votes != before:
                far = argilla.progress(self.dataset, self.workspace)
                done = f"{far.completed:,} of {far.total:,} records have the answers that they need"
                say(f"{what}\n{done}" if self.every is None else f"{_clock()} {what}; {done}")
        return pulled.votes


def _clock() -> str:
    """The time of day, for a line about what has just happened."""
    return time.strftime("%H:%M:%S")


Command = (
    Annotated[Up, tyro.conf.subcommand("up")]
    | Annotated[Down, tyro.conf.subcommand("down")]
    | Annotated[Status, tyro.conf.subcommand("status")]
    | Annotated[Backup, tyro.conf.subcommand("backup")]
    | Annotated[Restore, tyro.conf.subcommand("restore")]
    | Annotated[Users, tyro.conf.subcommand("users")]
    | Annotated[Push, tyro.conf.subcommand("push")]
    | Annotated[Pull, tyro.conf.subcommand("pull")]
    | Annotated[Agree, tyro.conf.subcommand("agree")]
    | Annotated[Next, tyro.conf.subcommand("next")]
)


@dataclasses.dataclass
class LabelCommand:
    """Labeling: run an Argilla server, back it up, send records to it, get votes back, measure
    agreement, choose the next pairs.
    """

    command: tyro.conf.OmitArgPrefixes[tyro.conf.OmitSubcommandPrefixes[Command]]

    def run(self) -> None:
        self.command.run()
