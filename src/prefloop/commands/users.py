"""``prefloop label users``: the accounts of a labeling server of one's own."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclasses.dataclass
class Home:
    home: Path | None = None
    """Folder of the server's data, logs and secrets; $XDG_DATA_HOME/prefloop/labeling unless
    given.
    """

    def call(self, command: str, *rest: str, build: bool = True) -> int:
        """Run a command of the server's own package and pass on what it says."""
        from prefloop.base.console import say
        from prefloop.labeling import server

        home = self.home or server.default_home()
        status, said = server.run([*command.split(), "--home", str(home), *rest], build)
        if said.strip():
            say(said.rstrip())
        return status


@dataclasses.dataclass
class Add(Home):
    """Make an account with a random password, or let one that is there into a workspace. Repeat it
    at will.
    """

    name: tyro.conf.Positional[str] = dataclasses.field(kw_only=True)
    """Name to sign in with."""
    role: Literal["annotator", "admin", "owner"] | None = None
    """An annotator only answers; an admin sees all answers of a workspace; an owner may do
    everything. Annotator unless given.
    """
    workspace: str = "default"
    """Workspace to let the user into."""
    new_workspace: bool = False
    """Make the workspace when it is missing."""

    def run(self) -> None:
        options = ["--workspace", self.workspace]
        options += ["--role", self.role] if self.role else []
        options += ["--new-workspace"] if self.new_workspace else []
        self.call("users add", *options, "--", self.name)


@dataclasses.dataclass
class List(Home):
    """Show every account with its role, its workspaces and how many answers it has given."""

    def run(self) -> None:
        self.call("users list")


@dataclasses.dataclass
class Remove(Home):
    """Delete an account; never the owner's."""

    name: tyro.conf.Positional[str] = dataclasses.field(kw_only=True)
    """Name of the account."""
    with_answers: bool = False
    """Delete its answers too, as Argilla does with the account; without this an account that has
    answered stays.
    """

    def run(self) -> None:
        self.call(
            "users remove", *(["--with-answers"] if self.with_answers else []), "--", self.name
        )


@dataclasses.dataclass
class Password(Home):
    """Print the password of an account, which stands in the home's credentials.json under users, by
    name.
    """

    name: tyro.conf.Positional[str] = dataclasses.field(kw_only=True)
    """Name of the account."""
    new: bool = False
    """Make a new password first; the old one is no good any more."""

    def run(self) -> None:
        self.call("users password", *(["--new"] if self.new else []), "--", self.name)


@dataclasses.dataclass
class Users:
    """Add, list and remove accounts, and show their passwords."""

    command: tyro.conf.OmitArgPrefixes[
        tyro.conf.OmitSubcommandPrefixes[
            Annotated[Add, tyro.conf.subcommand("add")]
            | Annotated[List, tyro.conf.subcommand("list")]
            | Annotated[Remove, tyro.conf.subcommand("remove")]
            | Annotated[Password, tyro.conf.subcommand("password")]
        ]
    ]

    def run(self) -> None:
        self.command.run()
