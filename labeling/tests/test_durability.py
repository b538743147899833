"""Every acknowledged vote survives `kill -9` in the middle of concurrent submits."""

import os
import signal
import sqlite3
import threading
from pathlib import Path

import httpx
from prefloop_labeling import server as labeling_server

from .conftest import Account, Dataset, Server, free_port

ANNOTATORS, RECORDS, BEFORE_KILL = 8, 60, 60


def test_acknowledged_votes_survive_kill_9(tmp_path: Path) -> None:
    home = tmp_path / "home"
    try:
        server = Server(labeling_server.up(home, port=free_port(), worker=False))
        dataset = server.dataset(min_submitted=ANNOTATORS)
        ids = dataset.log(*({"fields": {"prompt": f"p{n}"}} for n in range(RECORDS)))
        annotators = [server.user() for _ in range(ANNOTATORS)]
        acknowledged: set[tuple[str, str]] = set()
        pid, killed = labeling_server.status(home)["processes"]["server"], threading.Event()

        def annotate(account: Account) -> None:
            for record in ids:
                try:
                    answer = account.respond(record, choice="a")
                except httpx.TransportError:
                    return  # the server is gone
                assert answer.status_code == 201, answer.text
                acknowledged.add((record, account.id))
                if len(acknowledged) >= BEFORE_KILL and not killed.is_set():
                    # By the annotator who got this answer, so that no one else can hand in the rest
                    # before.
                    killed.set()
                    os.kill(pid, signal.SIGKILL)

        threads = [threading.Thread(target=annotate, args=(account,)) for account in annotators]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert BEFORE_KILL <= len(acknowledged) < ANNOTATORS * RECORDS, (
            "the kill came after the last vote"
        )

        again = Server(labeling_server.up(home, port=free_port(), worker=False))
        assert again.running.started
        kept = Dataset(dataset.id, again.owner)
        records = again.owner.get(
            f"/datasets/{kept.id}/records", params={"include": "responses", "limit": 1000}
        ).json()
        stored = {
            (item["id"], vote["user_id"]) for item in records["items"] for vote in item["responses"]
        }
        assert acknowledged <= stored
        assert (
            sum(item["status"] == "completed" for item in records["items"])
            == kept.search(
                filters={
                    "and": [
                        {
                            "type": "terms",
                            "scope": {"entity": "record", "property": "status"},
                            "values": ["completed"],
                        }
                    ]
                }
            )["total"]
        )
        with sqlite3.connect(home / "argilla.db") as database:
            assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    finally:
        labeling_server.down(home)
