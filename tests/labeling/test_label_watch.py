"""Signed webhooks keep a file of votes up to date."""

import base64
import hashlib
import hmac
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from labelling import Labelling, comparisons, until

from prefloop.errors import LabelError
from prefloop.labeling import watch as watch_module
from prefloop.labeling.argilla.connection import Connection
from prefloop.labeling.argilla.datasets import Dataset
from prefloop.labeling.argilla.records import Argilla
from prefloop.labeling.watch import TOLERANCE_S, News, Signature, Watch
from prefloop.records import Vote

SECRET = base64.b64encode(b"a secret of thirty-two bytes ...").decode()


def signed(body: bytes, at: int, id: str = "msg_1", secret: str = SECRET) -> dict[str, str]:
    mac = hmac.new(base64.b64decode(secret), f"{id}.{at}.".encode() + body, hashlib.sha256).digest()
    signature = f"v1a,AAAA v1,{base64.b64encode(mac).decode()}"
    return {"webhook-id": id, "webhook-timestamp": str(at), "webhook-signature": signature}


def test_a_signature_is_good_once_for_its_body_and_near_its_time() -> None:
    signature = Signature(SECRET, clock=lambda: 10_000.0)
    assert signature.verify(signed(b"{}", 10_000), b"{}") is None
    assert signature.verify(signed(b"{}", 10_000), b"{}") == "seen before"
    assert signature.verify(signed(b"{}", 10_000, "msg_2"), b"{ }") == "wrong signature"
    assert signature.verify(signed(b"{}", 10_000, "msg_2"), b"{}") is None, "a bad copy spoils no good message"
    assert signature.verify(signed(b"{}", 10_000 - TOLERANCE_S - 1, "msg_3"), b"{}") == "timestamp too old or too new"
    assert signature.verify(signed(b"{}", 10_000 + TOLERANCE_S + 1, "msg_3"), b"{}") == "timestamp too old or too new"
    assert signature.verify({}, b"{}") == "signature headers missing"
    assert signature.verify({**signed(b"{}", 10_000, "msg_4"), "webhook-signature": "v1,!"}, b"{}") == "wrong signature"


def test_a_signature_with_the_prefix_of_the_standard_and_its_own_test_vector() -> None:
    body = b'{"test": 2432232314}'
    headers = {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }
    signature = Signature("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", clock=lambda: 1614265330.0)
    assert signature.verify(headers, body) is None


class Watching:
    """A watch whose updates are taken in a thread."""

    def __init__(self, labelling: Labelling, dataset: str, output: Path, every_s: float = 300) -> None:
        self.watch = Watch(labelling.argilla, dataset, output, every_s=every_s)
        self.news: list[News] = []
        self.output = output

    def __enter__(self) -> "Watching":
        self.watch.__enter__()
        updates = self.watch.updates()
        self.news.append(next(updates))
        self.thread = threading.Thread(target=lambda: self.news.extend(updates))
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.watch.__exit__()
        self.thread.join(300)
        assert not self.thread.is_alive()

    def votes(self) -> dict[str, list]:
        if not self.output.exists():
            return {}
        rows = map(json.loads, self.output.read_text().splitlines())
        return {row["id"]: [vote["choice"] for vote in row["votes"]] for row in rows}


@pytest.fixture
def dataset(labelling: Labelling) -> Iterator[str]:
    name = labelling.name()
    labelling.argilla.push(comparisons(4), name)
    yield name
    assert labelling.argilla.rest.get("/webhooks")["items"] == [], "a watch has left its webhook"


def test_votes_arrive_change_and_go(labelling: Labelling, dataset: str, tmp_path: Path) -> None:
    name = labelling.name()
    labelling.argilla.vote(dataset, name, {"pair/0": Vote("", 0)})
    with Watching(labelling, dataset, tmp_path / "votes.jsonl") as watching:
        assert watching.votes() == {"pair/0": [0]}, "what was there before"
        labelling.argilla.vote(dataset, name, {"pair/1": Vote("", 1), "pair/2": Vote("", "tie")})
        until(lambda: watching.votes() == {"pair/0": [0], "pair/1": [1], "pair/2": ["tie"]})
        labelling.argilla.vote(dataset, labelling.name(), {"pair/0": Vote("", 1)})
        until(lambda: watching.votes()["pair/0"] == [0, 1])
        labelling.argilla.vote(dataset, name, {"pair/1": Vote("", 0)})
        until(lambda: watching.votes()["pair/1"] == [0])
        labelling.argilla.vote(dataset, name, {"pair/1": Vote("", 0)}, status="discarded")
        until(lambda: "pair/1" not in watching.votes())
    assert watching.news[0].completed == 1 and watching.news[-1].completed == 2 and watching.news[-1].total == 4


def test_an_older_file_stays_until_the_first_vote(labelling: Labelling, dataset: str, tmp_path: Path) -> None:
    output, name = tmp_path / "votes.jsonl", labelling.name()
    output.write_text("votes of last week")
    with Watching(labelling, dataset, output) as watching:
        assert not watching.news[0].written and output.read_text() == "votes of last week"
        labelling.argilla.vote(dataset, name, {"pair/0": Vote("", 0)})
        until(lambda: "last week" not in output.read_text())
        assert watching.votes() == {"pair/0": [0]}
        labelling.argilla.vote(dataset, name, {"pair/0": Vote("", 0)}, status="discarded")
        until(lambda: watching.votes() == {})


