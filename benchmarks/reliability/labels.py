"""Kills, copies, backups and restores of a labelling server amid submits: no acknowledged vote may be missing or changed.

    python benchmarks/reliability/labels.py --seed 0 --size 200

Four annotators make ``size`` submits. At five moments drawn by the seed the server is killed in their midst (the first time redis and the
worker too) and started again; at five others a backup and a copy of the home are taken while submits go on. What commands do to the copy
must not reach the original; every backup is restored beside it at the end. Smaller sizes have a kill and a backup for every 40 submits.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from prefloop.errors import LabelError
from prefloop.labels import server
from prefloop.labels.argilla import Argilla
from prefloop.labels.connection import Connection
from prefloop.labels.forms import is_swapped
from prefloop.records import Comparison, Message, Response

DATASET, PEOPLE = "campaign", 4
AHEAD = 12  # submits that go on while something is done
Votes = dict[tuple[str, str], tuple[str, str]]
"""(record, annotator) → (side on the page, why)."""


@dataclass
class Campaign:
    """What was done and what came of it."""

    folder: Path
    seed: int
    size: int
    acknowledged: Votes = field(default_factory=dict)
    asked: Votes = field(default_factory=dict)
    backups: list[tuple[Path, Votes]] = field(default_factory=list)
    """Each with the votes that were acknowledged before it began."""
    counts: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    news: threading.Condition = field(default_factory=threading.Condition)
    limit: int = 0
    down: bool = False

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def count(self, what: str, number: int = 1) -> None:
        with self.news:
            self.counts[what] = self.counts.get(what, 0) + number

    def check(self, what: str, good: bool, how: str) -> None:
        """Count a check, and keep what is needed to see it fail again."""
        self.count(what)
        if not good:
            self.failures.append(f"{what}: {how} (--seed {self.seed} --size {self.size})")

    def run(self) -> None:
        """The whole campaign, in a home that is gone at its end."""
        up(self.home)
        with Argilla(Connection.of_home(self.home)) as argilla:
            argilla.push(pairs(-(-self.size // PEOPLE)), DATASET)
            dataset = argilla.datasets.find(DATASET).id
        names = [f"person-{number}" for number in range(PEOPLE)]
        for name in names:
            server.run(["users", "add", name, "--home", str(self.home)])
        rng, ids = random.Random(self.seed), shown(self.home, dataset)
        number = max(1, min(5, self.size // 40))
        moments = sorted(rng.sample(range(1, max(self.size - AHEAD, 3)), 2 * number))
        kinds = rng.sample(["kill"] * number + ["save"] * number, 2 * number)
        self.limit = moments[0] + AHEAD
        each = [[(f"pair-{n // PEOPLE}", ids[f"pair-{n // PEOPLE}"], rng.choice(["A", "B", "tie"])) for n in range(i, self.size, PEOPLE)] for i in range(PEOPLE)]  # fmt: skip
        with ThreadPoolExecutor(PEOPLE) as threads:
            working = [threads.submit(self.annotate, name, work) for name, work in zip(names, each, strict=True)]
            for at, kind, after in zip(moments, kinds, [*moments[1:], self.size], strict=True):
                with self.news:
                    self.news.wait_for(lambda at=at: len(self.acknowledged) >= at)
                self.kill() if kind == "kill" else self.save()
                with self.news:
                    self.limit = after + AHEAD
                    self.news.notify_all()
            for one in working:
                one.result()
        self.pulled("pulled after it all", self.home, self.acknowledged)
        for file, votes in self.backups:
            self.restored(file, votes)
        self.pulled("pulled after the restores", self.home, self.acknowledged)

    def annotate(self, name: str, work: list[tuple[str, str, str]]) -> None:
        """Vote on every record; what was on its way when the server was killed is sent again."""
        with client(self.home, name) as person:
            for record, id, side in work:
                key, vote = (record, name), (side, f"{record} by {name}")
                values = {"preferred": {"value": vote[0]}, "why": {"value": vote[1]}}
                self.asked[key] = vote
                while key not in self.acknowledged:
                    with self.news:
                        self.news.wait_for(lambda: len(self.acknowledged) < self.limit and not self.down)
                    try:
                        answer = person.post(f"/records/{id}/responses", json={"status": "submitted", "values": values})
                    except httpx.TransportError:
                        self.count("submits lost to a kill")
                        time.sleep(0.05)
                        continue
                    # 409: it was stored, and the kill took the answer.
                    self.check("submits answered", answer.status_code in (201, 409), f"{key}: {answer.text[:200]}")
                    with self.news:
                        self.acknowledged[key] = vote
                        self.news.notify_all()

    def kill(self) -> None:
        """SIGKILL amid submits, and a start."""
        pids = json.loads(server.run(["status", "--home", str(self.home)])[1])["processes"]
        for process in ["server"] if self.counts.get("kills") else ["server", "redis", "worker"]:
            os.kill(pids[process], signal.SIGKILL)
        self.down = True
        self.count("kills")
        up(self.home)
        with self.news:
            self.down = False
            self.news.notify_all()

    def save(self) -> None:
        """A backup and a copy of the running home, and what may not come of the copy."""
        number, before = len(self.backups), dict(self.acknowledged)
        file, copy = self.folder / f"backup-{number}.tar", self.folder / f"copy-{number}"
        server.run(["backup", str(file), "--home", str(self.home)])
        self.backups.append((file, before))
        self.count("backups")
        shutil.copytree(self.home, copy, ignore=lambda _, names: [name for name in names if name.endswith(".sock")])
        state = server.run(["status", "--home", str(self.home)])[1]
        self.check("copy finds no process", server.run(["status", "--home", str(copy)])[0] == 1, str(copy))
        server.run(["down", "--home", str(copy)])
        try:
            with Argilla(Connection.of_home(copy)) as argilla:
                argilla.push(pairs(1, "of-the-copy"), DATASET)
            self.check("push by a copy is refused", False, "it was sent")
        except LabelError:
            self.count("push by a copy is refused")
        self.check("copy left the original alone", server.run(["status", "--home", str(self.home)])[1] == state, state)
        self.count("submits during backups and copies", len(self.acknowledged) - len(before))
        shutil.rmtree(copy)

    def restored(self, file: Path, votes: Votes) -> None:
        """A backup as a home beside the original."""
        home = self.folder / f"restored-{file.stem}"
        server.run(["restore", str(file), "--home", str(home)])
        try:
            up(home)
            self.pulled(f"restored {file.stem}", home, votes)
            same = (home / "credentials.json").read_bytes() == (self.home / "credentials.json").read_bytes()
            self.check("same accounts", same, file.stem)
        finally:
            server.run(["down", "--home", str(home)])
        with contextlib.closing(sqlite3.connect(home / "argilla.db")) as database:
            self.check("integrity", database.execute("PRAGMA integrity_check").fetchall() == [("ok",)], file.stem)

    def pulled(self, what: str, home: Path, votes: Votes) -> None:
        """Every one of the votes must be there, as it was given."""
        with Argilla(Connection.of_home(home)) as argilla:
            found = {
                (record.id, vote.annotator): (on_page(record.id, vote.choice), vote.why or "")
                for record in argilla.pull(DATASET).records
                for vote in record.votes
            }
        missing = [key for key in votes if key not in found]
        changed = [key for key, vote in votes.items() if found.get(key, vote) != vote]
        self.count("acknowledged votes looked for", len(votes))
        self.count("missing", len(missing))
        self.count("changed", len(changed))
        self.check("pulls", not missing and not changed, f"{what}: missing {missing[:5]}, changed {changed[:5]}")
        invented = [key for key in found if key not in self.asked]
        self.check("pulls without what nobody said", not invented, f"{what}: {invented[:5]}")


def on_page(record: str, choice: int | str) -> str:
    return "tie" if choice == "tie" else "AB"[int(choice) ^ is_swapped(DATASET, record)]


def up(home: Path) -> None:
    """Start the server: at first on a free port, later where it was, or beside the one it was restored from."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = [] if (home / "server.json").exists() else ["--port", str(probe.getsockname()[1])]
    server.run(["up", "--home", str(home), *port])


