"""A reward model on files of labels: what is measured, on which layouts, beside which baselines."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from by_words import ByWords

from prefloop.base.atomic import link
from prefloop.base.sealed import read_sealed
from prefloop.cli import _main as cli
from prefloop.cli import guarded
from prefloop.config import (
    AdapterConfig,
    BackboneConfig,
    DataConfig,
    LabelConfig,
    OptimConfig,
    RewardConfig,
)
from prefloop.data.sources import detect_layout, load_best_of, load_comparisons, write_jsonl
from prefloop.errors import DataError
from prefloop.evaluation.reward_files import FileReading, evaluate_file
from prefloop.evaluation.reward_metrics import PairMetrics
from prefloop.evaluation.rewardbench import SECTIONS, sections
from prefloop.export.adapter import export
from prefloop.objectives.calibration import calibration_bins, expected_calibration_error
from prefloop.pipeline.stages.label import Label
from prefloop.pipeline.stages.reward import RewardModel
from prefloop.pipeline.stages.reward_eval import RewardTest
from prefloop.records import Comparison, Message, Response, Vote
from prefloop.runs.runtime import Runtime


@pytest.fixture(scope="module")
def by_words(tiny_folder: Path) -> Any:
    return ByWords(tiny_folder)


@pytest.fixture
def reading(tmp_path: Path) -> FileReading:
    return FileReading(tmp_path / "scratch", tmp_path)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_file_on_which_every_pair_is_right_still_has_an_interval(
    tmp_path: Path, by_words: Any, reading: FileReading
) -> None:
    rows = [{"prompt": f"q{i}", "chosen": "good", "rejected": "bad thing"} for i in range(20)]
    found = evaluate_file(by_words, write(tmp_path / "all.jsonl", rows), reading)
    assert found["accuracy"] == 1.0
    assert found["accuracy_ci"] == pytest.approx(
        [0.025 ** (1 / 20), 1.0]
    )  # Clopper and Pearson, n of n


def test_rewardbench_rows_give_accuracy_by_subset_and_section(
    tmp_path: Path, by_words: Any, reading: FileReading
) -> None:
    right, wrong = (
        {"chosen": "good", "rejected": "bad thing"},
        {"chosen": "bad thing", "rejected": "good"},
    )
    rows = [
        {"prompt": f"q{i}", **(right if i < 3 else wrong), "subset": "math-prm"} for i in range(4)
    ]
    rows += [{"prompt": f"p{i}", **right, "subset": "hep-go"} for i in range(2)]
    rows += [{"prompt": f"r{i}", **wrong, "subset": "mt-bench-easy"} for i in range(2)]
    found = evaluate_file(by_words, write(tmp_path / "rb.jsonl", rows), reading)
    assert found["kind"] == "pairs" and found["layout"] == "trl_explicit" and found["pairs"] == 8
    assert (
        found["accuracy"] == pytest.approx(5 / 8)
        and found["accuracy_ci"][0] < 5 / 8 < found["accuracy_ci"][1]
    )
    assert {name: part["accuracy"] for name, part in found["subsets"].items()} == {
        "math-prm": 0.75,
        "hep-go": 1.0,
        "mt-bench-easy": 0.0,
    }
    assert found["sections"] == {"Chat": 0.0, "Reasoning": 0.875, "average": 0.4375}
    p = torch.tensor(1.0 / 2).sigmoid()
    assert found["loss"] == pytest.approx(float(-(5 * p.log() + 3 * (1 - p).log()) / 8), abs=1e-6)
    assert sum(part["n"] for part in found["bins"]) == 8 and found["bins"][0]["p"] == pytest.approx(
        float(p)
    )
    raw = torch.tensor(
        0.5
    ).sigmoid()  # a normalized difference of 1 is one of 0.5 before normalization
    assert found["ece_raw"] == pytest.approx(
        expected_calibration_error(raw.repeat(8), torch.tensor([1.0] * 5 + [0.0] * 3)), abs=1e-6
    )
    # The longer response is chosen where the model is wrong.
    assert found["length"]["always the longer"] == found["longer"] == pytest.approx(3 / 8)


def test_reasoning_weighs_maths_like_all_code_and_a_section_weighs_pairs() -> None:
    assert sections({"math-prm": (0.5, 447), "hep-go": (1.0, 100), "hep-js": (0.0, 300)})[
        "Reasoning"
    ] == pytest.approx(0.375)
    assert sections({"donotanswer": (1.0, 1), "xstest-should-refuse": (0.0, 3)}) == {
        "Safety": 0.25,
        "average": 0.25,
    }
    assert sections({"my own": (1.0, 5)}) == {}
    assert (
        sections({"llmbar-natural": (1.0, 5), "my own": (1.0, 5)}) == {}
    )  # a collection that shares a name
    assert sum(map(len, SECTIONS.values())) == 23  # as published


def test_human_judgments_keep_every_vote_and_say_how_far_people_agree(
    tmp_path: Path, by_words: Any, reading: FileReading
) -> None:
    def row(i: int, votes: list[str], source: str) -> dict[str, Any]:
        return {
            "id": f"{i}",
            "source": source,
            "prompt": f"q{i}",
            "response_a": "good",
            "response_b": "a long and bad one",
            "human": votes,
        }

    rows = [
        row(0, ["a", "a", "a"], "one"),
        row(1, ["a", "a", "b"], "one"),
        row(2, ["b"], "two"),
        row(3, ["tie"], "two"),
        row(4, ["a"], "two"),
    ]
    path = write(tmp_path / "human.jsonl", rows)
    assert detect_layout(path) == "judgments"
    assert [len(c.votes) for c in load_comparisons(path).records] == [3, 3, 1, 1, 1]
    found = evaluate_file(by_words, path, reading)
    one, two = found["subsets"]["one"], found["subsets"]["two"]
    assert (
        one["accuracy"] == 1.0
        and one["agreement"] == pytest.approx((1 + 2 / 3) / 2)
        and one["longer"] == pytest.approx(1 / 6)
    )
    assert one["people"] == pytest.approx((1 + 1 / 3) / 2) and two["people"] is None
    assert two["accuracy"] == 0.5 and two["agreement"] == pytest.approx(
        (0 + 0.5 + 1) / 3
    )  # the tie is a coin, and no majority


@pytest.mark.parametrize(
    "how",
    [
        lambda good, bad: {"chosen": good, "rejected": bad},
        lambda good, bad: {
            "responses": bad + good,
            "best": [len(bad) + i for i in range(len(good))],
        },
        lambda good, bad: {"responses": good + bad, "scores": [2.0] * len(good) + [0.5] * len(bad)},
    ],
)
def test_best_of_n_in_each_form(
    how: Any, tmp_path: Path, by_words: Any, reading: FileReading
) -> None:
    bad = ["bad", "worse", "very bad one"]
    rows = [
        {"prompt": "q0", **how(["good good"], bad), "subset": "easy"},
        {"prompt": "q1", **how(["nothing"], ["good", *bad[1:]]), "subset": "easy"},
        {"prompt": "q2", **how(["good good", "nice"], bad), "subset": "ties"},
        {"prompt": "q3", **how(["good", "great"], bad), "subset": "ties"},
    ]
    path = write(tmp_path / "best.jsonl", rows)
    assert detect_layout(path) == "best_of" and load_best_of(path).count == 4
    found = evaluate_file(by_words, path, reading)
    assert found["kind"] == "best_of" and found["prompts"] == 4 and found["accuracy"] == 0.75
    assert (
        found["subsets"]["easy"]["accuracy"] == 0.5 and found["subsets"]["easy"]["random"] == 0.25
    )
    ties = found["subsets"]["ties"]
    assert (
        ties["accuracy"] == 1.0
    )  # 'nice' scores like the bad ones: a good one is on top, but they are not all above
    assert ties["separated"] == 0.75 and ties["random"] == pytest.approx(0.4)


def test_a_best_of_file_also_gives_every_pair(tmp_path: Path) -> None:
    path = write(
        tmp_path / "best.jsonl",
        [{"id": "x", "prompt": "q", "chosen": ["a", "b"], "rejected": ["c", "d"]}],
    )
    found = load_comparisons(path).records
    assert [c.id for c in found] == ["x/0-2", "x/0-3", "x/1-2", "x/1-3"]
    assert all(c.votes[0].choice == 0 for c in found)


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"prompt": "q", "responses": ["a", "b"], "best": [0, 1]}, "best"),
        ({"prompt": "q", "responses": ["a", "b"], "best": 2}, "best"),
        ({"prompt": "q", "responses": ["a", "b"], "best": "a"}, "best"),
        ({"prompt": "q", "responses": ["a", "b"], "scores": [1]}, "scores"),
        ({"prompt": "q", "responses": ["a", 3], "best": 0}, r"responses\.1"),
        ({"prompt": "q", "response_a": "x", "response_b": "y", "human": ["c"]}, r"human\.0"),
        ({"prompt": "q", "response_a": "x", "response_b": "x ", "label": "a"}, "response_b"),
    ],
)
def test_bad_rows_are_named_by_field(row: dict[str, Any], field: str, tmp_path: Path) -> None:
    path = write(tmp_path / "bad.jsonl", [row])
    with pytest.raises(DataError, match=rf"row 1, field '{field}'"):
        (load_best_of if "responses" in row else load_comparisons)(path)


def test_an_interval_knows_that_pairs_of_one_prompt_are_one_piece_of_evidence() -> None:
    draw = random.Random(0)
    right = [draw.random() < 0.7 for _ in range(30)]
    margin = torch.tensor([1.0 if r else -1.0 for r in right])
    alone = PairMetrics(
        margin, torch.ones(30), torch.zeros(30), [str(i) for i in range(30)]
    ).measured(1.0, 1.0)
    tenfold = PairMetrics(
        margin.repeat(10), torch.ones(300), torch.zeros(300), [str(i) for i in range(30)] * 10
    ).measured(1.0, 1.0)
    width = [m["accuracy_ci"][1] - m["accuracy_ci"][0] for m in (alone, tenfold)]
    assert width[1] == pytest.approx(width[0], rel=0.1) and tenfold["pairs"] == 300


def test_the_curve_of_a_calibrated_model_lies_on_the_diagonal() -> None:
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(20000, generator=generator)
    label = (torch.rand(20000, generator=generator) < p).float()
    bins = calibration_bins(p, label)
    assert len(bins) == 10 and all(
        abs(stated - share) < 0.04 and n == 2000 for stated, share, n in bins
    )
    assert bins[0][0] >= 0.5 and calibration_bins(p[:0], label[:0]) == []


SIX = [
    {
        "id": f"e{i}",
        "prompt": f"{'train' if i < 2 else 'new'} question {i}",
        "chosen": f"good {i}",
        "rejected": "bad",
    }
    for i in range(6)
]
"""Pairs of which the first two have prompts of the training set."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A run with a reward model trained on eight questions."""
    folder = tmp_path_factory.mktemp("trained")
    rows = [
        Comparison(
            str(i),
            [Message("user", f"train question {i}")],
            [Response(f"good {i}"), Response(f"bad {i}")],
            [Vote("a", 0)],
        )
        for i in range(8)
    ]
    write_jsonl(folder / "pairs.jsonl", rows)
    config = BackboneConfig(
        model=str(tiny_folder), precision="fp32", max_length=64, adapter=AdapterConfig(r=4, alpha=8)
    )
    runtime = Runtime(config, output=folder / "runs")
    comparisons = Label(
        LabelConfig(source="file"), DataConfig(comparisons=folder / "pairs.jsonl")
    ).run(runtime)
    settings = RewardConfig(
        members=2, batch_pairs=4, holdout=0.25, optim=OptimConfig(learning_rate=1e-2)
    )
    reward = RewardModel(settings, from_sft=False).run(runtime, comparisons=comparisons)
    tested = RewardTest(DataConfig(reward_tests=[folder / "pairs.jsonl"])).run(
        runtime, reward=reward
    )
    place = folder / "runs" / "t" / "artifacts"
    place.mkdir(parents=True)
    for slot, artifact in (
        ("comparisons", comparisons),
        ("reward", reward),
        ("reward-test", tested),
    ):
        link(place / slot, artifact.path)
    return folder / "runs" / "t"