def test_programs_votes_leave_the_file_when_a_person_votes(labelling: Labelling, dataset: str, tmp_path: Path) -> None:
    labelling.argilla.vote(dataset, labelling.name(), {"pair/0": Vote("", 0), "pair/1": Vote("", 0)})
    person = labelling.user()
    with Watching(labelling, dataset, tmp_path / "votes.jsonl") as watching:
        assert watching.votes() == {"pair/0": [0], "pair/1": [0]}
        shown = {r["external_id"]: r["id"] for r in person.queue(watching.watch.dataset.id)}
        person.answer(shown["pair/2"], preferred="tie")
        until(lambda: watching.votes() == {"pair/2": ["tie"]})


def test_a_server_that_is_away_is_said_once_and_so_is_its_return(
    labelling: Labelling,
    dataset: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    monkeypatch.setattr(watch_module, "say", lambda line, *_: said.append(line))
    watch = Watch(labelling.argilla, dataset, tmp_path / "votes.jsonl", beat_s=0.02)
    answers, looks = labelling.argilla.datasets.counts, iter(range(6))

    def counts(found: Dataset) -> dict[str, int]:
        if 2 <= next(looks, 99) < 5:
            raise LabelError("nothing answers")
        return answers(found)

    monkeypatch.setattr(labelling.argilla.datasets, "counts", counts)
    with watch:
        updates = watch.updates()
        assert next(updates).found.votes == 0
        closer = threading.Thread(target=lambda: (until(lambda: len(said) == 2), watch._closed.set()))
        closer.start()
        assert list(updates) == []
        closer.join()
    lost, back = said
    assert re.fullmatch(r"\d\d:\d\d:\d\d nothing answers\. Asking again every 0\.02 s", lost)
    assert re.fullmatch(r"\d\d:\d\d:\d\d Argilla answers again", back)


def test_a_vote_whose_event_was_lost_comes_with_the_next_pull(
    labelling: Labelling, dataset: str, tmp_path: Path
) -> None:
    with Watching(labelling, dataset, tmp_path / "votes.jsonl", every_s=0.2) as watching:
        webhook = labelling.argilla.rest.get("/webhooks")["items"][0]["id"]
        labelling.argilla.rest.call("PATCH", f"/webhooks/{webhook}", {"enabled": False})
        labelling.argilla.vote(dataset, labelling.name(), {"pair/3": Vote("", 1)})
        until(lambda: watching.votes() == {"pair/3": [1]})


def test_what_is_not_signed_changes_nothing(labelling: Labelling, dataset: str, tmp_path: Path) -> None:
    with Watching(labelling, dataset, tmp_path / "votes.jsonl") as watching:
        address = labelling.argilla.rest.get("/webhooks")["items"][0]["url"].removeprefix("http://").rstrip("/")
        for headers, body, status in (
            ({}, b"{}", 401),
            ({"Content-Length": str(1 << 30)}, b"", 413),
            ({"Content-Length": "-1"}, b"", 411),
        ):
            client = http.client.HTTPConnection(address, timeout=300)
            client.request("POST", "/", body, headers)
            assert client.getresponse().status == status
            client.close()
        assert address.startswith("127.0.0.1:") and watching.votes() == {}


def test_the_command_ends_with_ctrl_c_and_takes_its_webhook_along(
    labelling: Labelling, dataset: str, tmp_path: Path
) -> None:
    output = tmp_path / "votes.jsonl"
    labelling.argilla.vote(dataset, labelling.name(), {"pair/0": Vote("", 0)})
    code = "from prefloop.cli import main; main()"
    command = [sys.executable, "-c", code, "label", "watch", "--home", labelling.home, "--dataset", dataset]
    environment = {**os.environ, "PYTHONPATH": "src"}

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen([*command, "--output", output], env=environment, stdout=subprocess.PIPE, text=True)

    told = re.compile(r"\d\d:\d\d:\d\d .*votes\.jsonl: 1 record with 1 vote .*; 1 of 4 records have")
    killed = start()
    assert any(map(told.match, killed.stdout))
    killed.kill()
    killed.communicate()
    output.unlink()
    for signal_ in (signal.SIGINT, signal.SIGTERM):
        process = start()
        lines = []
        for line in process.stdout:
            lines.append(line)
            if told.match(line):
                break
        assert len(labelling.argilla.rest.get("/webhooks")["items"]) == 1, "a killed watch's webhook is replaced"
        process.send_signal(signal_)
        rest, _ = process.communicate(timeout=300)
        assert process.returncode == 0 and "stopped" in rest
        assert labelling.connection.api_key not in "".join([*lines, rest])
        output.unlink()


def test_only_an_owner_can_watch(labelling: Labelling, dataset: str, tmp_path: Path) -> None:
    key = labelling.user(role="admin").client.headers["X-Argilla-Api-Key"]
    with (
        pytest.raises(LabelError, match=r"let this key GET /webhooks: use the key of an owner$"),
        Watch(Argilla(Connection(labelling.url, key)), dataset, tmp_path / "votes.jsonl"),
    ):
        pass
