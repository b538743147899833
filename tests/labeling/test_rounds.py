"""Rounds of sampling, labeling and training; votes that travel through a real Argilla; a wait that
is killed.
"""

from __future__ import annotations

import html
import json
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from labeling_server import Labeling, until
from loop_run import finish, run, start, statuses, summary, write_config

from prefloop.config import LabelConfig
from prefloop.config.load import parse
from prefloop.errors import ConfigError, DataError
from prefloop.labeling.pool import content_of
from prefloop.pipeline.stages.label import Label
from prefloop.records import Comparison, Message, Vote, from_dict

pytestmark = pytest.mark.slow


def artifact(config: Path, slot: str, file: str) -> list[dict[str, Any]]:
    path = config.parent / "runs" / "t" / "artifacts" / slot / file
    return [json.loads(line) for line in path.read_text().splitlines()]


def labeled(config: Path) -> list[Comparison]:
    return [
        from_dict(Comparison, row) for row in artifact(config, "comparisons", "comparisons.jsonl")
    ]


def settings(tmp_path: Path, model: Path, tokens: int = 120, **label: Any) -> Path:
    """An ensemble, no waiting between two looks; of ``tokens`` enough that some of few random
    responses end by themselves.
    """
    people = [{"name": "round-a", "noise": 0.05}, {"name": "round-b", "noise": 0.3}]
    config = write_config(
        tmp_path,
        model,
        algo="reward",
        generation={"max_new_tokens": tokens},
        label={"annotators": people, "poll_seconds": 0.05} | label,
    )
    tree = config.read_text().replace("reward:\n", "reward:\n  members: 2\n")
    config.write_text(tree)
    return config


def test_a_second_round_labels_what_the_first_was_unsure_of(
    tmp_path: Path, tiny_folder: Path
) -> None:
    config = settings(tmp_path, tiny_folder, tokens=10, pairs=6)
    output = run(config, "--algo", "dpo")
    first = labeled(config)
    assert "choose" not in output

    output = run(config, "--algo", "dpo", "--rounds", "2")
    assert {
        name: status
        for name, status in statuses(config).items()
        if not name.startswith(("respond", "judge"))
    } == {
        **dict.fromkeys(("sft", "sample", "label", "reward", "dpo"), "reused"),
        **dict.fromkeys(("sample-2", "choose-2", "label-2", "reward-2", "dpo-2"), "ran"),
    }
    both = labeled(config)
    assert both[: len(first)] == first and len(both) == len(first) + 6
    assert len({c.id for c in both}) == len({content_of(c) for c in both}) == len(both)
    chosen = both[len(first) :]
    assert {r.source for c in chosen for r in c.responses} == {"dpo"}, (
        "the second round samples from the first's policy"
    )
    assert all(c.meta["selected"]["method"] == "disagreement" for c in chosen)
    assert all([v.annotator for v in c.votes] == ["round-a", "round-b"] for c in both)
    found = {s["name"]: s["metrics"] for s in summary(config)["stages"]}
    assert found["choose-2"]["value"] > found["choose-2"]["value_of_pool"] > 0
    assert found["label-2"]["comparisons"] == len(both) and found["label-2"]["of_this_round"] == 6

    run(config, "--algo", "dpo", "--rounds", "2")
    assert set(statuses(config).values()) == {"reused"}


def test_votes_through_argilla_are_those_that_were_cast(
    tmp_path: Path, tiny_folder: Path, labeling: Labeling
) -> None:
    """The whole path, unattended; against the same annotators voting directly."""
    config = settings(tmp_path, tiny_folder, home=str(labeling.home))
    run(config)
    direct = {content_of(c): c for c in labeled(config)}
    dataset = labeling.name()

    output = run(config, "--labels", f"argilla://default/{dataset}", "--simulate")
    assert "pairs sent to" in output and "reused sample" in output
    through = labeled(config)
    assert len(through) == len(direct)
    for comparison in through:
        other = direct[content_of(comparison)]
        assert comparison.responses == other.responses, (
            "un-swapped, with what annotators do not see"
        )
        assert {v.annotator: v.choice for v in comparison.votes} == {
            v.annotator: v.choice for v in other.votes
        }
        assert not any(v.at for v in comparison.votes), (
            "when a program voted says nothing about haste"
        )
    people = {a["name"]: a for a in summary(config)["annotators"]}
    assert (
        people["round-a"]["votes"] == len(through)
        and people["round-a"]["agreement_with_gold"] > 0.5
    )

    output = run(config, "--labels", f"argilla://default/{dataset}", "--simulate")
    assert "pairs sent to" not in output and set(statuses(config).values()) == {"reused"}
    secret = labeling.connection.api_key
    assert not any(secret in path.read_text(errors="replace") for path in tmp_path.rglob("*.json*"))


