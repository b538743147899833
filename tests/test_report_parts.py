"""The parts of a report that other commands and stages fill: judging, benchmarks, reward tests, conversations, settings."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import report_extras
import report_fixture
import yaml
from test_report import Page, report

from prefloop.errors import DataError
from prefloop.report import benchmarks, conversations, headline, results, reward_model, stages
from prefloop.report.compare import write_comparison
from prefloop.report.current import bench_of
from prefloop.report.evaluations import Bench
from prefloop.report.html import write_report
from prefloop.report.schema import Summary


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Page:
    folder = report_extras.write_everything(tmp_path_factory.mktemp("run"))
    return Page(write_report(folder).read_text(encoding="utf-8"))


def part(page: Page, id: str) -> str:
    """Source of one section."""
    return page.source.split(f'<section id="{id}">')[1].split("</section>")[0]


def cells(source: str) -> list[list[str]]:
    """The text of every cell, row by row."""
    rows = re.findall(r"<tr.*?</tr>", source, re.DOTALL)
    return [
        [re.sub(r"<[^>]+>", " ", cell).strip() for cell in re.findall(r"<t[dh].*?</t[dh]>", row, re.DOTALL)]
        for row in rows
    ]


def test_every_link_of_the_bar_leads_to_a_section_of_the_page(full: Page) -> None:
    ids = {attributes.get("id") for attributes in full.all("section")}
    links = [attributes["href"] for attributes in full.all("a")]
    assert len(links) == 13 - 1 and {str(link)[1:] for link in links} <= ids


def test_results_hold_the_llm_judge_and_its_length_controlled_rate(full: Page) -> None:
    row = next(row for row in cells(part(full, "results")) if row[0] == "PPO")
    assert row[1:11] == [
        "0.681", "[0.655, 0.707]", "78.1", "[72.0, 83.4]", "64.1", "[57.2, 70.6]", "60.3", "[53.3, 67.3]", "91.3",
        "[87.4, 94.5]",
    ]  # fmt: skip


def test_the_figures_of_the_best_policy_name_every_judge_kl_and_what_it_cost() -> None:
    found = headline.headline(Summary.model_validate(report_extras.judged()))
    assert found is not None and found.best == "ppo"
    assert [(tile.title, tile.value, tile.note) for tile in found.tiles] == [
        ("win rate, gold scorer", "78.1 %", "[72.0, 83.4]"), ("win rate, judge judge-7b", "64.1 %", "[57.2, 70.6]"),
        ("length-controlled, judge-7b", "60.3 %", "[53.3, 67.3]"), ("win rate, reward model", "91.3 %", "[87.4, 94.5]"),
        ("KL to SFT", "21.74 nats", "[20.30, 23.20]"), ("training", "5\xa0min\xa019\xa0s", ""),
        ("whole run", "8\xa0min\xa032\xa0s", "2\xa0min\xa034\xa0s saved"),
    ]  # fmt: skip


def test_the_llm_judge_leads_where_no_gold_was_run_and_judges_that_disagree_are_called_out() -> None:
    data = report_extras.judged()
    data["results"]["ppo"] |= {"llm_win_rate": 0.38, "llm_ci_low": 0.32, "llm_ci_high": 0.44}
    found = headline.headline(Summary.model_validate(data))
    assert found is not None and any("The judges disagree about PPO: it wins 78.1 %" in text for text in found.cautions)
    for result in data["results"].values():
        result["win_rate_vs_sft"] = None
    found = headline.headline(Summary.model_validate(data))
    assert found is not None
    assert found.sentence.striptags() == (
        "DPO beats SFT in 58.7 % [51.6, 65.5] of comparisons under the judge judge-7b; PPO loses to SFT, winning only 38.0 % [32.0, 44.0]."
    )


def test_numbers_carry_the_name_of_the_judge_that_gave_them() -> None:
    data = report_fixture.summary()
    data["results"]["ppo"] |= {"lc_judge": "gold scorer", "lc_win_rate": 0.6, "sign_test_p": 0.01}
    summary = Summary.model_validate(data)
    units = {(column.title, column.unit) for column in results.results_table(summary)[0]}
    assert ("Length-controlled", "%, gold scorer") in units and not any("judge" in unit for _, unit in units)
    assert results.judging(summary) == [("PPO: sign test against SFT, gold scorer", "p = 0.01")]


def test_a_reward_model_that_was_asked_to_judge_is_named_and_warned_of() -> None:
    data = report_extras.judged()
    for result in data["results"].values():
        result |= {"win_rate_vs_sft": None, "llm_judge": "reward:demo"}
    found = headline.headline(Summary.model_validate(data))
    assert found is not None and "under the judge reward:demo" in found.sentence
    assert any("the judge, reward:demo, is a reward model" in text for text in found.cautions)
    columns, _ = results.results_table(Summary.model_validate(data))
    assert "%, judge reward:demo" in [column.unit for column in columns]


def test_the_matrix_stands_best_first_with_intervals_and_elo(full: Page) -> None:
    rows = cells(part(full, "matrix"))
    assert rows[0] == ["Wins of %, against", "PPO", "DPO", "SFT", "Elo"]
    assert [row[0] for row in rows[1:]] == ["PPO", "DPO", "SFT"]
    assert [" ".join(cell.split()) for cell in rows[1][1:]] == [
        "–",
        "54.7 [47.8, 61.6]",
        "64.1 [57.2, 70.6]",
        "1041",
        "[1012, 1071]",
    ]
    assert [" ".join(cell.split()) for cell in rows[3][1:3]] == ["35.9 [29.4, 42.8]", "41.3 [34.5, 48.4]"]


def test_what_judging_took_and_prompts_seen_in_training_are_told(full: Page) -> None:
    found = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", part(full, "judging")))
    assert (
        found["requests"] == "960"
        and found["tokens"] == "412,330 read, 9,812 written"
        and found["unparsable answers"] == "5"
    )
    assert (
        found["first shown wins"] == "56.2 % [53.1, 59.3]"
        and found["PPO: sign test against SFT, judge-7b"] == "p = 0.0031"
    )
    assert (
        "2 evaluation prompts were seen in training" in full.text
        and '<li dir="auto">Name three rivers.</li>' in full.source
    )


def test_benchmarks_mark_what_changed_by_more_than_two_standard_errors(full: Page) -> None:
    rows = {row[0]: row[1:] for row in cells(part(full, "benchmarks"))}
    assert rows["hellaswag"] == [
        "acc_norm", "0.4312", "± 0.0221", "0.4352", "± 0.0222", "0.3821", "± 0.0217", "+0.0040", "± 0.0061", "−0.0491", "± 0.0103",
    ]  # fmt: skip
    assert "1 of 4 changes is worse by more than two standard errors, 2 better." in full.text
    found = benchmarks.section(Bench.model_validate(report_extras.bench()))
    assert found is not None
    verdicts = [[change.verdict for change in row.differences] for row in found.rows]
    assert verdicts == [["", "worse"], ["better", "better"]]  # a lower perplexity is better
    assert "hunter2" not in full.source and "http://host/v1" in found.settings["model_args/address"]


def with_files(folder: Path, bench: dict[str, Any], tests: dict[str, Any]) -> Page:
    data = report_fixture.summary()
    (folder / "bench.json").write_text(json.dumps(bench), encoding="utf-8")
    (folder / "reward-eval.json").write_text(json.dumps(tests), encoding="utf-8")
    return report(report_fixture.write_run(folder, data, []))


def test_benchmarks_and_reward_tests_of_adapters_that_were_trained_anew_are_left_out(tmp_path: Path) -> None:
    keys = {stage["name"]: stage["key"] for stage in report_fixture.summary()["stages"]}
    tests = report_extras.reward_eval()
    now = {"base": "any", "sft": keys["sft"], "ppo": keys["ppo"]}
    page = with_files(
        tmp_path,
        report_extras.bench() | {"adapters": now},
        {n: t | {"reward": keys["reward"]} for n, t in tests.items()},
    )
    assert "left out" not in page.text and [r[0] for r in cells(part(page, "benchmarks"))][1:2] == ["hellaswag"]
    page = with_files(
        tmp_path,
        report_extras.bench() | {"adapters": now | {"ppo": "older"}},
        {
            name: test | {"reward": "older" if name.startswith("help") else keys["reward"]}
            for name, test in tests.items()
        },
    )
    row = next(row for row in cells(part(page, "benchmarks")) if row[0] == "hellaswag")
    assert row == ["hellaswag", "acc_norm", "0.4312", "± 0.0221", "0.4352", "± 0.0222", "+0.0040", "± 0.0061"]
    assert "bench.json was measured on another PPO than this run's: left out." in page.text
    assert "reward-eval.json holds helpful_test.jsonl.gz of another reward model than this run's" in page.text
    assert [row[0] for row in cells(part(page, "reward-model"))][1:] == ["other"]
    page = with_files(tmp_path, report_extras.bench() | {"adapters": {"base": "any", "sft": "a", "ppo": "b"}}, {})
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
    rounds = Summary.model_validate({"stages": [{"name": "ppo", "key": "old"}, {"name": "ppo-2", "key": "new"}]})
    assert not bench_of(tmp_path, rounds)[1]  # the last round is what fills the slot


def test_a_task_shows_its_further_metrics_and_a_test_its_prompts_seen_in_training(tmp_path: Path) -> None:
    bench, tests = report_extras.bench(), report_extras.reward_eval()
    bench["tasks"]["hellaswag"]["more"] = [
        {"metric": "acc", "higher_is_better": True, "adapters": {"ppo": {"value": 0.29, "stderr": 0.01}},
         "difference": {"ppo": {"value": -0.2, "stderr": 0.01}}}
    ]  # fmt: skip
    match = {"id": "e0", "train_id": "t7", "kind": "prompt"}
    tests["other.jsonl"]["overlap"] = {"prompts": 6, "overlapping": 1, "matches": [match], "left_out": False}
    tests["helpful_test.jsonl.gz"]["overlap"] = {"prompts": 500, "overlapping": 0, "matches": []}
    page = with_files(tmp_path, bench, tests)
    rows = cells(part(page, "benchmarks"))
    after = rows[[row[0] for row in rows].index("hellaswag") + 1]
    assert after[:2] == ["", "acc"] and "0.2900" in after and "−0.2000" in after
    assert "1 of 4 changes is worse" in page.text  # a task counts once
    assert "other: 1 of 6 prompts are in the training set and counted in all the same: e0 (as t7, prompt)" in page.text
    assert "helpful_test: none of 500 prompts is in the training set" in page.text
    other = report_fixture.write_run(tmp_path / "b", rows=[])
    write_comparison([tmp_path, other], tmp_path / "c.html")
    assert "hellaswag, acc" in (tmp_path / "c.html").read_text(encoding="utf-8")


def test_reward_tests_hold_accuracy_calibration_and_length_and_bear_absent_fields(full: Page) -> None:
    source = part(full, "reward-model")
    tests, lengths = (cells(table) for table in source.split("<table")[1:])
    rows = {row[0]: row[1:] for row in tests}
    assert rows["helpful_test"] == ["500", "68.8", "[64.7, 72.7]", "0.591", "3.1", "11.8", "56.1"]
    assert lengths[1] == ["helpful_test", "49.0", "of 91", "83.0", "of 140"]
    assert rows["coding"][:2] == ["120", "61.0"] and rows["other"][:3] == ["–", "50.0", ""]
    assert source.count("<svg ") == 1 and "stated probability of the preferred response (%)</text>" in source
    assert "Calibration error: before temperature 11.8 %, after 3.1 %." in source


def test_reward_tests_of_the_pipeline_stand_beside_those_of_the_command() -> None:
    data = report_fixture.summary()
    data["stages"].append({"name": "reward-test", "metrics": {"tests": {"held.jsonl": {"pairs": 9, "accuracy": 0.6}}}})
    found = reward_model.section(Summary.model_validate(data), {})
    assert found is not None and [(row.name, row.pairs, row.accuracy.value) for row in found.rows] == [
        ("held", "9", "60.0")
    ]


def test_a_wrong_field_in_a_file_beside_the_summary_is_named_with_the_file(tmp_path: Path) -> None:
    folder = report_fixture.write_run(tmp_path, rows=[])
    (folder / "bench.json").write_text(
        '{"tasks": {"piqa": {"adapters": {"sft": {"value": "high"}}}}}', encoding="utf-8"
    )
    with pytest.raises(DataError, match=r"bench\.json: field 'tasks\.piqa\.adapters\.sft\.value'.*found 'high'"):
        write_report(folder)
    (folder / "bench.json").unlink()
    (folder / "reward-eval.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match=r"reward-eval\.json: not valid JSON"):
        write_report(folder)


def test_what_runs_side_by_side_stands_in_one_column_of_the_picture() -> None:
    names = [
        "sft",
        "sample",
        "label",
        "reward",
        "reference",
        "dpo",
        "ppo",
        "sample-2",
        "ppo-2",
        "respond-sft",
        "respond-sft-again",
        "respond-ppo",
        "judge",
    ]
    summary = Summary.model_validate({"stages": [{"name": name, "seconds": 61} for name in names]})
    assert [[box.name for box in column] for column in stages.picture(summary)] == [
        ["SFT"], ["Sample"], ["Label"], ["Reward model"], ["Reference"], ["DPO", "PPO"], ["Sample, round 2"],
        ["PPO, round 2"], ["SFT answers", "SFT answers, again", "PPO answers"], ["Judge"],
    ]  # fmt: skip


def test_a_box_says_what_came_out_and_what_reuse_spared() -> None:
    stage = {
        "name": "label",
        "status": "reused",
        "seconds": 0.0,
        "saved_seconds": 71.2,
        "metrics": {"comparisons": 1720},
    }
    [[box]] = stages.picture(Summary.model_validate({"stages": [stage]}))
    assert (box.figure, box.status, box.time) == ("1,720 comparisons", "reused", "saved\xa01\xa0min\xa011\xa0s")


def test_conversations_hold_every_evaluation_prompt_with_both_scores(full: Page) -> None:
    source = part(full, "conversations")
    assert source.count('<article class="talk">') == report_extras.PROMPTS
    assert f"{report_extras.PROMPTS} prompts, with the first of 2 responses of every policy." in source
    assert f"{report_extras.PROMPTS - conversations.OPEN} more prompts" in source  # closed, but there without a script
    assert (
        'data-policy="ppo" data-gold="0.448" data-reward=' in source and source.count("cut at the token limit") == 3 * 6
    )


def test_responses_of_another_run_behind_a_link_are_not_shown(tmp_path: Path) -> None:
    data = report_fixture.summary()
    report_extras.write_responses(tmp_path, data)
    for stage in data["stages"]:
        stage["key"] = stage["key"].replace("key-ppo", "newer")
    shown = report(tmp_path, data, [])
    assert "sft-0" in shown.text and "ppo-0" not in shown.text


def test_few_samples_of_the_summary_stand_in_for_artifacts_that_are_gone(tmp_path: Path) -> None:
    shown = report(tmp_path, rows=[])
    assert len(shown.all("article")) == 3 and "3 prompts." in shown.text and "more prompts" not in shown.text


def test_prompts_and_characters_beyond_the_limit_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversations, "MOST_PROMPTS", 12)
    data = report_fixture.summary()
    report_extras.write_responses(tmp_path, data, ppo="x" * 5000)
    shown = report(tmp_path, data, [])
    assert shown.source.count('<article class="talk">') == 12 and "The first 12 of 30 evaluation prompts" in shown.text
    assert shown.source.count("x" * 4000) == 12 and "x" * 4001 not in shown.source
    assert "1,000 more characters are in" in shown.text


def test_a_torn_row_or_an_odd_one_costs_that_row_only(tmp_path: Path) -> None:
    data = report_fixture.summary()
    report_extras.write_responses(tmp_path, data)
    with (tmp_path / "artifacts/respond-sft/responses.jsonl").open("a", encoding="utf-8") as file:
        file.write('[1]\n{"id": "odd", "prompt": 7, "responses": "none"}\n{"id": "torn", "resp')
    assert "31 prompts" in report(tmp_path, data, []).text


def test_responses_while_the_policy_learns_stand_by_prompt_with_step_reward_and_kl(full: Page) -> None:
    source = part(full, "grown-1")
    assert full.headings.index("Responses while PPO learns") > full.headings.index("Conversations")
    assert "Prompt a?" in source and "<span>step 11</span><small>reward 1.10</small><small>KL 3.3</small>" in source
    assert source.count("answer a at") == 6


def test_prompts_that_training_saw_once_stand_by_step(tmp_path: Path) -> None:
    data = report_fixture.summary()
    rows = [{"step": step, "id": f"p{step}", "prompt": f"Prompt {step}?", "response": "yes"} for step in range(1, 31)]
    report_extras.write_artifact(tmp_path, "ppo", data["stages"][5]["key"], "samples.jsonl", rows)
    [(stage, groups)] = conversations.over_training(tmp_path, Summary.model_validate(data))
    assert (
        stage == "ppo"
        and [group.title for group in groups][:2] == ["Step 1", "Step 5"]
        and groups[-1].title == "Step 30"
    )
    assert groups[0].steps[0].prompt == "Prompt 1?"


def test_settings_are_printed_as_yaml_and_older_summaries_show_what_artifacts_were_made_from(
    full: Page, tmp_path: Path
) -> None:
    code = part(full, "settings").split("<code>")[2].split("</code>")[0]
    assert yaml.safe_load(code) == report_extras.judged()["config"]
    data = report_fixture.summary()
    report_extras.write_responses(tmp_path, data)
    shown = report(tmp_path, data, [])
    assert "The summary holds no settings" in shown.text and "samples: 2" in shown.text


def test_a_summary_of_an_older_version_with_null_for_new_parts_still_renders(tmp_path: Path) -> None:
    data = report_fixture.summary() | dict.fromkeys(("matrix", "judging", "contamination", "config"))
    assert "All against all" not in report(tmp_path, data, []).headings


def test_the_page_of_a_thousand_prompts_stays_small_and_is_one_file(tmp_path: Path) -> None:
    data = report_fixture.summary()
    report_extras.write_responses(tmp_path, data, prompts=1000)
    page = write_report(report_fixture.write_run(tmp_path, data, []))
    assert page.stat().st_size < 3_000_000 and page.read_text(encoding="utf-8").count("<article") == 1000
