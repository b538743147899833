"""`label pull --every` keeps a file up to date: what it writes, what it says, and what ends it."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from labeling_server import Labeling, comparisons

from prefloop.cli import _main, guarded
from prefloop.commands import label as label_module
from prefloop.data import sources
from prefloop.labeling.argilla.connection import Refused, Unreachable
from prefloop.labeling.argilla.records import Argilla
from prefloop.records import Vote


@pytest.fixture
def dataset(labeling: Labeling) -> str:
    name = labeling.name()
    labeling.argilla.push(comparisons(4), name)
    return name


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "votes.jsonl"


def pull(dataset: str, output: Path, *flags: object, every: object = 60) -> int:
    words = ("--dataset", dataset, "--output", output, "--every", every, *flags)
    return guarded(_main, ["label", "pull", *map(str, words)])


def between(monkeypatch: pytest.MonkeyPatch, *events: Callable[[], object]) -> list[float]:
    """Let each event happen instead of a sleep, and then Ctrl-C; the lengths of the sleeps."""
    left, asked = iter(events), []

    def pause(seconds: float) -> None:
        asked.append(seconds)
        event = next(left, None)
        if event is None:
            raise KeyboardInterrupt
        event()

    monkeypatch.setattr(label_module, "pause", pause)
    return asked


def votes(output: Path) -> dict[str, list[object]]:
    rows = map(json.loads, output.read_text().splitlines())
    return {row["id"]: [vote["choice"] for vote in row["votes"]] for row in rows}


def test_votes_that_arrive_between_two_pulls_are_in_the_file(
    labeling: Labeling,
    dataset: str,
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name, ann = labeling.name(), labeling.user()
    shown = ann.queue(labeling.argilla.datasets.find(dataset).id)
    queue = {record["external_id"]: record["id"] for record in shown}
    labeling.argilla.vote(dataset, name, {"pair/0": Vote("", 0)})
    found: list[dict[str, list[object]]] = []

    def two_arrive() -> None:
        found.append(votes(output))
        labeling.argilla.vote(dataset, name, {"pair/1": Vote("", 1)})
        assert ann.answer(queue["pair/2"], preferred="tie").status_code == 201

    asked = between(monkeypatch, two_arrive, lambda: found.append(votes(output)), lambda: None)
    assert pull(dataset, output, "--home", labeling.home, "--simulated") == 130
    assert found == [{"pair/0": [0]}, {"pair/0": [0], "pair/1": [1], "pair/2": ["tie"]}]
    assert votes(output) == found[-1] and asked == [60.0] * 4
    said = capsys.readouterr().out.splitlines()
    first, second = (line for line in said if "votes.jsonl" in line)
    assert re.match(r"\d\d:\d\d:\d\d .*: 1 record with 1 vote .*; 1 of 4 records have", first)
    assert re.match(r"\d\d:\d\d:\d\d .*: 3 records with 3 votes .*; 3 of 4 records have", second)


def test_the_file_is_whole_while_the_next_one_is_written(
    labeling: Labeling, dataset: str, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, line, seen = labeling.name(), sources._line, []

    def watched(record: object) -> bytes:
        seen.append(votes(output) if output.exists() else None)
        return line(record)

    def vote(choice: int) -> Callable[[], object]:
        answers = {f"pair/{i}": Vote("", choice) for i in range(3)}
        return lambda: labeling.argilla.vote(dataset, name, answers)

    monkeypatch.setattr(sources, "_line", watched)
    vote(0)()
    between(monkeypatch, vote(1), vote(0))
    assert pull(dataset, output, "--home", labeling.home) == 130
    zeros, ones = ({f"pair/{i}": [choice] for i in range(3)} for choice in (0, 1))
    assert seen == [None] * 3 + [zeros] * 3 + [ones] * 3 and votes(output) == zeros
    assert list(output.parent.iterdir()) == [output], "nothing is left beside the file"


def test_an_older_file_stays_while_nobody_has_answered(
    labeling: Labeling,
    dataset: str,
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output.write_text("votes of last week")
    found: list[str] = []

    def one_arrives() -> None:
        found.append(output.read_text())
        labeling.argilla.vote(dataset, labeling.name(), {"pair/0": Vote("", 0)})

    between(monkeypatch, lambda: found.append(output.read_text()), one_arrives)
    assert pull(dataset, output, "--home", labeling.home) == 130
    assert found == ["votes of last week"] * 2 and votes(output) == {"pair/0": [0]}
    said = capsys.readouterr().out
    assert said.count("nobody has answered yet") == 1 and said.count("1 record with 1 vote") == 1


def test_a_server_that_is_away_is_said_once_and_asked_again(
    labeling: Labeling,
    dataset: str,
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name, real, turn = labeling.name(), Argilla.pull, itertools.count()
    silent, starting = Unreachable("nothing answers"), Refused("it starts", 503, None)
    away = {1: silent, 2: starting, 4: silent}

    def answers(*arguments: object, **options: object) -> object:
        if error := away.get(next(turn)):
            raise error
        return real(*arguments, **options)

    monkeypatch.setattr(Argilla, "pull", answers)
    labeling.argilla.vote(dataset, name, {"pair/0": Vote("", 0)})
    kept: list[dict[str, list[object]]] = []

    def another_vote() -> None:
        kept.append(votes(output))
        labeling.argilla.vote(dataset, name, {"pair/1": Vote("", 1)})

    between(monkeypatch, lambda: None, lambda: None, another_vote, lambda: None)
    assert pull(dataset, output, "--home", labeling.home, every=1.5) == 130
    assert kept == [{"pair/0": [0]}] and votes(output) == {"pair/0": [0], "pair/1": [1]}
    said = capsys.readouterr().out
    assert said.count("nothing answers; asking again every 1.5 s") == 2 and "it starts" not in said


def test_a_server_that_is_away_at_the_first_pull_is_an_error(
    labeling: Labeling,
    dataset: str,
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def silent(*_: object, **__: object) -> None:
        raise Unreachable("nothing answers")

    monkeypatch.setattr(Argilla, "pull", silent)
    assert pull(dataset, output, "--home", labeling.home) == 2 and not output.exists()
    assert "error: nothing answers" in capsys.readouterr().err


def test_a_dataset_that_is_gone_ends_it_and_the_file_stays(
    labeling: Labeling,
    dataset: str,
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    labeling.argilla.vote(dataset, labeling.name(), {"pair/0": Vote("", 0)})
    id = labeling.argilla.datasets.find(dataset).id
    between(monkeypatch, lambda: labeling.argilla.rest.call("DELETE", f"/datasets/{id}"))
    assert pull(dataset, output, "--home", labeling.home) == 2
    assert f"holds no dataset '{dataset}'" in capsys.readouterr().err
    assert votes(output) == {"pair/0": [0]}


def test_a_key_that_is_no_longer_known_ends_it_and_the_file_stays(
    labeling: Labeling,
    dataset: str,
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    labeling.argilla.vote(dataset, labeling.name(), {"pair/0": Vote("", 0)})
    admin, rest = labeling.user(role="admin"), labeling.argilla.rest
    (id,) = (user["id"] for user in rest.get("/users")["items"] if user["username"] == admin.name)
    key = admin.client.headers["X-Argilla-Api-Key"]
    between(monkeypatch, lambda: rest.call("DELETE", f"/users/{id}"))
    assert pull(dataset, output, "--home", labeling.home, "--api-key", key) == 2
    assert "does not know this API key" in capsys.readouterr().err
    assert votes(output) == {"pair/0": [0]}


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_sleep_and_keeps_the_file(
    labeling: Labeling, dataset: str, output: Path, number: signal.Signals, status: int
) -> None:
    labeling.argilla.vote(dataset, labeling.name(), {"pair/0": Vote("", 0)})
    command = [sys.executable, "-c", "from prefloop.cli import main; main()", "label", "pull"]
    flags = ["--home", labeling.home, "--dataset", dataset, "--output", output, "--every", "1e9"]
    process = subprocess.Popen(
        [*command, *flags],
        env={**os.environ, "PYTHONPATH": "src"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert any("1 record with 1 vote" in line for line in process.stdout)
    process.send_signal(number)
    _, said = process.communicate(timeout=300)
    assert process.returncode == status and "no file is left half written" in said
    assert votes(output) == {"pair/0": [0]} and labeling.connection.api_key not in said


@pytest.mark.parametrize("value", ["0", "-5", "0.99", "nan", "inf", "2e9", "soon"])
def test_only_a_number_of_seconds_from_1_on_is_taken(
    value: str, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        pull("apples", output, every=value)
    said = " ".join(capsys.readouterr().err.replace("│", "").split())
    assert refused.value.code == 2 and "--every" in said and "expected a number from 1 to" in said


def test_label_watch_is_answered_with_what_it_is_now(capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(_main, ["label", "watch", "--dataset", "apples", "--output", "votes.jsonl"]) == 2
    said = capsys.readouterr().err
    assert said == "error: `prefloop label watch` is `prefloop label pull --every 60` now\n"
