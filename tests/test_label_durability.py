"""Concurrent submits, the server killed in their midst: every acknowledged vote is pulled after the restart."""

import os
import signal
import threading
from pathlib import Path

import httpx
import pytest
from labelling import Annotator, comparisons, environment, up

from prefloop.labels import server
from prefloop.labels.forms import is_swapped

ANNOTATORS, RECORDS, BEFORE_KILL = 8, 30, 80


@pytest.mark.slow
def test_every_acknowledged_vote_survives_kill_9_and_is_pulled(tmp_path: Path) -> None:
    environment()
    home, dataset = tmp_path / "home", "pairs"
    try:
        labelling = up(home)
        labelling.argilla.push(comparisons(RECORDS), dataset)
        people = [labelling.user(f"ann{number}") for number in range(ANNOTATORS)]
        work = {p.name: p.queue(labelling.argilla.datasets.find(dataset).id) for p in people}
        acknowledged: dict[tuple[str, str], str] = {}
        pid, killed = labelling.pid(), threading.Event()

        def annotate(person: Annotator, side: str) -> None:
            for shown in work[person.name]:
                if (shown["external_id"], person.name) in acknowledged:
                    continue
                try:
                    answer = person.answer(shown["id"], preferred=side)
                except httpx.TransportError:
                    return  # the server is gone
                # After the restart, a vote that was kept without its acknowledgement is there already.
                assert answer.status_code in (201, 409), answer.text
                acknowledged[shown["external_id"], person.name] = side
                if len(acknowledged) >= BEFORE_KILL and not killed.is_set():
                    # By the annotator who got this answer, so that no one else can hand in the rest before.
                    killed.set()
                    os.kill(pid, signal.SIGKILL)

        def all_annotate() -> list[threading.Thread]:
            threads = [threading.Thread(target=annotate, args=(p, "AB"[number % 2])) for number, p in enumerate(people)]
            for thread in threads:
                thread.start()
            return threads

        for thread in all_annotate():
            thread.join()
        assert BEFORE_KILL <= len(acknowledged) < ANNOTATORS * RECORDS, "the kill came after the last vote"

        labelling = up(home)
        assert acknowledged.items() <= on_screen_votes(labelling.argilla.pull(dataset).records, dataset).items()
        for person in people:
            person.client.base_url = httpx.URL(f"{labelling.url}/api/v1")
        for thread in all_annotate():
            thread.join()
        pulled = labelling.argilla.pull(dataset)
        assert len(acknowledged) == pulled.votes == ANNOTATORS * RECORDS
        assert on_screen_votes(pulled.records, dataset) == acknowledged
    finally:
        server.run(["down", "--home", str(home)])


def on_screen_votes(records: list, dataset: str) -> dict[tuple[str, str], str]:
    """(record, annotator) → the side that they chose."""
    return {(r.id, v.annotator): "AB"[v.choice ^ is_swapped(dataset, r.id)] for r in records for v in r.votes}
