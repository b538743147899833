"""Benchmarks and reward tests in a report, and which of them are of other adapters than the
run's.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import report_extras
import report_fixture
from report_page import Page, cells, full_fixture, part, report  # noqa: F401

from prefloop.artifacts.codec import read
from prefloop.errors import DataError
from prefloop.report import benchmarks, reward_model
from prefloop.report.compare import write_comparison
from prefloop.report.current import bench_of
from prefloop.report.evaluations import BenchFile
from prefloop.report.html import write_report
from prefloop.report.summary import Summary


def test_benchmarks_mark_what_changed_by_more_than_two_standard_errors(full: Page) -> None:
    rows = {row[0]: row[1:] for row in cells(part(full, "benchmarks"))}
    assert rows["hellaswag"] == [
        "acc_norm",
        "500",
        "0.4312",
        "± 0.0221",
        "0.4352",
        "± 0.0222",
        "0.3821",
        "± 0.0217",
        "+0.0040",
        "± 0.0061",
        "−0.0491",
        "± 0.0103",
    ]
    assert (
        "1 of 4 changes in this table is worse by more than two standard errors, 2 better."
        in full.text
    )
    found = benchmarks.section(read(BenchFile, report_extras.bench()))
    assert found is not None
    verdicts = [[change.verdict for change in row.differences] for row in found.rows]
    assert verdicts == [["", "worse"], ["better", "better"]]  # a lower perplexity is better
    assert "hunter2" not in full.source and "http://host/v1" in found.settings["model_args/address"]


def with_files(folder: Path, bench: dict[str, Any], tests: dict[str, Any]) -> Page:
    data = report_fixture.summary()
    (folder / "bench.json").write_text(json.dumps(bench), encoding="utf-8")
    (folder / "reward-eval.json").write_text(json.dumps(tests), encoding="utf-8")
    return report(report_fixture.write_run(folder, data, []))


def test_benchmarks_and_reward_tests_of_adapters_that_were_trained_anew_are_left_out(
    tmp_path: Path,
) -> None:
    keys = {stage["name"]: stage["key"] for stage in report_fixture.summary()["stages"]}
    tests = report_extras.reward_eval()
    now = {"base": "any", "sft": keys["sft"], "ppo": keys["ppo"]}
    page = with_files(
        tmp_path,
        report_extras.bench() | {"adapters": now},
        {n: t | {"reward": keys["reward"]} for n, t in tests.items()},
    )
    assert "left out" not in page.text and [r[0] for r in cells(part(page, "benchmarks"))][1:2] == [
        "hellaswag"
    ]
    page = with_files(
        tmp_path,
        report_extras.bench() | {"adapters": now | {"ppo": "older"}},
        {
            name: test | {"reward": "older" if name.startswith("help") else keys["reward"]}
            for name, test in tests.items()
        },
    )
    row = next(row for row in cells(part(page, "benchmarks")) if row[0] == "hellaswag")
    assert row == [
        "hellaswag",
        "acc_norm",
        "500",
        "0.4312",
        "± 0.0221",
        "0.4352",
        "± 0.0222",
        "+0.0040",
        "± 0.0061",
    ]
    assert "bench.json was measured on another PPO than this run's: left out." in page.text
    assert (
        "reward-eval.json holds helpful_test.jsonl.gz of another reward model than this run's"
        in page.text
    )
    assert [row[0] for row in cells(part(page, "reward-model"))][1:] == ["other"]
    page = with_files(
        tmp_path, report_extras.bench() | {"adapters": {"base": "any", "sft": "a", "ppo": "b"}}, {}
    )
    assert "another SFT and PPO" in page.text and 'id="benchmarks"' not in page.source


def test_without_stages_the_linked_artifact_says_what_the_adapter_is_now(tmp_path: Path) -> None:
    report_extras.write_artifact(tmp_path, "ppo", "new", "none.jsonl", [])
    (tmp_path / "bench.json").write_text(
        json.dumps(report_extras.bench() | {"adapters": {"ppo": "old"}}), encoding="utf-8"
    )
    assert bench_of(tmp_path, Summary())[0] is None
    (tmp_path / "bench.json").write_text(
        json.dumps(report_extras.bench() | {"adapters": {"ppo": "new"}}), encoding="utf-8"
    )
    found, notes = bench_of(tmp_path, Summary())
    assert found is not None and "ppo" in found.tasks["hellaswag"].adapters and not notes
    rounds = read(
        Summary, {"stages": [{"name": "ppo", "key": "old"}, {"name": "ppo-2", "key": "new"}]}
    )
    assert not bench_of(tmp_path, rounds)[1]  # the last round is what fills the slot


def test_a_task_shows_its_further_metrics_and_a_test_its_prompts_seen_in_training(
    tmp_path: Path,
) -> None:
    bench, tests = report_extras.bench(), report_extras.reward_eval()
    bench["tasks"]["hellaswag"]["more"] = [
        {
            "metric": "acc",
            "higher_is_better": True,
            "adapters": {"ppo": {"value": 0.29, "stderr": 0.01, "n": 250}},
            "difference": {"ppo": {"value": -0.2, "stderr": 0.01}},
        }
    ]
    match = {"id": "e0", "train_id": "t7", "kind": "prompt"}
    tests["other.jsonl"]["overlap"] = {
        "prompts": 6,
        "overlapping": 1,
        "matches": [match],
        "left_out": False,
    }
    tests["helpful_test.jsonl.gz"]["overlap"] = {"prompts": 500, "overlapping": 0, "matches": []}
    page = with_files(tmp_path, bench, tests)
    rows = cells(part(page, "benchmarks"))
    after = rows[[row[0] for row in rows].index("hellaswag") + 1]
    assert after[:2] == ["", "acc"] and "0.2900" in after and "−0.2000" in after
    assert (
        after[2] == "250" and "2 of 5 changes in this table are worse" in page.text
    )  # every row counts
    assert "The first metric of a task is its main one." in page.text
    assert (
        "other: 1 of 6 prompts are in the training set and counted in all the same: e0 (as t7,"
        " prompt)" in page.text
    )
    assert "helpful_test: none of 500 prompts is in the training set" in page.text
    other = report_fixture.write_run(tmp_path / "b", rows=[])
    write_comparison([tmp_path, other], tmp_path / "c.html")
    compared = cells(part(Page((tmp_path / "c.html").read_text(encoding="utf-8")), "benchmarks"))
    assert [row[:4] for row in compared if row[0] == "hellaswag" and row[2] == "PPO"] == [
        ["hellaswag", "acc_norm", "PPO", "500"],
        ["hellaswag", "acc", "PPO", "250"],
    ]


def test_reward_tests_hold_accuracy_calibration_and_length_and_bear_absent_fields(
    full: Page,
) -> None:
    source = part(full, "reward-model")
    tests, lengths = (cells(table) for table in source.split("<table")[1:])
    rows = {row[0]: row[1:] for row in tests}
    assert rows["helpful_test"] == ["500", "68.8", "[64.7, 72.7]", "0.591", "3.1", "11.8", "56.1"]
    assert lengths[1] == ["helpful_test", "49.0", "of 91", "83.0", "of 140"]
    assert rows["coding"][:2] == ["120", "61.0"] and rows["other"][:3] == ["–", "50.0", ""]
    assert (
        source.count("<svg ") == 1
        and "stated probability of the preferred response (%)</text>" in source
    )
    assert "Calibration error: before temperature 11.8 %, after 3.1 %." in source


def test_a_temperature_that_does_not_help_is_said_with_the_pairs_that_it_rests_on() -> None:
    data = report_fixture.summary()
    stage = next(stage for stage in data["stages"] if stage["name"] == "reward")
    said = []
    for pairs, before, after in ((36, 0.118, 0.15), (4000, 0.118, 0.15), (36, 0.118, 0.05)):
        stage["metrics"] = {"ece": before, "calibrated_ece": after}
        data["reward_model"]["held_out_pairs"] = pairs
        found = reward_model.section(read(Summary, data), {})
        assert found is not None
        said.append(found.note)
    assert (
        "does not lower the calibration error on 36 held-out pairs: under 1,000 pairs are few"
        in said[0]
    )
    assert "on 4,000 held-out pairs. Each half" in said[1] and said[2] == ""


def test_finished_is_explained_where_it_stands(full: Page, tmp_path: Path) -> None:
    said = "Finished: responses that the policy ended by itself, before the token limit."
    assert cells(part(full, "results"))[0][-1].startswith("Finished") and said in full.text
    data = report_fixture.summary()
    for result in data["results"].values():
        del result["finished_share"]
    assert "Finished" not in report(tmp_path, data).text


def test_reward_tests_of_the_pipeline_stand_beside_those_of_the_command() -> None:
    data = report_fixture.summary()
    data["stages"].append(
        {"name": "reward-test", "metrics": {"tests": {"held.jsonl": {"pairs": 9, "accuracy": 0.6}}}}
    )
    found = reward_model.section(read(Summary, data), {})
    assert found is not None and [
        (row.name, row.pairs, row.accuracy.value) for row in found.rows
    ] == [("held", "9", "60.0")]


def test_a_wrong_field_in_a_file_beside_the_summary_is_named_with_the_file(tmp_path: Path) -> None:
    folder = report_fixture.write_run(tmp_path, rows=[])
    (folder / "bench.json").write_text(
        '{"tasks": {"piqa": {"adapters": {"sft": {"value": "high"}}}}}', encoding="utf-8"
    )
    with pytest.raises(
        DataError, match=r"bench\.json: field 'tasks\.piqa\.adapters\.sft\.value'.*found 'high'"
    ):
        write_report(folder)
    (folder / "bench.json").unlink()
    (folder / "reward-eval.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match=r"reward-eval\.json: damaged, not valid JSON"):
        write_report(folder)