def pairs(count: int, prefix: str = "pair") -> list[Comparison]:
    return [Comparison(f"{prefix}-{n}", [Message("user", f"q{n}?")], [Response("yes"), Response("no")]) for n in range(count)]  # fmt: skip


def client(home: Path, name: str) -> httpx.Client:
    """Calls as an annotator."""
    key = json.loads((home / "credentials.json").read_text())["users"][name]["api_key"]
    url = json.loads((home / "server.json").read_text())["url"]
    return httpx.Client(base_url=f"{url}/api/v1", headers={"X-Argilla-Api-Key": key}, timeout=60, trust_env=False)


def shown(home: Path, dataset: str) -> dict[str, str]:
    """The server's ids of the records."""
    with client(home, "person-0") as person:
        found = person.post(f"/me/datasets/{dataset}/records/search", params={"limit": 1000}, json={}).json()
    return {item["record"]["external_id"]: item["record"]["id"] for item in found["items"]}


def main(arguments: list[str] | None = None) -> int:
    """Run the campaign; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=200, help="submits (default: %(default)s)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        campaign = Campaign(Path(folder), options.seed, options.size)
        try:
            campaign.run()
        finally:
            server.run(["down", "--home", str(campaign.home)])
    print("| what | count |\n|---|---|")
    for what, number in campaign.counts.items():
        print(f"| {what} | {number} |")
    print("\n".join(campaign.failures) or "no failures")
    return bool(campaign.failures)


if __name__ == "__main__":
    sys.exit(main())
