"""Labeling at size: 50,000 records pushed, 10,000 answers pulled, eight annotators at once.

    # about fifteen minutes; the server is started in a temporary home
    python benchmarks/labels.py
    python benchmarks/labels.py --records 2000 --answers 500 --seconds 10

Push and pull are the commands that a user runs, in processes of their own, with their peak memory.
The answers before the pull are logged in bulk. An annotator asks for the next ten pending records,
as Argilla's page does, and answers the first; times are of each request.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx

from prefloop.data.sources import write_jsonl
from prefloop.labeling import server
from prefloop.labeling.argilla.connection import Connection
from prefloop.labeling.argilla.records import Argilla
from prefloop.records import Comparison, Message, Response

DATASET = "benchmark"
PEOPLE = 8


def pairs(count: int) -> list[Comparison]:
    """Pairs with lengths like hh-rlhf's."""
    rng = random.Random(0)
    words = [f"word{n}" for n in range(2000)]

    def text(low: int, high: int) -> str:
        return " ".join(rng.choices(words, k=rng.randint(low, high)))

    return [
        Comparison(
            f"pair-{n}",
            [Message("user", text(20, 150))],
            [Response(text(10, 120), "a"), Response(text(10, 120), "b")],
        )
        for n in range(count)
    ]


def command(*arguments: str) -> tuple[float, float]:
    """Seconds and peak MiB of a prefloop command."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", "from prefloop.cli import main; main()", "label", *arguments]
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"prefloop label {arguments[0]} failed")
    return time.perf_counter() - started, usage.ru_maxrss / 1024


def log_answers(argilla: Argilla, count: int) -> None:
    """One submitted answer to each of ``count`` records."""
    dataset = argilla.datasets.find(DATASET)
    users = [user["id"] for user in argilla.rest.get("/users")["items"]]
    for start in range(0, count, 250):
        items = [
            {
                "external_id": f"pair-{n}",
                "responses": [
                    {
                        "user_id": users[n % len(users)],
                        "status": "submitted",
                        "values": {"preferred": {"value": "AB"[n % 2]}},
                    }
                ],
            }
            for n in range(start, min(start + 250, count))
        ]
        argilla.rest.call("PUT", f"/datasets/{dataset.id}/records/bulk", {"items": items})


def annotate(argilla: Argilla, home: Path, seconds: float) -> dict[str, list[float]]:
    """Milliseconds of every request of eight annotators at work."""
    dataset, times = (
        argilla.datasets.find(DATASET),
        {
            "queue": [],
            "submit": [],
        },
    )  # type: dict[str, list[float]]
    scopes = ({"entity": kind, "property": "status"} for kind in ("response", "record"))
    body = {
        "filters": {
            "and": [{"type": "terms", "scope": scope, "values": ["pending"]} for scope in scopes]
        }
    }
    for n in range(PEOPLE):
        server.run(["users", "add", f"annotator-{n}", "--home", str(home)])
    keys = [
        user["api_key"]
        for user in json.loads((home / "credentials.json").read_text())["users"].values()
    ]
    deadline = time.monotonic() + seconds

    def person(key: str) -> None:
        client = httpx.Client(
            base_url=f"{argilla.rest.connection.url}/api/v1",
            headers={"X-Argilla-Api-Key": key},
            timeout=120,
            trust_env=False,
        )

        def timed(kind: str, path: str, body: dict[str, Any], **query: Any) -> Any:
            started = time.perf_counter()
            answer = client.post(path, json=body, params=query)
            times[kind].append((time.perf_counter() - started) * 1000)
            answer.raise_for_status()
            return answer.json()

        while time.monotonic() < deadline:
            page = timed(
                "queue",
                f"/me/datasets/{dataset.id}/records/search",
                body,
                limit=10,
                include="responses",
            )
            answer = {"status": "submitted", "values": {"preferred": {"value": "tie"}}}
            timed("submit", f"/records/{page['items'][0]['record']['id']}/responses", answer)

    threads = [threading.Thread(target=person, args=(key,)) for key in keys]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times


def peak_of(home: Path) -> float:
    """Peak MiB of the server's process; 0 where the system does not tell."""
    pid = json.loads(server.run(["status", "--home", str(home)])[1])["processes"]["server"]
    with contextlib.suppress(OSError):
        lines = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        )
        return int(lines["VmHWM"].split()[0]) / 1024
    return 0.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, default=50_000)
    parser.add_argument("--answers", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=60, help="how long the annotators work")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home, file, output = (
            Path(folder) / name for name in ("home", "pairs.jsonl", "votes.jsonl")
        )
        write_jsonl(file, pairs(options.records))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        server.run(["up", "--home", str(home), "--port", str(port)])
        try:
            where = ["--home", str(home), "--dataset", DATASET]
            argilla = Argilla(Connection.find(home))
            rows = [
                ("push", *command("push", str(file), *where)),
                ("push again", *command("push", str(file), *where)),
            ]
            log_answers(argilla, options.answers)
            for name in ("pull", "pull again"):
                rows.append((name, *command("pull", *where, "--output", str(output))))
            times = annotate(argilla, home, options.seconds)
            print(f"\n{options.records} records, {options.answers} answers\n")
            print("| command | seconds | peak MiB |\n|---|---|---|")
            for name, seconds, mib in rows:
                print(f"| {name} | {seconds:.1f} | {mib:.0f} |")
            print(
                f"\nserver: peak {peak_of(home):.0f} MiB; {PEOPLE} annotators at once for"
                f" {options.seconds:.0f} s:"
            )
            for kind, each in times.items():
                p95 = statistics.quantiles(each, n=20)[-1]
                print(
                    f"  {kind}: {len(each)} requests, median {statistics.median(each):.0f} ms, p95"
                    f" {p95:.0f} ms"
                )
        finally:
            server.run(["down", "--home", str(home)])


if __name__ == "__main__":
    main()