def test_the_command_measures_names_overlap_and_agrees_with_the_stage(
    trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "eval.jsonl", SIX)
    pairs = trained.parents[1] / "pairs.jsonl"
    assert guarded(cli, ["reward", "eval", str(trained), str(path), str(pairs)]) == 0
    found = read_sealed(trained / "reward-eval.json")
    assert set(found) == {"eval.jsonl", "pairs.jsonl"} and found["eval.jsonl"]["pairs"] == 6
    same = found["eval.jsonl"]["overlap"]
    assert (
        same["overlapping"] == 2
        and [m["id"] for m in same["matches"]] == ["e0", "e1"]
        and same["left_out"] is False
    )
    assert found["pairs.jsonl"]["overlap"]["overlapping"] == 8
    shown = capfd.readouterr().out
    assert "2 of 6 prompts are in the training set: e0 (as 0), e1 (as 1)" in shown
    stage = json.loads((trained / "artifacts" / "reward-test" / "tests.json").read_text())[
        "pairs.jsonl"
    ]
    here = {k: v for k, v in found["pairs.jsonl"].items() if k not in ("overlap", "reward")}
    key = json.loads((trained / "artifacts" / "reward" / "manifest.json").read_text())["key"]
    assert {test["reward"] for test in found.values()} == {key}
    assert here == stage and stage["member_spread"] > 0


