"""Kills, copies, backups and restores of a labeling server amid submits: no acknowledged vote may
be missing or changed.

    python benchmarks/reliability/labels.py --seed 0 --size 200

At five moments drawn by the seed the server is killed amid submits (once redis and the worker too);
at five others a backup and a copy of the home are taken. The copy must not reach the original;
every backup is restored beside it. Less than 200 submits have fewer moments.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from prefloop.errors import LabelError
from prefloop.labeling import server
from prefloop.labeling.argilla.connection import Connection
from prefloop.labeling.argilla.forms import is_swapped, to_values
from prefloop.labeling.argilla.records import Argilla
from prefloop.records import Comparison, Message, Response

DATASET, PEOPLE = "campaign", ("ann", "ben", "cem", "dia")
AHEAD = 12  # submits that go on while something is done
Votes = dict[
    tuple[str, str], tuple[str, str | None]
]  # (record, annotator) → (side on the page, why)


@dataclass
class Campaign:
    """What was done and what came of it; each backup with the votes that were acknowledged before
    it began.
    """

    home: Path
    seed: int
    size: int
    acknowledged: Votes = field(default_factory=dict)
    asked: Votes = field(default_factory=dict)
    backups: list[tuple[Path, Votes]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    news: threading.Condition = field(default_factory=threading.Condition)
    limit: int = 0
    down: bool = False

    def check(self, what: str, good: bool, how: str) -> None:
        with self.news:
            self.counts[what] += 1
        if not good:
            self.failures.append(f"{what}: {how} (--seed {self.seed} --size {self.size})")

    def wait(self, ready: Callable[[], bool]) -> None:
        with self.news:
            assert self.news.wait_for(ready, 300), "nobody submits any more"

    def tell(self, **news: bool | int) -> None:
        with self.news:
            self.__dict__.update(news)
            self.news.notify_all()

    def run(self) -> None:
        up(self.home)
        with Argilla(Connection.of_home(self.home)) as argilla:
            asked, said = [Message("user", "q?")], [Response("yes"), Response("no")]
            argilla.push([Comparison(f"pair-{n}", asked, said) for n in range(self.size)], DATASET)
            ids = {
                item["external_id"]: item["id"]
                for item in argilla.datasets.all(argilla.datasets.find(DATASET))
            }
        for name in PEOPLE:
            label(self.home, "users", "add", name)
        rng = random.Random(self.seed)
        number = max(1, min(5, self.size // 40))
        moments = sorted(rng.sample(range(1, max(self.size - AHEAD, 3)), 2 * number))
        todo = rng.sample([self.kill, self.save] * number, 2 * number)
        self.limit = moments[0] + AHEAD
        sides = [
            (f"pair-{n // len(PEOPLE)}", rng.choice(["A", "B", "tie"])) for n in range(self.size)
        ]
        each = [
            [(record, ids[record], side) for record, side in sides[i :: len(PEOPLE)]]
            for i in range(len(PEOPLE))
        ]
        with ThreadPoolExecutor(len(PEOPLE)) as threads:
            working = [
                threads.submit(self.annotate, name, work)
                for name, work in zip(PEOPLE, each, strict=True)
            ]
            for at, do, after in zip(moments, todo, [*moments[1:], self.size], strict=True):
                self.wait(lambda at=at: len(self.acknowledged) >= at)
                do()
                self.tell(limit=after + AHEAD)
            _ = [one.result() for one in working]
        self.pulled("pulled after it all", self.home, self.acknowledged)
        for file, votes in self.backups:
            self.restored(file, votes)
        self.pulled("pulled after the restores", self.home, self.acknowledged)

    def annotate(self, name: str, work: list[tuple[str, str, str]]) -> None:
        """Vote on every record; what was on its way when the server was killed is sent again."""
        key = json.loads((self.home / "credentials.json").read_text())["users"][name]["api_key"]
        url, headers = f"{Connection.of_home(self.home).url}/api/v1", {"X-Argilla-Api-Key": key}
        with httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False) as person:
            for record, id, side in work:
                key, vote = (record, name), (side, f"{record} by {name}")
                values = {"preferred": {"value": vote[0]}, "why": {"value": vote[1]}}
                self.asked[key] = vote
                while key not in self.acknowledged:
                    self.wait(lambda: len(self.acknowledged) < self.limit and not self.down)
                    try:
                        answer = person.post(
                            f"/records/{id}/responses",
                            json={"status": "submitted", "values": values},
                        )
                    except httpx.TransportError:
                        self.check("submits lost to a kill", True, "")
                        time.sleep(0.05)
                        continue
                    # 409: it was stored, and the kill took the answer.
                    self.check(
                        "submits", answer.status_code in (201, 409), f"{key}: {answer.text[:200]}"
                    )
                    self.acknowledged[key] = vote
                    self.tell()

    def kill(self) -> None:
        pids = json.loads(label(self.home, "status")[1])["processes"]
        for process in ["server"] if self.counts.get("kills") else ["server", "redis", "worker"]:
            os.kill(pids[process], signal.SIGKILL)
        self.tell(down=True)
        self.counts["kills"] += 1
        up(self.home)
        self.tell(down=False)

    def save(self) -> None:
        before, file, copy = (
            dict(self.acknowledged),
            self.home.parent / f"{len(self.backups)}.tar",
            self.home.parent / "copy",
        )
        label(self.home, "backup", str(file))
        self.backups.append((file, before))
        self.counts["backups"] += 1
        shutil.copytree(
            self.home,
            copy,
            ignore=lambda _, names: [name for name in names if name.endswith(".sock")],
        )
        state = label(self.home, "status")[1]
        self.check("copy finds no process", label(copy, "status")[0] == 1, str(copy))
        label(copy, "down")
        with contextlib.suppress(LabelError):
            self.check("copies without a server to push to", False, Connection.of_home(copy).url)
        self.check("copy left the original alone", label(self.home, "status")[1] == state, state)
        self.counts["submits during backups and copies"] += len(self.acknowledged) - len(before)
        shutil.rmtree(copy)

    def restored(self, file: Path, votes: Votes) -> None:
        home = self.home.parent / f"restored-{file.stem}"
        label(home, "restore", str(file))
        with contextlib.ExitStack() as ended:
            ended.callback(label, home, "down")
            up(home)
            self.pulled(f"restored {file.stem}", home, votes)
        both = [(each / "credentials.json").read_bytes() for each in (home, self.home)]
        self.check("same accounts", both[0] == both[1], file.name)

    def pulled(self, what: str, home: Path, votes: Votes) -> None:
        with Argilla(Connection.of_home(home)) as argilla:
            found: Votes = {}
            for record in argilla.pull(DATASET).records:
                for vote in record.votes:
                    side = to_values(vote, is_swapped(DATASET, record.id))["preferred"]["value"]
                    found[record.id, vote.annotator] = side, vote.why
        missing, changed = (
            votes.keys() - found,
            [key for key in found if found[key] != self.asked.get(key)],
        )
        self.counts.update(
            {"votes looked for": len(votes), "missing": len(missing), "changed": len(changed)}
        )
        self.check(
            "pulls",
            not missing and not changed,
            f"{what}: missing {sorted(missing)[:5]}, changed {changed[:5]}",
        )


def label(home: Path, *words: str) -> tuple[int, str]:
    return server.run([*words, "--home", str(home)])


def up(home: Path) -> None:
    """Start the server: at first on a port that no client is given, later where it was, or beside
    the one it was restored from.
    """
    port = (
        []
        if (home / "server.json").exists()
        else ["--port", str(random.SystemRandom().randint(10_000, 30_000))]
    )
    label(home, "up", *port)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Kills, copies, backups and restores of a labeling server."
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=200, help="submits (default: %(default)s)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as ended:
        campaign = Campaign(Path(folder) / "home", options.seed, options.size)
        ended.callback(label, campaign.home, "down")
        campaign.run()
    print(
        "| what | count |\n|---|---|",
        *(f"| {what} | {n} |" for what, n in campaign.counts.items()),
        sep="\n",
    )
    print("\n".join(campaign.failures) or "no failures")
    return bool(campaign.failures)


if __name__ == "__main__":
    sys.exit(main())
