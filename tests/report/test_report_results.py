"""Results in a report: which judge gave which number, where judges disagree, all against all, what
judging took.
"""

import re

import report_extras
import report_fixture
from report_fixture import estimate, level
from report_page import Page, cells, full_fixture, part  # noqa: F401

from prefloop.artifacts.codec import read
from prefloop.report import headline, results
from prefloop.report.html import render
from prefloop.report.summary import Summary


def test_results_hold_the_llm_judge_and_its_length_controlled_rate(full: Page) -> None:
    row = next(row for row in cells(part(full, "results")) if row[0] == "PPO")
    assert row[1:11] == [
        "0.681",
        "[0.655, 0.707]",
        "78.1",
        "[72.0, 83.4]",
        "64.1",
        "[57.2, 70.6]",
        "60.3",
        "[53.3, 67.3]",
        "91.3",
        "[87.4, 94.5]",
    ]


def test_the_figures_of_the_best_policy_name_every_judge_kl_and_what_it_cost() -> None:
    found = headline.headline(read(Summary, report_extras.judged()))
    assert found is not None and found.best == "ppo"
    assert [(tile.title, tile.value, tile.note) for tile in found.tiles] == [
        ("win rate, gold scorer", "78.1 %", "[72.0, 83.4]"),
        ("win rate, judge judge-7b", "64.1 %", "[57.2, 70.6]"),
        ("at equal length, judge-7b", "60.3 %", "[53.3, 67.3]"),
        ("win rate, reward model", "91.3 %", "[87.4, 94.5]"),
        ("KL to SFT", "21.74 nats", "[20.30, 23.20]"),
        ("training", "5\xa0min\xa019\xa0s", ""),
        ("whole run", "8\xa0min\xa032\xa0s", "2\xa0min\xa034\xa0s saved"),
    ]


def test_the_llm_judge_leads_where_no_gold_was_run_and_judges_that_disagree_are_called_out() -> (
    None
):
    data = report_extras.judged()
    data["results"]["ppo"]["wins"]["judge"] = estimate(0.38, 0.32, 0.44)
    found = headline.headline(read(Summary, data))
    assert found is not None and any(
        "The judges disagree about PPO: it wins 78.1 %" in text for text in found.cautions
    )
    for result in data["results"].values():
        result["wins"].pop("gold")
    found = headline.headline(read(Summary, data))
    assert found is not None
    assert (
        found.sentence.striptags()
        == "DPO beats SFT in 58.7 % [51.6, 65.5] of comparisons under the judge judge-7b; PPO loses"
        " to SFT, winning only 38.0 % [32.0, 44.0]."
    )


def test_numbers_carry_the_name_of_the_judge_that_gave_them() -> None:
    data = report_fixture.summary()
    data["results"]["ppo"] |= level("gold scorer", 0.6) | {"sign_test_p": 0.01}
    summary = read(Summary, data)
    units = {(column.title, column.unit) for column in results.results_table(summary)[0]}
    assert ("At equal length", "% (characters), gold scorer") in units and not any(
        "judge" in unit for _, unit in units
    )
    assert results.judging(summary) == [("PPO: sign test against SFT, gold scorer", "p = 0.01")]


def test_a_reward_model_that_was_asked_to_judge_is_named_and_warned_of() -> None:
    data = report_extras.judged()
    for result in data["results"].values():
        result["wins"].pop("gold")
        result["judge"] = "reward:demo"
    found = headline.headline(read(Summary, data))
    assert found is not None and "under the judge reward:demo" in found.sentence
    assert any("the judge, reward:demo, is a reward model" in text for text in found.cautions)
    columns, _ = results.results_table(read(Summary, data))
    assert "%, judge reward:demo" in [column.unit for column in columns]


def test_what_overlaps_is_shown_with_both_texts_and_only_what_was_seen_is_called_seen() -> None:
    data = report_fixture.summary()
    dishes = [
        {
            "id": "e1",
            "train_id": "t9",
            "kind": "13-gram",
            "text": "Guests like my soup <b>",
            "train_text": "Guests like my pie",
        }
    ]
    data["contamination"] = {"count": 0, "alike": 1, "examples": dishes}
    found = headline.headline(read(Summary, data))
    assert found is not None and not any("seen in training" in text for text in found.cautions)
    assert any(
        "1 evaluation prompt shares a turn or most of the wording" in text
        for text in found.cautions
    )
    page = render(read(Summary, data), {})
    assert (
        "e1: “Guests like my soup &lt;b&gt;”<br>shares most runs of 13 words with t9: “Guests like"
        " my pie”" in page
    )


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
    assert [" ".join(cell.split()) for cell in rows[3][1:3]] == [
        "35.9 [29.4, 42.8]",
        "41.3 [34.5, 48.4]",
    ]


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
        and '<li dir="auto">q2: “Name three rivers.” (as t-q2)</li>' in full.source
    )