def test_an_exported_reward_model_is_measured_as_the_runs_own(
    trained: Path, tmp_path: Path
) -> None:
    folder, pairs = (
        export(f"{trained}:reward", tmp_path / "exported"),
        str(trained.parents[1] / "pairs.jsonl"),
    )
    for place, out in ((trained, "run.json"), (folder, "export.json")):
        assert (
            guarded(cli, ["reward", "eval", str(place), pairs, "--output", str(tmp_path / out)])
            == 0
        )
    own, exported = (
        json.loads((tmp_path / out).read_text())["pairs.jsonl"]
        for out in ("run.json", "export.json")
    )
    assert exported == own | {"overlap": None}  # an export knows no training prompts


def test_overlapping_prompts_can_be_left_out(
    trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, out = write(tmp_path / "eval.jsonl", SIX), tmp_path / "out.json"
    assert (
        guarded(
            cli, ["reward", "eval", str(trained), str(path), "--drop-overlap", "--output", str(out)]
        )
        == 0
    )
    assert json.loads(out.read_text())["eval.jsonl"]["pairs"] == 4
    write(path, SIX[:2])
    assert (
        guarded(
            cli, ["reward", "eval", str(trained), str(path), "--drop-overlap", "--output", str(out)]
        )
        == 2
    )
    assert "all prompts are in the training set" in capfd.readouterr().err


def test_prompts_that_do_not_fit_stop_it_or_are_set_aside(
    trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    long = " ".join(["word"] * 100)
    pairs = [
        {"id": i, "prompt": p, "chosen": "good", "rejected": "bad"}
        for i, p in (("a", "short"), ("b", long))
    ]
    best = [
        {"id": r["id"], "prompt": r["prompt"], "chosen": ["good"], "rejected": ["bad", "no"]}
        for r in pairs
    ]
    for rows in (pairs, best):
        path, out, aside = (
            write(tmp_path / "long.jsonl", rows),
            tmp_path / "out.json",
            tmp_path / "aside",
        )
        assert guarded(cli, ["reward", "eval", str(trained), str(path), "--output", str(out)]) == 2
        said = capfd.readouterr().err
        assert "prompt 'b'" in said and "--quarantine" in said
        assert (
            guarded(
                cli,
                [
                    "reward",
                    "eval",
                    str(trained),
                    str(path),
                    "--output",
                    str(out),
                    "--quarantine",
                    str(aside),
                ],
            )
            == 0
        )
        assert json.loads(out.read_text())["long.jsonl"]["too_long"] == 1
        assert json.loads((aside / "0-long.jsonl.too-long.jsonl").read_text())["id"] == "b"
