"""``prefloop label backup`` and ``restore``: a labeling home in one file, and a home made of it
again.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import tyro

from prefloop.commands.users import Home


@dataclasses.dataclass
class Backup(Home):
    """Write the home to one file: accounts, secrets, records, and every vote that was given before.
    The server may run meanwhile.
    """

    file: tyro.conf.Positional[Path] = dataclasses.field(kw_only=True)
    """New file, which nobody else can read. It holds everybody's passwords and keys: keep it as
    safe as the home.
    """

    def run(self) -> None:
        self.call("backup", "--", str(self.file), build=False)


@dataclasses.dataclass
class Restore(Home):
    """Make a new home from a backup, with the same accounts and votes. The home that was backed up
    is not touched, and may run beside it.
    """

    file: tyro.conf.Positional[Path] = dataclasses.field(kw_only=True)
    """What `label backup` has written."""

    def run(self) -> None:
        self.call("restore", "--", str(self.file))