def test_a_killed_wait_goes_on_and_takes_every_vote_but_drafts(
    tmp_path: Path, tiny_folder: Path, labeling: Labeling
) -> None:
    config, dataset = (
        settings(tmp_path, tiny_folder, home=str(labeling.home), enough=0.5),
        labeling.name(),
    )
    flags = ("--labels", f"argilla://default/{dataset}")
    process = start(config, *flags)
    assert any("waiting for votes" in line for line in process.stdout)
    process.send_signal(signal.SIGKILL)
    process.wait(300)

    found = labeling.argilla.datasets.find(dataset)
    ann, ben = labeling.user(), labeling.user()
    queue = ann.queue(found.id)
    half = -(-len(queue) // 2)
    for record in queue[: half - 1]:
        ann.answer(record["id"], preferred="A")
    ben.answer(queue[0]["id"], preferred="tie")
    ben.answer(queue[1]["id"], "draft", preferred="B")

    process = start(config, *flags)
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "waiting for votes" in line:
            break
    assert any(f"({len(queue)} were there)" in line for line in lines), "".join(lines)
    ann.answer(queue[half - 1]["id"], preferred="B")
    code, output = finish(process)
    assert code == 0, "".join(lines) + output

    votes = labeled(config)
    assert len(votes) == half and {c.id for c in votes} == {r["external_id"] for r in queue[:half]}
    assert Counter(v.annotator for c in votes for v in c.votes) == {ann.name: half, ben.name: 1}
    texts = {r["external_id"]: r["fields"] for r in queue}
    for comparison in votes:
        vote = next(v for v in comparison.votes if v.annotator == ann.name)
        side = "response_b" if comparison.id == queue[half - 1]["external_id"] else "response_a"
        assert comparison.responses[vote.choice].text == html.unescape(texts[comparison.id][side])
    metrics = next(s["metrics"] for s in summary(config)["stages"] if s["name"] == "label")
    assert metrics["unlabelled"] == len(queue) - half and metrics["drafts"] == 1


def test_a_server_that_comes_late_is_waited_for(
    tmp_path: Path, tiny_folder: Path, labeling: Labeling
) -> None:
    """A restart in the middle of the wait: said once, and the wait goes on."""
    from prefloop.labeling import server

    config, dataset = (
        settings(tmp_path, tiny_folder, home=str(labeling.home), enough=0.01),
        labeling.name(),
    )
    process = start(config, "--labels", f"argilla://default/{dataset}")
    assert any("waiting for votes" in line for line in process.stdout)
    port = labeling.url.rpartition(":")[2]
    server.run(["down", "--home", str(labeling.home)])
    try:
        assert any("waiting for it" in line for line in process.stdout)
    finally:
        server.run(["up", "--home", str(labeling.home), "--port", port])
    ann = labeling.user()
    queue = until(lambda: ann.queue(labeling.argilla.datasets.find(dataset).id))
    ann.answer(queue[0]["id"], preferred="A")
    _, output = finish(process)
    assert "label: ran in" in output, output  # the reward stage refuses to learn from a single pair
    assert [v.annotator for c in labeled(config) for v in c.votes] == [ann.name]


def test_one_round_alone_leaves_the_next_pairs(tmp_path: Path, tiny_folder: Path) -> None:
    config = settings(tmp_path, tiny_folder, tokens=10, pairs=5)
    code, output = finish(start(config, script="pipelines/label_round.py"))
    assert code == 0, output
    assert "the next pairs:" in output
    folder = config.parent / "runs" / "t-round" / "artifacts"
    pairs, votes = (
        [
            from_dict(Comparison, json.loads(line))
            for line in (folder / name).read_text().splitlines()
        ]
        for name in ("pairs/pairs.jsonl", "comparisons/comparisons.jsonl")
    )
    known = {content_of(c) for c in votes}
    assert len(pairs) == 5 and not any(p.votes or content_of(p) in known for p in pairs)
    run(config)
    assert set(statuses(config).values()) == {"reused"}, "rlhf.py has the same stages"


def test_guidelines_that_are_missing_are_told_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        Label(
            LabelConfig(
                source="argilla", dataset="d", home=tmp_path, guidelines=tmp_path / "how.md"
            )
        ).preflight()


def test_another_server_is_another_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def parts(**changes: Any) -> dict[str, Any]:
        return Label(LabelConfig(source="argilla", dataset="d", **changes)).parts()

    monkeypatch.delenv("ARGILLA_API_URL", raising=False)
    assert (
        parts(home=tmp_path)
        != parts(home=tmp_path / "other")
        != parts(url="http://127.0.0.1:1")
        != parts()
    )
    assert parts(home=tmp_path) == parts(home=tmp_path, enough=0.5, patience=1, poll_seconds=9)
    mine = parts()
    monkeypatch.setenv("ARGILLA_API_URL", "http://127.0.0.1:1")
    assert parts() == parts(url="http://127.0.0.1:1/") != mine


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--labels", "argila"), "'argila' is none of simulated, file, argilla"),
        (("--labels", "argilla://x"), "argilla://workspace/dataset"),
        (("--labels", "file://x/y"), "argilla://workspace/dataset"),
        (("--rounds", "2", "--labels", "file"), "only sampled candidates"),
        (("--simulate",), "say --labels argilla"),
    ],
)
def test_wrong_flags_are_told_before_anything_runs(flags: tuple[str, ...], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse(list(flags), prog="x", description="")


def test_an_address_is_written_out_into_the_settings() -> None:
    label = parse(["--labels", "argilla://team/one", "--run", "r"], prog="x", description="").label
    assert (label.source, label.workspace, label.dataset) == ("argilla", "team", "one")
    assert (
        parse(["--labels", "argilla", "--run", "r"], prog="x", description="").label.dataset == "r"
    )
    assert (
        parse(["--labels", "argilla", "--simulate"], prog="x", description="").label.dataset
        == "run-simulated"
    )


def test_a_vote_is_kept_as_it_was_cast() -> None:
    from prefloop.config import AnnotatorConfig
    from prefloop.labeling.simulated import cast
    from prefloop.records import Response

    pair = Comparison("p", [Message("user", "q")], [Response("a"), Response("b")])
    exact = [AnnotatorConfig("exact", 0.0), AnnotatorConfig("loose", 1.0)]
    assert cast(pair, (0.2, 0.7), exact, 0).votes[0] == Vote("exact", 1)
    assert cast(pair, (0.7, 0.2), exact, 0).votes[0] == Vote("exact", 0)
    assert cast(pair, (0.2, 0.7), exact, 0) == cast(pair, (0.2, 0.7), exact, 0)
